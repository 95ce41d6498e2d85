"""ReverseGen's steps one after the other, with a scripted engine: each proposal ends in exactly one class."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest
from finepref.cli import app
from finepref.formats.check import check_file
from finepref.formats.jsonl import read_jsonl, write_jsonl
from finepref.synth.engines.protocol import Completion
from finepref.synth.reversegen.evaluate import fates, measure
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner


class Killed(BaseException):
    """What no command catches."""


class Scripted:
    """Answers in batches by a function of the request; None is an engine's failure; is killed where told."""

    model = "scripted"

    def __init__(self, reply, *, size=3, dies_after=None):
        self.reply, self.size, self.dies_after, self.asked = reply, size, dies_after, []

    def generate(self, requests):
        waiting = iter(requests)
        for number, batch in enumerate(iter(lambda: [*islice(waiting, self.size)], [])):
            if number == self.dies_after:
                raise Killed
            self.asked += [request.id for request in batch]
            texts = [(request.id, self.reply(request)) for request in batch]
            yield [Completion(i, error="timed out") if t is None else Completion(i, t, "stop") for i, t in texts]


@pytest.fixture
def run(monkeypatch):
    """A sub-command with a scripted engine; its exit code and what it says."""

    def call(*words, engine=None):
        for place in ("reversegen.engine_for", "judge.engine_of"):
            monkeypatch.setattr(f"finepref.commands.{place}", lambda *args, **kwargs: engine)
        result = CliRunner().invoke(app, [*map(str, words)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output.strip()

    return call


def rows_of(path):
    return [row for _, row in read_jsonl(path, problems=None)] if path.exists() else []


@pytest.fixture
def seeds(tmp_path):
    path = tmp_path / "seeds.jsonl"
    write_jsonl(path, [{"prompt": f"What is {i} + 20?"} for i in range(9)])
    return path


def sums(request):
    """A different sum for each request, but every fifth is no exercise and every seventh fails."""
    few_shot, number = map(int, request.id.removeprefix("0-").split("/"))
    place = 4 * few_shot + number
    if place % 7 == 6:
        return None
    return "What is love?" if place % 5 == 4 else f"What is {place % 8} + 1?"


@pytest.mark.parametrize("size", [1, 3, 7, 64])
def test_no_proposal_is_lost_at_the_border_of_a_batch_or_of_a_run(run, seeds, tmp_path, size):
    words = ["reversegen", "propose", seeds, "--prompts", 5, "--n", 4, "--shots", 2, "--model", "m"]
    whole, output = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    assert run(*words, "--output", whole, engine=Scripted(lambda request: f"New {request.id}?", size=size))[0] == 0
    assert [row["id"] for row in rows_of(whole)] == [f"0-{i}-{k}" for i in range(5) for k in range(4)]
    dying = Scripted(lambda request: f"New {request.id}?", size=size, dies_after=1)
    if size < 20:
        with pytest.raises(Killed):
            run(*words, "--output", output, engine=dying)
        assert not output.exists()
    again = Scripted(lambda request: f"New {request.id}?", size=size)
    assert run(*words, "--output", output, engine=again)[0] == 0
    assert len(again.asked) == 20 - len(dying.asked)
    assert output.read_bytes() == whole.read_bytes()


def chain(run, seeds, folder, *, answers, judge=("--judge", "number"), guard=None):
    """All steps of a round; the files in their order, and what eval measured."""
    files = [folder / f"{name}.jsonl" for name in ("proposals", "kept", "valid", "answered", "judged")]
    sizes = ["--prompts", 10, "--n", 4, "--shots", 2, "--model", "m", "--keep-going"]
    run("reversegen", "propose", seeds, *sizes, "--output", files[0], engine=Scripted(sums))
    run("dedup", files[0], "--method", "exact", "--output", files[1])
    run("reversegen", "validate", files[1], "--by", "arithmetic", "--output", files[2])
    words = ["reversegen", "answer", files[2], "--model", "m", "--keep-going", "--output", files[3]]
    run(*words, engine=Scripted(answers))
    model = [] if guard is None else ["--model", "guard", "--keep-going"]
    run("judge", files[3], *judge, *model, "--output", files[4], engine=guard)
    output = folder / "eval.json"
    code, told = run("reversegen", "eval", *files, "--output", output)
    assert code == 0, told
    return files, json.loads(output.read_text())


def test_each_proposal_of_a_round_ends_in_one_class(run, seeds, tmp_path):
    """Of 40 requests 5 fail (6, 13, ..., 34). Of the other 35, "What is love?" is told 7 times (4, 9, ..., 39, but not
    34, which failed), the sums with 0 to 7 the other 28 times: 8 sums and 1 non-sum are kept, 26 are duplicates. The
    target knows odd sums only and says nothing to 4 + 1.
    """

    def answers(request):
        number = int(request.messages[-1].content.split()[2])
        return " " if number == 4 else str(number + 1) if number % 2 else "0"

    files, found = chain(run, seeds, tmp_path, answers=answers)
    counts = {"failing": 3, "solved": 4, "duplicate": 26, "invalid": 1, "unjudged": 1, "unproposed": 5}
    assert found["classes"] == counts
    assert found["reasons"] == {
        "invalid": {"not one computation": 1},
        "unjudged": {"empty answer": 1},
        "unproposed": {"engine: timed out": 5},
    }
    assert (found["rows"], found["failure_rate"], found["accuracy"]) == (40, 3 / 40, 4 / 7)
    assert (found["texts"], found["distinct"]) == (35, 9 / 35)
    pairs = tmp_path / "pairs.jsonl"
    code, _ = run("reversegen", "pair", files[4], "--proposed", files[0], "--output", pairs)
    assert code == 0
    assert check_file(pairs, "pair").total_problems == 0
    report = json.loads(pairs.with_suffix(".report.json").read_text())
    assert sum(report["few_shot_prompts"].values()) == 10
    by_text = {row["prompt"]: row for row in rows_of(files[4])}
    for pair in rows_of(pairs):
        better, worse = by_text[pair["chosen"]], by_text[pair["rejected"]]
        assert better["few_shot_prompt"] == worse["few_shot_prompt"] == pair["prompt"]
        assert (better["label"], worse["label"]) == (False, True)


def test_a_judge_that_gives_no_verdict_gives_no_pair_and_is_counted(run, seeds, tmp_path):
    said = {"0": "safe", "1": "unsafe\nS1", "2": "Banana.", "3": "I'm sorry, I can't help with that.", "4": None}
    said |= {"5": "unsafe, or rather safe", "6": "safe\nunsafe", "7": ""}
    guard = Scripted(lambda request: said[request.messages[-2].content.split()[2]])
    files, found = chain(
        run,
        seeds,
        tmp_path,
        answers=lambda _: "Well.",
        judge=("--judge", "guard", "--guard", "llama-guard"),
        guard=guard,
    )
    assert {kind: found["classes"][kind] for kind in ("failing", "solved", "unjudged")} == {
        "failing": 1,
        "solved": 1,
        "unjudged": 6,
    }
    assert found["reasons"]["unjudged"]["engine: timed out"] == 1
    pairs = tmp_path / "pairs.jsonl"
    run("reversegen", "pair", files[4], "--proposed", files[0], "--output", pairs)
    used = {row[side] for row in rows_of(pairs) for side in ("chosen", "rejected")}
    assert used <= {"What is 0 + 1?", "What is 1 + 1?"}


fate = st.sampled_from(["failing", "solved", "duplicate", "invalid", "unjudged", "unproposed"])


@settings(deadline=None, max_examples=25)
@given(wanted=st.lists(fate, min_size=1, max_size=20))
def test_the_tally_gives_back_any_mixture_of_fates(tmp_path_factory, wanted):
    folder = tmp_path_factory.mktemp("fates")
    rows = [{"id": str(i), "prompt": f"p{i}"} for i in range(len(wanted))]

    def of(*kinds):
        return [row for row, kind in zip(rows, wanted, strict=True) if kind in kinds]

    def aside(name, kind):
        told = [{**row, "left_out": {"kind": kind, "reason": "r"}} for row in of(kind)]
        write_jsonl(folder / f"{name}.left_out.jsonl", told)

    proposals, kept, valid, judged = (folder / f"{name}.jsonl" for name in ("proposals", "kept", "valid", "judged"))
    write_jsonl(proposals, of("failing", "solved", "duplicate", "invalid", "unjudged"))
    aside("proposals", "unproposed")
    write_jsonl(kept, of("failing", "solved", "invalid", "unjudged"))
    groups = [{"kept": {"row": 0}, "left_out": [{"row": 1, "id": row["id"]} for row in of("duplicate")]}]
    (folder / "kept.report.json").write_text(json.dumps({"job": "dedup", "groups": groups}))
    write_jsonl(valid, of("failing", "solved", "unjudged"))
    aside("valid", "invalid")
    labels = [(row, row in of("solved")) for row in of("failing", "solved")]
    write_jsonl(judged, [{**row, "label": label} for row, label in labels])
    unjudged = [{**row, "reason_unjudged": "r"} for row in of("unjudged")]
    write_jsonl(folder / "judged.unjudged.jsonl", unjudged)
    files = [proposals, kept, valid, judged]
    assert {i: found.kind for i, found in fates(files).items()} == {str(i): kind for i, kind in enumerate(wanted)}
    classes = measure(files)["classes"]
    assert {kind: count for kind, count in classes.items() if count} == Counter(wanted)


def test_a_row_that_is_lost_or_came_from_nowhere_is_an_error(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_jsonl(first, [{"id": "1"}, {"id": "2"}])
    write_jsonl(second, [{"id": "1", "label": True}])
    with pytest.raises(ValueError, match=r"b\.jsonl: 2 is missing"):
        fates([first, second])
    write_jsonl(second, [{"id": name, "label": True} for name in "123"])
    with pytest.raises(ValueError, match=r"b\.jsonl: 3 is in no earlier file"):
        fates([first, second])
    write_jsonl(second, [{"id": "1", "label": True}, {"id": "2"}])
    with pytest.raises(ValueError, match="2 has no label"):
        fates([first, second])
    write_jsonl(second, [{"id": "1"}, {"id": "1"}])
    with pytest.raises(ValueError, match="every row needs its own id"):
        fates([second])


def test_ten_answers_are_judged_by_their_entropy(run, tmp_path):
    """Ten different answers: ln 10 = 2.3026 nats, failing; ten equal ones: 0, solved and right, AP 1."""
    source, answered, judged = (tmp_path / f"{name}.jsonl" for name in ("in", "answered", "judged"))
    write_jsonl(source, [{"id": name, "prompt": name, "answer": "B"} for name in ("sure", "unsure")])
    engine = Scripted(lambda request: f"A{request.id}" if request.id.startswith("unsure") else "B.")
    words = ["reversegen", "answer", source, "--model", "m", "--n", 10, "--output", answered]
    code, told = run(*words, engine=engine)
    assert (code, told) == (1, "several answers to one prompt need a temperature above 0, or they are all the same")
    assert run(*words, "--temperature", 1, engine=engine)[0] == 0
    run("judge", answered, "--judge", "entropy", "--output", judged)
    found = measure([source, answered, judged])
    assert (found["accuracy"], found["average_precision"]) == (0.5, 1.0)
    assert found["entropy"] == pytest.approx(2.302585 / 2, abs=1e-6)


def test_a_new_answer_takes_the_place_of_an_old_one_and_its_verdict(run, tmp_path):
    source, output = tmp_path / "judged.jsonl", tmp_path / "out.jsonl"
    old = {"response": "no", "verdict": {"judge": "number"}}
    write_jsonl(source, [{"id": str(i), "prompt": "Q", "label": bool(i), **old} for i in range(2)])
    words = ["reversegen", "answer", source, "--model", "m", "--ask", "{prompt}?", "--failing", "--output", output]
    assert run(*words, engine=Scripted(lambda request: request.messages[-1].content))[0] == 0
    assert rows_of(output) == [{"id": "0", "prompt": "Q", "response": "Q?"}]


@pytest.mark.parametrize(
    ("said", "kept", "left"),
    [
        ('{"pass": true}', 1, None),
        ('{"pass": false}', 0, ("invalid", "not answerable, says the judge")),
        ("Yes!", 0, ("unjudged", "validity: the answer is not one JSON object")),
        (None, 0, ("unjudged", "engine: timed out")),
    ],
)
def test_a_judge_of_validity_lets_pass_only_what_it_says_passes(run, tmp_path, said, kept, left):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_jsonl(source, [{"id": "1", "prompt": "Q"}])
    words = ["reversegen", "validate", source, "--by", "llm", "--model", "m", "--keep-going", "--output", output]
    assert run(*words, engine=Scripted(lambda _: said))[0] == 0
    assert len(rows_of(output)) == kept
    told = [tuple(row["left_out"].values()) for row in rows_of(output.with_suffix(".left_out.jsonl"))]
    assert told == ([left] if left else [])


def relabelled(run, folder, rows, reply, *more):
    """Rows after `validate --by agreement` with five answers of a teacher, why others are left out, and the report."""
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    write_jsonl(source, rows)
    words = ["reversegen", "validate", source, "--by", "agreement", "--n", 5, "--model", "m", "--allow-empty", *more]
    assert run(*words, "--output", output, engine=Scripted(reply))[0] == 0
    left = {row["id"]: row["left_out"]["reason"] for row in rows_of(output.with_suffix(".left_out.jsonl"))}
    return (
        {row["id"]: row for row in rows_of(output)},
        left,
        json.loads(output.with_suffix(".report.json").read_text()),
    )


def test_where_a_teacher_agrees_with_itself_its_final_answer_is_the_label(run, tmp_path):
    def reply(request):
        name, number = request.id.split("/")
        return "So 6/2 = 3" if name == "most" and number in "024" else f"It is {number}7"

    found, left, report = relabelled(run, tmp_path, [{"id": i, "prompt": i} for i in ("most", "few")], reply)
    label = {"answer": "3", "chosen": "So 6/2 = 3", "agreement": 0.6}
    assert found == {"most": {"id": "most", "prompt": "most", **label}}
    assert left == {"few": "1 of 5 answers of the teacher agree"}
    assert (report["by"], report["rows"], report["relabelled"]) == ("agreement", 1, 0)


def test_a_label_that_the_teacher_does_not_give_is_replaced_kept_and_counted(run, tmp_path):
    """By math-verify 1/2 and 0.5 are one label, and the target's answer is held against it in the same way."""
    rows = [{"id": "same", "prompt": "Q", "answer": "0.5"}, {"id": "other", "prompt": "R", "answer": "7"}]
    found, left, report = relabelled(run, tmp_path, rows, lambda _: r"It is \boxed{\frac{1}{2}}.")
    assert (left, report["relabelled"]) == ({}, 1)
    assert "answer_before" not in found["same"]
    assert found["other"]["answer_before"] == "7"
    answered, labelled = tmp_path / "answered.jsonl", tmp_path / "judged.jsonl"
    texts = {"same": "So the answer is 0.5", "other": r"$\frac{2}{3}$"}
    write_jsonl(answered, [row | {"response": texts[name]} for name, row in found.items()])
    assert run("judge", answered, "--judge", "math", "--output", labelled)[0] == 0
    assert {row["id"]: row["label"] for row in rows_of(labelled)} == {"same": True, "other": False}


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (["no idea"] * 5, "the teacher's answers have no final answer"),
        (
            ["It is 3", "It is 3", "It is 4", "It is 4", "It is 5"],
            "2 answers of the teacher agree, and as many others",
        ),
        ([("It is 3", "length")] * 3 + ["It is 4", "It is 3"], "1 of 5 answers of the teacher agree"),
    ],
)
def test_what_a_teacher_cannot_answer_alike_and_to_the_end_is_invalid(run, tmp_path, texts, why):
    class Cut(Scripted):
        def generate(self, requests):
            for batch in super().generate(requests):
                yield [
                    Completion(each.id, *texts[int(each.id[-1])])
                    if isinstance(texts[int(each.id[-1])], tuple)
                    else Completion(each.id, texts[int(each.id[-1])], "stop")
                    for each in batch
                ]

    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_jsonl(source, [{"id": "1", "prompt": "Q"}])
    words = ["reversegen", "validate", source, "--by", "agreement", "--n", 5, "--share", 0.4, "--model", "m"]
    assert run(*words, "--allow-empty", "--output", output, engine=Cut(str))[0] == 0
    told = [row["left_out"] for row in rows_of(output.with_suffix(".left_out.jsonl"))]
    assert told == [{"kind": "invalid", "reason": why}]


def test_answers_that_are_compared_as_text_are_labels_as_they_are(run, tmp_path):
    found, _, _ = relabelled(run, tmp_path, [{"id": "1", "prompt": "Q"}], lambda _: "No idea", "--same", "text")
    assert found["1"]["answer"] == "No idea"


def test_the_target_learns_what_a_better_model_answered_and_a_judge_let_pass(run, tmp_path):
    judged, better, held_out, output = (tmp_path / f"{name}.jsonl" for name in ("judged", "better", "held", "out"))
    write_jsonl(judged, [{"id": str(i), "prompt": f"Q{i}", "label": i == 3} for i in range(4)])
    write_jsonl(better, [{"id": str(i), "prompt": f"Q{i}", "response": f"A{i}", "label": i != 1} for i in range(3)])
    write_jsonl(held_out, [{"prompt": "q2"}])
    words = ["reversegen", "improve", judged, "--answers", better, "--exclude", held_out, "--output", output]
    code, told = run(*words)
    assert (code, told) == (0, f"{output}: 1 records (left out: 1 excluded, 1 solved, 1 without a good answer)")
    assert rows_of(output) == [{"id": "0", "prompt": "Q0", "response": "A0"}]


def test_warm_up_records_are_made_from_seeds(run, seeds, tmp_path):
    output = tmp_path / "out.jsonl"
    words = ["reversegen", "warmup", seeds, "--n", 7, "--shots", 3, "--template", "{examples}", "--output", output]
    assert run(*words) == (0, f"{output}: 7 records")
    made = rows_of(output)
    assert len(made) == 7
    known = {row["prompt"] for row in rows_of(seeds)}
    assert all(row["response"] in known and row["response"] not in row["prompt"] for row in made)


def few_shot_text(*questions):
    shown = "\n\n".join(f"Q{number}. {text}" for number, text in enumerate(questions, start=1))
    return f"Ask math questions:\n\n{shown}\n\nQ{len(questions) + 1}."


def warm_up_rows(*, ours=False):
    """Rows of a warm-up file, the release's or one that `warmup` wrote with its own template."""
    if ours:
        shown = (f"Below are 2 instructions.\n\n1. Count to {i}.\n2. Add {i} and 1." for i in range(5))
        return [{"id": str(i), "prompt": text, "response": f"What is {i}?"} for i, text in enumerate(shown)]
    return [{"prompt": few_shot_text("a?", "b?", "c?"), "target": f"What is {i}?"} for i in range(5)]


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("command", ["warmup", "propose"])
def test_a_warm_up_file_is_refused_as_seeds_and_no_prompt_is_in_a_prompt(run, tmp_path, command, ours):
    source, output = tmp_path / "warmup_train.jsonl", tmp_path / "out.jsonl"
    write_jsonl(source, warm_up_rows(ours=ours))
    more = ["--model", "m", "--prompts", 2] if command == "propose" else ["--n", 3]
    code, told = run("reversegen", command, source, *more, "--shots", 2, "--output", output, engine=Scripted(str))
    assert code == 1
    assert f"{source}{'' if ours else ':1'} prompt" in told
    assert "FP290" in told
    assert "`warmup --ready`" in told
    assert not output.exists()


def test_questions_with_numbered_choices_and_an_answer_are_seeds(run, tmp_path):
    source, output = tmp_path / "seeds.jsonl", tmp_path / "out.jsonl"
    texts = (f"Choose:\n1. good\n2. bad\nIt was number {i}." for i in range(4))
    write_jsonl(source, [{"prompt": text, "response": "1"} for text in texts])
    assert run("reversegen", "warmup", source, "--n", 2, "--shots", 2, "--output", output)[0] == 0


def test_the_instructions_of_a_warm_up_file_are_seeds_if_their_column_is_named(run, tmp_path):
    source, output = tmp_path / "warmup_train.jsonl", tmp_path / "out.jsonl"
    write_jsonl(source, warm_up_rows())
    words = ["reversegen", "warmup", source, "--column", "prompt=target", "--n", 3, "--shots", 2, "--output", output]
    assert run(*words)[0] == 0
    for row in rows_of(output):
        assert "Ask math questions" not in row["prompt"]
        assert row["prompt"].count("What is ") == 2
        assert row["response"].startswith("What is ")


@pytest.mark.parametrize("ours", [False, True])
def test_a_ready_warm_up_file_is_trained_on_as_it_is(run, tmp_path, ours):
    source, output = tmp_path / "warmup_train.jsonl", tmp_path / "out.jsonl"
    rows = warm_up_rows(ours=ours)
    write_jsonl(source, rows)
    assert run("reversegen", "warmup", source, "--ready", "--output", output) == (0, f"{output}: 5 records")
    assert [(row["prompt"], row["response"]) for row in rows_of(output)] == [
        (row["prompt"], row["response" if ours else "target"]) for row in rows
    ]
    assert len({row["id"] for row in rows_of(output)}) == 5
    run("reversegen", "warmup", source, "--ready", "--n", 2, "--output", output)
    assert [row["response"] for row in rows_of(output)] == ["What is 0?", "What is 1?"]
    assert run("reversegen", "warmup", source, "--output", output) == (1, "the number of records is missing: --n")


@pytest.mark.parametrize(
    ("row", "command", "field"),
    [
        ({"prompt": "What is 2 + 2?"}, "warmup", "target"),
        ({"prompt": "What is 2 + 2?", "response": "4"}, "warmup", "prompt"),
        ({"prompt": "What is 2 + 2?", "answer": "4"}, "propose", "prompt"),
    ],
)
def test_seeds_are_refused_as_ready_prompts(run, tmp_path, row, command, field):
    source, output = tmp_path / "seeds.jsonl", tmp_path / "out.jsonl"
    write_jsonl(source, [row])
    more = ["--model", "m"] if command == "propose" else []
    code, told = run("reversegen", command, source, "--ready", *more, "--output", output, engine=Scripted(str))
    assert code == 1
    assert f"{source}:1 {field}" in told
    assert "FP291" in told


def test_a_seed_that_only_has_a_target_beside_it_stays_the_seed(run, tmp_path):
    source, output = tmp_path / "seeds.jsonl", tmp_path / "out.jsonl"
    write_jsonl(source, [{"prompt": f"Count to {i}.", "target": "1, 2"} for i in range(4)])
    assert run("reversegen", "warmup", source, "--n", 2, "--shots", 2, "--output", output)[0] == 0
    assert all(row["response"].startswith("Count to ") for row in rows_of(output))


@pytest.mark.parametrize("field", ["attacker_prompt", "prompt"])
def test_ready_few_shot_prompts_are_sent_as_they_are(run, tmp_path, field):
    source, output = tmp_path / "test.jsonl", tmp_path / "out.jsonl"
    texts = [few_shot_text(f"{i}a?", f"{i}b?") for i in range(3)]
    more = {"prompt": "an instruction"} if field == "attacker_prompt" else {"target": ""}
    write_jsonl(source, [more | {field: text} for text in texts])
    seen = []

    def reply(request):
        seen.append(request.messages[0].content)
        return "0a?" if request.id == "0-1/0" else f"New {request.id}?"

    words = ["reversegen", "propose", source, "--ready", "--n", 2, "--model", "m", "--output", output]
    code, told = run(*words, engine=Scripted(reply))
    assert code == 0
    assert sorted({*seen}) == texts
    assert {row["few_shot_prompt"] for row in rows_of(output)} == {*texts}
    assert "1 invalid: copy of an example" in told
    again = [*words[:-1], tmp_path / "again.jsonl", "--seed", 1]
    assert run(*again, engine=Scripted(lambda request: f"New {request.id}?"))[0] == 0
    assert not {row["id"] for row in rows_of(output)} & {row["id"] for row in rows_of(tmp_path / "again.jsonl")}
    fewer = [*words[:-1], tmp_path / "fewer.jsonl", "--prompts", 1]
    run(*fewer, engine=Scripted(lambda request: f"New {request.id}?"))
    assert {row["few_shot_prompt"] for row in rows_of(tmp_path / "fewer.jsonl")} == {texts[0]}


def test_without_ready_prompts_their_number_must_be_given(run, seeds, tmp_path):
    code, told = run(
        "reversegen", "propose", seeds, "--model", "m", "--output", tmp_path / "o.jsonl", engine=Scripted(str)
    )
    assert (code, told) == (1, "the number of few-shot prompts is missing: --prompts")


@pytest.mark.parametrize("end", ["", "\n", "\r\n\n"])
def test_the_releases_numbering_is_a_field_and_line_ends_of_a_template_are_in_no_prompt(run, seeds, tmp_path, end):
    """A YAML block ends in a line end."""
    output = tmp_path / "out.jsonl"
    words = ["reversegen", "warmup", seeds, "--n", 4, "--shots", 3, "--output", output]
    assert run(*words, "--template", f"Ask math questions:\n\n{{questions}}{end}")[0] == 0
    for row in rows_of(output):
        shown = [line.partition(" ")[2] for line in row["prompt"].splitlines() if line.startswith("Q")][:3]
        assert row["prompt"] == few_shot_text(*shown)
    assert run(*words, "--template", f"Like these:\n{{examples}}{end}")[0] == 0
    assert all(row["prompt"].endswith("?") for row in rows_of(output))


def test_the_released_numbering_can_be_written_by_a_template(run, seeds, tmp_path):
    output = tmp_path / "out.jsonl"
    template = "Ask math questions:\n\nQ1. {example_1}\n\nQ2. {example_2}\n\nQ3."
    words = ["reversegen", "warmup", seeds, "--n", 1, "--shots", 2, "--template", template, "--output", output]
    assert run(*words)[0] == 0
    (row,) = rows_of(output)
    first, second = (line.partition(" ")[2] for line in row["prompt"].splitlines() if line.startswith(("Q1", "Q2")))
    assert row["prompt"] == few_shot_text(first, second)
    code, told = run(*[3 if word == 2 else word for word in words])
    assert (code, told) == (1, "the template has no {example_3}")


def test_invalid_proposals_are_the_worse_ones_of_further_pairs(run, seeds, tmp_path):
    """Of each few-shot prompt proposals 0 to 3: failing, solved, no exercise, and cut off."""
    files = [tmp_path / f"{name}.jsonl" for name in ("proposals", "valid", "answered", "judged")]
    texts = ("What is 1{} + 1?", "What is 2{} + 1?", "What is love {}?", "What is 3{} +")

    class Cut(Scripted):
        def generate(self, requests):
            for batch in super().generate(requests):
                yield [
                    each if not each.text.endswith("+") else Completion(each.id, each.text, "length") for each in batch
                ]

    def reply(request):
        few_shot, number = request.id.removeprefix("0-").split("/")
        return texts[int(number)].format(few_shot)

    sizes = ["--prompts", 3, "--n", 4, "--shots", 2, "--model", "m"]
    run("reversegen", "propose", seeds, *sizes, "--output", files[0], engine=Cut(reply))
    run("reversegen", "validate", files[0], "--by", "arithmetic", "--output", files[1])

    def right(request):
        number = request.messages[-1].content.split()[2]
        return str(int(number) + 1) if number.startswith("2") else "0"

    run("reversegen", "answer", files[1], "--model", "m", "--output", files[2], engine=Scripted(right))
    run("judge", files[2], "--judge", "number", "--output", files[3])
    made = {}
    for name, more in (("paper", []), ("more", ["--above-invalid"])):
        output = tmp_path / f"{name}.jsonl"
        words = ["reversegen", "pair", files[3], "--proposed", files[0], "--checked", files[1], "--output", output]
        assert run(*words, *more)[0] == 0
        made[name] = {(row["chosen"], row["rejected"]) for row in rows_of(output)}
    better = [texts[0].format(i) for i in range(3)]
    assert made["paper"] == {(text, texts[1].format(i)) for i, text in enumerate(better)}
    worse = {(text, texts[k].format(i)) for i, text in enumerate(better) for k in (2, 3)}
    assert made["more"] == made["paper"] | worse
    assert json.loads((tmp_path / "more.report.json").read_text())["above_invalid"] == 6


def test_records_can_be_drawn_several_times_each_as_often_as_the_others(run, tmp_path):
    judged, output = tmp_path / "judged.jsonl", tmp_path / "out.jsonl"
    write_jsonl(judged, [{"id": str(i), "prompt": f"Q{i}", "chosen": "A", "label": False} for i in range(4)])
    words = ["reversegen", "improve", judged, "--output", output, "--count"]
    assert run(*words, 10)[0] == 0
    counts = Counter(row["prompt"] for row in rows_of(output))
    assert sorted(counts.values()) == [2, 2, 3, 3]
    assert len({row["id"] for row in rows_of(output)}) == 10
    report = json.loads(output.with_suffix(".report.json").read_text())
    assert (report["records"], report["different"]) == (10, 4)
    drawn = set()
    for seed in range(9):
        run(*words, 2, "--seed", seed)
        drawn.add(tuple(row["id"] for row in rows_of(output)))
        assert len(rows_of(output)) == 2
    assert len(drawn) > 1
    write_jsonl(judged, [])
    assert run(*words, 3, "--allow-empty")[0] == 0
    assert rows_of(output) == []


def test_a_held_out_row_that_a_step_rejected_is_invalid_in_the_figures(run, tmp_path):
    source, answered, labelled, output = (tmp_path / f"{name}.jsonl" for name in ("in", "answered", "judged", "eval"))
    rows = [{"id": str(i), "prompt": f"{i}?", "answer": str(i)} for i in range(9)]
    write_jsonl(source, [*rows, {"id": "9", "prompt": " ", "answer": "9"}])
    skip = ["--bad-rows", "skip", "--max-bad", "10%"]
    run("reversegen", "answer", source, "--model", "m", "--output", answered, *skip, engine=Scripted(lambda _: "3"))
    run("judge", answered, "--judge", "number", "--output", labelled, *skip)
    assert run("reversegen", "eval", source, answered, labelled, "--output", output, *skip)[0] == 0
    found = json.loads(output.read_text())
    assert (found["rows"], found["classes"]["invalid"], found["classes"]["solved"]) == (10, 1, 1)
    assert found["reasons"]["invalid"] == {"rejected: FP012": 1}


def test_rows_that_are_not_judged_are_told_with_code_and_line(run, tmp_path):
    source, proposed = tmp_path / "judged.jsonl", tmp_path / "proposed.jsonl"
    write_jsonl(source, [{"id": "0", "prompt": "a", "label": 1}, {"id": "1", "label": True}])
    write_jsonl(proposed, [])
    code, told = run("reversegen", "improve", source, "--output", tmp_path / "o.jsonl")
    assert (code, "FP011" in told, "FP010" in told) == (1, True, True)
    assert f"{source}:1 label" in told
    assert f"{source}:2 prompt" in told
    code, told = run("reversegen", "pair", source, "--proposed", proposed, "--output", tmp_path / "o.jsonl")
    assert (code, f"{source}:1 few_shot: the field is missing" in told) == (1, True)


def test_bad_seeds_are_told_by_line(run, tmp_path):
    source = tmp_path / "seeds.jsonl"
    write_jsonl(source, [{"prompt": "Q", "subject": "law"}, {"prompt": "R"}])
    code, told = run(
        "reversegen", "warmup", source, "--n", 1, "--group", "subject", "--output", tmp_path / "out.jsonl"
    )
    assert code == 1
    assert "seeds.jsonl:2" in told
    assert "FP010" in told
