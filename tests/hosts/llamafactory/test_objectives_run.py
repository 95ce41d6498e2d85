"""Recipes of published objectives that are settings of another stage; the others are in test_conformance.py."""

from __future__ import annotations

import json
import math

import pytest
import torch
from conftest import losses, weights
from sample_rows import margin_rows, ranked_rows, write_rows


@pytest.mark.parametrize("recipe_name", ["mask_dpo", "step_dpo", "plackett_luce"])
def test_a_recipe_trains_for_eight_steps_as_for_four_and_a_resumed_four(run, tmp_path, recipe_name):
    common = {"name": recipe_name, "finetuning_type": "lora", "save_steps": 4, "max_steps": 8}
    whole = run(output_dir=str(tmp_path / "whole"), **common)
    again = run(
        output_dir=str(tmp_path / "again"), resume_from_checkpoint=str(whole.folder / "checkpoint-4"), **common
    )
    for name, tensor in weights(whole.folder).items():
        assert torch.equal(tensor, weights(again.folder)[name]), name
    assert losses(whole)[4:] == losses(again)[-4:]
    assert again.receipt["ranks"][0]["loss_calls"] == again.receipt["expected_loss_calls"]


def test_mask_dpo_trains_one_more_token_of_each_response_with_spans_than_step_dpo(run, tmp_path):
    """The end token; the tiny tokenizer's template writes a line break after it, which is a token too."""
    counts = {}
    for name in ("mask_dpo", "step_dpo"):
        done = run(output_dir=str(tmp_path / name), name=name, finetuning_type="lora", max_steps=3)
        counts[name] = done.receipt["tokens"]
    for side, marked in (("chosen", 4), ("rejected", 8)):
        more = counts["mask_dpo"][f"{side}_selected"] - counts["step_dpo"][f"{side}_selected"]
        assert more == 2 * marked, side
        assert counts["mask_dpo"][f"{side}_responses"] == counts["step_dpo"][f"{side}_responses"]


def test_mask_dpo_trains_on_responses_whose_end_is_cut_off(run):
    """So their end token is not there, which is no mistake of the template's."""
    done = run(name="mask_dpo", finetuning_type="lora", cutoff_len=33, finepref_overlong="keep_prompt")
    assert done.receipt["rows"]["cut"]["response"] > 0
    assert len(losses(done)) == 2


WHOLE = {"tdpo_masks": "none", "tdpo_end_token": False, "tdpo_ld_alpha": 0.5, "tdpo_ld_reference": "whole"}


@pytest.mark.parametrize(
    ("name", "given"),
    [("tgdpo", {"tgdpo_alpha": 5.0, "pref_beta": 1.0}), ("cdpo", {}), ("mask_dpo", WHOLE), ("dpo_pl", {})],
)
def test_a_reference_that_is_read_once_gives_the_same_weighted_losses(run, tmp_path, other_model, name, given):
    """Negative weights, fractions and a reference that counts in full."""
    common = {"name": name, "finetuning_type": "lora", "max_steps": 2, "ref_model": str(other_model), **given}
    plain = run(output_dir=str(tmp_path / "plain"), **common)
    cached = run(output_dir=str(tmp_path / "cached"), finepref_reference_cache=True, **common)
    assert losses(cached) == pytest.approx(losses(plain), abs=1e-5)


FROM_PAIRS = {"name": "tdpo_hh", "tdpo_variant": "dpo", "tdpo_alpha": None}


@pytest.mark.parametrize("sharing", ["auto", "off"])
def test_lists_of_two_train_as_dpo_does_on_the_same_pairs(run, tmp_path, other_model, sharing):
    """Every second list has its better response last. The log has the same rewards too."""
    listed = [
        {
            "id": row["id"],
            "prompt": row["prompt"],
            "responses": [row["chosen"], row["rejected"]][:: 1 - i % 2 * 2],
            "scores": [7.5, 7.25][:: 1 - i % 2 * 2],
        }
        for i, row in enumerate(margin_rows())
    ]
    folder = write_rows(tmp_path / "data", listed, "lists", formatting="ranked")
    write_rows(folder, margin_rows(), "pairs", formatting="pair")
    common = {
        "finetuning_type": "full",
        "dataset_dir": str(folder),
        "max_steps": 4,
        "finepref_prefix_sharing": sharing,
    }
    common |= {"ref_model": str(other_model), "pref_beta": 0.3, "optim": "sgd", "learning_rate": 0.1}
    common |= {"lr_scheduler_type": "constant", "max_grad_norm": 1.0}
    pairs = run(dataset="pairs", output_dir=str(tmp_path / "pairs"), **FROM_PAIRS, **common)
    found = run(name="dpo_pl", dataset="lists", output_dir=str(tmp_path / "lists"), **common)
    for mine, theirs in zip(found.log[:4], pairs.log[:4], strict=True):
        for key in ("loss", "grad_norm", *(f"rewards/{name}" for name in ("chosen", "rejected", "margins"))):
            assert mine[key] == pytest.approx(theirs[key], abs=2e-5), key
    for name, tensor in weights(found.folder).items():
        torch.testing.assert_close(tensor, weights(pairs.folder)[name], rtol=0, atol=2e-6)
    assert found.receipt["lists"]["responses"] == 2 * 16


