"""Public data sets as pairs, from files and from the hub's library; what is no pair is listed."""

from __future__ import annotations

import json

import datasets
import pyarrow
import pytest
from finepref.cli import app
from finepref.formats.check import check_file
from finepref.formats.jsonl import read_jsonl, write_jsonl
from pyarrow import parquet
from typer.testing import CliRunner


def run(*arguments):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def rows_of(path):
    return [row for _, row in read_jsonl(path, problems=None)]


def turns(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


ULTRAFEEDBACK = [
    {
        "prompt": "Why?", "prompt_id": "p1", "messages": turns("Why?", "So."),
        "chosen": turns("Why?", "So."), "rejected": turns("Why?", "No."), "score_chosen": 8.5, "score_rejected": 6.0,
    },
    {
        "prompt": "How?", "prompt_id": "p2", "messages": turns("How?", "Thus."),
        "chosen": turns("How?", "Thus."), "rejected": turns("How?", "Thus."), "score_chosen": 7, "score_rejected": 7,
    },
    {
        "prompt": "Why?", "prompt_id": "p1", "messages": turns("Why?", "Well."),
        "chosen": turns("Why?", "Well."), "rejected": turns("Why?", "Ill."), "score_chosen": 4, "score_rejected": 1,
    },
    {
        "prompt": "Who?", "prompt_id": "p3", "messages": turns("Who?", "Me."),
        "chosen": turns("Who?", "Me."), "rejected": turns("Who?", ""), "score_chosen": 4.0, "score_rejected": 1.0,
    },
]  # fmt: skip


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_ultrafeedback_becomes_pairs_with_margins_and_the_rest_is_listed(tmp_path, suffix):
    source, output = tmp_path / f"in{suffix}", tmp_path / "pairs.jsonl"
    if suffix == ".jsonl":
        write_jsonl(source, ULTRAFEEDBACK)
    else:
        parquet.write_table(pyarrow.Table.from_pylist(ULTRAFEEDBACK), source)
    result = run("ultrafeedback", "--from-file", source, "--output", output)
    assert result.stdout.splitlines()[-1] == f"{output}: 1 pairs (left out: 1 FP012, 1 FP034, 1 FP060)"
    assert rows_of(output) == [{"id": "p1", "prompt": "Why?", "chosen": "So.", "rejected": "No.", "margin": 2.5}]
    assert check_file(output, "pair").total_problems == 0
    left_out = rows_of(tmp_path / "pairs.left_out.jsonl")
    assert [row["row"] for row in left_out] == [2, 3, 4]
    assert "FP034" in left_out[0]["problems"][0]


def test_hh_transcripts_become_dialogues_with_two_answers(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "pairs.jsonl"
    start = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"
    write_jsonl(
        source,
        [
            {"chosen": f"{start} So.", "rejected": f"{start} No."},
            {"chosen": f"{start} So.", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away."},
        ],
    )
    result = run("hh", "--from-file", source, "--output", output)
    assert result.stdout.splitlines()[-1] == f"{output}: 1 pairs (left out: 1 FP015)"
    (row,) = rows_of(output)
    assert (row["messages"], row["chosen"], row["rejected"]) == (turns("Hi", "Hello.", "Why?"), "So.", "No.")


H, A = "\n\nHuman:", "\n\nAssistant:"


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        (f"{H} Sky?{A} Blue.{A} Or grey.{H} Sea?{A}", "FP021"),
        (f"{H} Sky?{H} Sea?{A}", "FP021"),
        (f"{A} Hello.{H} Sky?{A}", "FP021"),
        (f"{H} Sky?{A}{H} Sea?{A}", "FP012"),
        (f"{H} Sky?{A} Blue.{A}", "FP022"),
        (f"Once upon a time.{H} Sky?{A}", "FP015"),
    ],
)
def test_an_hh_transcript_whose_turns_are_not_in_order_is_left_out_and_never_one_user_turn(tmp_path, prompt, code):
    source, output = tmp_path / "in.jsonl", tmp_path / "pairs.jsonl"
    good = f"{H} Hi{A}"
    rows = [{"chosen": f"{each} Yes.", "rejected": f"{each} No."} for each in (prompt, good)]
    write_jsonl(source, rows)
    result = run("hh", "--from-file", source, "--output", output)
    assert result.stdout.splitlines()[-1] == f"{output}: 1 pairs (left out: 1 {code})"
    assert [row["prompt"] for row in rows_of(output)] == ["Hi"]
    assert code in rows_of(tmp_path / "pairs.left_out.jsonl")[0]["problems"][0]


def test_an_hh_transcript_that_ends_in_a_turn_of_the_user_is_left_out(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "pairs.jsonl"
    start = f"{H} Hi{A}"
    write_jsonl(source, [{"chosen": f"{start} Yes.{H} Bye", "rejected": f"{start} No."}])
    assert "0 pairs (left out: 1 FP015)" in run("hh", "--from-file", source, "--output", output).stdout
    told = rows_of(tmp_path / "pairs.left_out.jsonl")[0]["problems"][0]
    assert told.endswith("the transcripts do not end in a turn of the assistant")


@pytest.mark.parametrize(
    ("chosen", "rejected", "told"),
    [
        (turns("Why?", "So."), turns("How?", "No."), "chosen and rejected answer different prompts"),
        (turns("Why?", "So.", "And?", "Yes."), turns("Why?", "No."), "chosen and rejected answer different prompts"),
        (
            turns("Why?", "So.", "Thanks!"),
            turns("Why?", "No.", "Oh."),
            "chosen does not end in a turn of the assistant",
        ),
        (turns("Why?", "So."), turns("Why?"), "rejected does not end in a turn of the assistant"),
        (turns("Why?", "So."), [], "chosen and rejected are not two lists of messages"),
        (turns("Why?", "So."), ["Why?"], "chosen and rejected are not two lists of messages"),
    ],
)
def test_an_ultrafeedback_row_of_two_prompts_or_without_an_answer_is_left_out(tmp_path, chosen, rejected, told):
    source, output = tmp_path / "in.jsonl", tmp_path / "pairs.jsonl"
    write_jsonl(source, [{"chosen": chosen, "rejected": rejected}, ULTRAFEEDBACK[0]])
    result = run("ultrafeedback", "--from-file", source, "--output", output)
    assert result.stdout.splitlines()[-1] == f"{output}: 1 pairs (left out: 1 FP015)"
    assert rows_of(tmp_path / "pairs.left_out.jsonl")[0]["problems"][0].endswith(told)


def test_a_split_without_rows_is_no_success(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("")
    result = run("hub", tmp_path / "set", "--output", tmp_path / "rows.jsonl")
    assert result.exit_code == 1


def test_a_file_of_something_else_is_an_error_and_not_an_empty_success(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "pairs.jsonl"
    write_jsonl(source, [{"text": "a"}])
    result = run("ultrafeedback", "--from-file", source, "--output", output)
    assert result.exit_code == 1
    assert "no row became a pair" in result.stderr


def test_any_data_set_is_written_as_it_is(tmp_path):
    folder, output = tmp_path / "set", tmp_path / "rows.jsonl"
    rows = [{"a": i, "b": {"c": [str(i)]}} for i in range(5)]
    write_jsonl(folder / "train.jsonl", rows)
    assert run("hub", folder, "--output", output).stdout.splitlines()[-1] == f"{output}: 5 rows of {folder}"
    assert rows_of(output) == rows
    run("hub", folder, "--output", output, "--limit", "2")
    assert rows_of(output) == rows[:2]


def test_a_hub_that_does_not_answer_is_one_clear_line_and_writes_nothing(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'HuggingFaceH4/ultrafeedback_binarized' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    output = tmp_path / "pairs.jsonl"
    result = run("ultrafeedback", "--output", output)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("HuggingFaceH4/ultrafeedback_binarized (split train_prefs) cannot be read: Couldn't reach")
    assert line.endswith("download a file elsewhere and pass it with --from-file")
    assert not output.exists()


def test_a_part_that_is_not_there_is_named(tmp_path):
    write_jsonl(tmp_path / "set" / "train.jsonl", [{"a": 1}])
    result = run("hub", tmp_path / "set", "--split", "nowhere", "--output", tmp_path / "rows.jsonl")
    assert result.exit_code == 1
    assert "nowhere" in result.stderr
    assert json.loads((tmp_path / "set" / "train.jsonl").read_text()) == {"a": 1}
