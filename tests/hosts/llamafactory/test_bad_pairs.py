"""Whatever is wrong with data or options of a stage on pairs is one coded, located error before any model loads."""

from __future__ import annotations

from copy import copy

import pytest
from sample_rows import contrast_rows, results, scored_rows, span_rows

SPANS = {"name": "spans", "formatting": "span_pair"}
SCORES = {"name": "scores", "formatting": "scored_pair"}


def changed(records: list[dict], index: int, **fields: object) -> list[dict]:
    """Good rows with one of them changed; a field of None is taken out."""
    records[index] = {key: value for key, value in (records[index] | fields).items() if value is not None}
    return records


def test_a_record_without_spans_is_named_when_masks_are_asked_for(refused):
    message = refused(changed(span_rows(), 4, rejected_spans=None), SPANS, name="tdpo_spans")
    assert "FP210 " in message
    assert "spans.jsonl:5 rejected_spans: `tdpo_masks: annotated` needs spans" in message


def test_plain_pairs_have_nothing_to_select_by(refused):
    records = [{key: row[key] for key in ("id", "prompt", "chosen", "rejected")} for row in span_rows()]
    entry = {"name": "plain", "formatting": "pair"}
    message = refused(records, entry, name="sepo", dataset="plain")
    assert "plain.jsonl:1 chosen_scores: `sepo_selection: oracle` needs them" in message
    assert "11 more like it" in message
    assert message.endswith("12 problems")
    assert "FP210" in refused(records, entry, name="tdpo_spans", dataset="plain")


def test_spans_on_both_responses_cannot_be_one_sided(refused):
    records = span_rows()
    records[4]["chosen_spans"] = results(records[4]["chosen"], "9")
    message = refused(records, SPANS, name="tdpo_spans")
    assert "FP215 " in message
    assert "spans.jsonl:5 side: `tdpo_sides: one` needs one response without spans" in message


def test_scores_of_another_tokenizer_are_refused_by_its_fingerprint(refused, tiny_model):
    records = changed(scored_rows(tiny_model), 4, tokenizer="0" * 16)
    message = refused(records, SCORES, name="sepo")
    assert "FP212 " in message
    assert "scores.jsonl:5 tokenizer: set `sepo_map_scores`" in message
    records = changed(records, 4, rejected_offsets=None)
    message = refused(records, SCORES, name="sepo", sepo_map_scores=True)
    assert "scores.jsonl:5 tokenizer: '0000000000000000', the model's is " in message
    assert "mapping needs rejected_offsets, which are missing" in message


def test_scores_of_another_kind_are_refused_before_a_model_loads(refused, tiny_model):
    message = refused(contrast_rows(tiny_model), SCORES, name="tgdpo")
    assert "FP262 " in message
    assert "scores.jsonl:1 score_kind: the stage reads those that `finepref sepo score` writes" in message
    message = refused(scored_rows(tiny_model), SCORES, name="cdpo", dataset="scores")
    assert "scores.jsonl:1 score_kind: the stage reads those that `finepref sepo score --contrast` writes" in message


@pytest.mark.parametrize("extra", [-1, 2])
def test_scores_that_do_not_fit_the_tokens_are_refused(refused, tiny_model, extra):
    """One score more than the text has tokens is the end token's."""
    records = scored_rows(tiny_model)
    scores = records[4]["rejected_scores"][:-1]
    scores = scores[:extra] if extra < 0 else [*scores, *[0.5] * extra]
    message = refused(changed(records, 4, rejected_scores=scores, rejected_offsets=None), SCORES, name="sepo")
    assert "FP213 " in message
    assert "scores.jsonl:5 rejected_scores: " in message


def test_a_span_whose_weights_are_all_zero_is_named_even_if_the_prompt_is_cut(refused):
    spans = [{**span, "weight": 0.0} for span in span_rows()[4]["rejected_spans"]]
    records = changed(span_rows(), 4, prompt="Why? " * 80, rejected_spans=spans)
    message = refused(records, SPANS, name="tdpo_spans", cutoff_len=256, finepref_overlong="truncate_left")
    assert "FP214 " in message
    assert "spans.jsonl:5 rejected_spans: " in message


def test_a_template_that_changes_the_response_is_an_error_not_a_shifted_mask(refused, monkeypatch):
    """The template drops what the response begins with, as templates do that take out thoughts."""
    from llamafactory.data.template import Template

    original = Template.encode_oneturn

    def shorten(self, tokenizer, messages, system=None, tools=None):
        prompt_ids, response_ids = original(self, tokenizer, messages, system, tools)
        return prompt_ids, response_ids[1:]

    monkeypatch.setattr(Template, "encode_oneturn", shorten)
    message = refused(span_rows(), SPANS, name="tdpo_spans")
    assert "FP211 " in message
    assert "spans.jsonl:1 chosen: the tokens of the chat template" in message


