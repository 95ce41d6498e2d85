"""Near-equal rows by three methods, and self-BLEU against NLTK."""

from __future__ import annotations

import json
import random

import numpy
import pytest
from finepref.cli import app
from finepref.formats.jsonl import read_jsonl, write_jsonl
from finepref.synth import dedup
from finepref.synth.diversity import self_bleu
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from typer.testing import CliRunner

WORDS = [f"w{i}" for i in range(400)]


def texts_with_repeats(count, seed=0):
    """Texts of 40 words; every other one is an earlier one with 0 to 8 of its words changed."""
    chance = random.Random(seed)
    texts = [chance.sample(WORDS, 40)]
    while len(texts) < count:
        words = list(chance.choice(texts)) if len(texts) % 2 else chance.sample(WORDS, 40)
        for place in chance.sample(range(40), chance.randrange(9)):
            words[place] = chance.choice(WORDS)
        texts.append(words)
    return [" ".join(words) for words in texts]


def jaccard(a, b):
    a, b = dedup.shingles(a, 1), dedup.shingles(b, 1)
    return len(a & b) / len(a | b)


def test_exactly_equal_texts_are_equal_in_every_character():
    assert dedup.exact(["A  b", "c", "a b\n", "a, b", "A  b"]) == [[0, 4], [1], [2], [3]]


def test_normalized_texts_are_equal_but_for_case_and_white_space():
    assert dedup.normalized(["A  b", "c", "a b\n", "a, b"]) == [[0, 2], [1], [3]]


def test_minhash_leaves_out_only_what_exact_jaccard_would_and_misses_little():
    """What the index does not propose stays: none of the pairs that are clearly alike."""
    texts = texts_with_repeats(200)
    groups = dedup.minhash(texts, threshold=0.7)
    assert sorted(i for group in groups for i in group) == list(range(200))
    kept = [group[0] for group in groups]
    for group in groups:
        assert group == sorted(group)
        assert all(jaccard(texts[group[0]], texts[i]) >= 0.7 for i in group)
    assert all(jaccard(texts[a], texts[b]) < 0.85 for a in kept for b in kept if a < b)
    assert 20 < len(kept) < 180


def test_shingles_of_a_text_shorter_than_one_are_the_text():
    assert dedup.shingles("One two, three", 3) == {"one two ,", "two , three"}
    assert dedup.shingles("One two", 3) == {"one two"}


@pytest.mark.parametrize(("keep", "kept"), [("hard", 2), ("easy", 0)])
def test_semdedup_keeps_what_is_far_from_or_near_to_the_centre(keep, kept):
    """Angles 0, 3, 6 and 60 degrees in one cluster, whose centre lies near 17: cos 6 = .9945, cos 54 = .588.

    Towards the centre the order is 60 (43 degrees away), 0 (17), 3 (14), 6 (11).
    """
    angles = numpy.radians([0, 3, 6, 60])
    vectors = numpy.stack([numpy.cos(angles), numpy.sin(angles)], axis=1)
    groups = dedup.semantic(vectors, eps=0.01, clusters=1, keep=keep)
    near = {"hard": [0, 1, 2], "easy": [2, 1, 0]}[keep]
    assert sorted(groups) == sorted([near, [3]])
    assert near[-1] == kept


def test_semdedup_compares_within_clusters_by_cosine_and_not_by_length():
    vectors = numpy.array([[1, 0], [5, 0.1], [0, 1], [0.1, 3]])
    groups = dedup.semantic(vectors, eps=0.04, clusters=2)
    assert sorted(map(sorted, groups)) == [[0, 1], [2, 3]]


def test_a_random_choice_depends_on_the_seed_alone():
    vectors = numpy.ones((50, 3))
    kept = [dedup.semantic(vectors, clusters=1, keep="random", seed=seed)[0][0] for seed in (0, 0, 1, 2, 3)]
    assert kept[0] == kept[1]
    assert len({*kept}) > 1


def quadratic_self_bleu(texts, order):
    tokens = [dedup.words(text) for text in texts]
    smooth = SmoothingFunction().method1
    return sum(
        sentence_bleu(tokens[:i] + tokens[i + 1 :], each, [1 / order] * order, smooth) for i, each in enumerate(tokens)
    ) / len(tokens)


