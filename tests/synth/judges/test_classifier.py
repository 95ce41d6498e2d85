"""The judge `classifier` against transformers' own pipeline; judges of batches: journal, threshold, entry point."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch
from finepref.cli import app
from finepref.formats.jsonl import read_jsonl, write_jsonl
from finepref.formats.problems import BadData
from finepref.synth.journal import JournalChanged
from finepref.synth.judges import verdict
from finepref.synth.judges.classifier import classifier, unsafe_labels
from finepref.synth.judges.label_rows import judge
from finepref.synth.judges.verdict import BatchJudge, Verdict
from tiny_llama import byte_tokenizer
from transformers import BertConfig, BertForSequenceClassification, pipeline
from typer.testing import CliRunner

EXAMPLE = Path(__file__).parents[3] / "examples" / "own_judge"
TEXTS = ["You silly goose!", "Well.", "A kind word", "x"]
LABELS = {0: "kind", 1: "Rude", 2: "vulgar, very"}
CONTEXT = 24


def save(folder: Path, *, template: str | None = None, **config: object) -> Path:
    """A random BERT of a few thousand weights with three labels, and a token per byte."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template, tokenizer.model_max_length = template, CONTEXT
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = BertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        pad_token_id=0,
        initializer_range=2.0,
        **{"id2label": LABELS, "label2id": {name: i for i, name in LABELS.items()}} | sizes | config,
    )
    BertForSequenceClassification(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return save(tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def multi(tmp_path_factory):
    return save(tmp_path_factory.mktemp("multi"), problem_type="multi_label_classification")


def rows_of(path):
    return [row for _, row in read_jsonl(path, problems=None)]


def probabilities(folder, texts):
    """label -> probability of each text, by transformers' own pipeline."""
    found = pipeline("text-classification", model=str(folder), top_k=None)(list(texts))
    return [{each["label"]: each["score"] for each in one} for one in found]


def test_the_probability_is_that_of_transformers_own_pipeline(single, multi):
    """The sum of the unsafe labels of a softmax, the greatest of several sigmoids; batches of 2 are padded."""
    rows = [{"response": text} for text in TEXTS]
    found = classifier(str(single), ["Rude", "vulgar, very"], batch_size=2)
    for start in (0, 2):
        for got, by_label in zip(
            found.judge(rows[start : start + 2]), probabilities(single, TEXTS[start : start + 2]), strict=True
        ):
            assert got.score == pytest.approx(by_label["Rude"] + by_label["vulgar, very"], abs=1e-5)
    found = classifier(str(multi), ["Rude", "vulgar, very"])
    for got, by_label in zip(found.judge(rows), probabilities(multi, TEXTS), strict=True):
        assert got.score == pytest.approx(max(by_label["Rude"], by_label["vulgar, very"]), abs=1e-5)
        assert by_label[got.reason] == pytest.approx(got.score, abs=1e-5)


def test_a_text_beyond_the_context_is_read_in_windows_of_which_the_most_unsafe_counts(single):
    """54 bytes in windows of 24 that overlap by 6: they begin at 0, 18 and 36."""
    text = "".join(chr(97 + i % 26) for i in range(54))
    (got,) = classifier(str(single), ["Rude"]).judge([{"response": text}])
    windows = probabilities(single, [text[0:24], text[18:42], text[36:54]])
    assert got.score == pytest.approx(max(each["Rude"] for each in windows), abs=1e-5)
    assert got.reason == "Rude, 3 windows"


def test_it_reads_the_dialogue_by_the_chat_template_or_as_two_segments(single, tmp_path):
    row = {"prompt": "Hm?", "response": "Goose"}
    written = save(tmp_path / "chat", template="{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}")
    (got,) = classifier(str(written), ["Rude"], reads="dialogue").judge([row])
    (alone,) = classifier(str(written), ["Rude"]).judge([{"response": "u:Hm?;a:Goose;"}])
    assert got.score == pytest.approx(alone.score, abs=1e-6)
    (got,) = classifier(str(single), ["Rude"], reads="dialogue").judge([row])
    model = BertForSequenceClassification.from_pretrained(single).eval()
    ids = byte_tokenizer()("Hm?Goose", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = model(input_ids=ids).logits.softmax(-1)[0, 1]  # this tokenizer puts nothing between segments
    assert got.score == pytest.approx(float(expected), abs=1e-5)


def test_a_prompt_that_fills_the_context_gives_no_verdict(single):
    (got,) = classifier(str(single), ["Rude"], reads="dialogue").judge([{"prompt": "p" * 23, "response": "r"}])
    assert got == Verdict(None, f"the prompt leaves no room in the classifier's {CONTEXT} tokens")


def test_labels_are_found_in_any_case_and_with_commas_in_their_names():
    known = [*LABELS.values()]
    assert unsafe_labels(["rude"], known, "m") == ["Rude"]
    assert unsafe_labels(["Rude,kind"], known, "m") == ["Rude", "kind"]
    assert unsafe_labels(["vulgar, very", "rude", "rude"], known, "m") == ["vulgar, very", "Rude"]


def run(*arguments):
    return CliRunner().invoke(app, ["judge", *map(str, arguments)])


@pytest.fixture
def source(tmp_path):
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "Q", "response": text} for text in TEXTS])
    return tmp_path / "in.jsonl"


