"""Tokenised pairs: the view that methods read, and the weights of a stage that names none."""

from __future__ import annotations

import pytest
from finepref.formats.problems import BadData
from finepref.formats.records import FORMATS, parse, revive, to_row
from finepref.formats.scores import prompt_digest
from finepref.methods import sepo
from finepref.methods.options import PairOptions, in_yaml
from finepref.methods.pair_rows import (
    NO_RESPONSE,
    PairRow,
    ResponseRow,
    facts,
    fingerprint,
    weigh_all,
    weigh_chosen,
    weights_and_scores,
)
from finepref.methods.sepo import SepoOptions

OPTIONS = PairOptions.read("llamafactory", {}, in_yaml)
SPANS = ResponseRow([-100, 5, 6, 7], [0.0, 1.0, 0.0, -0.5], [0.0] * 4, annotated=True, scored=False)
PLAIN = ResponseRow([-100, -100, 8], [1.0, 1.0, 1.0], [0.0] * 3, annotated=False, scored=False)


def test_a_response_without_spans_counts_as_a_whole_and_the_prompt_never_counts():
    weights = weigh_all(PairRow("a", SPANS, PLAIN, mapped=False), OPTIONS, 0)
    assert weights == ([0.0, 1.0, 0.0, -0.5], [0.0, 0.0, 1.0], 0, 0.0)
    assert weigh_chosen(PairRow("a", SPANS, NO_RESPONSE, mapped=False), OPTIONS, 0) == [0.0, 1.0, 0.0, -0.5]
    assert weigh_chosen(PairRow("a", PLAIN, NO_RESPONSE, mapped=False), OPTIONS, 0) == [0.0, 0.0, 1.0]


def test_a_response_of_which_nothing_is_left_is_named():
    cut = SPANS._replace(weight=[0.0] * 4)
    with pytest.raises(BadData, match="FP214 record a rejected_spans: `cutoff_len` cuts off every selected token"):
        weigh_all(PairRow("a", PLAIN, cut, mapped=False), OPTIONS, 0)


ROWS = {
    "pair": {"id": "a", "prompt": "p", "chosen": "good", "rejected": "bad", "margin": 0.5},
    "span_pair": {
        "id": "a",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}],
        "chosen": "good",
        "rejected": "bad",
        "rejected_spans": [[0, 2, 0.5]],
        "side": -1,
    },
    "scored_pair": {
        "id": "a",
        "prompt": "p",
        "chosen": "good",
        "rejected": "bad",
        "tokenizer": "t",
        "chosen_scores": [1.0, 2.0],
        "rejected_scores": [0.0],
        "chosen_offsets": [[0, 2], [2, 4]],
        "template": "qwen",
        "prompt_digest": "00ff00ff00ff00ff",
    },
    "ranked": {"id": "a", "prompt": "p", "responses": ["x", "y"], "scores": [1.0, 0.0], "kind": "apo"},
    "feedback": {"id": "a", "prompt": "p", "response": "x", "label": False, "error_type": "logic"},
    "negatives": {
        "id": "a",
        "prompt": "p",
        "chosen": "good",
        "negatives": {"logic": "bad"},
        "spans": {"logic": [[0, 1]]},
        "rejected": "no",
    },
    "choice": {"id": "a", "question": "q?", "options": {"A": "x", "B": "y"}, "answer": "B", "subject": "law"},
}


@pytest.mark.parametrize("formatting", FORMATS)
def test_a_record_that_travelled_as_json_is_the_one_that_was_parsed(formatting):
    import json

    record = parse(ROWS[formatting], formatting)
    assert revive(json.loads(json.dumps(to_row(record))), formatting) == record


