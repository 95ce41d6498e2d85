"""Recipes of published objectives that are settings of another stage; the others are in test_conformance.py."""

from __future__ import annotations

import pytest
import torch
from conftest import losses, weights


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
    ("name", "given"), [("tgdpo", {"tgdpo_alpha": 5.0, "pref_beta": 1.0}), ("cdpo", {}), ("mask_dpo", WHOLE)]
)
def test_a_reference_that_is_read_once_gives_the_same_weighted_losses(run, tmp_path, other_model, name, given):
    """Negative weights, fractions and a reference that counts in full."""
    common = {"name": name, "finetuning_type": "lora", "max_steps": 2, "ref_model": str(other_model), **given}
    plain = run(output_dir=str(tmp_path / "plain"), **common)
    cached = run(output_dir=str(tmp_path / "cached"), finepref_reference_cache=True, **common)
    assert losses(cached) == pytest.approx(losses(plain), abs=1e-5)
