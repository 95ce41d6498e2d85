"""Judges by rule and by model, and the file they leave: what is no verdict never becomes data."""

from __future__ import annotations

import json
import math
from importlib.metadata import EntryPoint

import pytest
from finepref.cli import app
from finepref.formats.check import check_file
from finepref.formats.jsonl import read_jsonl, write_jsonl
from finepref.formats.problems import BadData
from finepref.formats.records import Message
from finepref.synth.engines.protocol import Completion
from finepref.synth.judges import by_model, by_rule, verdict
from finepref.synth.judges.label_rows import Labelled, judge
from finepref.synth.judges.verdict import Verdict
from typer.testing import CliRunner


@pytest.mark.parametrize(
    ("answer", "response", "passed"),
    [
        ("12", "3 * 4 = 12, so he has 12 apples.", True),
        ("12", "3 * 4 = 14, so he has 14 apples.", False),
        ("1/2", "The answer is $\\boxed{0.5}$.", True),
        ("$\\frac{1}{3}$", "It is $\\frac{2}{6}$", True),
        ("12", "I do not know.", False),
        ("no number", "12", None),
    ],
)
def test_math_compares_values_and_not_texts(answer, response, passed):
    assert by_rule.math_answer({"answer": answer, "response": response}).passed is passed


@pytest.mark.parametrize(
    ("options", "response", "passed"),
    [
        ({"pattern": "a.c"}, "xa.cx", True),
        ({"pattern": "a.c"}, "abc", False),
        ({"pattern": "a.c", "regex": True}, "abc", True),
        ({"pattern": "^I (can't|cannot)", "regex": True, "absent": True}, "I cannot.", False),
        ({"pattern": "x"}, None, None),
    ],
)
def test_contains_looks_for_a_text_or_an_expression(options, response, passed):
    assert by_rule.contains(**options)({"response": response}).passed is passed


def test_an_expression_that_is_none_is_refused():
    with pytest.raises(ValueError, match="regular expression"):
        by_rule.contains("(", regex=True)


def test_entropy_is_that_of_the_shares_of_equal_answers():
    """5, 3 and 2 of 10: -(.5 ln .5 + .3 ln .3 + .2 ln .2) = 1.0297; ten different ones: ln 10 = 2.3026."""
    answers = ["Paris."] * 3 + ["paris"] * 2 + ["Lyon"] * 3 + ["Nice"] * 2
    verdict = by_rule.entropy(by_rule.as_text)({"responses": answers})
    assert (verdict.passed, verdict.reason) == (True, "3 different answers of 10")
    assert verdict.score == pytest.approx(1.0297, abs=1e-4)
    spread = by_rule.entropy(by_rule.as_text)({"responses": list("abcdefghij")})
    assert (spread.passed, spread.score) == (False, pytest.approx(math.log(10)))
    assert by_rule.entropy(by_rule.as_text)({"responses": ["one"]}).passed is None


def test_entropy_can_compare_answers_as_mathematics():
    """1/2 and 0.5 are one answer, two texts without a number another: shares 1/2 and 1/2, ln 2."""
    found = by_rule.entropy(by_rule.as_math)(
        {"responses": ["It is $\\frac{1}{2}$", "So 0.5", "Who knows?", "No idea"]}
    )
    assert (found.passed, found.score) == (True, pytest.approx(math.log(2)))


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("\n\nsafe", Verdict(True)),
        ("unsafe\nS1,S10", Verdict(False, "S1,S10")),
        ("safety first", Verdict(None, "the answer begins with neither safe nor unsafe")),
        ("", Verdict(None, "the answer begins with neither safe nor unsafe")),
    ],
)
def test_a_guard_says_safe_or_unsafe_or_nothing(text, verdict):
    assert by_model.guard().read(text) == verdict


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ('{"pass": true, "reason": "right"}', True),
        ('```json\n{"pass": false}\n```', False),
        ('{"pass": "yes"}', None),
        ('{"passed": true}', None),
        ('I think {"pass": true}', None),
        ('{"pass": true} {"pass": false}', None),
        ("[true]", None),
        ("[" * 100_000, None),
    ],
)
def test_only_one_json_object_with_a_boolean_is_a_verdict_of_a_model(text, passed):
    assert by_model.llm("Be right.").read(text).passed is passed


def test_a_model_is_shown_rubric_question_and_answer():
    asked = by_model.llm("Be {brief}.")
    (message,) = asked.ask((Message("system", "S"), Message("user", "Why {x}?")), "So {y}.")
    for part in ("Be {brief}.", "System: S", "User: Why {x}?", "So {y}.", '{"pass": true or false'):
        assert part in message.content
    assert asked.version != by_model.llm("Be long.").version
    assert by_model.guard().ask((Message("user", "Q"),), "A") == (Message("user", "Q"), Message("assistant", "A"))


