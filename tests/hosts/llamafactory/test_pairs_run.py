"""Runs of `sepo` and `tdpo` on the real host: the numbers are those of the papers, and the masks matter."""

from __future__ import annotations

import json
import math

import pytest
import torch
from conftest import losses, weights
from plain_pairs import Plain, sepo_loss, tdpo_loss
from sample_rows import scored_rows, span_rows, write_rows

ONE_BATCH = {"per_device_train_batch_size": 12, "gradient_accumulation_steps": 1, "max_steps": 1}


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize(
    "settings",
    [
        {"ratio": 0.3, "gamma": 2.5, "margin": 0.0},
        {"ratio": 0.5, "gamma": 1.0, "margin": 0.0, "sepo_preset": "released"},
        {"ratio": 0.1, "gamma": 2.1, "margin": 0.4, "sepo_gamma": 2.1, "sepo_margin": 0.4},
        {"ratio": 1.0, "gamma": 2.5, "margin": 0.0, "finetuning_type": "lora"},
    ],
    ids=["paper", "released", "given", "all tokens, lora"],
)
def test_the_first_loss_of_sepo_is_the_papers_computed_without_the_host(run, tiny_model, settings):
    ratio, gamma, margin = (settings.pop(key) for key in ("ratio", "gamma", "margin"))
    done = run(name="sepo", sepo_ratio_chosen=ratio, sepo_ratio_rejected=ratio, **ONE_BATCH, **settings)
    plain = Plain(tiny_model)
    expected = [sepo_loss(plain, row, ratio=ratio, gamma=gamma, margin=margin) for row in scored_rows(tiny_model)]
    assert losses(done)[0] == pytest.approx(mean(expected), abs=1e-5)
    assert done.receipt["settings"]["sepo_gamma"] == gamma


@pytest.mark.parametrize("variant", ["tdpo1", "tdpo2", "dpo"])
@pytest.mark.parametrize(
    ("masks", "sides", "normalize"),
    [("none", "two", False), ("annotated", "two", False), ("annotated", "one", False), ("annotated", "two", True)],
)
def test_the_first_loss_of_tdpo_is_the_papers_computed_without_the_host(
    run, tiny_model, other_model, variant, masks, sides, normalize
):
    done = run(
        name="tdpo_spans",
        finetuning_type="full",
        ref_model=str(other_model),
        tdpo_variant=variant,
        tdpo_alpha=0.7 if variant == "tdpo2" else None,
        tdpo_masks=masks,
        tdpo_sides=sides,
        tdpo_normalize_spans=normalize,
        pref_beta=0.2,
        **ONE_BATCH,
    )
    plain = Plain(tiny_model, other_model)
    expected = [
        tdpo_loss(plain, row, variant=variant, masks=masks, sides=sides, normalize=normalize, beta=0.2, alpha=0.7)
        for row in span_rows()
    ]
    assert losses(done)[0] == pytest.approx(mean(expected), abs=1e-5)
    assert abs(losses(done)[0] - math.log(2)) > 1e-3  # the reference does differ


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("sepo", {}),
        ("sepo", {"finetuning_type": "lora"}),
        ("tdpo_spans", {"tdpo_sides": "two"}),
        ("tdpo_spans", {"tdpo_variant": "tdpo1", "tdpo_alpha": None, "finetuning_type": "full"}),
        ("tdpo_hh", {"dataset": "spans"}),
        ("seapo_kto", {}),
        ("seapo_kto", {"finetuning_type": "full", "pref_ftx": 0.3}),
        ("granular_sft", {}),
    ],
)
def test_a_head_that_computes_no_logits_trains_as_with_full_logits(run, tmp_path, monkeypatch, name, overrides):
    """Chunks of 16 positions. Four steps of SGD, whose updates are as small as the gradients differ."""
    from finepref.hosts import token_values
    from finepref.losses import output_head

    monkeypatch.setattr(output_head, "CPU_BYTES", 1)
    monkeypatch.setattr(token_values, "SMALL", 0)
    common = {"name": name, "max_steps": 4, "optim": "sgd", "learning_rate": 0.1, **overrides}
    cut = run(output_dir=str(tmp_path / "cut"), **common)
    full = run(output_dir=str(tmp_path / "full"), finepref_full_logits=True, **common)
    assert losses(cut) == pytest.approx(losses(full), abs=1e-6)
    for name, tensor in weights(cut.folder).items():
        torch.testing.assert_close(tensor, weights(full.folder)[name], rtol=0, atol=2e-6)