def whole_response_logps(folder, rows, template):
    """log pi of each response of each row with the end of its turn, in float64, one sequence at a time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).double()

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    found = []
    for row in rows:
        prompt = ids(template.format(row["prompt"]))
        found.append([])
        for text in row["responses"]:
            response = ids(f"{text}<|im_end|>\n")
            with torch.no_grad():
                logps = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
            places = range(len(prompt) - 1, len(prompt) + len(response) - 1)
            found[-1].append(math.fsum(logps[t, token].item() for t, token in zip(places, response, strict=True)))
    return found


CHATML = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("ties", ["apart", "breslow"])
def test_the_loss_of_lists_is_that_of_a_plain_loop_over_every_response(run, tmp_path, tiny_model, other_model, ties):
    """Lists of two to four responses. Those of three and four have two that are equally good."""
    rows = ranked_rows()
    for row in rows[1::3]:
        row["scores"] = [1.0, -2.0, -2.0, 0.5][: len(row["scores"])]
    folder = write_rows(tmp_path / "data", rows, "lists", formatting="ranked")
    done = run(
        name="dpo_pl",
        dataset_dir=str(folder),
        ref_model=str(other_model),
        pref_beta=0.7,
        dpo_pl_ties=ties,
        per_device_train_batch_size=12,
        gradient_accumulation_steps=1,
        max_steps=1,
    )
    policy, reference = (whole_response_logps(model, rows, CHATML) for model in (tiny_model, other_model))
    total, margins = 0.0, 0.0
    for row, mine, theirs in zip(rows, policy, reference, strict=True):
        rewards, scores = [0.7 * (a - b) for a, b in zip(mine, theirs, strict=True)], row["scores"]
        for reward, score in zip(rewards, scores, strict=True):
            worse = [r for r, s in zip(rewards, scores, strict=True) if s < score]
            if ties == "breslow":
                worse += [r for r, s in zip(rewards, scores, strict=True) if s == score]
            else:
                worse.append(reward)
            total += math.log(math.fsum(math.exp(r - reward) for r in worse))
        margins += rewards[scores.index(max(scores))] - rewards[scores.index(min(scores))]
    assert losses(done)[0] == pytest.approx(total / 12, abs=2e-5)
    assert done.log[0]["rewards/margins"] == pytest.approx(margins / 12, abs=2e-5)
    responses = sum(len(row["responses"]) for row in rows)
    assert done.receipt["lists"]["responses"] == responses == 32


def test_a_list_that_a_cut_makes_equal_is_left_out_counted_and_named_and_equal_scores_or_texts_are_refused(
    run, refused, tmp_path
):
    """As in apo_rm."""
    rows = ranked_rows()
    rows[4] |= {"responses": [f"{'long ' * 90}{end}" for end in "ab"], "scores": [1.0, 0.0]}
    rows[7] |= {"responses": [f"{'long ' * 90}a", "short"], "scores": [1.0, 0.0]}
    folder = write_rows(tmp_path / "data", rows, "lists", formatting="ranked")
    common = {"dataset_dir": str(folder), "cutoff_len": 96, "finepref_overlong": "keep_prompt"}
    for name in ("dpo_pl", "apo_rm"):
        done = run(name=name, output_dir=str(tmp_path / name), finetuning_type="lora", **common)
        counted = done.receipt["rows"]
        assert (counted["in_training_set"], counted["skipped"]) == (11, {"equal_after_cut": 1})
        assert counted["cut"] == {"response": 1}
        (named,) = [json.loads(line) for line in (done.folder / "skipped.jsonl").read_text().splitlines()]
        assert (named["id"], named["reason"]) == ("list-4", "equal_after_cut")
    for changed, code, field in (
        ({"responses": ["a", "b"], "scores": [2.0, 2.0]}, "FP052", "scores"),
        ({"responses": ["a", "b", "a"], "scores": [2.0, 1.0, 0.0]}, "FP054", "responses[2]"),
    ):
        bad = [row | changed if i == 5 else row for i, row in enumerate(ranked_rows())]
        message = refused(bad, {"name": "lists", "formatting": "ranked"}, name="dpo_pl", finepref_bad_rows="error")
        assert code in message
        assert f"lists.jsonl:6 {field}" in message