def test_the_command_labels_by_a_threshold_that_may_be_changed_without_reading_again(single, source, tmp_path):
    output = tmp_path / "out.jsonl"
    words = [source, "--output", output, "--judge", "classifier", "--model", single, "--unsafe-label", "rude"]
    assert run(*words, "--batch-size", 2).exit_code == 0
    scores = [row["verdict"]["score"] for row in rows_of(output)]
    assert [row["label"] for row in rows_of(output)] == [score < 0.5 for score in scores]
    assert len({*scores}) == len(TEXTS)
    journal = output.with_suffix(".work") / "journal.jsonl"
    before = journal.read_bytes()
    middle = sorted(scores)[2]
    assert run(*words, "--batch-size", 2, "--threshold", repr(middle)).exit_code == 0
    assert [row["label"] for row in rows_of(output)] == [score < middle for score in scores]
    assert sum(row["label"] for row in rows_of(output)) == 2, "a score at the threshold fails"
    assert journal.read_bytes() == before
    assert "classifier-1" in run(*words[:-1], "vulgar, very", "--batch-size", 2).stderr, "another label, another job"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "needs --unsafe-label: the labels of {model} are kind, Rude, vulgar, very"),
        (["--unsafe-label", "toxic"], "--unsafe-label 'toxic' is no label: the labels of {model} are kind, Rude"),
        (["--unsafe-label", "Rude", "--threshold", "1.2"], "is a probability above 0, not 1.2"),
        (["--unsafe-label", "Rude", "--engine", "vllm"], "has --batch-size of the engines' options only"),
        (["--unsafe-label", "Rude", "--workers", "2"], "has --batch-size of the engines' options only"),
    ],
)
def test_what_does_not_fit_a_classifier_is_told(single, source, tmp_path, words, told):
    result = run(source, "--output", tmp_path / "o.jsonl", "--judge", "classifier", "--model", single, *words)
    assert result.exit_code == 1
    assert told.format(model=single) in result.stderr


def test_a_regression_gives_no_probability(tmp_path):
    with pytest.raises(ValueError, match="is a regression"):
        classifier(str(save(tmp_path, problem_type="regression", num_labels=1)), ["LABEL_0"])


class Counting:
    """A judge of batches by length, which keeps what it was asked, and may die."""

    def __init__(self, dies_at=None):
        self.asked, self.dies_at = [], dies_at

    def __call__(self, rows):
        if len(self.asked) == self.dies_at:
            raise KeyboardInterrupt
        self.asked.append([row["response"] for row in rows])
        return [Verdict(None, "short") if row["response"] == "x" else Verdict(True, "", 0.1) for row in rows]


