"""Every command line gives the losses of one process, whatever the processes, the ZeRO stage and the layout."""

from __future__ import annotations

import pytest
from openrlhf_runs import DATA

WAYS = [
    (1, {"ds__zero_stage": 3}),
    (2, {"ds__zero_stage": 2}),
    (2, {"ds__zero_stage": 3}),
    (1, {"ds__packing_samples": True}),
    (2, {"ds__packing_samples": True, "ds__zero_stage": 3}),
    (1, {"model__gradient_checkpointing_enable": True}),
    (
        2,
        {
            "model__gradient_checkpointing_enable": True,
            "model__gradient_checkpointing_reentrant": True,
            "ds__zero_stage": 3,
        },
    ),
    (1, {"ds__lora__rank": 4, "ds__lora__target_modules": "all-linear"}),
    (2, {"ds__lora__rank": 4, "ds__zero_stage": 2, "model__gradient_checkpointing_enable": True}),
]
MORE = {
    "selective": [
        (2, {"ds__zero_stage": 3, "selective__full_logits": True}),
        (1, {"ds__packing_samples": True, "selective__full_logits": True}),
    ]
}
FEWER = {"dpo_pl": [WAYS[2], WAYS[4], WAYS[8]]}  # the trainer and the forward passes are those of pairs
CELLS = [(name, *way) for name in sorted(DATA) for way in [*FEWER.get(name, WAYS), *MORE.get(name, [])]]
LONGER = {"train__max_epochs": 4}


@pytest.fixture(scope="module")
def of_one_process() -> dict:
    """(command line, LoRA or not) -> the losses of one process, ZeRO-2, padded."""
    return {}


@pytest.mark.parametrize(
    ("name", "processes", "settings"),
    CELLS,
    ids=lambda value: " ".join(value) if isinstance(value, dict) else str(value),
)
def test_every_way_of_running_it_gives_the_losses_of_one_process(
    train, tmp_path, of_one_process, name, processes, settings
):
    lora = {key: value for key, value in settings.items() if "lora" in key}
    if (name, bool(lora)) not in of_one_process:
        plain = train(name, ckpt__output_dir=tmp_path / "one", **LONGER, **lora)
        of_one_process[name, bool(lora)] = plain.log["train/loss_mean"]
    expected = of_one_process[name, bool(lora)]
    done = train(name, processes=processes, ckpt__output_dir=tmp_path / "other", **LONGER, **settings)
    assert done.log["train/loss_mean"] == pytest.approx(expected, abs=1e-4)
    assert done.log["train/loss_mean"][:1] == pytest.approx(expected[:1], abs=1e-5)
    assert [rank["loss_calls"] for rank in done.receipt["ranks"]] == [24 // processes] * processes


@pytest.mark.parametrize("name", sorted(DATA))
def test_four_processes_have_the_losses_of_one(train, tmp_path, of_one_process, name):
    expected = of_one_process.get((name, False))
    if expected is None:
        expected = train(name, ckpt__output_dir=tmp_path / "one", **LONGER).log["train/loss_mean"]
    settings = {"ds__zero_stage": 3, "train__micro_batch_size": 1}
    done = train(name, processes=4, ckpt__output_dir=tmp_path / "four", **LONGER, **settings)
    assert done.log["train/loss_mean"] == pytest.approx(expected, abs=1e-4)
    assert done.log["train/loss_mean"][:1] == pytest.approx(expected[:1], abs=1e-5)
    assert [rank["loss_calls"] for rank in done.receipt["ranks"]] == [12] * 4


@pytest.mark.parametrize("zero_stage", [2, 3])
@pytest.mark.parametrize("name", sorted(DATA))
def test_bf16_has_nearly_the_losses_of_float32(train, tmp_path, of_one_process, name, zero_stage):
    expected = of_one_process.get((name, False))
    if expected is None:
        expected = train(name, ckpt__output_dir=tmp_path / "one", **LONGER).log["train/loss_mean"]
    settings = {"ds__zero_stage": zero_stage, "ds__param_dtype": "bf16", "train__max_epochs": 1}
    found = train(name, processes=2, ckpt__output_dir=tmp_path / "bf16", **settings).log["train/loss_mean"]
    assert found == pytest.approx(expected[:3], rel=0.02, abs=2e-5)  # SimPER's losses are differences near 0
    assert found != pytest.approx(expected[:3], abs=1e-7)  # or they are not in bfloat16
