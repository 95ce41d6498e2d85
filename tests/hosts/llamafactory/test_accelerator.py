"""What an accelerator would show, on a CPU: waiting, devices, bfloat16, DeepSpeed's casts, NCCL's refusals, compiling.

`waits` tells what is noted and what is not.
"""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from functools import partial, wraps
from types import SimpleNamespace

import pytest
import torch
from conftest import OF_A_LOSS, RECIPES, losses
from finepref import stages
from finepref.hosts import packed, token_values
from finepref.hosts.exact import bits, floats
from finepref.hosts.llamafactory import lists, pairs, ranked, ranked_data, single, unpaired, value_head
from finepref.hosts.meter import Meter, Tally
from finepref.losses.apo_rm import apo_rm_loss
from torch import nn
from waits import Elsewhere, Waits, moved

STAGES = ("seapo_kto", "sepo", "tdpo", "apo_rm", "dpo_pl", "granular_sft")


@pytest.fixture
def noted(monkeypatch) -> Waits:
    """What the training steps of all runs in this process wait for."""
    from transformers import Trainer

    found = Waits()
    for owner, name in (
        (Trainer, "training_step"),
        (ranked.RankedTrainer, "get_batch_samples"),
        (unpaired.UnpairedTrainer, "get_batch_samples"),
        (pairs.PairTrainer, "get_batch_samples"),
    ):
        plain = getattr(owner, name)

        def watched(*args, plain=plain, **kwargs):
            with found.noting():
                return plain(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)
    return found


EVALUATED = {"eval_strategy": "steps", "eval_steps": 2, "val_size": 4, "per_device_eval_batch_size": 2}


@pytest.mark.parametrize("stage", STAGES)
def test_no_training_step_waits_and_bfloat16_trains_and_evaluates_as_float32_does(run, tmp_path, noted, stage):
    """Autocast rounds the model's own sums to 8 bits, the loss is upcast. One step with equal weights is compared."""
    found = {}
    for bf16 in (False, True):
        done = run(
            name=RECIPES[stage], use_cpu=True, bf16=bf16, output_dir=str(tmp_path / f"bf16-{bf16}"), **EVALUATED
        )
        found[bf16] = losses(done)[0], next(entry["eval_loss"] for entry in done.log if "eval_loss" in entry)
    assert found[True] == pytest.approx(found[False], rel=0.01, abs=2e-3)
    assert all(math.isfinite(loss) for loss in found[True])
    checked_on_the_cpu_only = "ranking.py"  # whether a score is NaN
    assert [place for place in noted.ours if not place.startswith(checked_on_the_cpu_only)] == []
    assert noted.backward == []
    assert noted.others != []  # the host waits to look at its attention mask, so waiting is noted


@pytest.mark.parametrize("stage", ["seapo_kto", "sepo"])
def test_no_step_of_a_mean_over_all_its_rows_waits(run, noted, stage):
    """`finepref_batch_tokens` counts the rows of a step, and KTO's NLL term its desirable ones."""
    nll = {"pref_ftx": 0.5} if stage == "seapo_kto" else {}
    run(name=RECIPES[stage], use_cpu=True, finepref_batch_tokens=600, dataloader_num_workers=1, **nll)
    assert noted.ours == noted.backward == []


def test_a_stage_in_a_compiled_model_has_the_losses_of_the_plain_one(run, tmp_path):
    keys = {"name": "sepo", "finetuning_type": "full", "gradient_accumulation_steps": 1}
    plain = run(output_dir=str(tmp_path / "plain"), **keys)
    compiled = run(output_dir=str(tmp_path / "compiled"), torch_compile=True, torch_compile_backend="eager", **keys)
    assert losses(compiled) == pytest.approx(losses(plain), abs=1e-5)


class Decoder(nn.Module):
    """Embeddings and an output head, called as a host calls a language model; on any device, without attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.head = nn.Embedding(500, 8), nn.Linear(8, 500)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def disable_adapter(self):
        return nullcontext()

    def forward(self, input_ids, attention_mask, **_):
        hidden = self.embeddings(input_ids) * attention_mask.unsqueeze(-1)
        return SimpleNamespace(logits=self.head(hidden), hidden=hidden)


class Rewarding(nn.Module):
    """The same with a value head, as TRL's."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_model, self.v_head = Decoder(), Head()

    def forward(self, **inputs):
        out = self.pretrained_model(**inputs)
        return out.logits, None, self.v_head(out.hidden).squeeze(-1)


