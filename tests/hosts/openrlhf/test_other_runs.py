"""Runs of `train_tdpo`, `train_kto` and `train_apo_rm`: the papers' first losses, and what training leaves behind."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from openrlhf_runs import tensors
from plain_pairs import Plain, tdpo_loss
from sample_rows import ranked_rows, rows, span_rows, write_rows

ONE_BATCH = {"train__batch_size": 12, "train__micro_batch_size": 12}
LONGER = {"train__max_epochs": 4}


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize(
    ("variant", "masks", "sides", "normalize", "settings"),
    [
        ("tdpo1", "annotated", "two", False, {}),
        ("tdpo2", "annotated", "one", True, {"tdpo__alpha": 0.7}),
        ("tdpo2", "none", "two", False, {"tdpo__alpha": 0.7, "ds__packing_samples": True}),
        ("dpo", "annotated", "two", False, {"tdpo__full_logits": True}),
        ("tdpo1", "none", "two", False, {"tdpo__full_logits": True, "ds__packing_samples": True}),
    ],
)
def test_the_first_loss_of_tdpo_is_the_papers_computed_without_the_host(
    train, tiny_model, other_model, variant, masks, sides, normalize, settings
):
    done = train(
        "tdpo",
        ref__model_name_or_path=other_model,
        tdpo__variant=variant,
        tdpo__masks=masks,
        tdpo__sides=sides,
        tdpo__normalize_spans=normalize,
        model__beta=0.2,
        **ONE_BATCH,
        **settings,
    )
    plain = Plain(tiny_model, other_model)
    expected = [
        tdpo_loss(plain, row, variant=variant, masks=masks, sides=sides, normalize=normalize, beta=0.2, alpha=0.7)
        for row in span_rows()
    ]
    assert done.log["train/loss_mean"][0] == pytest.approx(mean(expected), abs=1e-5)
    assert abs(done.log["train/loss_mean"][0] - math.log(2)) > 1e-3  # the reference does differ


def kto_loss(plain: Plain, *, seed: int, beta: float, weights: tuple[float, float]) -> float:
    """KTO over all records at epoch 0, from the draws' definition, with the KL of the next prompt's responses."""
    from finepref.formats.negatives import pick
    from finepref.formats.records import parse
    from finepref.methods.draws import prompt_key

    table = rows()
    keyed = sorted((prompt_key(parse(row, "negatives")), i) for i, row in enumerate(table))
    following = {i: keyed[(place + 1) % len(keyed)][1] for place, (_, i) in enumerate(keyed)}

    def ratio(prompt: str, response: str) -> float:
        return sum(token.policy - token.reference for token in plain.tokens(prompt, response))

    def drawn(row: dict, record_id: str) -> str:
        names = sorted(row["negatives"])
        return row["negatives"][names[pick(len(names), seed=seed, epoch=0, record_id=record_id)]]

    good, bad, mismatched = [], [], []
    for i, row in enumerate(table):
        other = table[following[i]]
        good.append(ratio(row["prompt"], row["chosen"]))
        bad.append(ratio(row["prompt"], drawn(row, row["id"])))
        mismatched += [ratio(row["prompt"], text) for text in (other["chosen"], drawn(other, row["id"]))]
    z = max(0.0, mean(mismatched))
    losses = [weights[0] * (1 - 1 / (1 + math.exp(-beta * (r - z)))) for r in good]
    losses += [weights[1] * (1 - 1 / (1 + math.exp(-beta * (z - r)))) for r in bad]
    return mean(losses)


@pytest.mark.parametrize(
    ("weights", "settings"), [((1.0, 1.0), {}), ((1.2, 0.5), {"ds__packing_samples": True, "ds__zero_stage": 3})]
)
def test_the_first_loss_of_kto_is_the_papers_computed_without_the_host(
    train, tiny_model, other_model, weights, settings
):
    settings |= {"kto__chosen_weight": weights[0], "kto__rejected_weight": weights[1]}
    done = train("kto", ref__model_name_or_path=other_model, model__beta=0.3, train__seed=7, **ONE_BATCH, **settings)
    expected = kto_loss(Plain(tiny_model, other_model), seed=7, beta=0.3, weights=weights)
    assert done.log["train/loss_mean"][0] == pytest.approx(expected, abs=1e-5)


def test_kto_draws_anew_every_epoch_whatever_the_processes(train, tmp_path):
    one = train("kto", ckpt__output_dir=tmp_path / "one", **LONGER)
    two = train("kto", ckpt__output_dir=tmp_path / "two", processes=2, **LONGER)
    once = train("kto", ckpt__output_dir=tmp_path / "once", kto__resample="once", **LONGER)
    assert two.log["train/loss_mean"] == pytest.approx(one.log["train/loss_mean"], abs=2e-3)  # z0 is per micro-batch
    assert two.receipt["draws"] == one.receipt["draws"] != once.receipt["draws"]
    counts = once.receipt["ranks"][0]["counts"]
    assert sum(counts.values()) == 48
    assert all(count % 4 == 0 for count in counts.values())
    chosen = one.receipt["ranks"][0]["counts"]
    assert any(count % 4 for count in chosen.values())


def apo_rm_rewards(folder: Path, pooling: str) -> list[list[float]]:
    """Rewards from the saved files without the host: one response alone, the head on one hidden state."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    head = tensors(folder)["score.weight"][0]
    end = "<|im_end|>" if pooling == "eos" else ""
    rewards = []
    for row in ranked_rows():
        rewards.append([])
        for response in row["responses"]:
            text = f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n{response}{end}"
            ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                rewards[-1].append((model(input_ids=ids).last_hidden_state[0, -1] @ head).item())
    return rewards