def test_only_the_needed_positions_reach_the_output_head(run, monkeypatch):
    """The head sees as many positions as the receipt counts selected tokens; with the plain path, every one."""
    from finepref.hosts.llamafactory import forward

    seen = []
    original = forward.needed_positions

    def count(mask, known):
        found = original(mask, known)
        seen.append((len(found), mask.numel()))
        return found

    monkeypatch.setattr(forward, "needed_positions", count)
    done = run(name="sepo", finepref_prefix_sharing="off", **ONE_BATCH)
    tokens = done.receipt["tokens"]
    assert seen[0][0] == tokens["chosen_selected"] + tokens["rejected_selected"]
    assert seen[0][0] < 0.2 * seen[0][1]


def shifted(rows: list[dict]) -> list[dict]:
    """The same spans one token to the left (every digit and sign is a token of its own here)."""
    for row in rows:
        for side in ("chosen_spans", "rejected_spans"):
            for span in row.get(side, ()):
                span["start"] -= 1
                span["end"] -= 1
    return rows


def test_shifted_spans_or_all_tokens_change_the_first_loss(run, tmp_path, other_model):
    folder = write_rows(tmp_path / "shifted", shifted(span_rows()), "spans", formatting="span_pair")
    common = {"name": "tdpo_spans", "finetuning_type": "full", "ref_model": str(other_model), **ONE_BATCH}
    common["tdpo_sides"] = "two"
    marked = losses(run(output_dir=str(tmp_path / "a"), **common))[0]
    moved = losses(run(output_dir=str(tmp_path / "b"), dataset_dir=str(folder), **common))[0]
    whole = losses(run(output_dir=str(tmp_path / "c"), tdpo_masks="none", **common))[0]
    assert abs(marked - moved) > 1e-4
    assert abs(marked - whole) > 1e-4


def test_sepo_reads_spans_as_a_selection_and_a_shift_changes_the_first_loss(run, tmp_path):
    folder = write_rows(tmp_path / "shifted", shifted(span_rows()), "spans", formatting="span_pair")
    common = {"name": "sepo", "dataset": "spans", **ONE_BATCH}
    marked = run(output_dir=str(tmp_path / "a"), **common)
    moved = run(output_dir=str(tmp_path / "b"), dataset_dir=str(folder), **common)
    whole = run(output_dir=str(tmp_path / "c"), sepo_selection="all", **common)
    assert abs(losses(marked)[0] - losses(moved)[0]) > 1e-4
    assert abs(losses(marked)[0] - losses(whole)[0]) > 1e-4


def test_the_ratio_is_chosen_at_train_time_from_one_tokenised_folder(run, tmp_path, tiny_model):
    """Of N scored tokens int(ratio N) are selected, at least one; ratio 1 equals `all`, as the end token has a score.

    The template's line break after the end token has none: of `all`, it is one more token per response.
    """
    common = {"name": "sepo", "tokenized_path": str(tmp_path / "tokens"), **ONE_BATCH}
    for ratio in (0.1, 0.3, 0.7, 1.0):
        done = run(output_dir=str(tmp_path / str(ratio)), sepo_ratio_chosen=ratio, sepo_ratio_rejected=0.5, **common)
        for side, share in (("chosen", ratio), ("rejected", 0.5)):
            expected = sum(max(1, int(share * len(row[f"{side}_scores"]))) for row in scored_rows(tiny_model))
            assert done.receipt["tokens"][f"{side}_selected"] == expected
    every = run(output_dir=str(tmp_path / "all"), sepo_selection="all", **common)
    assert every.receipt["tokens"]["chosen_selected"] == every.receipt["tokens"]["chosen_responses"]
    assert every.receipt["tokens"]["chosen_selected"] == done.receipt["tokens"]["chosen_selected"] + 12


def test_random_selection_is_fixed_by_the_seed_and_independent_of_scores(run, tmp_path):
    """Plain pairs without scores train too; another seed selects as many, but others."""
    records = [{key: row[key] for key in ("id", "prompt", "chosen", "rejected")} for row in span_rows()]
    folder = write_rows(tmp_path / "plain", records, "plain", formatting="pair")
    common = {"name": "sepo", "dataset": "plain", "dataset_dir": str(folder), "sepo_selection": "random", **ONE_BATCH}
    first = run(output_dir=str(tmp_path / "a"), **common)
    again = run(output_dir=str(tmp_path / "b"), **common)
    other = run(output_dir=str(tmp_path / "c"), seed=7, **common)
    assert losses(first) == losses(again)
    assert first.receipt["tokens"] == other.receipt["tokens"]
    assert abs(losses(first)[0] - losses(other)[0]) > 1e-4