class Head(nn.Module):
    """TRL's value head."""

    def __init__(self) -> None:
        super().__init__()
        self.summary, self.dropout = nn.Linear(8, 1), nn.Dropout(0.1)

    def forward(self, hidden):
        return self.summary(hidden.to(self.summary.weight.dtype))


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def collating(tokenizer) -> dict:
    """What the host's collators are made with."""
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments

    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template="chatml"))
    return {"template": template, "model": None, "tokenizer": tokenizer, "pad_to_multiple_of": 8}


def pair_batch(collating, weights=((0.3, 1.0), (1.0, 0.7))) -> dict:
    """A batch of the collator: two pairs, in each response two tokens have a weight."""
    collator = pairs.PairCollator(
        weigh=lambda row: weights_of([0, 0, *weights[0], 0], [0, 0, 0, *weights[1]]),
        **collating,
    )
    features = []
    for number in (3, 7):
        responses = {"chosen": [5, 6, 8], "rejected": [9, 2, 1]}
        sides = {side: (ids, [1.0] * 3, [math.nan] * 3) for side, ids in responses.items()}
        told = {f"{side}_{name}": name == "annotated" for side in sides for name in ("annotated", "scored")}
        features.append(packed.pair([number, 4], sides) | told | {"example_id": str(number), "mapped": False})
    return collator(features)


def weights_of(chosen, rejected):
    from finepref.methods.batches import Weights

    return Weights([*map(float, chosen)], [*map(float, rejected)], 0)


def list_features() -> list[dict]:
    """Two records, of three and of two responses, with scores that bfloat16 cannot tell apart."""
    sequences = [[[4, 5], [4, 6, 7], [4, 8]], [[4, 5], [4]]]
    scores = [[8.53, 8.51, 8.52], [1001.0, 1000.0]]
    return [
        {
            "example_id": str(number),
            "prompt": [9 if number else 3],
            "responses": [token for ids in texts for token in ids],
            "lengths": [len(ids) for ids in texts],
            "last": [len(ids) for ids in texts],
            "end": [len(ids) for ids in texts],
            "scores": given,
            "is_apo": bool(number),
        }
        for number, (texts, given) in enumerate(zip(sequences, scores, strict=True))
    ]


def ranked_batch(**options) -> dict:
    """These records for a reward model."""
    return ranked_data.RankedCollator(pad_token_id=0, pooling="last", **options)(list_features())


def list_batch(**options) -> dict:
    """These records for a policy."""
    return lists.ListCollator(pad_token_id=0, **options)(list_features())


def unpaired_batch(collating) -> dict:
    features = [
        {
            "example_id": str(number),
            "kto_tags": desirable,
            "single": number == 2,
            "types": ["chosen" if desirable else "logic"],
            "prompt": [number + 3, 4],
            "alternatives": [5, 6],
            "lengths": [2],
            "kl_types": ["chosen"],
            "kl_alternatives": [9, 9, 9],
            "kl_lengths": [3],
        }
        for number, desirable in enumerate((False, True, True))
    ]
    return unpaired.UnpairedCollator(type_names=("logic",), **collating)(features)


def trainer(kind: type, stage: str, model: nn.Module, **attributes) -> object:
    """A trainer without its host's setup: what a training step reads."""
    found = object.__new__(kind)
    row = stages.find(stage)
    run = SimpleNamespace(stage=row, options=row.options(), count=lambda records: None)
    defaults = {
        "run": run,
        "model": model,
        "ref_model": model,
        "accelerator": SimpleNamespace(unwrap_model=lambda m: m),
    }
    for name, value in (defaults | attributes).items():
        setattr(found, name, value)
    return found


