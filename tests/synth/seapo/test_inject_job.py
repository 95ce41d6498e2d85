"""The job around the errors: nothing of the input is lost, and every reason is written down."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from finepref.cli import app
from finepref.formats.check import check_file
from finepref.formats.problems import BadData
from finepref.synth.engines.protocol import Completion, Request
from finepref.synth.journal import JournalChanged
from finepref.synth.seapo.inject import inject, read_sources
from finepref.synth.seapo.prompts import ERRORS
from typer.testing import CliRunner

SAMPLE = Path(__file__).parents[3] / "dataset_info" / "samples" / "seapo_demo.jsonl"


class Scripted:
    """An engine whose answers are made by a function of the request's id; None is a failure."""

    model = "scripted"

    def __init__(self, answer) -> None:
        self.answer = answer
        self.asked: list[str] = []

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        for request in requests:
            self.asked.append(request.id)
            text = self.answer(request.id)
            yield [Completion(request.id, error="HTTP 503") if text is None else Completion(request.id, text, "stop")]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = [
        {"id": "a", "prompt": "Where?", "chosen": "In the old town hall of Bern.", "rejected": "Nowhere.", "tag": 1},
        {"prompt": "When?", "chosen": "At nine in the morning, on Monday.", "tag": {"x": [None]}},
        {
            "id": "c",
            "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who?"}],
            "chosen": "The mayor and her two aides, all three.",
        },
    ]
    return write(tmp_path / "in.jsonl", rows)


def changed(source: Path, request_id: str) -> str:
    record_id, _, name = request_id.rpartition("/")
    chosen = next(each.chosen for each in read_sources(source) if each.id == record_id)
    return f"{chosen.removesuffix('.')} {name}."


def test_output_keeps_the_order_the_ids_and_every_other_field_of_the_input(source, tmp_path):
    output = tmp_path / "out.jsonl"
    outcome = inject(source, output, engine=Scripted(lambda request_id: changed(source, request_id)))
    rows = read(output)
    assert [(row["id"], row["chosen"]) for row in rows] == [(each.id, each.chosen) for each in read_sources(source)]
    assert (rows[0]["rejected"], rows[0]["tag"], rows[1]["tag"]) == ("Nowhere.", 1, {"x": [None]})
    assert rows[2]["messages"][0] == {"role": "system", "content": "Be kind."}
    assert rows[0]["negatives"] == {name: f"In the old town hall of Bern {name}." for name in ERRORS}
    assert (outcome.written, outcome.failed, outcome.rejected.unanswered) == (3, 0, 0)
    assert check_file(output, "negatives").total_problems == 0
    assert not (tmp_path / "out.failed.jsonl").exists()


def test_a_record_is_written_with_the_types_it_has_and_one_without_any_goes_to_the_failed_file(source, tmp_path):
    def answer(request_id: str) -> str:
        if request_id.startswith("c/"):
            return "I'm sorry."
        return "" if request_id == "a/logic" else changed(source, request_id)

    output = tmp_path / "out.jsonl"
    outcome = inject(source, output, engine=Scripted(answer))
    assert [list(row["negatives"]) for row in read(output)] == [
        ["correctness", "hallucination"],
        ["correctness", "logic", "hallucination"],
    ]
    assert read(tmp_path / "out.failed.jsonl") == [read(source)[2]]
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert (report["records"], report["written"], report["failed"]) == (3, 2, 1)
    assert report["negatives"] == {"correctness": 2, "logic": 1, "hallucination": 2}
    assert report["rejected"] == {
        "logic": {"empty": 1, "refusal": 1},
        "correctness": {"refusal": 1},
        "hallucination": {"refusal": 1},
    }
    told = {"id": "c", "type": "logic", "reason": "refusal", "text": "I'm sorry.", "chosen": read(source)[2]["chosen"]}
    assert told in report["rejected_texts"]
    assert (outcome.written, outcome.failed, len(outcome.rejected)) == (2, 1, 4)


def test_the_same_text_for_two_types_counts_for_the_first_alone(source, tmp_path):
    engine = Scripted(lambda request_id: changed(source, request_id.replace("logic", "correctness")))
    outcome = inject(source, tmp_path / "out.jsonl", engine=engine)
    assert {(each.kind, each.reason) for each in outcome.rejected.entries} == {("logic", "same_as_another")}


def test_failed_requests_are_asked_again_by_the_next_run_and_answered_ones_are_not(source, tmp_path):
    output = tmp_path / "out.jsonl"
    engine = Scripted(lambda i: None if i.startswith("c/") else changed(source, i))
    assert inject(source, output, engine=engine).rejected.unanswered == 3
    assert json.loads((tmp_path / "out.report.json").read_text())["rejected"]["logic"] == {"engine": 1}
    again = Scripted(lambda i: changed(source, i))
    assert inject(source, output, engine=again).rejected.unanswered == 0
    assert again.asked == [f"c/{name}" for name in ERRORS]
    assert not (tmp_path / "out.failed.jsonl").exists()
    whole = tmp_path / "whole.jsonl"
    inject(source, whole, engine=Scripted(lambda i: changed(source, i)))
    assert output.read_bytes() == whole.read_bytes()


