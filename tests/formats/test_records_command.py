"""`finepref validate`, `convert` and `formats` as a user calls them."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from finepref.cli import app
from finepref.formats.jsonl import write_jsonl
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner

CALL = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
PAIRS = [{"id": f"{n}", "prompt": f"q{n}", "chosen": "good", "rejected": "bad"} for n in range(10)]
NEGATIVES = [{"prompt": f"q{n}", "chosen": "good", "negatives": {"a": "bad", "b": "worse"}} for n in range(3)]


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pairs(folder):
    write_jsonl(folder / "pairs.jsonl", PAIRS)
    return folder / "pairs.jsonl"


def test_a_good_file_passes_and_says_what_it_was_taken_for(pairs):
    result = run("validate", pairs)
    assert "0 problems" in result.output
    assert " pair " in result.output


def test_a_bad_file_fails_with_a_table_of_code_place_and_field(pairs):
    write_jsonl(pairs, [*PAIRS, {"prompt": "[bold]q", "chosen": "", "rejected": "b"}])
    result = run("validate", "pairs.jsonl", code=1)
    assert "FP012" in result.output
    assert "pairs.jsonl:11" in result.output
    assert "the text is empty" in result.output
    assert "1 problem" in result.output


def test_json_output_is_one_object_with_everything_in_it(pairs):
    write_jsonl(pairs, [PAIRS[0] | {"source": "web", "chosen": ""}])
    found = json.loads(run("validate", pairs, "--json", code=1).stdout)
    (file,) = found["files"]
    assert found["passed"] is False
    assert (file["rows"], file["rejected"], file["ignored"], len(file["sha256"])) == (1, 1, {"source": 1}, 64)
    assert [(p["code"], p["line"], p["field"]) for p in file["problems"]] == [("FP012", 1, "chosen")]


def test_some_bad_rows_may_pass_and_are_written_aside(pairs):
    write_jsonl(pairs, [PAIRS[0] | {"chosen": ""}, *PAIRS[1:]])
    run("validate", pairs, "--max-bad", "9%", code=1)
    run("validate", pairs, "--max-bad", "10%", "--rejected", "bad.jsonl")
    (row,) = rows(pairs.parent / "bad.jsonl")
    assert (row["line"], row["problems"][0]["code"]) == (1, "FP012")
    assert json.loads(row["row"])["id"] == "0"
    run("validate", pairs, "--max-bad", "0.1")


@pytest.mark.parametrize("share", ["ten", "-1%", "100%", "1", "nan"])
def test_a_share_that_is_none_is_a_usage_error(pairs, share):
    run("validate", pairs, f"--max-bad={share}", code=2)


def test_a_dataset_name_brings_its_format_columns_and_error_type(folder):
    (folder / "data").mkdir()
    write_jsonl(folder / "data/x.jsonl", [{"q": "p", "response": "a", "label": label} for label in (True, False)])
    entry = {"file_name": "x.jsonl", "formatting": "feedback", "columns": {"prompt": "q"}, "error_type": "style"}
    (folder / "data/dataset_info.json").write_text(json.dumps({"mine": entry, "theirs": {"file_name": "x.jsonl"}}))
    found = json.loads(run("validate", "mine", "--dataset-dir", "data", "--json", code=1).stdout)
    assert [p["code"] for p in found["files"][0]["problems"]] == ["FP061", "FP060"]
    assert "FP036" in run("validate", "mine", "--dataset-dir", "data", "--error-types", "logic", code=1).output
    assert "FP016" in run("validate", "theirs", "--dataset-dir", "data", code=1).output
    assert "FP071" in run("validate", "other", "--dataset-dir", "data", code=1).output
    assert "FP001" in run("validate", "mine", "--dataset-dir", "nowhere", code=1).output
    assert json.loads(run("validate", "tdpo_demo", "--dataset-dir", "nowhere", "--json").output)["passed"]
    run("validate", "data/dataset_info.json", code=1)


def test_a_folder_stands_for_the_files_in_it(pairs):
    write_jsonl(pairs.parent / "parts/1.jsonl", PAIRS[:5])
    write_jsonl(pairs.parent / "parts/2.jsonl", PAIRS[5:])
    found = json.loads(run("validate", "parts", "--json").stdout)
    assert [file["rows"] for file in found["files"]] == [5, 5]


def test_a_file_that_is_not_there_or_tells_no_format_is_said_so(folder):
    run("validate", "missing.jsonl", "--format", "pair", code=1)
    (folder / "x.jsonl").write_text('{"a": 1}\n')
    shown = run("validate", "x.jsonl", code=1).output
    assert "FP093" in shown
    assert "--format" in shown
    run("validate", "x.jsonl", "--format", "pears", code=2)


def test_a_released_file_can_be_validated_as_it_is(folder):
    region = {"prompt": "q", "correct_response": "a b", "incorrect_response": "c", "masked_region": [0, 9, 1]}
    (folder / "g.json").write_text(json.dumps([region]))
    found = json.loads(run("validate", "g.json", "--json", code=1).stdout)
    assert [p["code"] for p in found["files"][0]["problems"]] == ["FP041"]


def test_parquet_is_validated_with_its_nulls_as_absent_keys(folder):
    """pyarrow makes `spans` null where a row has none, and one struct of all error types."""
    from pyarrow import Table, parquet

    table = [NEGATIVES[0], NEGATIVES[1] | {"spans": {"a": [{"start": 0, "end": 1}]}}, {**NEGATIVES[2], "chosen": " "}]
    table[2]["negatives"] = {"a": "bad"}
    parquet.write_table(Table.from_pylist(table), "x.parquet")
    found = json.loads(run("validate", "x.parquet", "--format", "negatives", "--json", code=1).stdout)
    assert [(p["code"], p["line"], p["field"]) for p in found["files"][0]["problems"]] == [("FP012", 3, "chosen")]
    (folder / "y.parquet").write_bytes(b"PAR1 but not really")
    assert "FP001" in run("validate", "y.parquet", "--format", "pair", code=1).output
    (folder / "z.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in run("validate", "z.parquet", code=1).output


def test_negatives_become_interleaved_feedback_and_the_left_out_is_told(folder):
    write_jsonl(folder / "n.jsonl", [row | {"rejected": "meh"} for row in NEGATIVES])
    result = run("convert", "--from", "negatives", "--to", "feedback", "n.jsonl", "f.jsonl")
    assert "9 rows of feedback in f.jsonl; left out: rejected of 3 records" in result.output
    prompts = [row["prompt"] for row in rows(folder / "f.jsonl")]
    assert all(left != right for left, right in pairwise(prompts))
    run("validate", "f.jsonl", "--format", "feedback")


def test_the_files_of_the_seapo_release_become_negatives(folder):
    for kind in ("logic", "correctness"):
        turns = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": text}] for text in ("good", kind)]
        release = [{"messages": turns[0], "label": True}, {"messages": turns[1], "label": False}]
        (folder / f"{kind}.json").write_text(json.dumps(release, indent=4))
    inputs = ["logic=logic.json", "correctness=correctness.json"]
    run("convert", "--from", "seapo", "--to", "negatives", *inputs, "n.jsonl")
    (row,) = rows(folder / "n.jsonl")
    assert (row["chosen"], row["negatives"]) == ("good", {"correctness": "correctness", "logic": "logic"})
    failed = run("convert", "--from", "seapo", "--to", "negatives", "logic.json", "none.jsonl", code=1)
    assert "FP066" in failed.output
    assert not (folder / "none.jsonl").exists()


def test_bad_rows_stop_a_conversion_unless_their_share_is_allowed(pairs):
    write_jsonl(pairs, [PAIRS[0] | {"chosen": ""}, *PAIRS[1:]])
    assert "FP012" in run("convert", "--from", "pair", "--to", "ranked", pairs, "r.jsonl", code=1).output
    assert not (pairs.parent / "r.jsonl").exists()
    run("convert", "--from", "pair", "--to", "ranked", pairs, "r.jsonl", "--max-bad", "20%")
    assert len(rows(pairs.parent / "r.jsonl")) == 9
    assert [row["line"] for row in rows(pairs.parent / "r.jsonl.rejected.jsonl")] == [1]


def test_columns_can_be_named_when_converting(folder):
    write_jsonl(folder / "x.jsonl", [{"id": "a", "q": "p", "best": "a", "rejected": "b"}])
    columns = ["--column", "prompt=q", "--column", "chosen=best"]
    run("convert", "--from", "pair", "--to", "pair", *columns, "x.jsonl", "y.jsonl")
    assert rows(folder / "y.jsonl") == [{"id": "a", "prompt": "p", "chosen": "a", "rejected": "b"}]
    wrong = run("convert", "--from", "pair", "--to", "pair", "--column", "x=q", "x.jsonl", "z.jsonl", code=1)
    assert "FP017" in wrong.output


def test_apo_samples_and_golden_answers_become_a_ranking(folder):
    write_jsonl(folder / "s.json", [{"query_id": 1, "query": "q", "sample_0": "a"}])
    write_jsonl(folder / "g.json", [{"query_id": 1, "query": "q", "golden": "best"}])
    run("convert", "--from", "apo_samples", "--to", "ranked", "--golden", "g.json", "s.json", "r.jsonl")
    assert rows(folder / "r.jsonl")[0]["responses"] == ["best", "a"]
    assert rows(folder / "r.jsonl")[0]["kind"] == "apo"
    run("convert", "--from", "apo_samples", "--to", "ranked", "s.json", "r2.jsonl", code=2)


def test_selected_tokens_of_sepo_become_spans_with_a_tokenizer_file(folder):
    """Words of "aa bb cc" are tokens; position 1 of the file is token 2, "cc" at [6, 8)."""
    tokenizer = Tokenizer(models.WordLevel({"aa": 0, "bb": 1, "cc": 2, "dd": 3}, unk_token="dd"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save("tokenizer.json")
    header = "prompt,chosen_response,rejected_response,chosen_selected_args,rejected_unselected_args"
    (folder / "top.csv").write_text(
        f'{header},chosen_responses_ids,rejected_responses_ids\nq,aa bb cc</s>,dd cc</s>,1,0,"0,1,2,9","3,2,9"\n'
    )
    run("convert", "--from", "sepo_csv", "--to", "span_pair", "--tokenizer", ".", "top.csv", "s.jsonl")
    (row,) = rows(folder / "s.jsonl")
    assert (row["chosen"], row["chosen_spans"]) == ("aa bb cc", [{"start": 6, "end": 8}])
    assert (row["rejected"], row["rejected_spans"]) == ("dd cc", [{"start": 3, "end": 5}])
    run("convert", "--from", "sepo_csv", "--to", "span_pair", "top.csv", "t.jsonl", code=2)
    run("convert", "--from", "sepo_csv", "--to", "span_pair", "--tokenizer", "none", "top.csv", "t.jsonl", code=2)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--from", "pears", "--to", "pair", "pairs.jsonl", "y.jsonl"],
        ["--from", "pair", "--to", "pears", "pairs.jsonl", "y.jsonl"],
        ["--from", "ranked", "--to", "feedback", "pairs.jsonl", "y.jsonl"],
        ["--from", "pair", "--to", "pair", "pairs.jsonl", "pairs.jsonl"],
        ["--from", "pair", "--to", "pair", "--column", "prompt", "pairs.jsonl", "y.jsonl"],
    ],
)
def test_a_conversion_that_makes_no_sense_is_a_usage_error_and_writes_nothing(pairs, arguments):
    run("convert", *arguments, code=2)
    assert list(pairs.parent.iterdir()) == [pairs]


def test_two_inputs_with_one_id_are_refused(pairs):
    write_jsonl(pairs.parent / "more.jsonl", PAIRS[:1])
    assert "FP060" in run("convert", "--from", "pair", "--to", "pair", pairs, "more.jsonl", "y.jsonl", code=1).output
    assert not (pairs.parent / "y.jsonl").exists()


def test_the_description_of_the_formats_is_written_and_checked(folder):
    (folder / "dataset_info").mkdir()
    run("formats", "--check", code=1)
    run("formats", "--write")
    run("formats", "--check")
    printed = run("formats").stdout
    assert printed == (folder / "dataset_info/README.md").read_text()
    (folder / "dataset_info/README.md").write_text(printed + "old")
    assert "finepref formats --write" in run("formats", "--check", code=1).output


USER, GOOD, BAD = ({"role": r, "content": t} for r, t in (("user", "q"), ("assistant", "a"), ("assistant", "b")))


def test_a_file_of_another_layout_is_named_with_the_format_it_is_read_as(folder):
    write_jsonl(folder / "u.jsonl", [{"chosen": [USER, GOOD], "rejected": [USER, BAD]}])
    assert "trl_implicit -> pair" in run("validate", "u.jsonl").output
    (file,) = json.loads(run("validate", "u.jsonl", "--json").stdout)["files"]
    assert (file["layout"], file["formatting"]) == ("trl_implicit", "pair")
    run("convert", "--from", "trl_implicit", "--to", "ranked", "u.jsonl", "r.jsonl")
    (row,) = rows(folder / "r.jsonl")
    assert (row["prompt"], row["responses"]) == ("q", ["a", "b"])


def test_a_file_with_only_rejected_spans_is_taken_for_span_pairs_and_its_bad_span_is_found(folder):
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "rejected_spans": [{"start": 5, "end": 9}]}
    write_jsonl(folder / "x.jsonl", [*PAIRS, row])
    assert "FP041" in run("validate", "x.jsonl", code=1).output


def test_a_file_of_two_layouts_is_refused_with_both_names(folder):
    write_jsonl(folder / "x.jsonl", [PAIRS[0], {"question": "q", "chosen": "a", "rejected": "b"}])
    shown = run("validate", "x.jsonl", code=1).output
    for text in ("FP092", "x.jsonl:2", "pair (first", "orca (first"):
        assert text in shown


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "FP001"),
        ('{"a": 1}'.encode("utf-16"), "FP003"),
        (b'{"prompt": "q", "chosen', "FP004"),
        (b'{"prompt": "q", "chosen": "a", "rejected": "b",}\n', "FP004"),
        (b"5\n", "FP005"),
        (b'{"prompt": "q", "chosen": "a", "chosen": "a", "rejected": "b"}\n', "FP006"),
        (b'{"prompt": "q", "chosen": "a", "rejected": "b", "margin": NaN}\n', "FP007"),
        (b'{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}\n', "FP008"),
    ],
)
@pytest.mark.parametrize("more", [False, True], ids=["alone", "before a good row"])
def test_what_is_wrong_with_a_first_row_is_said_not_that_its_layout_is_unknown(folder, content, expected, more):
    if content is not None:
        after = b"\n" + json.dumps(PAIRS[0]).encode() if more else b""
        (folder / "x.jsonl").write_bytes(content + after)
    found = json.loads(run("validate", "x.jsonl", "--json", code=1).stdout)["files"][0]
    line = 0 if expected in ("FP001", "FP003") else 1
    assert [(p["code"], p["line"]) for p in found["problems"]] == [(expected, line)]


def test_an_empty_file_is_said_to_be_empty(folder):
    (folder / "x.jsonl").write_bytes(b"")
    found = json.loads(run("validate", "x.jsonl", "--json", code=1).stdout)["files"][0]
    assert [(p["code"], p["line"]) for p in found["problems"]] == [("FP002", 0)]


def test_rows_inside_an_object_are_found_and_a_row_of_no_layout_lists_the_names(folder):
    (folder / "x.json").write_text(json.dumps({"data": PAIRS}))
    assert "the rows seem to be inside 'data'" in run("validate", "x.json", code=1).output
    (folder / "y.json").write_text('[{"a": 1}]')
    shown = " ".join(run("validate", "y.json", code=1).output.split())
    assert all(name in shown for name in ("FP093", "trl_implicit", "ultrafeedback"))


def test_a_check_takes_tools_and_a_conversion_keeps_them(folder):
    tools = '[{"name": "get_weather"}]'
    write_jsonl(folder / "t.jsonl", [PAIRS[0] | {"tools": tools, "rejected": {"function_call": CALL}}])
    assert json.loads(run("validate", "--json", "t.jsonl").output)["files"][0]["ignored"] == {}
    run("convert", "--from", "pair", "--to", "ranked", "t.jsonl", "x.jsonl")
    (row,) = map(json.loads, (folder / "x.jsonl").read_text().splitlines())
    assert (row["tools"], row["responses"][1]) == (tools, {"function_call": CALL})
    run("convert", "--from", "ranked", "--to", "pair", "x.jsonl", "y.jsonl")
    (row,) = map(json.loads, (folder / "y.jsonl").read_text().splitlines())
    assert (row["tools"], row["rejected"]) == (tools, {"function_call": CALL})


def test_many_equal_problems_are_one_line_with_their_number_and_three_places(folder):
    write_jsonl(folder / "x.jsonl", [PAIRS[0] | {"id": f"{n}", "chosen": ""} for n in range(900)])
    shown = run("validate", "x.jsonl", code=1).output
    assert shown.count("FP012") == 1
    assert "x.jsonl:1, x.jsonl:2, x.jsonl:3, ..." in shown
    assert "(900 times)" in shown
    assert "900 problems" in shown
    assert "shown" not in shown


def test_a_folder_is_one_data_set_and_two_names_are_two(pairs):
    (pairs.parent / "set").mkdir()
    for name in "ab":
        write_jsonl(pairs.parent / f"set/{name}.jsonl", PAIRS[:1])
    assert "is the id of set/a.jsonl:1 too" in run("validate", "set", code=1).output
    run("validate", "set/a.jsonl", "set/b.jsonl")


def test_an_entry_of_the_hosts_own_layouts_is_read_without_a_change(folder):
    """As a user's dataset_info.json has them for LLaMA-Factory."""
    turns = [{"from": "human", "value": "q"}]
    ranking = {
        "conversations": turns,
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    }
    (folder / "r.json").write_text(json.dumps([ranking]))
    (folder / "k.json").write_text(json.dumps([{"messages": [USER, GOOD], "good": True}]))
    (folder / "a.json").write_text(
        json.dumps([{"ask": "Name it.", "input": "France", "chosen": "a", "rejected": "b"}])
    )
    entries = {
        "r": {
            "file_name": "r.json",
            "formatting": "sharegpt",
            "ranking": True,
            "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
        },
        "k": {
            "file_name": "k.json",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "kto_tag": "good"},
            "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
        },
        "a": {
            "file_name": "a.json",
            "ranking": True,
            "columns": {"prompt": "ask", "chosen": "chosen", "rejected": "rejected"},
        },
        "sft": {"file_name": "a.json"},
    }
    (folder / "dataset_info.json").write_text(json.dumps(entries))
    found = {
        name: json.loads(run("validate", name, "--dataset-dir", ".", "--json", code=code).stdout)
        for name, code in (("r", 0), ("k", 1), ("a", 0), ("sft", 1))
    }
    assert [found[name]["files"][0]["layout"] for name in "rka"] == ["sharegpt", "sharegpt_kto", "alpaca"]
    assert [p["code"] for p in found["k"]["files"][0]["problems"]] == ["FP061"]  # one label only
    assert [p["code"] for p in found["sft"]["problems"]] == ["FP016"]
    assert len(json.loads(run("validate", "dataset_info.json", "--json", code=1).stdout)["files"]) == 3


