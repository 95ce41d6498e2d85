"""The host's dataset_info.json: reading it strictly, checking the entries of our formats, and finding their files."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from finepref.formats import layouts
from finepref.formats.files import write_text
from finepref.formats.jsonl import decode_at, skip_space
from finepref.formats.layouts import check_columns
from finepref.formats.problems import BadData, Problem
from finepref.formats.row import is_type_name, kind_of

FILE_NAME = "dataset_info.json"
HOST_FORMATS = ("alpaca", "sharegpt", "openai")
REMOTE_KEYS = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
HOST_KEYS = (
    *REMOTE_KEYS,
    "file_name",
    "formatting",
    "columns",
    "ranking",
    "subset",
    "split",
    "folder",
    "num_samples",
    "tags",
)
OWN_KEYS = ("error_type", "make")
"""Keys that only we read: the type of undesirable feedback rows, and the command that makes a missing file."""

KINDS = {"arrow": "arrow", "csv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet", "txt": "text"}
"""File name extension -> kind of file, as the host tells them. A further extension .gz or .zst changes nothing."""


def load(dataset_dir: str | os.PathLike[str]) -> dict[str, dict[str, object]]:
    """All entries of a folder's dataset_info.json by name.

    Raises:
        BadData: it cannot be read, or something in it is not what it should be; see `lint`.
    """
    path = Path(dataset_dir) / FILE_NAME
    problems = lint(path)
    if problems:
        raise BadData(problems)
    return {name: value for _, name, value in _entries(path, []) if isinstance(value, dict)}


class Found(NamedTuple):
    """A data set: the folder whose table names it, and its entry there."""

    folder: Path
    entry: Mapping[str, object]


def shipped_dir() -> Path:
    """The folder with the data sets that come with finepref."""
    return Path(str(files("finepref.dataset_info")))


def table(dataset_dir: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """All entries by name, none of them checked; {} where there is no table that can be read."""
    return {name: value for _, name, value in _entries(Path(dataset_dir) / FILE_NAME, []) if isinstance(value, dict)}


def find(name: str, dataset_dir: str | os.PathLike[str]) -> Found:
    """A data set by name: in the user's table or, where that lacks it, among those that finepref ships.

    Raises:
        BadData: it is in neither, or its entry is not what it should be (see `lint`).
    """
    for folder in (Path(dataset_dir), shipped_dir()):
        path = folder / FILE_NAME
        if not path.is_file():
            continue
        problems: list[Problem] = []
        entries = [(line, value) for line, other, value in _entries(path, problems) if other == name]
        for line, value in entries:
            problems += _lint_entry(os.fspath(path), line, name, value, HOST_FORMATS)
        if len(entries) > 1:
            problems.append(Problem(os.fspath(path), entries[-1][0], name, "FP006", "the dataset is there twice"))
        if problems:
            raise BadData(problems)
        for _, value in entries:
            if isinstance(value, dict):
                return Found(folder, value)
    table = Path(dataset_dir) / FILE_NAME
    code = "FP071" if table.is_file() else "FP001"
    where = "in this table" if table.is_file() else "in this table, which is not there,"
    raise BadData([Problem(os.fspath(table), 0, name, code, f"{name!a} is neither {where} nor in finepref's")])


def add(dataset_dir: str | os.PathLike[str], name: str, entry: Mapping[str, object]) -> None:
    """Add an entry at the end of a folder's table, which is made if it is not there; the rest of its text stays.

    An entry of that name for the same file is left as it is. Writers in several processes wait for each other.

    Raises:
        BadData: the table is not an object in JSON, or has the name for something else (FP006).
    """
    path = Path(dataset_dir) / FILE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        problems: list[Problem] = []
        entries = list(_entries(path, problems)) if path.exists() else []
        if not problems and any(other == name for _, other, _ in entries):
            problems = taken(dataset_dir, name, str(entry.get("file_name", "")))
            if not problems:
                return
        if problems:
            raise BadData(problems)
        before = path.read_text(encoding="utf-8").rstrip().removesuffix("}").rstrip() if path.exists() else "{"
        comma = "," if entries else ""
        text = json.dumps(entry, ensure_ascii=False, indent=2).replace("\n", "\n  ")
        write_text(path.resolve(), f"{before}{comma}\n  {json.dumps(name, ensure_ascii=False)}: {text}\n}}\n")
    finally:
        os.close(folder)


def taken(dataset_dir: str | os.PathLike[str], name: str, file_name: str) -> list[Problem]:
    """The problem of a name that a folder's table has for something else than this file; [] if it has not."""
    path = Path(dataset_dir) / FILE_NAME
    found = [(line, value) for line, other, value in _entries(path, []) if other == name]
    return [
        Problem(
            os.fspath(path), line, name, "FP006", f"the table has {name!a} for another data set; choose another name"
        )
        for line, value in found
        if not isinstance(value, dict) or value.get("file_name") != file_name
    ]


def lint(path: str | os.PathLike[str], *, host_formats: Collection[str] = HOST_FORMATS) -> list[Problem]:
    """Everything that is wrong with a dataset_info.json: its JSON, and the entries whose `formatting` is ours.

    Entries of the host's formats are the host's to judge; of them only the name of the format is checked.
    """
    problems: list[Problem] = []
    names: set[str] = set()
    for line, name, value in _entries(path, problems):
        if name in names:
            problems.append(Problem(os.fspath(path), line, name, "FP006", "the dataset is there twice"))
        names.add(name)
        problems += _lint_entry(os.fspath(path), line, name, value, host_formats)
    return problems


