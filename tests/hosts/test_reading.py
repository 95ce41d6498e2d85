"""Data sets of a run are read with the reader of `finepref validate`, whatever their layout."""

from __future__ import annotations

import pytest
from finepref.formats.bad_rows import BadRows
from finepref.formats.jsonl import write_jsonl
from finepref.formats.problems import BadData
from finepref.hosts.reading import SourceReader
from finepref.hosts.run import Source

USER, GOOD, BAD = ({"role": r, "content": t} for r, t in (("user", "q"), ("assistant", "a"), ("assistant", "b")))
ROWS = {
    "orca": {"question": "q", "chosen": "a", "rejected": "b"},
    "trl_implicit": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "sharegpt": {"talk": [{"who": "me", "text": "q"}], "chosen": {"who": "you", "text": "a"}, "rejected": BAD},
    "pair": {"prompt": "q", "chosen": "a", "rejected": "b"},
}
SETTINGS = {
    "sharegpt": {
        "columns": {"messages": "talk"},
        "tags": {"role_tag": "who", "content_tag": "text", "user_tag": "me", "assistant_tag": "you"},
    }
}


@pytest.mark.parametrize("layout", ROWS)
def test_a_data_set_of_any_layout_gives_records_with_their_places(layout, tmp_path):
    write_jsonl(tmp_path / "x.jsonl", [ROWS[layout]])
    source = Source("mine", layout, (tmp_path / "x.jsonl",), **SETTINGS.get(layout, {}))
    bad_rows = BadRows()
    reader = SourceReader(source, bad_rows)
    (found,) = reader
    bad_rows.settle()
    assert (found.file, found.line) == (str(tmp_path / "x.jsonl"), 1)
    assert (found.record.prompt[0].content, found.record.chosen, found.record.rejected) == ("q", "a", "b")
    assert [record for _, _, record in source.records()] == [found.record]
    assert source.native_format == "pair"
    assert reader.entry.read == 1


def test_an_id_that_is_in_two_files_of_a_data_set_is_refused_with_both_places(tmp_path):
    files = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for file in files:
        write_jsonl(file, [ROWS["pair"] | {"id": "one"}])
    bad_rows = BadRows()
    assert len(list(SourceReader(Source("mine", "pair", files), bad_rows))) == 1
    with pytest.raises(BadData, match=r"FP060 .*b\.jsonl:1 id: 'one' is the id of .*a\.jsonl:1"):
        bad_rows.settle()


def test_rows_of_equal_content_without_an_id_are_read_as_the_hosts_do_and_counted(tmp_path):
    files = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    row = {name: value for name, value in ROWS["pair"].items() if name != "id"}
    for file in files:
        write_jsonl(file, [row])
    bad_rows = BadRows()
    reader = SourceReader(Source("mine", "pair", files), bad_rows)
    assert len(list(reader)) == 2
    bad_rows.settle()
    assert reader.entry.notes == {"FP109": 1}


def test_a_row_with_images_stops_a_run_by_name(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", [ROWS["pair"] | {"images": ["x.png"]}])
    bad_rows = BadRows()
    assert list(SourceReader(Source("mine", "pair", (tmp_path / "x.jsonl",)), bad_rows)) == []
    with pytest.raises(BadData, match=r"FP088 .*x\.jsonl:1 images: "):
        bad_rows.settle()
