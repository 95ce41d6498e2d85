"""Data sets that the web UI makes: the command lines of its forms, and where their outputs go.

The outputs are in the folder `finepref` of the user's data folder, and their names in its dataset_info.json.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finepref import stages
from finepref.formats import dataset_info, layouts
from finepref.formats.check import BadData
from finepref.hosts.llamafactory.webui.jobs import SUFFIX, Job, Record, Status, jobs_in
from finepref.synth.data_sources.job_rows import SUPERVISED, Wants
from finepref.synth.seapo.inject import WANTS as ANSWERS
from finepref.synth.sepo.score import CONTRAST, ROLES
from finepref.synth.sepo.score import WANTS as PAIRS

FOLDER = "finepref"
FINEPREF = (sys.executable, "-m", "finepref")
NAME = re.compile(r"\w[\w-]*")
REMOTE = ("ONLINE", "REMOTE:")
CONTRAST_STAGE = "cdpo"
"""It reads contrasts in place of log-ratios."""
Get = Callable[[str], Any]
"""Element id -> its value."""


class Refused(ValueError):  # noqa: N818
    """A form that no command can be made of.

    Attributes:
        key: of the text that says why, in texts.toml.
        values: what is written into that text.
    """

    def __init__(self, key: str, **values: object) -> None:
        super().__init__(key)
        self.key, self.values = key, values


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A command that makes data sets.

    Attributes:
        key: how the names of its elements begin.
        words: of the command.
        bar: how the names of its progress bars begin.
        parts: these names, () if their number is not known.
        wants: the rows that it takes.
        refuses: layouts whose rows it does not take nevertheless.
        ending: of the name of its output, if the user gives none.
        outputs: ending of an output file -> ending of its name as a data set, and its format.
        options: the form's values -> options of the command line.
    """

    key: str
    words: Sequence[str]
    bar: str
    parts: Sequence[str]
    wants: Wants
    refuses: Collection[str] = ()
    ending: str
    outputs: Mapping[str, tuple[str, str]]
    options: Callable[[Get, stages.Stage], list[str]]

    def fits(self, row: stages.Stage) -> bool:
        """Whether a stage trains on what this makes."""
        return any(formatting in row.formats for _, formatting in self.outputs.values())

    def takes(self, entry: Mapping[str, Any]) -> bool:
        """Whether the command reads an entry of dataset_info.json."""
        layout = layouts.of_entry(entry, supervised=True)
        if layout is None or layout in self.refuses:
            return False
        if layout in layouts.SUPERVISED:
            return SUPERVISED in self.wants.formats
        return layout in (self.wants.names or ()) or layouts.native_format(layout) in self.wants.formats


def score_options(get: Get, row: stages.Stage) -> list[str]:
    """Options of `finepref sepo score`: models, and the template and lengths of the run."""
    reference = get("scoring_reference") or get("model_path")
    oracle = get("scoring_oracle")
    if not reference:
        raise Refused("no_reference")
    if not oracle:
        raise Refused("no_oracle")
    adapter = (Path(oracle) / "adapter_config.json").is_file()
    words = [f"--reference={reference}", f"--oracle-adapter={oracle}" if adapter else f"--oracle={oracle}"]
    words += [f"--template={get('template')}", f"--cutoff-len={int(get('cutoff_len'))}"]
    if overlong := get("finepref_overlong"):
        words.append(f"--overlong={overlong}")
    return [*words, "--contrast=1"] if row.name == CONTRAST_STAGE else words


def inject_options(get: Get, row: stages.Stage) -> list[str]:
    """Options of `finepref seapo inject`: the engine and its model, the types of errors, and all formats."""
    engine, model = get("inject_engine"), get("inject_model") or get("model_path")
    if engine != "rules" and not model:
        raise Refused("no_model")
    if not get("inject_types"):
        raise Refused("no_types")
    words = [f"--engine={engine}", f"--types={','.join(get('inject_types'))}", f"--by={get('inject_by')}"]
    if engine != "rules":
        words.append(f"--model={model}")
    if engine == "openai" and get("inject_url"):
        words.append(f"--base-url={get('inject_url')}")
    return [*words, "--also=feedback,pair,span_pair"]


SCORE = Kind(
    key="scoring",
    words=("sepo", "score"),
    bar="sepo score",
    parts=tuple(f"sepo score, {role}" for role in ROLES),
    wants=PAIRS,
    ending="scores",
    outputs={".jsonl": ("", "scored_pair"), ".contrast.jsonl": ("_contrast", "scored_pair")},
    options=score_options,
)
INJECT = Kind(
    key="inject",
    words=("seapo", "inject"),
    bar="seapo",
    parts=(),
    wants=ANSWERS,
    refuses=("negatives",),
    ending="negatives",
    outputs={
        ".jsonl": ("", "negatives"),
        ".feedback.jsonl": ("_feedback", "feedback"),
        ".pair.jsonl": ("_pair", "pair"),
        ".span_pair.jsonl": ("_span_pair", "span_pair"),
    },
    options=inject_options,
)
KINDS = {kind.key: kind for kind in (SCORE, INJECT)}


