"""A stage of another package, by its row and its method file alone, on OpenRLHF."""

from __future__ import annotations

import own_stage
import pytest
from plain_pairs import Plain
from sample_rows import span_rows


@pytest.mark.parametrize(
    "program",
    [("python", "-m", "openrlhf.cli.train_wsimpo"), ("python", "-m", "finepref.hosts.openrlhf.train", "wsimpo")],
    ids=["by its own name", "by its stage's name"],
)
def test_it_trains_with_the_loss_computed_without_finepref(command, tiny_model, tmp_path, program):
    done = command(
        *program,
        name="wsimpo",
        environment=own_stage.install(tmp_path),
        data__dataset="spans",
        train__batch_size=12,
        train__micro_batch_size=12,
        wsimpo__gamma=0.3,
    )
    assert done.code == 0, done.output[-3000:]
    expected = own_stage.first_loss(Plain(tiny_model), span_rows(), beta=2.0, gamma=0.3)
    assert done.log["train/loss_mean"][0] == pytest.approx(expected, abs=1e-5)
    assert done.receipt["stage"] == "wsimpo"
    of_every_stage = {
        "finepref_overlong": "host",
        "finepref_bad_rows": "error",
        "finepref_max_bad": "1%",
        "finepref_group_by_length": False,
        "finepref_resume_changed": False,
        "finepref_reference_cache": False,
        "finepref_full_logits": False,
    }
    assert done.receipt["settings"] == of_every_stage | {"wsimpo_beta": 2.0, "wsimpo_gamma": 0.3}
    assert done.receipt["ranks"][0]["loss_calls"] == done.receipt["expected_loss_calls"] == 1