class Scripted:
    """An engine that answers by the end of the answer it is shown."""

    model = "scripted"

    def __init__(self, replies):
        self.replies, self.asked = replies, []

    def generate(self, requests):
        for request in requests:
            shown = next(key for key in self.replies if key in request.messages[-1].content)
            self.asked.append(shown)
            reply = self.replies[shown]
            yield [Completion(request.id, error="down") if reply is None else Completion(request.id, reply, "stop")]


def rows_of(path):
    return [row for _, row in read_jsonl(path, problems=None)]


def test_what_is_no_verdict_goes_to_a_file_of_its_own_and_failures_are_asked_again(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"prompt": "Q", "response": f"answer {name}"} for name in ("good", "bad", "odd", "lost")]
    write_jsonl(source, rows)
    replies = {"good": '{"pass": true, "reason": "right"}', "bad": '{"pass": false}', "odd": "Well.", "lost": None}
    engine = Scripted(replies)
    asked = {"judge": by_model.llm("Be right."), "name": "llm", "engine": engine}
    assert judge(source, output, **asked) == Labelled(1, 1, 2, 1)
    assert rows_of(output) == [
        {**rows[0], "label": True, "verdict": {"judge": "llm", "reason": "right"}},
        {**rows[1], "label": False, "verdict": {"judge": "llm"}},
    ]
    assert check_file(output, "feedback").total_problems == 0
    assert rows_of(output.with_suffix(".unjudged.jsonl")) == [
        {**rows[2], "reason_unjudged": "the answer is not one JSON object"},
        {**rows[3], "reason_unjudged": "engine: down"},
    ]
    engine.asked.clear()
    replies["lost"] = '{"pass": true}'
    assert judge(source, output, **asked) == Labelled(2, 1, 1, 0)
    assert engine.asked == ["lost"]


def test_rows_with_a_label_are_refused_by_line(tmp_path):
    source = tmp_path / "in.jsonl"
    write_jsonl(source, [{"response": "a"}, {"response": "a", "label": True}])
    with pytest.raises(BadData, match=r"in\.jsonl:2.*FP013|FP013.*in\.jsonl:2"):
        judge(source, tmp_path / "out.jsonl", judge=by_rule.contains("a"), name="contains")


def run(*arguments):
    return CliRunner().invoke(app, ["judge", *map(str, arguments)])


def test_the_command_judges_by_rule(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_jsonl(source, [{"prompt": "Q", "response": text, "answer": "7"} for text in ("It is 7.", "It is 8.")])
    result = run(source, "--output", output, "--judge", "math")
    assert result.stdout.splitlines()[-1] == f"{output}: 1 passed, 1 failed, 0 without a verdict"
    assert [row["label"] for row in rows_of(output)] == [True, False]
    result = run(source, "--output", output, "--judge", "regex", "--pattern", r"\d\.$")
    assert result.stdout.splitlines()[-1] == f"{output}: 2 passed, 0 failed, 0 without a verdict"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--judge", "contains"], "--judge contains needs --pattern"),
        (["--judge", "llm"], "--judge llm needs --rubric"),
        (["--judge", "guard"], "--judge guard needs a model: --engine hf, vllm or openai, and --model"),
        (["--judge", "nobody"], "0 packages register the judge 'nobody' as finepref.judges (registered: none)"),
    ],
)
def test_the_command_says_what_is_missing(tmp_path, arguments, told):
    source = tmp_path / "in.jsonl"
    write_jsonl(source, [{"prompt": "Q", "response": "A"}])
    result = run(source, "--output", tmp_path / "out.jsonl", *arguments)
    assert (result.exit_code, result.stderr.strip()) == (1, told)


def long_enough(row):
    return Verdict(len(row["response"]) > 3, score=float(len(row["response"])))


def test_a_plugin_is_found_by_its_entry_point(tmp_path, monkeypatch):
    point = EntryPoint("length", f"{__name__}:long_enough", verdict.GROUP)
    monkeypatch.setattr(verdict, "entry_points", lambda *, group, name="length": [point] if name == "length" else [])
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_jsonl(source, [{"response": "abcd"}, {"response": "abc"}])
    assert run(source, "--output", output, "--judge", "length").exit_code == 0
    assert [(row["label"], row["verdict"]["score"]) for row in rows_of(output)] == [(True, 4.0), (False, 3.0)]


def test_the_commands_unanswered_rows_give_exit_code_1(tmp_path, monkeypatch):
    monkeypatch.setattr("finepref.commands.judge.engine_of", lambda *_, **__: Scripted({"A": None}))
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_jsonl(source, [{"prompt": "Q", "response": "A"}])
    result = run(source, "--output", output, "--judge", "guard", "--guard", "llama-guard", "--model", "m")
    assert result.exit_code == 1
    assert "failed requests: 1; run the same command again" in result.stderr
    assert json.loads(output.with_suffix(".unjudged.jsonl").read_text())["reason_unjudged"] == "engine: down"
