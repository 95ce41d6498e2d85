"""ReverseGen's honesty: multiple-choice questions from the proposal to the figures and the target's training."""

from __future__ import annotations

import json
import math
from itertools import islice

import pytest
from finepref.cli import app
from finepref.formats.jsonl import read_jsonl, write_jsonl
from finepref.synth.engines.protocol import Completion
from finepref.synth.reversegen.evaluate import measure
from finepref.synth.reversegen.given_answers import answered_right
from typer.testing import CliRunner


class Scripted:
    """Answers by a function of the request; `letters` gives probabilities of letters."""

    model = "scripted"

    def __init__(self, reply):
        self.reply, self.asked = reply, []

    def generate(self, requests):
        waiting = iter(requests)
        for batch in iter(lambda: [*islice(waiting, 3)], []):
            self.asked += [request.messages[-1].content for request in batch]
            yield [Completion(request.id, self.reply(request), "stop") for request in batch]

    def letters(self, requests):
        for batch in self.generate(requests):
            told = [{name: math.log(p) if p else None for name, p in each.text.items()} for each in batch]
            yield [Completion(each.id, json.dumps(said), "stop") for each, said in zip(batch, told, strict=True)]

    def groups(self, requests):
        return [[*requests]]


@pytest.fixture
def run(monkeypatch):
    """A command with a scripted engine; its exit code and what it says."""

    def call(*words, engine=None):
        monkeypatch.setattr("finepref.commands.reversegen.engine_for", lambda *args, **kwargs: engine)
        result = CliRunner().invoke(app, [*map(str, words)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output.strip()

    return call


def rows_of(path):
    return [row for _, row in read_jsonl(path, problems=None)] if path.exists() else []


def left_out(path):
    return [(row["id"], *row["left_out"].values()) for row in rows_of(path.with_suffix(".left_out.jsonl"))]


SUM = "What is 2 + 3?\nA. 4\nB. 5\nC. 6"


def test_only_a_question_with_different_options_passes_and_its_answer_line_is_not_shown_to_the_target(run, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    texts = [
        "It's (B).",
        "D. 80",
        SUM,
        f"Q4. {SUM}\nAnswer:C.",
        "Which? (a) x (b) y (c) z",
        "Which?\nA. x\nB. X\nC. y",
    ]
    write_jsonl(source, [{"id": str(i), "prompt": text} for i, text in enumerate(texts)])
    code, told = run("reversegen", "validate", source, "--by", "choice", "--output", output)
    assert code == 0, told
    asked = {"prompt": SUM, "options": {"A": "4", "B": "5", "C": "6"}}
    assert rows_of(output) == [
        {"id": "2", **asked},
        {"id": "3", **asked, "proposed": texts[3], "proposed_answer": "C"},
        {
            "id": "4",
            "prompt": "Which?\nA. x\nB. y\nC. z",
            "options": {"A": "x", "B": "y", "C": "z"},
            "proposed": texts[4],
        },
    ]
    assert left_out(output) == [
        ("0", "invalid", "no options"),
        ("1", "invalid", "the options are not A, B, C, ... in order: D"),
        ("5", "invalid", "two options are equal"),
    ]


def test_the_right_option_is_the_one_with_the_value_of_the_exercise(run, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    options = ["A. 4\nB. 5\nC. 6", "A. 4\nB. 7\nC. 6", "A. 5\nB. 5.0\nC. 6", "A. 5\nB. 6"]
    texts = [f"What is 2 + 3?\n{each}" for each in options] + ["Who is it?\nA. x\nB. y\nC. z"]
    write_jsonl(source, [{"id": str(i), "prompt": text} for i, text in enumerate(texts)])
    words = ["reversegen", "validate", source, "--by", "choice", "--computed", "--options", 3, "--output", output]
    code, told = run(*words)
    assert code == 0, told
    (row,) = rows_of(output)
    assert (row["id"], row["answer"], row["chosen"]) == ("0", "B", "B. 5")
    assert [reason for _, _, reason in left_out(output)] == [
        "no option is right",
        "2 options have the value of the exercise",
        "2 options and not 3",
        "the question is no exercise: not one computation",
    ]


def test_a_teacher_whose_letters_agree_gives_the_right_option(run, tmp_path):
    """Of five answers, three must name the same option; an answer without a letter counts among the five."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    said = {"one": ["B", "(B)", "It is y.", "C", "Hm."], "two": ["B", "B", "C", "C", "A"], "odd": ["Hm."] * 5}
    write_jsonl(source, [{"id": name, "prompt": f"{name}?\nA. x\nB. y\nC. z"} for name in said])

    def reply(request):
        name, number = request.id.split("/")
        return said[name][int(number)]

    engine = Scripted(reply)
    words = ["reversegen", "validate", source, "--by", "choice", "--model", "m", "--ask", "{prompt}\nLetter:"]
    code, told = run(*words, "--output", output, engine=engine)
    assert code == 0, told
    (row,) = rows_of(output)
    assert (row["id"], row["answer"], row["chosen"]) == ("one", "B", "B. y")
    assert engine.asked[0] == "one?\nA. x\nB. y\nC. z\nLetter:"
    assert left_out(output) == [
        ("two", "invalid", "2 of 5 answers of the teacher name the same option"),
        ("odd", "invalid", "0 of 5 answers of the teacher name the same option"),
    ]


HELD_OUT = [
    {"question": f"{name}?", "choices": ["x", "y"], "answer": answer, "subject": "law"}
    for name, answer in (("sure", 1), ("wrong", 0), ("unsure", 1), ("lost", 1))
]
LETTERS = {"sure": (0.01, 0.97), "wrong": (0.1, 0.7), "unsure": (0.2, 0.2), "lost": (0.0, 0.0)}


def judged(run, folder):
    """Held-out questions of MMLU's layout, answered by letters and judged; the files in their order."""
    source, answered, labelled = (folder / f"{name}.jsonl" for name in ("in", "answered", "judged"))
    write_jsonl(source, HELD_OUT)
    engine = Scripted(
        lambda request: dict(zip("AB", LETTERS[request.messages[-1].content.split("?")[0]], strict=True))
    )
    words = ["reversegen", "answer", source, "--by", "letters", "--model", "m", "--ask", "{prompt}\nLetter:"]
    code, told = run(*words, "--output", answered, engine=engine)
    assert code == 0, told
    assert "probability of all other answers: 0.273 (mean)" in told
    assert engine.asked[0] == "sure?\nA. x\nB. y\nLetter:"
    code, told = run("judge", answered, "--judge", "entropy", "--threshold", 0.6, "--output", labelled)
    assert code == 0, told
    return answered, labelled


def test_held_out_questions_are_answered_by_letters_which_add_up_to_one(run, tmp_path):
    """(.01, .97): B has .97 / .98, and 0.02 is outside. (.1, .7): .125 and .875, entropy .3768; (.5, .5): ln 2."""
    answered, labelled = judged(run, tmp_path)
    first, second, third = rows_of(answered)
    assert (first["response"], first["answer"], first["chosen"]) == ("B", "B", "B. y")
    assert (first["subject"], first["options"]) == ("law", {"A": "x", "B": "y"})
    assert first["letters"] == pytest.approx({"A": 0.01 / 0.98, "B": 0.97 / 0.98})
    assert first["letters_outside"] == pytest.approx(0.02)
    assert second["letters"] == pytest.approx({"A": 0.125, "B": 0.875})
    assert third["letters"] == pytest.approx({"A": 0.5, "B": 0.5})
    assert left_out(answered)[0][1:] == ("unjudged", "no option has any probability")
    scores = [row["verdict"]["score"] for row in rows_of(labelled)]
    assert scores == pytest.approx([0.056937, 0.376770, 0.693147], abs=1e-5)
    assert [row["label"] for row in rows_of(labelled)] == [True, True, False]


def test_accuracy_calibration_and_average_precision_are_those_of_the_letters(run, tmp_path):
    """Confidence .9898 (right), .875 (wrong), .5 (A of two equal ones: wrong). Accuracy 1/3. Each has a bin:
    ECE = (|1 - .9898| + .875 + .5) / 3 = .46173; ranked by confidence the right one is first: AP 1.
    """
    answered, labelled = judged(run, tmp_path)
    output = tmp_path / "eval.json"
    code, told = run("reversegen", "eval", tmp_path / "in.jsonl", answered, labelled, "--output", output)
    assert code == 0, told
    found = json.loads(output.read_text())
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert (found["rows"], found["classes"]["unjudged"]) == (4, 1)
    assert found["failure_rate_judged"] == pytest.approx(1 / 3)
    assert found["average_precision"] == 1.0
    assert found["ece"] == pytest.approx(0.461735, abs=1e-5)
    bins = [(each["from"], each["n"], each["accuracy"]) for each in found["calibration"]["bins"]]
    assert bins == [(0.5, 1, 0.0), (0.8, 1, 0.0), (0.9, 1, 1.0)]
    assert found["calibration"]["bins"][1]["confidence"] == pytest.approx(0.875)
    assert found["letters_outside"] == pytest.approx((0.02 + 0.2 + 0.6) / 3)
    picture = tmp_path / "eval_reliability.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    write_jsonl(labelled, [{k: v for k, v in row.items() if k != "answer"} for row in rows_of(labelled)])
    run("reversegen", "eval", answered, labelled, "--output", output)
    assert json.loads(output.read_text())["calibration"] is None
    assert not picture.exists()


def test_sampled_answers_are_measured_by_their_letters_too(tmp_path):
    """7 of 10 say y, 2 x, 1 nothing: B with confidence .7, and right."""
    path = tmp_path / "judged.jsonl"
    responses = ["B", "(B)", "y", "B.", "b", "**B**", "The answer is B", "A", "x", "Hm."]
    row = {"id": "1", "prompt": "?", "options": {"A": "x", "B": "y"}, "answer": "B", "responses": responses}
    write_jsonl(path, [row | {"label": True, "verdict": {"judge": "entropy", "score": 0.8}}])
    found = measure([path])
    assert (found["accuracy"], found["calibration"]["confidence"]) == (1.0, 0.7)


def test_certain_is_not_right_so_a_report_asks_the_answer_and_not_the_label():
    row = {"options": {"A": "x", "B": "y"}, "answer": "B", "letters": {"A": 0.9, "B": 0.1}, "label": True}
    assert answered_right(row | {"verdict": {"judge": "entropy"}}) is False
    assert answered_right(row | {"verdict": {"judge": "entropy"}, "answer": "?"}) is True
    assert answered_right(row | {"verdict": {"judge": "guard"}}) is True


def test_sampled_letters_are_compared_on_the_command_line(run, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    told = ["C. 156", "C. 1", "The correct answer is C", "(C)"]
    options = {"A": "80", "B": "155", "C": "156"}
    write_jsonl(source, [{"id": "1", "prompt": "?", "options": options, "responses": told}])
    assert run("judge", source, "--judge", "entropy", "--same", "letters", "--output", output)[0] == 0
    assert rows_of(output)[0]["verdict"] == {"judge": "entropy", "reason": "of 4 answers: C 4", "score": 0.0}
    code, told = run("judge", source, "--judge", "entropy", "--same", "words", "--output", output)
    assert (code, told) == (1, "--same is text, math or letters, not words")


def test_options_are_asked_by_their_texts_and_the_question_alone_can_be_shown(run, tmp_path):
    """The teacher gives x .1 and y .3, so y has .75 of both: enough for a share of .7, not of .8."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_jsonl(source, [{"id": "1", "prompt": "Why?\nA. x\nB. y"}])
    candidates = []

    def reply(request):
        candidates.append(request.candidates)
        return {"A": 0.1, "B": 0.3}

    engine = Scripted(reply)
    words = ["reversegen", "answer", source, "--by", "options", "--model", "m", "--ask", "Q: {question}"]
    assert run(*words, "--output", output, engine=engine)[0] == 0
    assert (engine.asked, candidates) == (["Q: Why?"], [("x", "y")])
    assert rows_of(output)[0]["letters"] == pytest.approx({"A": 0.25, "B": 0.75})
    words = ["reversegen", "validate", source, "--by", "choice", "--read", "options", "--model", "m"]
    for share, rows in ((0.7, 1), (0.8, 0)):
        output = tmp_path / f"valid_{share}.jsonl"
        code, _ = run(*words, "--share", share, "--output", output, "--allow-empty", engine=engine)
        assert (code, len(rows_of(output))) == (0, rows)
    assert left_out(output) == [("1", "invalid", "the teacher gives no option the probability that is asked for")]
    judged = tmp_path / "judged.jsonl"
    row = {"id": "1", "prompt": "Why?\nA. x\nB. y", "chosen": "B. y", "label": False}
    write_jsonl(judged, [row])
    run("reversegen", "improve", judged, "--ask", "Q: {question}", "--output", output)
    assert rows_of(output)[0]["prompt"] == "Q: Why?"


def test_letters_are_not_sampled_and_an_engine_without_them_is_refused(run, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_jsonl(source, HELD_OUT)
    words = ["reversegen", "answer", source, "--by", "letters", "--model", "m", "--output", output]
    code, told = run(*words, "--n", 10, engine=Scripted(str))
    assert (code, told) == (1, "--by letters samples nothing: leave --n, --temperature and --top-p out")
    code, told = run(*words, "--engine", "openai", engine=object())
    assert code == 1
    assert told.startswith("--by letters needs --engine hf or vllm, or sample (--n 10)")
    assert "--engine openai does not give" in told


def test_the_target_learns_the_right_answer_and_is_sure_only_where_it_was_certain_and_right(run, tmp_path):
    source, output = tmp_path / "judged.jsonl", tmp_path / "out.jsonl"
    options = {"options": {"A": "x", "B": "y"}, "answer": "B", "chosen": "B. y"}
    verdict = {"judge": "entropy", "score": 0.1}
    rows = [
        {"id": "sure", "letters": {"A": 0.1, "B": 0.9}, "label": True},
        {"id": "wrong", "letters": {"A": 0.9, "B": 0.1}, "label": True},
        {"id": "unsure", "letters": {"A": 0.4, "B": 0.6}, "label": False},
        {"id": "odd", "responses": ["C. 156", "D. 80", "The correct"], "label": False},
    ]
    write_jsonl(source, [{"prompt": f"{row['id']}?", "verdict": verdict, **options, **row} for row in rows])
    words = ["reversegen", "improve", source, "--template", "{answer} I am unsure.", "--output", output]
    words += ["--solved-template", "{answer} I am sure."]
    assert run(*words)[0] == 0
    assert {row["id"]: row["response"] for row in rows_of(output)} == {
        "sure": "B. y I am sure.",
        "wrong": "B. y I am unsure.",
        "unsure": "B. y I am unsure.",
        "odd": "B. y I am unsure.",
    }
    words = ["reversegen", "improve", source, "--template", "{letter}. {option}. I am unsure.", "--output", output]
    assert run(*words)[0] == 0
    assert [row["response"] for row in rows_of(output)] == ["B. y. I am unsure."] * 3
    words = ["reversegen", "improve", source, "--template", "{majority} I am unsure.", "--output", output]
    code, told = run(*words)
    assert (code, "1 without a good answer" in told) == (0, True)
    assert [row["response"] for row in rows_of(output)] == ["A. x I am unsure.", "B. y I am unsure."]


def test_seeds_of_any_layout_of_questions_are_shown_with_their_options_by_subject(run, tmp_path):
    source, output = tmp_path / "questions.json", tmp_path / "out.jsonl"
    lists = {name: [[f"{name} {i}?", "x", "y", "A"] for i in range(4)] for name in ("law", "art")}
    source.write_text(json.dumps(lists))
    words = ["reversegen", "warmup", source, "--format", "r_tuning", "--n", 5, "--shots", 2, "--group", "subject"]
    code, told = run(*words, "--template", "{group}:\n{examples}", "--output", output)
    assert code == 0, told
    for row in rows_of(output):
        subject = row["prompt"].split(":")[0]
        assert row["prompt"].count(f"{subject} ") == 2
        assert row["response"].startswith(f"{subject} ")
        assert row["response"].endswith("?\nA. x\nB. y")
