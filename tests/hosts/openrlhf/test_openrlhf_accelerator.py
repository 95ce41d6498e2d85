"""What an accelerator would show, on a CPU: waiting, devices, bfloat16; `waits` tells what is noted."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finepref import stages
from finepref.hosts.meter import Meter, Tally
from openrlhf_runs import DATA
from torch import nn
from waits import Elsewhere, Waits

ON_THE_CPU = ("ranking.py", "strategy.py")  # whether a score is NaN, asked on a CPU only; the sampler's order


@pytest.fixture
def noted(host, monkeypatch, tmp_path):
    """What the training loop of a run waits for, by who does; the run is forked from this process."""
    from finepref.hosts.openrlhf import training

    file, plain = tmp_path / "noted.json", training.Accounted.fit

    def watched(*args, **kwargs):
        found = Waits()
        try:
            with found.noting():
                return plain(*args, **kwargs)
        finally:
            file.write_text(json.dumps({"ours": found.ours, "backward": found.backward, "others": found.others}))

    monkeypatch.setattr(training.Accounted, "fit", watched)
    return lambda: json.loads(file.read_text())


@pytest.mark.parametrize("command", DATA)
def test_no_training_step_waits_and_bfloat16_trains_and_evaluates_as_float32_does(train, noted, tmp_path, command):
    """Weights in bfloat16 have 8 bits, the loss is upcast. The first step is compared, with equal random numbers."""
    found = {}
    for dtype in ("fp32", "bf16"):
        done = train(
            command,
            ds__param_dtype=dtype,
            ckpt__output_dir=tmp_path / dtype,
            eval__dataset=DATA[command],
            eval__steps=2,
            **({"apo__pooling": "last"} if command == "apo_rm" else {}),
        )
        found[dtype] = done.log["train/loss_mean"][0], done.log["eval/eval_loss"][0]
        waiting = noted()
        assert [place for place in waiting["ours"] if not place.startswith(ON_THE_CPU)] == []
        assert waiting["backward"] == []
        assert waiting["others"] != []  # the host reads its loss in every step
    assert found["bf16"] == pytest.approx(found["fp32"], rel=0.03, abs=5e-3)


class Actor(nn.Module):
    """The host's Actor with embeddings and an output head only; on any device, without attention."""

    packing_samples = False

    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.head = nn.Embedding(50, 8), nn.Linear(8, 50)

    @property
    def model(self) -> Actor:
        return self

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, ids, _, attention_mask, **__):
        return {"logits": self.head(self.embeddings(ids) * attention_mask.unsqueeze(-1))}


class Rewards(nn.Module):
    """The host's reward model: a reward per sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(50, 1)

    def forward(self, ids, attention_mask, **_):
        return (self.embeddings(ids)[..., 0] * attention_mask).sum(1), {}


def trainer(kind: type, stage: str, metrics: tuple[str, ...]) -> Any:
    """A trainer without its host's setup: what a training step reads."""
    found = object.__new__(kind)
    row = stages.find(stage)
    options = row.options()
    run = SimpleNamespace(stage=row, options=options, count=lambda records: None)
    found.run, found.counts, found.meter, found.draws = run, Tally(), Meter(metrics), 0
    found.strategy = SimpleNamespace(ring_attn_group=None, accumulated_gradient=1)
    found.args = SimpleNamespace(train=SimpleNamespace(micro_batch_size=2))
    found.tokenizer = SimpleNamespace(pad_token_id=0)
    found.kl_use = row.kl_use(options)
    return found