def test_a_judge_of_batches_that_was_killed_goes_on_after_its_last_batch(source, tmp_path):
    """Batches of 2, the longest first: 16 and 11 characters, then 5 and 1."""
    output = tmp_path / "out.jsonl"
    first = Counting(dies_at=1)
    with pytest.raises(KeyboardInterrupt):
        judge(source, output, judge=BatchJudge(first, "1", 2), name="own")
    assert first.asked == [["You silly goose!", "A kind word"]]
    assert not output.exists()
    again = Counting()
    assert judge(source, output, judge=BatchJudge(again, "1", 2), name="own") == (3, 0, 1, 0)
    assert again.asked == [["Well.", "x"]]
    assert [row["response"] for row in rows_of(output)] == TEXTS[:3]
    assert rows_of(output.with_suffix(".unjudged.jsonl"))[0]["reason_unjudged"] == "short"
    with pytest.raises(JournalChanged):
        judge(source, output, judge=BatchJudge(again, "2", 2), name="own")


def test_a_judge_that_gives_too_few_verdicts_is_an_error(source, tmp_path):
    with pytest.raises(ValueError, match="the judge own gave 1 verdicts for 4 rows"):
        judge(source, tmp_path / "out.jsonl", judge=BatchJudge(lambda rows: [Verdict(True)], "1"), name="own")


def test_rows_without_what_it_reads_are_refused_by_line(tmp_path):
    write_jsonl(tmp_path / "in.jsonl", [{"response": "a"}, {"prompt": "Q", "response": 3}])
    for reads, problems in (("response", ["in.jsonl:2 response"]), ("dialogue", ["in.jsonl:1", "in.jsonl:2"])):
        own = BatchJudge(Counting(), "1", reads=reads)
        with pytest.raises(BadData) as error:
            judge(tmp_path / "in.jsonl", tmp_path / f"{reads}.jsonl", judge=own, name="own")
        assert all(each in str(error.value) for each in problems)


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The package of examples/own_judge as if it were installed, beside a stand-in for alt-profanity-check."""
    site = tmp_path / "site"
    point = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"][verdict.GROUP]
    for name, more in (("alt_profanity_check", ""), ("finepref_profanity", "")):
        info = site / f"{name}-1.9.1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.9.1\n{more}"
        )
    lines = "\n".join(f"{name} = {value}" for name, value in point.items())
    (site / "finepref_profanity-1.9.1.dist-info" / "entry_points.txt").write_text(f"[{verdict.GROUP}]\n{lines}\n")
    (site / "finepref_profanity.py").write_text((EXAMPLE / "finepref_profanity.py").read_text())
    code = "def predict_prob(texts):\n    return [0.6 if 'goose' in text else 0.1 for text in texts]\n"
    (site / "profanity_check.py").write_text(code)
    monkeypatch.syspath_prepend(site)


def test_the_example_package_judges_by_its_classifier_and_a_threshold(example, source, tmp_path):
    output = tmp_path / "out.jsonl"
    words = [source, "--output", output, "--judge", "profanity"]
    assert run(*words).stdout.splitlines()[-1] == f"{output}: 3 passed, 1 failed, 0 without a verdict"
    assert [row["verdict"]["score"] for row in rows_of(output)] == [0.6, 0.1, 0.1, 0.1]
    assert run(*words, "--threshold", 0.7).stdout.splitlines()[-1].startswith(f"{output}: 4 passed")


def test_a_class_or_a_text_is_no_judge(monkeypatch):
    for value in ("builtins:dict", "string:digits"):
        point = verdict.entry_points(group="console_scripts")[0].__class__("odd", value, verdict.GROUP)
        monkeypatch.setattr(verdict, "entry_points", lambda point=point, **_: [point])
        with pytest.raises(ValueError, match=f"{value} is not a judge"):
            verdict.plugin("odd")
