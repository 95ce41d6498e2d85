"""A training that was killed while it saved resumes from the checkpoint before, which is whole."""

from __future__ import annotations

import pytest
from finepref.pipelines import llamafactory


@pytest.mark.parametrize("state", [None, "", '{"global_step": 2'], ids=["not there", "empty", "cut"])
def test_a_checkpoint_without_its_whole_state_is_removed(tmp_path, state):
    for step, text in ((1, '{"global_step": 1}'), (2, state)):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "model.safetensors").write_bytes(b"weights")
        if text is not None:
            (checkpoint / "trainer_state.json").write_text(text)
    llamafactory._drop_torn_checkpoints(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint-1"]
