"""The report of a file: what it counts, what it keeps, and in how much memory."""

from __future__ import annotations

import hashlib
import pickle

import pytest
from finepref.formats import layouts
from finepref.formats.check import BadData, FileCheck, FileReport, Problem, SeenIds, check_file
from finepref.formats.jsonl import write_jsonl


def pair(number, **changes):
    return {"id": f"{number}", "prompt": "q", "chosen": "good", "rejected": "bad"} | changes


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.jsonl"


def test_a_good_file_passes_with_its_digest(path):
    write_jsonl(path, [pair(1), pair(2)])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert check_file(path, "pair") == FileReport(str(path), "pair", 2, 0, (), 0, digest, {})


def test_columns_that_the_format_does_not_read_are_counted_per_row(path):
    write_jsonl(path, [pair(1, source="web", margn=1), pair(2, source="book"), pair(3)])
    assert check_file(path, "pair").ignored == {"source": 2, "margn": 1}


def test_a_column_that_is_mapped_is_read_and_the_name_it_replaces_is_not(path):
    write_jsonl(path, [pair(1, best="better")])
    assert check_file(path, "pair", columns={"chosen": "best"}).ignored == {"chosen": 1}


def test_the_report_keeps_the_first_problems_by_line_and_counts_all(path):
    write_jsonl(path, [pair(n, chosen="") for n in range(250)])
    report = check_file(path, "pair", limit=3)
    assert [problem.line for problem in report.problems] == [1, 2, 3]
    assert (report.total_problems, report.rejected, report.rows) == (250, 250, 250)
    assert len(check_file(path, "pair").problems) == 100


def test_a_problem_of_the_whole_file_is_kept_whatever_the_limit(path):
    rows = [{"prompt": f"{n}", "response": "", "label": True} for n in range(5)]
    write_jsonl(path, [*rows, {"prompt": "p", "response": "r", "label": True}])
    report = check_file(path, "feedback", limit=2)
    assert [(problem.code, problem.line) for problem in report.problems] == [("FP061", 0), ("FP012", 1), ("FP012", 2)]


def test_a_share_of_bad_rows_may_pass_but_never_a_bad_file(path):
    """One bad row of eight is 12.5 %."""
    write_jsonl(path, [pair(n, **({"chosen": ""} if n == 3 else {})) for n in range(8)])
    report = check_file(path, "pair")
    assert report.passes(0.125)
    assert not report.passes(0.124)
    assert not report.passes()
    path.write_bytes(b"")
    assert not check_file(path, "pair").passes(0.99)


def test_ids_beyond_the_memory_limit_are_remembered_in_order():
    """Ids 0..9 once, then each again: the second time gives the line of the first, before and after the spill at 5."""
    with SeenIds(in_memory=4) as seen:
        assert [seen.line_of(f"{n}", n + 1) for n in range(10)] == [None] * 10
        assert seen.table is not None
        assert [seen.line_of(f"{n}", n + 100) for n in range(10)] == [n + 1 for n in range(10)]


def test_an_id_twice_is_found_after_the_ids_moved_to_disk(path, monkeypatch):
    monkeypatch.setattr(SeenIds.__init__, "__defaults__", (10,))
    write_jsonl(path, [*(pair(n) for n in range(50)), pair(3), pair(40)])
    report = check_file(path, "pair")
    assert [(problem.code, problem.line) for problem in report.problems] == [("FP060", 51), ("FP060", 52)]
    assert "line 4 " in report.problems[0].message
    assert "line 41 " in report.problems[1].message


def test_bad_data_lists_its_problems_and_closes_with_the_count():
    problems = [Problem("f", n, "x", "FP012", "the text is empty") for n in range(1, 103)]
    error = BadData(problems, 2311)
    assert len(error.problems) == 100
    shown = str(error).split("\n")
    assert shown == [
        "FP012 f:1 x: the text is empty; 101 more like it: f:2, f:3, ...",
        "2311 problems, the first 102 shown",
    ]
    assert str(BadData(problems[:1])).split("\n")[-1] == "1 problem"


def test_bad_data_survives_pickling_as_worker_processes_need():
    error = BadData([Problem("f", 1, "x", "FP012", "the text is empty")], 7)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.problems, copy.total, str(copy)) == (error.problems, 7, str(error))


def test_a_problem_needs_a_code_of_the_table():
    with pytest.raises(KeyError):
        Problem("f", 1, "x", "FP999", "unheard of")


def test_an_error_raised_again_from_its_text_keeps_its_problems():
    """As a data loader raises the error of a worker: its class, called with a text that ends in the error's own."""
    problems = [
        Problem("x.jsonl", 10, "prompt", "FP012", "the text is empty"),
        Problem("y.jsonl", 0, "", "FP002", "no row"),
    ]
    text = f"Caught BadData in worker 0.\nTraceback ...\nfinepref.formats.problems.BadData: {BadData(problems)}\n"
    again = BadData(text)
    assert str(again).split("\n") == [*map(str, problems), "2 problems"]
    assert again.problems == tuple(problems)
    assert str(BadData("disk full")) == "disk full"
    assert str(pickle.loads(pickle.dumps(BadData("disk full")))) == "disk full"