def byte_level(normalizer=None):
    """A fast tokenizer with a token per byte."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        core.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=core)


def tokenised(record, side, tokenizer, problems):
    text = getattr(record, side)
    encoded = tokenizer(text, return_offsets_mapping=True)
    count, offsets = len(encoded["input_ids"]) + 1, encoded["offset_mapping"]  # and an end token
    return weights_and_scores(record, side, count, 0, offsets, tokenizer=tokenizer, problems=problems)


def test_a_span_on_a_combining_accent_selects_the_tokens_of_the_composed_character():
    """Under NFC "e" and U+0301 become one character, whose two bytes stand at the place of the "e"."""
    from tokenizers import normalizers

    row = {"prompt": "p", "chosen": "good", "rejected": "caf" + "e\u0301!", "rejected_spans": [[4, 5]]}
    problems = []
    weight, _ = tokenised(parse(row, "span_pair"), "rejected", byte_level(normalizers.NFC()), problems)
    assert weight == [0, 0, 0, 1, 1, 0, 0]
    assert problems == []


def scored_by(model_tokenizer, **changes):
    text = "good"
    row = {
        "prompt": "p",
        "chosen": text,
        "rejected": "bad",
        "tokenizer": fingerprint(model_tokenizer),
        "chosen_scores": [1.0, 2.0, 3.0, 4.0, 5.0],
        "rejected_scores": [0.0, 1.0],
        "rejected_offsets": [[0, 1], [1, 2]],
        "template": "qwen",
        "prompt_digest": prompt_digest([1, 2, 3]),
    }
    return parse({name: value for name, value in (row | changes).items() if value is not None}, "scored_pair")


def test_scores_of_the_beginning_of_a_response_fit_if_their_offsets_are_those_of_its_tokens():
    """A response that was cut before it was scored; the rest of it has no score."""
    import math

    tokenizer, problems = byte_level(), []
    _, score = tokenised(scored_by(tokenizer), "rejected", tokenizer, problems)
    assert score[:2] == [0.0, 1.0]
    assert all(map(math.isnan, score[2:]))
    assert problems == []
    for other in ({"rejected_offsets": None}, {"rejected_offsets": [[0, 1], [2, 3]]}):
        problems = []
        tokenised(scored_by(tokenizer, **other), "rejected", tokenizer, problems)
        assert [problem.code for problem in problems] == ["FP213"]


SEPO = SepoOptions.read("llamafactory", {}, in_yaml)


@pytest.mark.parametrize(
    ("changes", "prompt", "template", "expected"),
    [
        ({}, [1, 2, 3], "llama3", None),  # the same tokens, whatever wrote them
        ({}, [1, 2, 4], "llama3", "scored with template 'qwen', trained with 'llama3'"),
        ({}, [1, 2, 4], "qwen", "scored and trained with template 'qwen', but other settings"),
        ({"template": None}, [1, 2, 4], "qwen", "scored with template 'one that the file does not name'"),
        ({"prompt_digest": None}, [1, 2, 4], "llama3", None),  # files from before
        ({"tokenizer": "0" * 16}, [1, 2, 4], "llama3", None),  # another tokenizer has other tokens by nature
    ],
)
def test_scores_made_after_another_prompt_are_refused_by_the_templates_names(changes, prompt, template, expected):
    tokenizer = byte_level()
    record = scored_by(tokenizer, **changes)
    row = facts(record, tokenizer, prompt, template)
    for side in ("chosen", "rejected"):
        row |= {f"{side}_labels": [5, 6], f"{side}_weight": [1.0, 1.0], f"{side}_score": [0.5, 0.25]}
    pair = PairRow.of(row)
    if expected is None:
        assert pair.other_prompt == ""
        return
    with pytest.raises(BadData, match=r"FP250 record .* prompt_digest: ") as caught:
        sepo.weigh(pair, SEPO, 0)
    assert expected in str(caught.value)
    everything = SepoOptions.read("llamafactory", {"sepo_selection": "all"}, in_yaml)
    assert sepo.weigh(pair, everything, 0).chosen == [1.0, 1.0], "no score is read, so none can be wrong"
    accepted = SepoOptions.read("llamafactory", {"sepo_map_scores": True}, in_yaml)
    assert sum(sepo.weigh(pair, accepted, 0).chosen) == 1.0


def test_a_digest_is_of_the_numbers_in_their_order():
    import hashlib
    import struct

    expected = hashlib.blake2b(struct.pack("<3q", 1, 2, 300000), digest_size=8).hexdigest()
    assert prompt_digest([1, 2, 300000]) == expected
    assert prompt_digest([2, 1, 300000]) != expected