def test_more_types_and_other_bounds_use_the_answers_that_are_there(source, tmp_path):
    output = tmp_path / "out.jsonl"
    inject(source, output, engine=Scripted(lambda i: changed(source, i)), types=["logic"])
    engine = Scripted(lambda i: changed(source, i))
    outcome = inject(source, output, engine=engine, types=["correctness", "logic"], max_length_ratio=1.0)
    assert [request_id.rpartition("/")[2] for request_id in engine.asked] == ["correctness"] * 3
    assert {*outcome.rejected.counts} == {"long"}


def test_another_input_or_temperature_in_the_same_place_is_refused_by_name(source, tmp_path):
    output = tmp_path / "out.jsonl"
    inject(source, output, engine=Scripted(lambda i: changed(source, i)))
    before = output.read_bytes()
    with pytest.raises(JournalChanged) as caught:
        inject(source, output, engine=Scripted(lambda i: ""), temperature=0.5)
    assert list(caught.value.fields) == ["sampling"]
    write(source, read(source)[:2])
    with pytest.raises(JournalChanged) as caught:
        inject(source, output, engine=Scripted(lambda i: ""))
    assert list(caught.value.fields) == ["input"]
    assert output.read_bytes() == before


def test_all_problems_of_the_input_are_told_at_once_and_no_model_is_asked(tmp_path):
    rows = [
        {"id": "a", "prompt": "Where?", "chosen": ""},
        {"id": "b", "chosen": "x"},
        {"id": "c", "prompt": "Where?", "chosen": "y", "negatives": {"logic": "z"}},
        {"id": "d", "prompt": "Where?", "chosen": "y"},
        {"id": "d", "prompt": "When?", "chosen": "y", "rejected": 3},
        {"id": "d", "prompt": "When?", "chosen": "y"},
    ]
    path = write(tmp_path / "in.jsonl", rows)
    path.write_text(path.read_text() + "{\n")
    engine = Scripted(lambda request_id: "x")
    with pytest.raises(BadData) as caught:
        inject(path, tmp_path / "out.jsonl", engine=engine)
    assert [(p.line, p.field, p.code) for p in caught.value.problems] == [
        (1, "chosen", "FP012"),
        (2, "prompt", "FP010"),
        (3, "negatives", "FP015"),
        (5, "rejected", "FP011"),
        (6, "id", "FP060"),
        (7, "", "FP004"),
    ]
    assert engine.asked == []
    assert not (tmp_path / "out.jsonl").exists()


def test_a_file_without_rows_and_a_missing_file_are_bad_data(tmp_path):
    with pytest.raises(BadData, match="FP002"):
        read_sources(write(tmp_path / "in.jsonl", []))
    with pytest.raises(BadData, match="FP001"):
        read_sources(tmp_path / "none.jsonl")


@pytest.mark.parametrize("types", [["style"], ["logic", "logic"], []])
def test_error_types_are_known_and_asked_for_once(source, tmp_path, types):
    with pytest.raises(ValueError, match="error types are one or more of correctness, logic, hallucination"):
        inject(source, tmp_path / "out.jsonl", engine=None, types=types)


def test_the_rules_say_which_answers_have_no_arithmetic(source, tmp_path):
    write(source, [*read(source), {"id": "d", "prompt": "How many?", "chosen": "It is 2 + 2 = 4."}])
    outcome = inject(source, tmp_path / "out.jsonl", engine=None)
    assert (outcome.written, outcome.failed) == (1, 3)
    assert {*outcome.rejected.counts} == {"no_equation"}
    assert read(tmp_path / "out.failed.jsonl") == read(source)[:3]


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_the_sample_of_the_repository_is_what_these_two_commands_write(tmp_path):
    questions, output = tmp_path / "gsm.jsonl", tmp_path / "seapo_demo.jsonl"
    assert run("data", "gsm", "--n", 40, "--seed", 2509, "--output", questions)[0] == 0
    assert run("seapo", "inject", questions, "--engine", "rules", "--seed", 2509, "--output", output)[0] == 0
    assert output.read_bytes() == SAMPLE.read_bytes()
    report = check_file(SAMPLE, "negatives", error_types=ERRORS)
    assert (report.rows, report.total_problems) == (40, 0)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--engine", "openai", "--model", "m"], "needs --base-url"),
        (["--engine", "rules", "--types", "style"], "error types are one or more of"),
    ],
)
def test_the_command_says_what_is_wrong_and_exits_with_1(source, tmp_path, monkeypatch, arguments, told):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    code, output = run("seapo", "inject", source, "--output", tmp_path / "out.jsonl", *arguments)
    assert code == 1
    assert told in output