def test_nine_hundred_equal_problems_are_one_line_and_a_few_are_a_line_each():
    many = [Problem("f", n, f"spans[{n}]", "FP041", f"[{n}, 99) is not inside") for n in range(1, 901)]
    few = [Problem("f", n, "x", "FP012", "the text is empty") for n in (3, 7)]
    error = BadData([few[0], *many, few[1]])
    expected = [
        "FP012 f:3 x: the text is empty",
        "FP041 f:1 spans[1]: [1, 99) is not inside; 899 more like it: f:2, f:3, ...",
        "FP012 f:7 x: the text is empty",
        "902 problems",
    ]
    assert str(error).split("\n") == expected
    assert str(pickle.loads(pickle.dumps(error))).split("\n") == expected


def test_the_report_groups_all_problems_not_only_those_it_keeps(path):
    write_jsonl(path, [pair(n, chosen="") for n in range(250)])
    (group,) = check_file(path, "pair", limit=3).groups
    assert (group.first.code, group.count, group.vary) == ("FP012", 250, False)
    assert group.places == [f"{path}:1", f"{path}:2", f"{path}:3"]


def test_rows_without_ids_are_told_to_have_the_same_content(path):
    row = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    write_jsonl(
        path, [row, row | {"prompt": "p"}, row, {"id": "0123456789abcdef", **row}, {"id": "0123456789abcdef", **row}]
    )
    same, given = check_file(path, "pair").problems
    assert (same.code, same.line) == ("FP060", 3)
    assert same.message.startswith("same content as line 1; ")
    assert "finepref dedup" in same.message
    assert "bad_rows: skip" in same.message
    assert (given.line, given.message) == (5, "'0123456789abcdef' is the id of line 4 too")


def test_two_negatives_rows_of_one_prompt_are_told_to_need_ids(path):
    write_jsonl(path, [{"prompt": "q", "chosen": text, "negatives": {"logic": "bad"}} for text in ("good", "better")])
    (problem,) = check_file(path, "negatives").problems
    assert (problem.code, problem.line) == ("FP060", 2)
    assert problem.message == "same prompt as line 1, by which a row without an id is known; give such rows ids"


def test_equal_rows_of_an_array_in_one_line_are_found(path):
    row = '{"prompt": "q", "chosen": "good", "rejected": "bad"}'
    path.write_text(f"[{row}, {row}]")
    (problem,) = check_file(path, "pair").problems
    assert (problem.code, problem.place) == ("FP060", f"{path}:1[1]")
    assert "line 1[0]" in problem.message


def test_ids_are_unique_in_the_files_of_a_data_set(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_jsonl(first, [pair(1), pair(2)])
    write_jsonl(second, [pair(3), pair(1)])

    def problems(seen):
        checks = [FileCheck(str(path), "pair", seen=seen) for path in (first, second)]
        for check, path in zip(checks, (first, second), strict=True):
            list(check.rejected_in_file(path, layouts.reader("pair", file=str(path))))
        return [str(problem) for check in checks for problem in check.report().problems]

    with SeenIds() as seen:
        assert problems(seen) == [f"FP060 {second}:2 id: '1' is the id of {first}:1 too"]
    assert problems(None) == []


def test_files_by_error_type_may_repeat_the_desirable_response_once_each(tmp_path):
    """The SeaPO release; the second time in one file, and an undesirable response in two files, are duplicates."""
    good = {"prompt": "q", "response": "good", "label": True}
    bad = {"prompt": "q", "response": "bad", "label": False}
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    write_jsonl(files[0], [good, bad])
    write_jsonl(files[1], [good, bad | {"response": "worse"}, good, bad])
    found = []
    with SeenIds() as seen:
        for path in files:
            check = FileCheck(str(path), "feedback", seen=seen)
            list(check.rejected_in_file(path, layouts.reader("feedback", file=str(path))))
            found += [(problem.code, problem.line) for problem in check.report().problems]
    assert found == [("FP060", 3), ("FP060", 4)]


def test_only_columns_that_nothing_is_read_from_are_ignored(path):
    write_jsonl(path, [{"question": "Name it.", "input": "France", "chosen": "a", "rejected": "b", "source": "web"}])
    report = check_file(path, "orca", columns={})
    assert (report.total_problems, report.ignored) == (0, {"source": 1})
    assert check_file(path, "pair", columns={"prompt": "question"}).ignored == {"source": 1}
    write_jsonl(path, [{"prompt": "q", "chosen": "a", "rejected": "b", "chosen_model": "x", "rejected_model": "y"}])
    assert check_file(path, "rewardbench").ignored == {"chosen_model": 1, "rejected_model": 1}


def test_a_row_of_several_records_is_counted_once(path):
    step = {"completions": [{"text": t, "rating": r} for t, r in (("a", 1), ("x", -1), ("y", -1))]}
    rows = [{"question": {"problem": f"q{n}"}, "label": {"steps": [step]}} for n in range(3)]
    write_jsonl(path, [*rows, rows[0]])
    report = check_file(path, "prm800k")
    assert (report.rows, report.rejected, report.layout, report.formatting) == (4, 1, "prm800k", "span_pair")
    assert [(problem.code, problem.line) for problem in report.problems] == [("FP060", 4)]