def test_scores_of_another_tokenizer_are_mapped_when_asked(run, tmp_path, tiny_model):
    """The fingerprint is foreign, the tokens are not: mapping by characters must select the very same tokens."""
    records = [{**row, "tokenizer": "0" * 16} for row in scored_rows(tiny_model)]
    folder = write_rows(tmp_path / "foreign", records, "scores", formatting="scored_pair")
    own = run(output_dir=str(tmp_path / "own"), name="sepo", **ONE_BATCH)
    mapped = run(
        output_dir=str(tmp_path / "mapped"), name="sepo", dataset_dir=str(folder), sepo_map_scores=True, **ONE_BATCH
    )
    assert losses(mapped) == losses(own)
    assert mapped.receipt["tokens"] == own.receipt["tokens"]


def test_the_lora_base_is_the_reference_and_the_sequential_kl_of_both_responses_is_logged(run):
    """Before the first step policy and reference are one: ln 2, KL 0. Then both KLs grow; evaluation has them too."""
    done = run(name="tdpo_spans", tdpo_sides="two", max_steps=6, val_size=4, eval_strategy="steps", eval_steps=3)
    train = [entry for entry in done.log if "loss" in entry]
    evaluated = [entry for entry in done.log if "eval_loss" in entry]
    assert train[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    for side in ("chosen", "rejected"):
        assert train[0][f"kl/{side}"] == pytest.approx(0, abs=1e-5)
        assert train[-1][f"kl/{side}"] > 1e-4
        assert evaluated[-1][f"eval_kl/{side}"] > 1e-4
    assert {"rewards/accuracies", "rewards/margins", "logps/chosen"} <= train[-1].keys()


def test_dpo_reads_no_kl_unless_it_is_to_be_logged_which_changes_no_loss(run, tmp_path, other_model):
    common = {"name": "tdpo_spans", "finetuning_type": "full", "ref_model": str(other_model), **ONE_BATCH}
    common |= {"tdpo_alpha": None, "tdpo_masks": "none", "tdpo_sides": "two"}
    dpo = run(output_dir=str(tmp_path / "dpo"), tdpo_variant="dpo", **common)
    tdpo1 = run(output_dir=str(tmp_path / "tdpo1"), tdpo_variant="tdpo1", **common)
    logged = run(output_dir=str(tmp_path / "logged"), tdpo_variant="dpo", tdpo_log_kl=True, **common)
    assert not [name for name in dpo.log[0] if "kl" in name]
    assert logged.log[0]["kl/chosen"] == tdpo1.log[0]["kl/chosen"] > 0
    assert losses(logged) == pytest.approx(losses(dpo), abs=1e-6)
    assert abs(losses(dpo)[0] - losses(tdpo1)[0]) > 1e-5


@pytest.mark.parametrize("finetuning_type", ["lora", "full"])
def test_dpo_without_masks_trains_as_the_hosts_own_dpo(run, recipe, tmp_path, finetuning_type):
    from llamafactory.train.tuner import run_exp

    pairs = [{"instruction": r["prompt"], "chosen": r["chosen"], "rejected": r["rejected"]} for r in span_rows()]
    folder = tmp_path / "host"
    folder.mkdir()
    (folder / "pairs.json").write_text(json.dumps(pairs))
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    entry = {"file_name": "pairs.json", "ranking": True, "columns": columns}
    (folder / "dataset_info.json").write_text(json.dumps({"pairs": entry}))
    common = {"finetuning_type": finetuning_type, "max_steps": 4, "optim": "sgd", "learning_rate": 0.5}
    ours = run(name="sepo_oracle_dpo", dataset="spans", output_dir=str(tmp_path / "ours"), **common)
    settings = recipe("sepo_oracle_dpo", dataset="pairs", dataset_dir=str(folder), stage="dpo", **common)
    settings["output_dir"] = str(tmp_path / "theirs")
    run_exp({key: value for key, value in settings.items() if not key.startswith("tdpo_")})
    log = json.loads((tmp_path / "theirs" / "trainer_state.json").read_text())["log_history"]
    for mine, theirs in zip(ours.log[:4], log[:4], strict=True):
        for key in ("loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-5, abs=2e-6), key
    for name, tensor in weights(ours.folder).items():
        torch.testing.assert_close(tensor, weights(tmp_path / "theirs")[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("sepo", {}), ("tdpo_spans", {"tdpo_sides": "two", "pref_beta": 0.5}), ("tdpo_hh", {"dataset": "spans"})],
)
def test_training_lowers_the_loss_and_widens_the_margin(run, name, overrides):
    done = run(
        name=name, max_steps=30, learning_rate=2e-3, lr_scheduler_type="constant", finetuning_type="full", **overrides
    )
    entries = [entry for entry in done.log if "loss" in entry]
    assert mean([entry["loss"] for entry in entries[-3:]]) < 0.8 * mean([entry["loss"] for entry in entries[:3]])
    assert mean([e["rewards/margins"] for e in entries[-3:]]) > mean([e["rewards/margins"] for e in entries[:3]]) + 0.2


def test_the_end_token_is_selected_only_where_no_span_narrows_the_response(run, tmp_path):
    """One pair whose span covers all of the rejected text: its end token and the line break after it stay out."""
    row = {"prompt": "What is 1 + 1?", "chosen": "It is 2.", "rejected": "It is 3."}
    row["rejected_spans"] = [[0, len(row["rejected"])]]
    folder = write_rows(tmp_path / "whole", [{**row, "id": str(i)} for i in range(4)], "spans", formatting="span_pair")
    done = run(name="tdpo_spans", tdpo_sides="two", dataset_dir=str(folder), max_steps=1)
    tokens = done.receipt["tokens"]
    assert tokens["chosen_selected"] == tokens["chosen_responses"]
    assert tokens["rejected_selected"] == tokens["rejected_responses"] - 2 * 4


def test_a_batch_without_token_weights_stops_the_run(run, monkeypatch):
    """What the host's own collator would do: drop the weights without a word."""
    from finepref.hosts import packed
    from finepref.hosts.llamafactory.pairs import PairCollator
    from llamafactory.data import PairwiseDataCollatorWithPadding

    def drop(self, features):
        rows = [self._of_host(packed.whole_pair(row)) for row in features]
        return PairwiseDataCollatorWithPadding.__call__(self, rows)

    monkeypatch.setattr(PairCollator, "__call__", drop)
    with pytest.raises(ValueError, match="the batch has no token weights"):
        run(name="sepo")


def test_weights_follow_the_labels_when_the_tokenizer_pads_on_the_left(tiny_model, recipe):
    """The same two rows, padded on either side: weights sit on the same tokens."""
    from finepref.hosts import packed
    from finepref.hosts.llamafactory.pairs import PairCollator
    from finepref.methods.batches import Weights
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments
    from transformers import AutoTokenizer

    def row(length):
        response = range(11, 10 + length)
        sides = {side: (response, [0.0] * len(response), [0.0] * len(response)) for side in ("chosen", "rejected")}
        told = {f"{side}_{name}": False for side in sides for name in ("annotated", "scored")}
        return packed.pair([10], sides) | told | {"example_id": "a", "mapped": False}

    for padding in ("left", "right"):
        tokenizer = AutoTokenizer.from_pretrained(tiny_model, padding_side=padding)
        template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template="chatml"))
        collate = PairCollator(
            tokenizer=tokenizer,
            template=template,
            pad_to_multiple_of=8,
            label_pad_token_id=-100,
            weigh=lambda row: Weights(*([float(i % 2) for i in side.labels] for side in (row.chosen, row.rejected))),
        )
        batch = collate([row(5), row(12)])
        assert batch["labels"].shape == (4, 16)
        odd = (batch["input_ids"] % 2 == 1) & (batch["attention_mask"] == 1)
        assert torch.equal(batch["weight"] != 0, odd[:, 1:])


@pytest.mark.parametrize("name", ["sepo", "tdpo_spans"])
def test_two_ranks_of_six_pairs_have_the_loss_of_one_process_with_twelve(forked, run, tmp_path, other_model, name):
    common = {"name": name, "finetuning_type": "full", "gradient_accumulation_steps": 1, "max_steps": 1}
    common |= {"ref_model": str(other_model)} if name == "tdpo_spans" else {}
    alone = run(output_dir=str(tmp_path / "one"), per_device_train_batch_size=12, **common)
    both = forked(
        processes=2,
        output_dir=str(tmp_path / "two"),
        per_device_train_batch_size=6,
        **common,
    )
    assert both.code == 0, both.output[-3000:]
    log = json.loads((both.folder / "trainer_state.json").read_text())["log_history"]
    for key in ("loss", "rewards/margins", "rewards/accuracies", "logps/rejected"):
        assert log[0][key] == pytest.approx(alone.log[0][key], abs=2e-6), key
    assert both.receipt["tokens"] == alone.receipt["tokens"]