def ids(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def pair_items() -> list[Any]:
    """Two pairs, of which two and three tokens have a weight."""
    from finepref.hosts.openrlhf.pairs import PairSequences, WeightedResponse

    def response(*numbers: int) -> WeightedResponse:
        weight = torch.tensor([0.0, 0.0, 0.3] + [1.0] * (len(numbers) - 3))
        return WeightedResponse(ids(*numbers), weight, len(numbers) - 2)

    return [PairSequences(response(3, 4, n), response(3, 4, 5, n), 0) for n in (7, 8)]


def draws() -> list[Any]:
    from finepref.hosts.openrlhf.unpaired import Drawn

    return [Drawn(ids(3, 4, n), ids(3, 4, 5, n), ids(3, 4, 9), ids(3, 4, n, 9, 9), 2, "logic", n) for n in (7, 8)]


def batch_of(command: str) -> tuple[Any, ...]:
    """A batch of the host's loader, by our collators."""
    from finepref.hosts.openrlhf import lists, pairs, ranked, unpaired

    tokenizer = SimpleNamespace(pad_token_id=0)
    if command in ("apo_rm", "dpo_pl"):
        rows = [
            ranked.RankedRow([ids(3, 4, 5), ids(3, 4), ids(3, 6)], [2, 1, 0], False, 1),
            ranked.RankedRow([ids(9, 4, 5, 6), ids(9, 4)], [1, 0], True, 1),
        ]
        kind = ranked.RankedDataset if command == "apo_rm" else lists.ListDataset
        return kind(rows, tokenizer).collate_fn(rows)
    kind, rows = (unpaired.UnpairedDataset, draws()) if command == "kto" else (pairs.PairDataset, pair_items())
    dataset = object.__new__(kind)
    dataset.tokenizer, dataset.is_dpo = tokenizer, True
    tokens = [(getattr(row.chosen, "ids", row.chosen), getattr(row.rejected, "ids", row.rejected)) for row in rows]
    return dataset.collate_fn(
        [(*pairs.masked(good), *pairs.masked(bad), row) for (good, bad), row in zip(tokens, rows, strict=True)]
    )


@pytest.mark.parametrize("command", DATA)
def test_a_step_on_tensors_of_an_accelerator_mixes_no_devices_and_asks_for_no_value(host, command, monkeypatch):
    """Model and batch are on the device "meta", which has no values: asking for one fails, and so does the CPU."""
    from finepref.hosts import reward_metrics, token_values
    from finepref.hosts.openrlhf import lists, pairs, ranked, unpaired

    nothing_after_the_head = token_values._After(token_values.fused_head.Head(None), ())
    monkeypatch.setattr(token_values, "_trial", lambda _: nothing_after_the_head)  # which would ask for numbers
    *inputs, extra = batch_of(command)
    inputs = [tensor.squeeze(1).to("meta") for tensor in inputs]  # as the host's loop
    if command == "apo_rm":
        made, model = trainer(ranked.RankedTrainer, "apo_rm", reward_metrics.NAMES), Rewards().to("meta")
        made.step_counts = lambda: (1, 1)
        extra = torch.tensor(extra).to("meta")
        with Elsewhere():
            best, worst, _ = made.concatenated_forward(model, *inputs)
            loss = made.ranked_loss(best, worst, extra)
            loss.backward()
    else:
        stage = {"selective": "sepo", "kto": "seapo_kto"}.get(command, command)
        kind = {"kto": unpaired.UnpairedTrainer, "dpo_pl": lists.ListTrainer}.get(command, pairs.PairTrainer)
        names = (*stages.find(stage).metrics, "logps/chosen", "logps/rejected")
        made, model, made.ref_model = trainer(kind, stage, names), Actor().to("meta"), Actor().to("meta")
        made.ref_model.requires_grad_(False)
        with Elsewhere():
            policy, batch, _, _ = made.concatenated_forward(model, *inputs, extra)
            with torch.no_grad():
                reference = made.concatenated_forward(made.ref_model, *inputs, extra)[0]
            function = made.unpaired_loss if command == "kto" else made.pair_loss
            loss, *_ = function(policy, batch, reference, None)
            loss.backward()
    assert loss.device.type == "meta"
    assert inputs[0].device.type == "meta"