def test_self_bleu_is_nltks_over_all_other_texts():
    texts = [
        "the cat sat on the mat",
        "the cat sat on the mat",
        "the the the cat sat here, and then it went away",
        "a dog, a dog, a dog barked",
        "short",
        "the cat",
        *texts_with_repeats(20),
    ]
    found = self_bleu(texts)
    for order in (2, 3, 4, 5):
        assert found[f"bleu_{order}"] == pytest.approx(quadratic_self_bleu(texts, order), abs=1e-12)
    assert found["mean"] == pytest.approx(sum(found[f"bleu_{n}"] for n in (2, 3, 4, 5)) / 4)


def test_self_bleu_of_a_sample_is_that_of_some_of_the_texts_by_seed():
    texts = texts_with_repeats(60)
    assert self_bleu(texts, sample=10, seed=1) == self_bleu(texts, sample=10, seed=1) != self_bleu(texts, sample=10)
    assert self_bleu(["a b c d e"] * 9, sample=3)["mean"] == 1


def run(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_the_command_keeps_rows_as_they_are_and_reports_groups(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [
        {"id": "a", "prompt": "Why?", "chosen": "So."},
        {"prompt": "How?", "chosen": "so."},
        {"messages": [{"role": "user", "content": "why? "}], "chosen": "No.", "more": [1]},
    ]
    write_jsonl(source, rows)
    result = run("dedup", source, "--output", output, "--method", "exact")
    assert result.stdout.splitlines()[-1] == f"{output}: 3 of 3 rows kept; the largest group has 1"
    result = run("dedup", source, "--output", output, "--method", "normalized")
    assert result.stdout.splitlines()[-1] == f"{output}: 2 of 3 rows kept; the largest group has 2"
    assert [row for _, row in read_jsonl(output, problems=None)] == rows[:2]
    report = json.loads(output.with_suffix(".report.json").read_text())
    assert report["groups"] == [{"kept": {"row": 0, "id": "a"}, "left_out": [{"row": 2}]}]
    both = run("dedup", source, "--output", output, "--method", "normalized", "--fields", "prompt,chosen")
    assert "3 of 3 rows kept" in both.stdout
    assert run("dedup", source, "--output", output, "--method", "minhash").stdout.splitlines()[-1].endswith("has 2")


def test_fields_that_are_equal_only_when_joined_are_not_exactly_equal(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_jsonl(source, [{"prompt": "a\nb", "chosen": "c"}, {"prompt": "a", "chosen": "b\nc"}])
    result = run("dedup", source, "--output", output, "--method", "exact", "--fields", "prompt,chosen")
    assert "2 of 2 rows kept" in result.stdout


def test_rows_without_the_field_are_told_by_line_and_nothing_is_written(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_jsonl(source, [{"prompt": "a"}, {"query": "b"}, {"prompt": " "}])
    result = run("dedup", source, "--output", output, "--method", "exact")
    assert result.exit_code == 1
    assert f"{source}:2" in result.stderr
    assert f"{source}:3" in result.stderr
    assert not output.exists()


def test_semantic_uses_the_named_embedder(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({"[UNK]": 0, "cat": 1, "feline": 2, "car": 3, "a": 4}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = numpy.array([[0, 0], [1, 0], [0.99, 0.05], [0, 1], [0, 0]], dtype=numpy.float32)
    SentenceTransformer(modules=[StaticEmbedding(core, embedding_weights=weights)]).save(str(tmp_path / "static"))
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_jsonl(source, [{"prompt": text} for text in ("a cat", "a car", "a feline")])
    result = run("dedup", source, "--output", output, "--method", "semantic", "--embedder", tmp_path / "static")
    assert result.stdout.splitlines()[-1] == f"{output}: 2 of 3 rows kept; the largest group has 2"
    result = run("dedup", source, "--output", output, "--method", "semantic")
    assert result.exit_code == 1
    assert "semantic needs --embedder" in result.stderr


def test_diversity_prints_one_line_of_json(tmp_path):
    source = tmp_path / "in.jsonl"
    write_jsonl(source, [{"prompt": "a b c d e f"}, {"prompt": "a b c d e f"}])
    assert json.loads(run("diversity", source).stdout) == {
        "texts": 2, "sample": 0, "bleu_2": 1.0, "bleu_3": 1.0, "bleu_4": 1.0, "bleu_5": 1.0, "mean": 1.0,
    }  # fmt: skip