def test_bad_data_is_told_by_the_command_with_its_codes(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"prompt": "a"}])
    code, output = run("seapo", "inject", source, "--engine", "rules", "--output", tmp_path / "out.jsonl")
    assert code == 1
    first, count, advice = output.splitlines()
    assert (first, count) == (f"FP010 {source}:1 chosen: the field is missing", "1 problem")
    assert "--bad-rows skip" in advice


def test_variants_are_negatives_under_names_of_their_own(source, tmp_path):
    output = tmp_path / "out.jsonl"
    engine = Scripted(lambda request_id: changed(source, request_id))
    outcome = inject(source, output, engine=engine, types=["logic"], count=3, temperature=0.7)
    assert [each for each in engine.asked if each.startswith("a/")] == ["a/logic", "a/logic-2", "a/logic-3"]
    assert list(read(output)[0]["negatives"]) == ["logic", "logic-2", "logic-3"]
    assert outcome.negatives == {"logic": 3, "logic-2": 3, "logic-3": 3}
    assert check_file(output, "negatives").total_problems == 0
    with pytest.raises(ValueError, match="temperature above 0"):
        inject(source, output, engine=engine, count=2)


def test_variants_by_rule_are_different_errors(tmp_path):
    rows = [{key: row[key] for key in ("id", "prompt", "chosen")} for row in read(SAMPLE)]
    output = tmp_path / "out.jsonl"
    inject(write(tmp_path / "in.jsonl", rows), output, engine=None, types=["correctness"], count=2)
    both = [row["negatives"] for row in read(output)]
    assert sum(len({*texts.values()}) == 2 for texts in both) > len(rows) / 2


class Checking(Scripted):
    """Answers requests for errors by id, and the questions about them by `verdicts`: id -> text, None a failure."""

    def __init__(self, answer, verdicts) -> None:
        super().__init__(answer)
        self.verdicts = verdicts
        self.checked: list[str] = []

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        for request in requests:
            if "### Verdict" not in request.messages[0].content:
                yield from super().generate([request])
                continue
            self.checked.append(request.id)
            text = self.verdicts.get(request.id, '{"pass": true}')
            yield [Completion(request.id, error="HTTP 503") if text is None else Completion(request.id, text, "stop")]


def test_a_check_keeps_only_the_errors_that_the_model_confirms(source, tmp_path):
    output = tmp_path / "out.jsonl"
    verdicts = {"a/logic": '{"pass": false}', "a/hallucination": "Yes!", "c/logic": None}
    answer = lambda i: "" if i == "c/correctness" else changed(source, i)  # noqa: E731
    outcome = inject(source, output, engine=Checking(answer, verdicts), check=True)
    assert list(read(output)[0]["negatives"]) == ["correctness"]
    assert {(each.row["id"], each.kind, each.reason) for each in outcome.rejected.entries} == {
        ("a", "logic", "no_error"),
        ("a", "hallucination", "check_unread"),
        ("c", "logic", "engine"),
        ("c", "correctness", "empty"),
    }
    assert outcome.rejected.unanswered == 1
    again = Checking(answer, {})
    inject(source, output, engine=again, check=True)
    assert (again.asked, again.checked) == ([], ["c/logic"])


def test_the_same_negatives_are_written_for_kto_dpo_and_masked_tdpo(source, tmp_path):
    output = tmp_path / "out.jsonl"
    engine = Scripted(lambda request_id: changed(source, request_id))
    inject(source, output, engine=engine, types=["logic"], also=["feedback", "pair", "span_pair"])
    feedback, pairs, spans = (read(tmp_path / f"out.{name}.jsonl") for name in ("feedback", "pair", "span_pair"))
    assert sorted(row["label"] for row in feedback) == [False] * 3 + [True] * 3
    prompts = [row.get("prompt") or row["messages"][-1]["content"] for row in feedback]
    assert all(left != right for left, right in itertools.pairwise(prompts))
    assert [(row["chosen"], row["rejected"]) for row in pairs] == [
        (row["chosen"], row["negatives"]["logic"]) for row in read(output)
    ]
    for row in spans:
        (span,) = row["rejected_spans"]
        assert "logic" in row["rejected"][span["start"] : span["end"]]
    for name in ("feedback", "pair", "span_pair"):
        assert check_file(tmp_path / f"out.{name}.jsonl", name).total_problems == 0


def test_settings_that_do_not_go_together_are_refused(source, tmp_path):
    with pytest.raises(ValueError, match="further formats are feedback, pair, span_pair; got 'ranked'"):
        inject(source, tmp_path / "out.jsonl", engine=None, also=["ranked"])
    with pytest.raises(ValueError, match="a check is for a model's errors"):
        inject(source, tmp_path / "out.jsonl", engine=None, check=True)