def resolve(dataset_dir: str | os.PathLike[str], entry: Mapping[str, object]) -> list[Path]:
    """The local files of an entry, sorted; a `file_name` that is a folder stands for the files in it.

    A relative `file_name` must stay inside the folder, after links are followed; only an absolute one may lead out.

    Raises:
        BadData: the entry names no file, the file is not there, its path leads out of the folder, or the files of
            a folder are of different kinds.
    """
    file = os.fspath(Path(dataset_dir) / FILE_NAME)
    name = entry.get("file_name")
    if type(name) is not str or not name:
        raise BadData([Problem(file, 0, "file_name", "FP073", "the entry names no local file")])
    root = Path(dataset_dir).resolve()
    target = Path(dataset_dir) / name
    paths = sorted(target.iterdir()) if target.is_dir() else [target]
    if not Path(name).is_absolute():
        escaped = next((path for path in (target, *paths) if not path.resolve().is_relative_to(root)), None)
        if escaped is not None:
            raise BadData([Problem(file, 0, "file_name", "FP074", f"{escaped} leads out of {root}")])
    absent = [path for path in paths or [target / "*"] if not path.is_file()]
    if absent:
        hint = f"; make it with: {entry['make']}" if "make" in entry else ""
        raise BadData([Problem(file, 0, "file_name", "FP075", f"{path} is not a file{hint}") for path in absent])
    kinds = {
        KINDS.get(Path(path.name.removesuffix(".gz").removesuffix(".zst")).suffix.removeprefix(".")) for path in paths
    }
    if None in kinds or len(kinds) > 1:
        found = ", ".join(sorted({path.suffix or path.name for path in paths}))
        message = f"{name} has {found}; the host reads one kind of {', '.join(KINDS)}"
        raise BadData([Problem(file, 0, "file_name", "FP076", message)])
    return paths


def _entries(path: str | os.PathLike[str], problems: list[Problem]) -> Iterator[tuple[int, str, object]]:
    """(line, name, value) of each member of the top-level object, up to where the JSON stops being valid."""
    file = os.fspath(path)
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        problems.append(Problem(file, 0, "", "FP001", error.strerror or str(error)))
        return
    except UnicodeDecodeError as error:
        problems.append(Problem(file, 0, "", "FP003", f"byte {error.start + 1} is not UTF-8"))
        return
    position = skip_space(text, 0)
    if not text.startswith("{", position):
        problems.append(Problem(file, 1, "", "FP005", "expected an object of datasets"))
        return
    position = skip_space(text, position + 1)
    closed = text.startswith("}", position)
    position = skip_space(text, position + 1) if closed else position
    while not closed:
        line = text.count("\n", 0, position) + 1
        name, position, problem = decode_at(text, position, file, line)
        if problem is None and type(name) is not str:
            problem = Problem(file, line, "", "FP004", "expected the name of a dataset")
        position = skip_space(text, position)
        if problem is None and not text.startswith(":", position):
            problem = Problem(file, line, "", "FP004", f"expected : after {name!a}")
        if problem is not None:
            problems.append(problem)
            return
        value, position, problem = decode_at(text, skip_space(text, position + 1), file, line)
        if problem is not None:
            problems.append(replace(problem, field=f"{name}.{problem.field}".rstrip(".")))
        else:
            yield line, str(name), value
        if position < 0:
            return
        position = skip_space(text, position)
        closed = text.startswith("}", position)
        if not closed and not text.startswith(",", position):
            line = text.count("\n", 0, position) + 1
            problems.append(Problem(file, line, "", "FP004", "expected , or } after an entry"))
            return
        position = skip_space(text, position + 1)
    if position < len(text):
        line = text.count("\n", 0, position) + 1
        problems.append(Problem(file, line, "", "FP004", "text after the end of the object"))


def _lint_entry(file: str, line: int, name: str, value: object, host_formats: Collection[str]) -> list[Problem]:
    if not isinstance(value, dict):
        return [Problem(file, line, name, "FP070", f"expected an object, got {kind_of(value)}")]
    formatting = value.get("formatting", "alpaca")
    if formatting in host_formats:
        return []
    if type(formatting) is not str or formatting not in layouts.names():
        known = ", ".join(dict.fromkeys((*layouts.names(), *host_formats)))
        return [Problem(file, line, f"{name}.formatting", "FP016", f"{str(formatting)[:80]!a} is not one of {known}")]
    problems = [
        Problem(file, line, f"{name}.{key}", "FP072", f"neither the host nor {formatting} has this key")
        for key in sorted(value.keys() - {*HOST_KEYS, *OWN_KEYS})
    ]
    if not value.keys() & {"file_name", *REMOTE_KEYS}:
        problems.append(Problem(file, line, name, "FP073", "the entry has neither a file_name nor a remote source"))
    for key in ("file_name", "make", *REMOTE_KEYS):
        if key in value and (type(value[key]) is not str or not value[key]):
            problems.append(
                Problem(file, line, f"{name}.{key}", "FP011", f"expected a string, got {kind_of(value[key])}")
            )
    columns = value.get("columns", {})
    if isinstance(columns, dict):
        found = check_columns(formatting, columns, file=file, place=f"{name}.columns")
        problems += [replace(problem, line=line) for problem in found]
    else:
        problems.append(Problem(file, line, f"{name}.columns", "FP011", f"expected an object, got {kind_of(columns)}"))
    if "error_type" in value:
        error_type = value["error_type"]
        if type(error_type) is not str or not is_type_name(error_type):
            problems.append(Problem(file, line, f"{name}.error_type", "FP031", "expected the name of an error type"))
        elif layouts.native_format(formatting) != "feedback":
            problems.append(
                Problem(file, line, f"{name}.error_type", "FP072", "only feedback entries have an error_type")
            )
    return problems