def sources(kind: Kind, dataset_dir: str) -> list[str]:
    """Names of the data sets that a command reads: those of the folder, then those that finepref ships."""
    own, shipped = dataset_info.table(dataset_dir), dataset_info.table(dataset_info.shipped_dir())
    there = {
        name: entry
        for name, entry in shipped.items()
        if name not in own and (dataset_info.shipped_dir() / str(entry.get("file_name", "-"))).is_file()
    }
    return [name for name, entry in (own | there).items() if kind.takes(entry)]


def name_of(kind: Kind, get: Get) -> str:
    """The name of the output: as given, or that of the input with an ending; "" if there is neither."""
    given = str(get(f"{kind.key}_name") or "").strip()
    source = str(get(f"{kind.key}_dataset") or "")
    if given or not source:
        return given
    stem = re.sub(r"[^\w-]+", "_", Path(source).name.partition(".")[0]).strip("_-")
    return f"{stem or 'data'}_{kind.ending}"


def folder_of(dataset_dir: str) -> Path:
    """The folder of the outputs."""
    return Path(dataset_dir) / FOLDER


def job_of(dataset_dir: str, name: str) -> Job:
    """The job that makes an output of that name."""
    return Job(folder_of(dataset_dir) / f"{name}{SUFFIX}")


def sets_of(kind: Kind, name: str) -> dict[str, tuple[str, str]]:
    """The files of a job, relative to the data folder -> name and format of each as a data set."""
    return {
        f"{FOLDER}/{name}{ending}": (f"{name}{of_set}", formatting)
        for ending, (of_set, formatting) in kind.outputs.items()
    }


def places(dataset_dir: str, name: str) -> list[str]:
    """The first options of each command: where it reads and writes."""
    return [f"--dataset-dir={dataset_dir}", f"--output={folder_of(dataset_dir) / f'{name}.jsonl'}"]


def again(kind: Kind, status: Status, dataset_dir: str) -> Record:
    """The record of a job that resumes from what it has done.

    Data folders are passed around, so only options are taken from the file of the job: the program, the command, and
    where it reads and writes are those of the form.
    """
    words = status.record.command[len(FINEPREF) + len(kind.words) :]
    where = places(dataset_dir, status.name)
    return replace(
        status.record,
        command=[*FINEPREF, *kind.words, *where, *words[len(where) :]],
        dataset_dir=dataset_dir,
        sets=sets_of(kind, status.name),
    )


def prepare(kind: Kind, get: Get, row: stages.Stage) -> tuple[Job, Record]:
    """The job of a form, not started yet.

    Raises:
        Refused: something in the form is missing or not possible.
    """
    dataset_dir, source, name = get("dataset_dir"), get(f"{kind.key}_dataset"), name_of(kind, get)
    if not dataset_dir or dataset_dir.startswith(REMOTE):
        raise Refused("no_folder")
    if not source:
        raise Refused("no_dataset")
    if not NAME.fullmatch(name):
        raise Refused("bad_name", name=name)
    tables = (dataset_info.table(folder) for folder in (dataset_dir, dataset_info.shipped_dir()))
    if any(source in table for table in tables) and Path(source).exists():
        raise Refused("also_a_file", name=source, folder=Path.cwd())
    sets = sets_of(kind, name)
    for file, (of_set, _) in sets.items():
        if problems := dataset_info.taken(dataset_dir, of_set, file):
            raise Refused("taken", name=of_set, problem=BadData(problems))
    words = [*places(dataset_dir, name), *kind.options(get, row)]
    words += further(get(f"{kind.key}_options"), words)
    return job_of(dataset_dir, name), Record(
        kind=kind.key,
        stage=get("training_stage") or "",
        command=[*FINEPREF, *kind.words, *words, "--", source],
        dataset_dir=dataset_dir,
        sets=sets,
        bar=kind.bar,
        parts=[f"{kind.bar}, {CONTRAST}"] if kind.parts and row.name == CONTRAST_STAGE else kind.parts,
    )


def further(text: str | None, words: Sequence[str]) -> list[str]:
    """Further options as typed.

    Raises:
        Refused: a quotation mark is open, or an option is one that the form gives.
    """
    try:
        typed = shlex.split(text or "")
    except ValueError as error:
        raise Refused("bad_options", problem=error) from None
    own = {word.partition("=")[0] for word in (*words, "--work-dir")}
    if found := [word for word in typed if word.partition("=")[0] in own]:
        raise Refused("own_option", name=found[0])
    return typed


def shown(kind: Kind, get: Get) -> Status | None:
    """The job to show: the one that the form names; else one that is running, or the last one."""
    dataset_dir = get("dataset_dir")
    if not dataset_dir or dataset_dir.startswith(REMOTE):
        return None
    found = [status for job in jobs_in(folder_of(dataset_dir)) if (status := job.status())]
    found = [status for status in found if status.record.kind == kind.key]
    named = name_of(kind, get)
    found.sort(key=lambda status: (status.name == named, status.state == "running", status.record.begun))
    return found[-1] if found else None


def for_stage(status: Status, row: stages.Stage) -> str:
    """The name of the data set among a job's outputs on which a stage trains; "" if there is none."""
    added = {*(status.result.added if status.result else ())}
    sets = [each for each in status.record.sets.values() if each[0] in added and each[1] in row.formats]
    if row.name == CONTRAST_STAGE:
        sets.reverse()
    return min(sets, key=lambda each: row.formats.index(each[1]))[0] if sets else ""