def apo_rm_loss(rewards: list[list[float]], *, kl_coeff: float, apo_coeff: float, samples: int) -> float:
    """One mean per kind of records, of each record's mean over its pairs; better responses come first in the rows."""
    means: dict[str, list[float]] = {"human": [], "apo": []}
    for row, given in zip(ranked_rows(), rewards, strict=True):
        pairs = [math.log1p(math.exp(b - a)) for i, a in enumerate(given) for b in given[i + 1 :]]
        means[row.get("kind", "human")].append(mean(pairs))
    return kl_coeff * mean(means["human"]) + apo_coeff / samples * mean(means["apo"])


@pytest.mark.parametrize(
    ("pooling", "processes", "settings"),
    [
        ("eos", 1, {"train__micro_batch_size": 12}),
        ("last", 1, {"train__micro_batch_size": 2}),
        ("eos", 2, {"train__micro_batch_size": 3, "ds__packing_samples": True, "ds__zero_stage": 3}),
    ],
)
def test_the_first_loss_of_apo_rm_is_the_papers_whatever_the_micro_batches(train, pooling, processes, settings):
    """A learning rate of 0 keeps the random head, so that the saved model is the one that the loss was taken of."""
    coefficients = {"apo__kl_coeff": 0.8, "apo__coeff": 0.5, "apo__sample_num": 2}
    settings |= {"train__batch_size": 12, "adam__lr": 0.0, "apo__pooling": pooling}
    done = train("apo_rm", processes=processes, **coefficients, **settings)
    rewards = apo_rm_rewards(done.folder, pooling)
    expected = apo_rm_loss(rewards, kl_coeff=0.8, apo_coeff=0.5, samples=2)
    calls = 12 // settings["train__micro_batch_size"] // processes
    assert done.log["train/loss_mean"][0] == pytest.approx(expected, abs=2e-5)
    assert [rank["loss_calls"] for rank in done.receipt["ranks"]] == [calls] * processes
    counted = {kind: sum(rank["counts"][kind] for rank in done.receipt["ranks"]) for kind in ("human", "apo")}
    assert counted == {"human": 8, "apo": 4}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tdpo", {"ds__zero_stage": 3}),
        ("tdpo", {"ds__lora__rank": 4, "ds__packing_samples": True, "adam__lr": 1e-2}),
        ("kto", {"ds__zero_stage": 3, "model__beta": 0.5}),
        ("kto", {"ds__lora__rank": 4, "model__gradient_checkpointing_enable": True, "adam__lr": 1e-2}),
        ("apo_rm", {"ds__zero_stage": 3}),
        ("apo_rm", {"ds__lora__rank": 4, "model__gradient_checkpointing_enable": True, "adam__lr": 1e-2}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else value,
)
def test_losses_fall_and_every_trainable_parameter_moves(train, tiny_model, name, settings):
    done = train(name, processes=2, **LONGER, **settings)
    losses = done.log["train/loss_mean"]
    assert len(losses) == 12
    assert mean(losses[-3:]) < mean(losses[:3]) - 0.02
    saved, start = tensors(done.folder), tensors(tiny_model)
    assert saved
    for key, tensor in saved.items():
        if "lora_" in key:
            assert tensor.abs().sum() > 0, key
        elif key in start and name != "apo_rm":
            assert not torch.equal(tensor, start[key]), key


def test_a_reward_model_loads_in_transformers_and_prefers_the_better_responses(train):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    done = train("apo_rm", eval__dataset="lists", train__max_epochs=12, apo__coeff=1.0, apo__sample_num=1)
    assert done.log["train/rewards/accuracies"][-1] > 0.9
    model = AutoModelForSequenceClassification.from_pretrained(done.folder, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(done.folder)
    row = ranked_rows()[0]
    texts = [
        f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n{response}<|im_end|>"
        for response in row["responses"]
    ]
    better, worse = (
        model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits.item() for text in texts
    )
    assert better > worse


def test_feedback_rows_are_grouped_by_prompt(train, tmp_path):
    feedback = []
    for row in rows():
        feedback.append({"prompt": row["prompt"], "response": row["chosen"], "label": True})
        feedback += [
            {"prompt": row["prompt"], "response": text, "label": False, "error_type": kind}
            for kind, text in row["negatives"].items()
        ]
    folder = write_rows(tmp_path / "data", feedback, "feedback", formatting="feedback")
    done = train("kto", data__dataset="feedback", data__dataset_dir=folder)
    assert done.receipt["rows"]["read"] == 48
    assert done.receipt["rows"]["in_training_set"] == 48