def test_samples_of_apo_are_checked_alone_and_converted_with_their_golden_answers(folder):
    write_jsonl(
        folder / "s.json",
        [{"query_id": 1, "query": "q", "sample_0": "a"}, {"query_id": 1, "query": "q", "sample_0": ""}],
    )
    found = json.loads(run("validate", "s.json", "--json", code=1).stdout)["files"][0]
    assert (found["layout"], [(p["code"], p["line"]) for p in found["problems"]]) == ("apo_samples", [("FP012", 2)])
    write_jsonl(folder / "s.json", [{"query_id": 1, "query": "q", "sample_0": "a"}] * 2)
    found = json.loads(run("validate", "s.json", "--json", code=1).stdout)["files"][0]
    assert [(p["code"], p["line"]) for p in found["problems"]] == [("FP060", 2)]
    run("convert", "--from", "apo_samples", "--to", "ranked", "s.json", "r.jsonl", code=2)


def test_a_data_set_of_one_label_is_told_once_for_all_its_files_and_one_of_both_is_none(tmp_path):
    """Each of its files may have one label alone."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for labels, codes in (((True, True), ["FP061"]), ((True, False), [])):
        for number, label in enumerate(labels):
            rows = [{"prompt": f"{i}?", "response": f"{number}", "label": label} for i in range(3)]
            write_jsonl(folder / f"{number}.jsonl", rows)
        found = json.loads(CliRunner().invoke(app, ["validate", str(folder), "--json"]).stdout)
        assert [p["code"] for file in found["files"] for p in file["problems"]] == codes
        assert found["passed"] is not bool(codes)
    write_jsonl(folder / "1.jsonl", [{"prompt": "6?", "response": "1", "label": True}])
    found = json.loads(CliRunner().invoke(app, ["validate", str(folder), "--json"]).stdout)
    (problem,) = found["files"][0]["problems"]
    assert problem["message"] == "all 4 good rows of 2 files are labelled true"