def step_of(stage: str, collating) -> tuple[object, object, dict]:
    """(function batch -> loss, model, batch) of a stage."""
    model = Rewarding() if stage == "apo_rm" else Decoder()
    row = stages.find(stage)
    if stage == "seapo_kto":
        parts = ("chosen", "rejected", "rejected/logic", *unpaired.SINGLE_SIDES)
        names = [f"{metric}/{part}" for part in parts for metric in ("rewards", "logps")]
        tallies = {name: Tally() for name in ("drawn", "single", "digest")}
        made = trainer(
            unpaired.UnpairedTrainer,
            stage,
            model,
            meter=Meter([*row.metrics, *names]),
            singles=True,
            type_names=("logic",),
            **tallies,
        )
        return lambda batch: made.get_batch_loss_metrics(model, batch)[0], model, unpaired_batch(collating)
    if stage == "apo_rm":
        from finepref.hosts import reward_metrics

        made = trainer(
            ranked.RankedTrainer,
            stage,
            model,
            meter=Meter(reward_metrics.NAMES),
            trained=Tally(),
            step_counts=(torch.ones((), device="meta"),) * 2,
            current_gradient_accumulation_steps=1,
        )
        return lambda batch: made.compute_loss(model, batch), model, ranked_batch()
    if stage == "granular_sft":
        made = trainer(single.SingleTrainer, stage, model, tokens=Tally(), compute_loss_func=None, label_smoother=None)
        batch = {name: pair_batch(collating)[name] for name in ("input_ids", "attention_mask", "labels")}
        return lambda batch: made.compute_loss(model, batch), model, batch
    metrics = Meter((*pairs.REWARDS, *row.metrics))
    if stage == "dpo_pl":
        made = trainer(lists.ListTrainer, stage, model, meter=metrics, tokens=Tally(), kl_use="")
        return lambda batch: made.get_batch_loss_metrics(model, batch)[0], model, list_batch()
    kl = row.kl(row.options()) if row.kl else ""
    made = trainer(pairs.PairTrainer, stage, model, meter=metrics, tokens=Tally(), kl_use=kl)
    return lambda batch: made.get_batch_loss_metrics(model, batch)[0], model, pair_batch(collating)


@pytest.mark.parametrize("stage", [*STAGES, *OF_A_LOSS])
def test_a_step_on_tensors_of_an_accelerator_mixes_no_devices_and_asks_for_no_value(collating, monkeypatch, stage):
    """Model and batch are on the device "meta", which has no values: asking for one fails, and so does the CPU."""
    monkeypatch.setattr(token_values, "_trial", lambda _: nothing_after_the_head())  # which would ask for numbers
    step, model, batch = step_of(stage, collating)
    if stage == "apo_rm":
        value_head.settle(model)
        monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # that device has none
    if stage == "granular_sft":  # the loss is the host's own
        host_loss = lambda _, model, inputs: model(**inputs).logits.mean()  # noqa: E731
        monkeypatch.setattr(single.CustomSeq2SeqTrainer, "compute_loss", host_loss)
    model.to("meta").train()
    batch = moved(batch)
    with Elsewhere():
        loss = step(batch)
        assert loss.device.type == "meta"
        loss.backward()


def nothing_after_the_head():
    return token_values._After(token_values.fused_head.Head(None), ())


def cast_by_deepspeed(batch: dict) -> dict:
    """The batch as the host prepares it under DeepSpeed in bfloat16."""
    from transformers import Trainer

    plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(dtype=lambda: torch.bfloat16))
    host = SimpleNamespace(
        args=SimpleNamespace(device=torch.device("cpu")),
        is_deepspeed_enabled=True,
        accelerator=SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin)),
    )
    host._prepare_input = partial(Trainer._prepare_input, host)
    return host._prepare_input(batch)


def test_deepspeed_in_bfloat16_rounds_neither_scores_nor_weights(collating):
    """8.53 > 8.52 > 8.51 and 1001 > 1000 stay apart, so both records are valid; the weight 0.3 stays 0.3."""
    batch = cast_by_deepspeed(ranked_batch())
    scores = floats(batch["scores"])
    assert scores.tolist() == [[8.53, 8.51, 8.52], [1001.0, 1000.0, 0.0]]
    options = {"kl_coeff": 1.0, "apo_coeff": 0.1, "samples": 4, "mask": batch["present"].bool()}
    out = apo_rm_loss(torch.zeros(2, 3), scores, torch.zeros(2, dtype=torch.bool), **options)
    assert out.valid.tolist() == [True, True]
    weight = floats(cast_by_deepspeed(pair_batch(collating))["weight"])
    assert weight[0, :4].tolist() == [0.0, torch.tensor(0.3).item(), 1.0, 0.0]


