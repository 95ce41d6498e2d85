"""Files that appear complete or not at all."""

from __future__ import annotations

import json

import pytest
from finepref.formats.files import replacing, write_json


def test_a_json_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}


def test_the_old_file_stays_until_the_new_one_is_whole_and_an_error_leaves_nothing_else(tmp_path):
    path = tmp_path / "made" / "data.bin"
    with replacing(path) as file:
        file.write(b"old")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt):
        interrupt_writing(path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in path.parent.iterdir()] == ["data.bin"]


def interrupt_writing(path):
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
        raise KeyboardInterrupt