def test_a_stream_stops_at_a_record_without_spans(recipe, tmp_path):
    from llamafactory.train.tuner import run_exp
    from sample_rows import write_rows

    folder = write_rows(
        tmp_path / "bad", changed(span_rows(), 1, rejected_spans=None), "spans", formatting="span_pair"
    )
    settings = recipe("tdpo_spans", dataset_dir=str(folder), streaming=True, dataloader_num_workers=1, max_steps=6)
    with pytest.raises(ValueError, match=r"FP210 .*spans.jsonl:2 rejected_spans"):
        run_exp(settings)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sepo_ratio_chosen": 0}, "`sepo_ratio_chosen` must be above 0 and at most 1, not 0"),
        ({"sepo_ratio_rejected": 2}, "`sepo_ratio_rejected` must be above 0 and at most 1, not 2"),
        ({"sepo_ratio_chosen": "a third"}, "`sepo_ratio_chosen` must be a number, not 'a third'"),
        ({"sepo_gamma": -1.0}, "`sepo_gamma` must be above 0, not -1.0"),
        ({"sepo_gamma": float("nan")}, "`sepo_gamma` must be a number, not nan"),
        ({"sepo_margin": -0.1}, "`sepo_margin` must not be negative, but is -0.1"),
        ({"sepo_preset": "best"}, "`sepo_preset` must be paper or released, not 'best'"),
        ({"sepo_selection": "top"}, "`sepo_selection` must be oracle or random or all, not 'top'"),
        ({"sepo_map_scores": "yes"}, "`sepo_map_scores` must be true or false, not 'yes'"),
        ({"pref_beta": 0.5}, "`pref_beta` does nothing in stage sepo, so leave it out"),
        ({"pref_loss": "ipo"}, "`pref_loss` does nothing in stage sepo, so leave it out"),
        ({"ref_model": "models/ref"}, "`ref_model` does nothing in stage sepo, so leave it out"),
        ({"tdpo_sides": "one"}, "`tdpo_sides` is a key of stage tdpo, not of sepo"),
        ({"dataset": "sums"}, "stage sepo trains on scored_pair or span_pair or pair, this dataset is negatives"),
        ({"packing": True}, "`packing` is not for stage sepo"),
    ],
)
def test_bad_options_of_sepo_give_one_clear_line(refused, overrides, message):
    assert message in refused(name="sepo", **overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"pref_beta": -0.1}, "`pref_beta` must be above 0, not -0.1"),
        ({"tdpo_variant": "tdpo1"}, "`tdpo_alpha` belongs to tdpo2; tdpo1 has none, so leave it out"),
        (
            {"tdpo_log_kl": True},
            "`tdpo_log_kl` belongs to dpo; tdpo2 always logs its KL, so leave it out",
        ),
        ({"tdpo_variant": "dpo"}, "`tdpo_alpha` belongs to tdpo2; dpo has none, so leave it out"),
        ({"tdpo_variant": "tdpo3"}, "`tdpo_variant` must be tdpo1 or tdpo2 or dpo, not 'tdpo3'"),
        ({"tdpo_alpha": -1.0}, "`tdpo_alpha` must not be negative, but is -1.0"),
        ({"tdpo_masks": "none"}, "`tdpo_sides: one` needs spans, but `tdpo_masks: none` reads none"),
        (
            {"tdpo_masks": "none", "tdpo_sides": "two", "tdpo_normalize_spans": True},
            "`tdpo_normalize_spans` needs spans, but `tdpo_masks: none` reads none",
        ),
        ({"tdpo_sides": "both"}, "`tdpo_sides` must be one or two, not 'both'"),
        ({"pref_ftx": 0.1}, "`pref_ftx` does nothing in stage tdpo, so leave it out"),
        ({"ld_alpha": 0.5}, "`ld_alpha` does nothing in stage tdpo, so leave it out"),
        ({"sepo_gamma": 2.0}, "`sepo_gamma` is a key of stage sepo, not of tdpo"),
        ({"dataset": "scores"}, "stage tdpo trains on span_pair or pair, this dataset is scored_pair"),
        ({"stage": "sft"}, "is a key of stage tdpo, not of sft"),
        (
            {"stage": "dpo", "tdpo_alpha": None, "tdpo_sides": "two", "dataset": "spans"},
            "the host's stage rm or dpo cannot read span_pair; stage sepo or tdpo or confpo or simper or "
            "granular_sft can",
        ),
    ],
)
def test_bad_options_of_tdpo_give_one_clear_line(refused, overrides, message):
    assert message in refused(name="tdpo_spans", **overrides)


def test_a_key_that_both_stages_have_is_named_with_both(refused):
    message = refused(name="apo_rm", finepref_full_logits=True)
    stages = "cdpo, confpo, dpo_pl, granular_sft, seapo_kto, sepo, simper, tdpo, tgdpo, tis_dpo"
    assert (
        f"`finepref_full_logits` is a key of stage {', '.join(sorted(stages.split(', ')))}, not of apo_rm" in message
    )


def test_a_tokenised_folder_of_the_other_pair_stage_is_refused(run, refused, tmp_path):
    folder = str(tmp_path / "tokens")
    run(name="tdpo_spans", tokenized_path=folder)
    message = refused(name="sepo", dataset="spans", tokenized_path=folder)
    assert f"tokenized_path {folder} was written with stage 'tdpo', now 'sepo'" in message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"cutoff_len": 64}, "cutoff_len 2048, now 64"),
        ({"template": "default"}, "template 'chatml', now 'default'"),
        ({"finepref_overlong": "skip"}, "finepref_overlong 'host', now 'skip'"),
        ({"tool_format": "qwen"}, "tool_format None, now 'qwen'"),
    ],
)
def test_a_tokenised_folder_of_other_settings_is_refused_by_their_names(
    run, refused, tmp_path, monkeypatch, overrides, message
):
    from llamafactory.data.template import TEMPLATES

    monkeypatch.setitem(TEMPLATES, "chatml", copy(TEMPLATES["chatml"]))  # the host changes it by tool_format
    folder = str(tmp_path / "tokens")
    done = run(name="tdpo_spans", tokenized_path=folder)
    again = run(name="tdpo_spans", tokenized_path=folder)
    assert again.receipt["rows"] == done.receipt["rows"]
    assert message in refused(name="tdpo_spans", tokenized_path=folder, **overrides)
