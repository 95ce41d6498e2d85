"""The responses of a record as one tree of tokens: the same losses and weights as rows of their own."""

from __future__ import annotations

import pytest
import torch
from openrlhf_runs import tensors


@pytest.fixture
def passes(host, monkeypatch, tmp_path):
    """What the forward passes of the last run had, trees or rows; the run is forked from this process."""
    from finepref.hosts.openrlhf import forward

    file, original = tmp_path / "passes", forward._pass

    def noted(actor, rows, outputs):
        with file.open("a") as lines:
            lines.write(type(rows).__name__ + "\n")
        return original(actor, rows, outputs)

    monkeypatch.setattr(forward, "_pass", noted)

    def read() -> list[str]:
        found = file.read_text().split()
        file.unlink()
        return found

    return read


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("selective", {"model__gradient_checkpointing_enable": True}),
        ("tdpo", {"OTHER": True}),
        ("tdpo", {"ds__lora__rank": 4}),
        ("kto", {}),
        ("dpo_pl", {"OTHER": True}),
    ],
    ids=str,
)
def test_trees_train_as_rows_of_their_own(train, passes, tmp_path, other_model, command, settings):
    if settings.pop("OTHER", False):
        settings["ref__model_name_or_path"] = other_model
    shared = train(command, ckpt__output_dir=tmp_path / "shared", **settings)
    of_shared = passes()
    alone = train(command, ckpt__output_dir=tmp_path / "alone", **{f"{command}__prefix_sharing": "off"}, **settings)
    assert (set(of_shared), set(passes())) == ({"Trees"}, {"Rows"})
    assert shared.log.keys() == alone.log.keys()
    for name in shared.log:
        if "grad_norm" in name or "loss" in name or "logps" in name:
            assert shared.log[name] == pytest.approx(alone.log[name], rel=1e-4, abs=1e-5), name
    for name, tensor in tensors(shared.folder).items():
        torch.testing.assert_close(tensor, tensors(alone.folder)[name], rtol=0, atol=1e-3, msg=name)
