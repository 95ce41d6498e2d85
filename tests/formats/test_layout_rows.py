"""For every layout of the table: a random record, written as the layout has it, is read as that record again."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from finepref.formats import layouts
from finepref.formats.layout_table import BUILT_IN, recognise
from finepref.formats.problems import NOTES
from finepref.formats.records import parse, revive, to_row
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_rows import FILES, ROWS

TABLE = {layout.name: layout for layout in BUILT_IN}


def test_every_layout_of_the_table_has_rows_here():
    """A new layout needs a strategy in `layout_rows`, which says in another way what its columns mean."""
    assert {name for name, layout in TABLE.items() if layout.by_row} == ROWS.keys()
    assert {name for name, layout in TABLE.items() if not layout.by_row} == FILES.keys()


def through_json(value):
    return json.loads(json.dumps(value))


def expected_of(rows, gives):
    """The records of rows of our own format; a prompt of one turn may be written as `prompt` or as `messages`."""
    records = [parse(row, gives) for row in rows]
    assert not any(isinstance(record, list) for record in records), records
    return records


def check_written(records, gives):
    """Our own row of a record gives the record, checked and unchecked."""
    for record in records:
        row = through_json(to_row(record))
        assert parse(row, gives) == record
        assert revive(row, gives) == record


@pytest.mark.parametrize("name", ROWS)
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_a_row_of_a_layout_gives_the_records_that_were_written_to_it(name, data):
    layout = TABLE[name]
    row, rows = data.draw(ROWS[name])
    row = through_json(row)
    row["source_of_the_row"] = 3  # a column that no layout reads
    if layout.needs:
        assert recognise(row) in (name, layout.widens)
    parsed = layouts.reader(name)(row, line=1)
    assert not isinstance(parsed, list), parsed
    records = [*parsed] if isinstance(parsed, tuple) else [parsed]
    if isinstance(parsed, layouts.Noted):
        assert {note.code for note in parsed.notes} <= NOTES
    expected = {record.id: record for record in expected_of(rows, layout.gives)}
    assert records == [*expected.values()]
    check_written(records, layout.gives)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_files_of_a_layout_give_the_records_that_were_written_to_them(name, data):
    write, rows = data.draw(FILES[name])
    with tempfile.TemporaryDirectory() as folder:
        checked = [*write(Path(folder))]
    assert [problem for row in checked for problem in row.problems] == []
    records = [record for row in checked for record in row.records]
    expected = expected_of(rows, TABLE[name].gives)
    if name == "apo_samples":  # its ids are those of the queries, with the number of the sample
        expected = [replace(record, id=own.id) for record, own in zip(expected, records, strict=True)]
    assert records == expected
    check_written(records, TABLE[name].gives)
