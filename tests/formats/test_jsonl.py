"""Strict reading and atomic writing of JSON Lines."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle

import pytest
from finepref.formats import jsonl
from finepref.formats.check import BadData, Problem
from finepref.formats.jsonl import dumps, read_chunks, read_jsonl, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

settings.register_profile("formats", derandomize=True, deadline=None)
SETTINGS = settings.get_profile("formats")


def read(path, content):
    """The rows of a file with that content, which must be good."""
    path.write_bytes(content)
    return list(read_jsonl(path, problems=None))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.jsonl"


def test_only_a_newline_ends_a_line(path):
    """U+2028, U+0085, form feed and a lone carriage return end lines elsewhere; here they are text or white space."""
    text = "a\u2028b\u0085c"
    content = json.dumps({"x": text}, ensure_ascii=False).encode() + b'\r\n\n \t\r\n{"y":\r 1}'
    assert read(path, content) == [(1, {"x": text}), (4, {"y": 1})]


def test_a_byte_order_mark_is_accepted_and_is_no_part_of_the_first_key(path):
    assert read(path, b'\xef\xbb\xbf{"x": 1}\n') == [(1, {"x": 1})]
    assert read(path, b'\xef\xbb\xbf[{"x": 1}]') == [(1, {"x": 1})]


def test_an_array_gives_each_row_with_the_line_where_it_starts(path):
    rows = [{"x": 1}, {"y": ["\n", {}]}, {"z": "]"}]
    assert read(path, json.dumps(rows, indent=1).encode()) == [(2, rows[0]), (5, rows[1]), (11, rows[2])]
    assert read(path, b' \n[{"x": 1}, {"y": 2}\n,{"z": 3}]') == [(2, {"x": 1}), (2, {"y": 2}), (3, {"z": 3})]


def test_a_surrogate_pair_escape_is_one_character(path):
    assert read(path, b'{"x": "\\ud83d\\ude00"}') == [(1, {"x": "\N{GRINNING FACE}"})]


def test_an_escaped_backslash_before_ud800_is_plain_text(path):
    assert read(path, b'{"x": "\\\\ud800"}') == [(1, {"x": "\\ud800"})]


def test_with_a_list_for_problems_reading_goes_on_after_a_bad_line(path):
    path.write_bytes(b'{"x": 1}\n{\n{"x": 2}\n')
    problems: list[Problem] = []
    assert list(read_jsonl(path, problems=problems)) == [(1, {"x": 1}), (3, {"x": 2})]
    assert [(problem.code, problem.line) for problem in problems] == [("FP004", 2)]


def test_without_a_list_for_problems_the_first_bad_line_raises(path):
    path.write_bytes(b'{"x": 1}\n{\n[]\n')
    with pytest.raises(BadData) as raised:
        list(read_jsonl(path, problems=None))
    assert [problem.line for problem in raised.value.problems] == [2]


def test_a_line_of_exactly_16_mib_is_read_and_one_byte_more_is_not(path):
    def line(size):
        return b'{"x": "' + b"y" * (size - 10) + b'"}\n'

    assert len(line(16 * 2**20)) == 16 * 2**20
    path.write_bytes(line(16 * 2**20) + line(16 * 2**20 + 1) + b'{"x": "z"}\n')
    problems: list[Problem] = []
    assert [number for number, _ in read_jsonl(path, problems=problems)] == [1, 3]
    assert [(problem.code, problem.line) for problem in problems] == [("FP009", 2)]


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(SETTINGS, max_examples=100)
@given(rows=st.lists(st.dictionaries(st.text(), JSON_VALUES, max_size=4), max_size=5))
def test_what_is_written_is_read_back_equal(rows, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "round_trip.jsonl"
    assert write_jsonl(path, rows) == len(rows)
    assert list(read_jsonl(path, problems=None)) == list(enumerate(rows, start=1))


def test_a_row_is_written_as_one_line_of_readable_utf_8():
    assert dumps({"b": "é\n\u2028", "a": [1, None]}) == '{"b": "é\\n\u2028", "a": [1, null]}'


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "\ud800", object()])
def test_a_row_that_cannot_be_written_leaves_the_old_file_as_it_was(path, bad):
    path.write_text("old\n")
    with pytest.raises((ValueError, TypeError)):
        write_jsonl(path, [{"x": 1}, {"x": bad}])
    assert path.read_text() == "old\n"
    assert list(path.parent.iterdir()) == [path]


def test_rows_that_stop_with_an_error_leave_no_file(path):
    def rows():
        yield {"x": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, rows())
    assert list(path.parent.iterdir()) == []


def test_missing_folders_are_made(tmp_path):
    write_jsonl(tmp_path / "a/b/data.jsonl", [{"x": 1}])
    assert (tmp_path / "a/b/data.jsonl").read_text() == '{"x": 1}\n'


def test_a_gzip_file_is_read_as_its_content_and_hashed_as_it_is(path):
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf{"x": 1}\n\n{"x": 2}\n'))
    assert list(read_jsonl(path, problems=None)) == [(1, {"x": 1}), (3, {"x": 2})]
    path.write_bytes(gzip.compress(b'[{"x": 1},\n{"x": 2}]'))
    assert list(read_jsonl(path, problems=None)) == [(1, {"x": 1}), (2, {"x": 2})]
    digest = hashlib.sha256()
    assert len(list(read_chunks(path, tee=digest.update))) == 1
    assert digest.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("keep", [3, 15, -1])
def test_a_gzip_file_that_is_cut_off_is_one_problem_of_the_file(path, keep):
    path.write_bytes(gzip.compress(b'{"x": 1}\n' * 400)[:keep])
    problems = []
    list(read_jsonl(path, problems=problems))
    assert [(problem.code, problem.line) for problem in problems] == [("FP001", 0)]


@pytest.mark.parametrize(
    ("content", "code", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "FP097", "git lfs pull"),
        (b"PK\x03\x04rest", "FP097", "zip"),
        (b"\x28\xb5\x2f\xfdrest", "FP097", "zstd"),
        (b"PAR1rest", "FP097", "parquet"),
        (b"<!DOCTYPE html><html>", "FP097", "web page"),
        ('{"x": 1}'.encode("utf-16"), "FP003", "UTF-16"),
    ],
)
def test_a_file_of_another_kind_is_one_problem_that_names_the_kind(path, content, code, kind):
    path.write_bytes(content)
    problems = []
    assert list(read_jsonl(path, problems=problems)) == []
    assert [(problem.code, problem.line, kind in problem.message) for problem in problems] == [(code, 0, True)]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.parquet", b"PAR1", "the file is parquet, which `finepref convert` makes JSON Lines of"),
        ("x.jsonl", b"PAR1", "the file is parquet; its name must end in .parquet"),
        ("x.jsonl.zst", b"\x28\xb5\x2f\xfd", "compressed by zstd, which `finepref convert` makes JSON Lines of"),
        ("x.json", b"ARROW1", "the file is arrow; its name must end in .arrow"),
        ("x.csv", b"prompt,chosen", "a table of separated values, which `finepref convert` makes JSON Lines of"),
    ],
)
def test_what_reads_a_file_of_another_kind_is_told(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    (row,) = jsonl.read_rows(tmp_path / name)
    assert row.problems[0].message.endswith(told)


def test_a_table_of_separated_values_is_one_problem_and_json_under_that_name_is_read(tmp_path):
    path, problems = tmp_path / "x.csv", []
    path.write_text("prompt,chosen\nq,a\n")
    assert list(read_jsonl(path, problems=problems)) == []
    assert [(problem.code, problem.line) for problem in problems] == [("FP097", 0)]
    path.write_text('{"x": 1}\n')
    assert list(read_jsonl(path, problems=None)) == [(1, {"x": 1})]


def test_rows_that_share_a_line_of_an_array_are_named_by_their_index(path):
    path.write_bytes(b'[{"x": 1}, {"x": NaN}, {"x": 1}, 5,\n {"x": 3}, 7]')
    problems = []
    lines = [line for line, _ in read_jsonl(path, problems=problems)]
    assert [str(line) for line in lines] == ["1[0]", "1[2]", "2[4]"]
    assert lines == [1, 1, 2]
    assert [str(jsonl.ArrayLine.read(text)) for text in ("1[2]", "7")] == ["1[2]", "7"]
    assert pickle.loads(pickle.dumps(lines[1])).index == 2
    assert len({("f", line): row for row, line in enumerate(lines)}) == 3
    assert json.dumps(lines) == "[1, 1, 2]"
    assert [problem.place.rpartition(":")[2] for problem in problems] == ["1[1]", "1[3]", "2[5]"]


def test_what_refers_to_a_decoder_can_be_pickled_and_still_decodes_strictly():
    """datasets hashes a processor by pickling it, whatever it refers to."""
    for decoder in (jsonl._DECODER, jsonl._QUICK):
        copy = pickle.loads(pickle.dumps({"decoder": decoder}))["decoder"]
        assert copy.decode('{"x": 1.5}') == {"x": 1.5}
        with pytest.raises(ValueError, match="appears twice"):
            copy.decode('{"x": 1, "x": 2}')
        with pytest.raises(ValueError, match="NaN"):
            copy.decode('{"x": NaN}')


def test_one_object_over_several_lines_is_one_problem_not_one_a_line(path):
    path.write_text(json.dumps({"data": [{"x": 1}, {"x": 2}]}, indent=2))
    problems = []
    assert list(read_jsonl(path, problems=problems)) == []
    assert [(problem.code, problem.line) for problem in problems] == [("FP004", 0)]
    assert "an array of rows" in problems[0].message
