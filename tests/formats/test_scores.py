"""Fingerprints of tokenizers, and token scores carried over to another tokenizer."""

from __future__ import annotations

import json
import math

import pytest
from finepref.formats.scores import fingerprint, map_scores

TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
    "post_processor": None,
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
}


def changed(**fields: object) -> str:
    return fingerprint(json.dumps(TOKENIZER | fields))


def test_what_a_host_does_to_a_tokenizer_leaves_its_fingerprint():
    added = [{"id": 3, "content": "<|im_end|>", "special": True}]
    padding = {"strategy": "BatchLongest", "pad_id": 0}
    assert changed(added_tokens=added, padding=padding, truncation={"max_length": 9}) == changed()


def test_both_spellings_of_a_merge_are_the_same_tokenizer():
    assert changed(model=TOKENIZER["model"] | {"merges": ["a b"]}) == changed()


@pytest.mark.parametrize(
    "fields",
    [
        {"normalizer": None},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
        {"model": TOKENIZER["model"] | {"merges": []}},
        {"model": TOKENIZER["model"] | {"vocab": {"a": 1, "b": 0, "ab": 2}}},
    ],
)
def test_what_changes_the_tokens_of_a_text_changes_the_fingerprint(fields):
    assert changed(**fields) != changed()


def test_a_token_gets_the_mean_score_of_its_characters():
    """Scores 3 on [0, 2) and 6 on [2, 3): the token [0, 3) has (3 + 3 + 6) / 3 = 4, its halves 3 and (3 + 6) / 2."""
    scores, offsets = [3.0, 6.0], [(0, 2), (2, 3)]
    assert map_scores(scores, offsets, [(0, 3)]) == [4.0]
    assert map_scores(scores, offsets, [(0, 1), (1, 3)]) == [3.0, 4.5]
    assert map_scores(scores, offsets, offsets) == scores


def test_the_tokens_of_one_character_share_it():
    """An emoji of two tokens with scores 1 and 3: the character has 2."""
    assert map_scores([1.0, 3.0], [(0, 1), (0, 1)], [(0, 1)]) == [2.0]


def test_a_token_that_nothing_was_scored_for_has_no_score():
    mapped = map_scores([1.0, 5.0], [(0, 1), (1, 1)], [(0, 1), (1, 2), (2, 2)])
    assert mapped[0] == 1.0
    assert all(math.isnan(score) for score in mapped[1:])


def test_scores_and_offsets_must_be_equally_many():
    with pytest.raises(ValueError, match="1 scores for 2 tokens"):
        map_scores([1.0], [(0, 1), (1, 2)], [])
