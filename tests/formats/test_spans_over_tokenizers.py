"""10,000 random texts x three tokenizers trained here: a token is selected if and only if it overlaps a span."""

from __future__ import annotations

import random

import pytest
from finepref.formats.records import Span
from finepref.formats.spans import token_weights
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = 10_000
PIECES = [
    *("the", "The", " cat", "cats", " answer", "is", "12", "3.5", "=", ",", ".", "don't", "_x", "(", ")", "\\frac"),
    *(" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u200b", "\u3000"),
    *("数学", "答案是", "ひらがな", "한국어", "שלום", "ไทย"),
    *("é", "e\u0301", "o\u0308\u0301", "\u0301", "ﬁ", "İ"),
    *("\N{GRINNING FACE}", "👩‍👩‍👧", "🇩🇪", "👍🏽", "✈️", "𝒳"),
]


def random_text(draw):
    """1 to 24 pieces; every third text repeats a phrase, so that a substring is no way to find a span."""
    pieces = draw.choices(PIECES, k=draw.randint(1, 24))
    if draw.random() < 1 / 3:
        phrase = pieces[: draw.randint(1, 4)]
        pieces = phrase * draw.randint(2, 4) + pieces
    return "".join(pieces)


def random_spans(draw, length):
    """Up to four disjoint spans; some touch, some are one character, some are everything."""
    cuts = sorted(draw.sample(range(length + 1), min(length + 1, 2 * draw.randint(1, 4))))
    pairs = list(zip(cuts[::2], cuts[1::2], strict=False))
    if draw.random() < 0.1:
        pairs = [(0, length)]
    return [Span(start, end) for start, end in pairs]


def byte_level_bpe(corpus):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet))
    return tokenizer


def word_pieces(corpus):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[CLS]", "[SEP]"])
    tokenizer.train_from_iterator(corpus, trainer)
    frame = [("[CLS]", tokenizer.token_to_id("[CLS]")), ("[SEP]", tokenizer.token_to_id("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    return tokenizer


def unigram_metaspace(corpus):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def texts():
    draw = random.Random(20240731)
    return [random_text(draw) for _ in range(TEXTS)]


@pytest.mark.parametrize("train", [byte_level_bpe, word_pieces, unigram_metaspace])
def test_a_token_is_selected_if_and_only_if_it_overlaps_a_span(train, texts):
    """The oracle marks characters one by one and asks each token for its own; it shares no code with token_weights."""
    draw = random.Random(train.__name__)
    tokenizer = train(texts[:1000])
    selected = unselected = 0
    for text, encoding in zip(texts, tokenizer.encode_batch(texts), strict=True):
        spans = random_spans(draw, len(text))
        inside = bytearray(len(text))
        for start, end, _ in spans:
            inside[start:end] = b"\x01" * (end - start)
        weights = token_weights(spans, encoding.offsets)
        expected = [1.0 if any(inside[start:end]) else 0.0 for start, end in encoding.offsets]
        assert weights == expected, (text, spans, encoding.tokens)
        selected += sum(expected) > 0
        unselected += 0.0 in expected
    assert selected > TEXTS / 2
    assert unselected > TEXTS / 2


def test_a_byte_level_tokenizer_gives_every_character_of_a_span_to_a_selected_token(texts):
    tokenizer = byte_level_bpe(texts[:1000])
    draw = random.Random(3)
    for text, encoding in zip(texts[:2000], tokenizer.encode_batch(texts[:2000]), strict=True):
        spans = random_spans(draw, len(text))
        covered = set()
        for weight, (start, end) in zip(token_weights(spans, encoding.offsets), encoding.offsets, strict=True):
            covered |= set(range(start, end)) if weight else set()
        assert {i for start, end, _ in spans for i in range(start, end)} <= covered


def test_special_tokens_are_never_selected(texts):
    tokenizer = word_pieces(texts[:1000])
    for text in texts[:200]:
        encoding = tokenizer.encode(text)
        weights = token_weights([Span(0, len(text))], encoding.offsets)
        assert (weights[0], weights[-1]) == (0, 0)