def test_bits_are_the_same_numbers_of_either_size():
    for dtype in (torch.float32, torch.float64):
        values = torch.tensor([0.1, -0.0, torch.inf, 8.53], dtype=dtype)
        assert not bits(values).is_floating_point()
        assert torch.equal(floats(bits(values)), values)


def test_batches_of_tensors_alone_can_be_joined_and_split_by_the_first_process(collating):
    """With `dispatch_batches`; then the CPU waits, and nothing else changes."""
    from accelerate.utils import concatenate, slice_tensors

    for batch in (ranked_batch(counts=False), list_batch(counts=False)):
        both = concatenate([batch, batch])
        for name, value in slice_tensors(both, slice(2, 4)).items():
            assert torch.equal(value, batch[name])
    assert ranked_batch()["responses"] == list_batch()["responses"] == 5
    assert list_batch()["needed"] == 10
    assert pair_batch(collating)["needed"] == 8


def test_a_head_that_is_loaded_elsewhere_computes_in_float32_where_it_runs():
    """Loaded on another device, and with weights in bfloat16, as DeepSpeed has them; under autocast as without."""
    torch.manual_seed(0)
    model = Rewarding()
    weight, hidden = model.v_head.summary.weight.detach().double(), torch.randn(5, 8)
    model.to("meta")
    value_head.settle(model)
    model.v_head.to_empty(device="cpu")
    with torch.no_grad():
        model.v_head.summary.weight.copy_(weight)
        model.v_head.summary.bias.zero_()
    expected = hidden.double() @ weight.T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.v_head(hidden)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    model.v_head.bfloat16()
    rounded = hidden.double() @ model.v_head.summary.weight.double().T
    torch.testing.assert_close(model.v_head(hidden).double(), rounded, rtol=0, atol=1e-6)


def test_evaluation_and_prediction_of_rewards_send_nothing_that_lies_on_the_cpu(run, monkeypatch, tmp_path):
    """On a GPU the host's results are NumPy arrays, so what is made of them lies on the CPU, which NCCL refuses.

    The stand-in: a process group, whose collectives fail from when the host has its results until they are reported.
    """
    import torch.distributed as dist
    from transformers import Trainer

    gathered = []

    def refusing(plain):
        @wraps(plain)
        def collective(tensor, *args, **kwargs):
            assert not gathered, "No backend type associated with device type cpu"
            return plain(tensor, *args, **kwargs)

        return collective

    for name in ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast"):
        monkeypatch.setattr(dist, name, refusing(getattr(dist, name)))
    plain_loop, own_loop = Trainer.evaluation_loop, ranked.RankedTrainer.evaluation_loop
    loops = []

    @wraps(plain_loop)
    def host_loop(*args, **kwargs):
        output = plain_loop(*args, **kwargs)
        gathered.append(True)
        return output

    @wraps(own_loop)
    def our_loop(*args, **kwargs):
        try:
            return own_loop(*args, **kwargs)
        finally:
            loops.append(len(gathered))
            gathered.clear()

    monkeypatch.setattr(Trainer, "evaluation_loop", host_loop)
    monkeypatch.setattr(ranked.RankedTrainer, "evaluation_loop", our_loop)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        keys = {"eval_dataset": "lists", "do_predict": True} | {k: v for k, v in EVALUATED.items() if k != "val_size"}
        done = run(name="apo_rm", **keys)
    finally:
        if dist.is_initialized():  # the host ends it after a run
            dist.destroy_process_group()
    assert loops == [1, 1, 1]  # in training, after it, and for the prediction
    lines = [json.loads(line) for line in (done.folder / "finepref_scores.jsonl").read_text().splitlines()]
    assert len(lines) == 12
