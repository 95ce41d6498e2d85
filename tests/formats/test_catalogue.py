"""What dataset_info/README.md shows is true, and the file is current."""

from __future__ import annotations

from pathlib import Path

import pytest
from finepref.formats import dataset_info
from finepref.formats.catalogue import FIELD_TEXTS, FILE_CODES, FORMATS_SHOWN, KIND_TEXTS, markdown
from finepref.formats.check import CODES, check_file
from finepref.formats.jsonl import dumps, write_jsonl
from finepref.formats.layout import KINDS
from finepref.formats.layout_table import BUILT_IN
from finepref.formats.records import FIELDS, FORMATS, parse

README = Path(__file__).parents[2] / "dataset_info/README.md"


def test_the_readme_of_the_dataset_folder_is_current():
    """If not: `finepref formats --write`."""
    assert README.read_text(encoding="utf-8") == markdown()


def test_every_format_field_and_code_is_shown():
    assert FORMATS_SHOWN.keys() == FORMATS.keys()
    assert {name for fields in FIELDS.values() for name in fields} == FIELD_TEXTS.keys()
    text = markdown()
    assert all(f"| `{code}` | {meaning} |" in text for code, meaning in CODES.items())
    shown = {code for entry in FORMATS_SHOWN.values() for code in entry.codes}
    assert shown <= CODES.keys()
    assert not shown & {*FILE_CODES} - {"FP007", "FP008"}


@pytest.mark.parametrize("formatting", FORMATS_SHOWN)
def test_the_record_shown_is_a_good_row_and_uses_all_that_its_format_is_for(formatting):
    shown = FORMATS_SHOWN[formatting]
    assert isinstance(parse(shown.row, formatting), FORMATS[formatting])
    assert shown.row.keys() <= {*FIELDS[formatting]}


@pytest.mark.parametrize("formatting", FORMATS_SHOWN)
def test_the_entry_shown_passes_the_lint(formatting, tmp_path):
    entry = FORMATS_SHOWN[formatting].entry
    (tmp_path / "dataset_info.json").write_text(str({"my_data": entry}).replace("'", '"'))
    assert dataset_info.lint(tmp_path / "dataset_info.json") == []
    assert entry["formatting"] == formatting


def test_every_layout_is_shown_with_a_row():
    text = markdown()
    for layout in BUILT_IN:
        if layout.name not in FORMATS:
            assert f"| `{layout.name}` | {layout.gives} |" in text
            assert f"| `{layout.name}` | `{dumps(layout.sample)}` |" in text


def test_the_table_of_layouts_says_what_a_row_must_have_and_what_else_is_read():
    """From the table itself: a kind of value, a column that must not be there, and nothing where it is only named."""
    text = markdown()
    alpaca = "no `prompt`, `instruction` (text), `chosen` (text), `rejected` (text)"
    assert f"| {alpaca} | `history`, `id`, `input`, `system` |" in text
    texts = "| `trl_implicit_texts` | pair | TRL, two texts; what both begin with is taken for the prompt"
    assert f"{texts} | only named |" in text
    assert "`conversations` or `messages` or `conversation` (messages), `chosen` (one message)" in text
    assert "| only named |" in text
    assert KIND_TEXTS.keys() == KINDS.keys()


def test_the_shipped_dataset_info_passes_the_lint_and_its_samples_are_good():
    folder = README.parent
    for entry in dataset_info.load(folder).values():
        if str(entry.get("file_name", "")).startswith("samples/"):
            for path in dataset_info.resolve(folder, entry):
                report = check_file(path, entry["formatting"], columns=entry.get("columns"))
                assert report.problems == ()
                assert report.rows > 0


def test_a_dataset_info_of_the_host_passes_the_lint(tmp_path):
    """Its formats and keys are the host's own business."""
    entries = """{
      "a": {"file_name": "a.json"},
      "b": {"hf_hub_url": "x/y", "ms_hub_url": "x/y", "subset": "en", "ranking": true, "split": "train"},
      "c": {"script_url": "c", "formatting": "sharegpt", "tags": {"role_tag": "role"}, "folder": "python"},
      "d": {"cloud_file_name": "s3://x", "formatting": "pair", "num_samples": 10, "tags": {}, "ranking": true},
      "e": {"file_name": "e", "formatting": "feedback", "error_type": "logic", "columns": {"messages": "turns"}},
      "f": {"file_name": "f", "formatting": "negatives", "columns": {"prompt": "q", "logic": "l"}, "make": "true"}
    }"""
    (tmp_path / "dataset_info.json").write_text(entries)
    assert dataset_info.lint(tmp_path / "dataset_info.json") == []
    assert [*dataset_info.load(tmp_path)] == ["a", "b", "c", "d", "e", "f"]
    (tmp_path / "dataset_info.json").write_text("{}")
    assert dataset_info.load(tmp_path) == {}


def test_rows_of_the_readme_can_be_checked_as_a_file(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [FORMATS_SHOWN["negatives"].row])
    assert check_file(tmp_path / "a.jsonl", "negatives").passes()
