"""Tokenizers that change the text first: each span selects tokens, also one on a mark that was composed or removed."""

from __future__ import annotations

import random
import unicodedata

import pytest
from finepref.formats.records import Span
from finepref.formats.spans import covering, token_weights
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

TEXTS = 2_000
PIECES = [
    *("a", "e", "q", "The", " ", "\n", "12", "数", "\N{GRINNING FACE}"),
    *("\u0301", "\u0308", "\u0323", "\u0307", "e\u0301", "o\u0308\u0301", "q\u0307\u0323"),
    *("\u1112\u1161\u11ab", "\uac00\u11a8", "ﬁ", "İ", "é", "½", "\u212b", "ẛ\u0323"),
]
NORMALIZERS = {
    "none": None,
    "NFC": normalizers.NFC(),
    "NFD": normalizers.NFD(),
    "NFKC": normalizers.NFKC(),
    "NFKD": normalizers.NFKD(),
    "lowercase": normalizers.Lowercase(),
    "strip accents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
    "bert": normalizers.BertNormalizer(),
}


def byte_level(name):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if NORMALIZERS[name] is not None:
        tokenizer.normalizer = NORMALIZERS[name]
    return tokenizer


def selected(text, offsets, spans):
    weights = token_weights(spans, covering(text, offsets))
    return [offset for offset, weight in zip(offsets, weights, strict=True) if weight]


@pytest.mark.parametrize("name", NORMALIZERS)
def test_a_span_with_a_visible_character_selects_a_token_of_its_cluster(name):
    """A cluster is a base with the marks and jamo after it; a token of it overlaps it in the tokenizer's offsets."""
    draw, tokenizer = random.Random(name), byte_level(name)
    found = 0
    for _ in range(TEXTS):
        text = "".join(draw.choices(PIECES, k=draw.randint(1, 8)))
        offsets = tokenizer.encode(text).offsets
        if not offsets:
            continue
        at = draw.randrange(len(text))
        if text[at].isspace():
            continue
        start = at
        while start and (unicodedata.category(text[start]) == "Mn" or text[start] in "\u1161\u11ab\u11a8"):
            start -= 1
        chosen = selected(text, offsets, [Span(at, at + 1)])
        assert chosen, (ascii(text), at, offsets)
        cluster = [(a, b) for a, b in offsets if a <= at and b > start]
        assert set(chosen) <= set(cluster) or not cluster, (ascii(text), at, offsets)
        found += 1
    assert found > TEXTS / 2


@pytest.mark.parametrize("name", NORMALIZERS)
def test_spans_select_all_that_they_overlap_and_some_more_only_beside_a_lost_character(name):
    draw, tokenizer = random.Random(name), byte_level(name)
    for _ in range(TEXTS):
        text = "".join(draw.choices(PIECES, k=draw.randint(1, 8)))
        offsets = tokenizer.encode(text).offsets
        start = draw.randrange(len(text))
        end = draw.randint(start + 1, len(text))
        overlapping = [(a, b) for a, b in offsets if a < end and start < b]
        chosen = selected(text, offsets, [Span(start, end)])
        assert set(overlapping) <= set(chosen)
        seen = {i for a, b in offsets for i in range(a, b)}
        if {*range(len(text))} <= seen:
            assert chosen == overlapping


@pytest.mark.parametrize(
    ("text", "offsets", "expected"),
    [
        ("xe\u0301y", [(0, 1), (1, 2), (1, 2), (3, 4)], [(0, 1), (1, 3), (1, 3), (3, 4)]),
        ("\u1112\u1161\u11aby", [(0, 1), (3, 4)], [(0, 3), (3, 4)]),
        ("\u0301y", [(1, 2)], [(0, 2)]),
        ("a b", [(0, 1), (2, 3)], [(0, 1), (2, 3)]),  # white space that the tokenizer drops stays in no token
        ("ab", [(0, 0), (0, 2), (2, 2)], [(0, 0), (0, 2), (2, 2)]),
        ("\u0301", [(0, 0)], [(0, 0)]),
        ("", [], []),
    ],
)
def test_what_is_in_no_token_belongs_to_the_token_before(text, offsets, expected):
    assert covering(text, offsets) == expected
