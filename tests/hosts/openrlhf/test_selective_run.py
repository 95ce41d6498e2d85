"""Runs of `train_selective`: the numbers are the paper's, and training leaves behind what it should."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from openrlhf_runs import tensors
from plain_pairs import Plain, sepo_loss
from sample_rows import scored_rows

ONE_BATCH = {"train__batch_size": 12, "train__micro_batch_size": 12}
LONGER = {"train__max_epochs": 4}


@pytest.fixture(scope="module")
def starting(tiny_model):
    """The model's tensors before training."""
    return tensors(tiny_model)


@pytest.mark.parametrize(
    "settings",
    [
        {"ratio": 0.3, "gamma": 2.5, "margin": 0.0},
        {"ratio": 0.5, "gamma": 1.0, "margin": 0.0, "selective__preset": "released"},
        {"ratio": 0.1, "gamma": 2.1, "margin": 0.4, "selective__gamma": 2.1, "selective__margin": 0.4},
    ],
    ids=["paper", "released", "given"],
)
def test_the_first_loss_is_the_papers_computed_without_the_host(train, tiny_model, settings):
    ratio, gamma, margin = (settings.pop(key) for key in ("ratio", "gamma", "margin"))
    ratios = {"selective__ratio_chosen": ratio, "selective__ratio_rejected": ratio}
    done = train("selective", **ONE_BATCH, **ratios, **settings)
    plain = Plain(tiny_model)
    expected = [sepo_loss(plain, row, ratio=ratio, gamma=gamma, margin=margin) for row in scored_rows(tiny_model)]
    assert done.log["train/loss_mean"][0] == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    assert done.receipt["settings"]["sepo_gamma"] == gamma


@pytest.fixture(scope="module")
def results() -> dict:
    return {}


@pytest.fixture
def one_process(train, tmp_path, results):
    """One process, ZeRO-2, padded: trained once for all tests of this file, and kept in memory."""
    if not results:
        done = train("selective", ckpt__output_dir=tmp_path / "one", **LONGER)
        results.update(done=done, tensors=tensors(done.folder), answer=answer(done.folder))
    return results["done"]


def answer(folder: Path) -> str:
    """What the saved model writes."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    turns = [{"role": "user", "content": "What is 2 + 3?"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    encoded = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    written = model.generate(**encoded, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    return tokenizer.decode(written[0, encoded["input_ids"].shape[1] :])


def test_losses_fall_every_parameter_moves_and_the_saved_model_generates(one_process, results, starting):
    losses = one_process.log["train/loss_mean"]
    assert len(losses) == 12
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.3
    assert results["tensors"].keys() == starting.keys()
    assert all(not torch.equal(tensor, starting[name]) for name, tensor in results["tensors"].items())
    assert results["answer"]


@pytest.mark.parametrize("stage", [2, 3])
def test_an_adapter_trains_alone_and_loads_on_its_base(train, tiny_model, stage):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    done = train("selective", processes=2, ds__lora__rank=4, ds__zero_stage=stage, adam__lr=1e-2, **LONGER)
    losses = done.log["train/loss_mean"]
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.3
    saved = tensors(done.folder)
    assert saved
    assert all("lora_" in name and tensor.abs().sum() > 0 for name, tensor in saved.items())
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = torch.tensor([[5, 6, 7]])
    before = base(ids).logits
    after = PeftModel.from_pretrained(base, done.folder)(ids).logits
    assert not torch.allclose(before, after)


def test_evaluation_is_the_hosts_and_its_loss_is_ours(train, tiny_model):
    done = train("selective", eval__dataset="scores", eval__steps=1, adam__lr=0.0, **ONE_BATCH)
    plain = Plain(tiny_model)
    expected = [sepo_loss(plain, row, ratio=0.3, gamma=2.5, margin=0.0) for row in scored_rows(tiny_model)]
    assert done.log["eval/eval_loss"] == pytest.approx([sum(expected) / len(expected)], abs=1e-5)
    assert done.receipt["rows"] == {
        "read": 24,
        "in_training_set": 12,
        "in_evaluation_set": 12,
        "repeated": 0,
        "skipped": {},
        "rejected": {},
        "cut": {},
        "responses_skipped": {},
        "seen": 12,
    }


def test_only_the_selected_tokens_reach_the_output_head(train):
    """The receipt's count of selected tokens is int(0.3 N) per response, and the full responses are longer."""
    done = train("selective", **ONE_BATCH)
    counts = done.receipt["ranks"][0]["counts"]
    for side in ("chosen", "rejected"):
        assert 0.2 < counts[f"{side}_selected"] / counts[f"{side}_responses"] <= 0.3
