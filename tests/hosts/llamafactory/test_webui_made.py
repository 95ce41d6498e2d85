"""The forms that make data sets: the command that comes out, what is refused and in which words, what a job tells."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from finepref import stages
from finepref.hosts.llamafactory.webui import made, make_panels, texts
from finepref.hosts.llamafactory.webui.job_process import PLAIN
from finepref.hosts.llamafactory.webui.jobs import Progress, Record, Result, State, Status
from sample_rows import margin_rows, ranked_rows, rows, span_rows, write_rows

LANGUAGES = ("en", "ru", "zh", "ko", "ja")
SEPO, CDPO, TDPO, SEAPO = (stages.find(name) for name in ("sepo", "cdpo", "tdpo", "seapo_kto"))
FORM = {"model_path": "models/policy", "template": "chatml", "cutoff_len": 512, "lang": "en"}
SCORING = FORM | {"scoring_dataset": "margins", "scoring_oracle": "models/dpo", "scoring_options": "--batch-tokens 64"}
INJECTING = FORM | {"inject_dataset": "spans", "inject_engine": "hf", "inject_by": "sentence"}
INJECTING |= {"inject_types": ["correctness", "logic"]}


@pytest.fixture
def folder(tmp_path):
    """A data folder with a data set of several formats; no model is needed for them."""
    folder = write_rows(tmp_path / "data", rows(2))
    write_rows(folder, span_rows(2), "spans", formatting="span_pair")
    write_rows(folder, margin_rows(2), "margins", formatting="pair")
    write_rows(folder, [], "scores", formatting="scored_pair")
    return write_rows(folder, ranked_rows(2), "lists", formatting="ranked")


@pytest.fixture
def words(folder):
    """The words of a form's command after `python -m finepref`, and its record."""

    def command(kind, row, form, **values):
        job, record = made.prepare(kind, (form | {"dataset_dir": str(folder)} | values).get, row)
        assert record.command[:3] == [sys.executable, "-m", "finepref"]
        return SimpleNamespace(words=record.command[3:], record=record, job=job)

    return command


def test_the_form_for_scores_becomes_sepo_score_with_the_runs_template_and_length(words, folder):
    found = words(made.SCORE, SEPO, SCORING, finepref_overlong="skip")
    assert found.words == [
        *("sepo", "score", f"--dataset-dir={folder}", f"--output={folder}/finepref/margins_scores.jsonl"),
        *("--reference=models/policy", "--oracle=models/dpo", "--template=chatml", "--cutoff-len=512"),
        *("--overlong=skip", "--batch-tokens", "64", "--", "margins"),
    ]
    assert found.job.folder == folder / "finepref" / "margins_scores.job"
    assert found.record.sets["finepref/margins_scores.jsonl"] == ("margins_scores", "scored_pair")


def test_an_adapter_goes_onto_the_oracle_and_another_reference_is_taken(words, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    found = words(made.SCORE, SEPO, SCORING, scoring_oracle=str(tmp_path), scoring_reference="models/sft")
    assert f"--oracle-adapter={tmp_path}" in found.words
    assert "--reference=models/sft" in found.words
    assert not [word for word in found.words if word.startswith("--oracle=")]


def test_for_cdpo_the_contrast_is_asked_for_and_chosen(words):
    found = words(made.SCORE, CDPO, SCORING)
    assert "--contrast=1" in found.words
    assert found.record.parts == ["sepo score, contrast"]
    status = status_of(found, added=["margins_scores", "margins_scores_contrast"])
    assert [made.for_stage(status, row) for row in (CDPO, SEPO)] == ["margins_scores_contrast", "margins_scores"]


def test_the_form_for_negatives_becomes_seapo_inject_in_every_format(words, folder):
    found = words(made.INJECT, TDPO, INJECTING)
    assert found.words == [
        *("seapo", "inject", f"--dataset-dir={folder}", f"--output={folder}/finepref/spans_negatives.jsonl"),
        *("--engine=hf", "--types=correctness,logic", "--by=sentence", "--model=models/policy"),
        *("--also=feedback,pair,span_pair", "--", "spans"),
    ]
    status = status_of(found, added=[name for name, _ in found.record.sets.values()])
    best = [made.for_stage(status, row) for row in (SEAPO, TDPO, stages.find("confpo"), stages.find("apo_rm"))]
    assert best == [f"spans_negatives{end}" for end in ("", "_span_pair", "_pair", "_pair")]


def test_rules_need_no_model_and_an_endpoint_has_its_address(words):
    rules = words(made.INJECT, SEAPO, INJECTING, inject_engine="rules", model_path="").words
    assert not [word for word in rules if word.startswith("--model")]
    asked = words(made.INJECT, SEAPO, INJECTING, inject_engine="openai", inject_url="http://h/v1").words
    assert "--base-url=http://h/v1" in asked


@pytest.mark.parametrize(
    ("kind", "values", "key"),
    [
        (made.SCORE, {"scoring_dataset": None}, "no_dataset"),
        (made.SCORE, {"scoring_oracle": ""}, "no_oracle"),
        (made.SCORE, {"model_path": ""}, "no_reference"),
        (made.SCORE, {"dataset_dir": "ONLINE"}, "no_folder"),
        (made.SCORE, {"scoring_name": "../out"}, "bad_name"),
        (made.SCORE, {"scoring_name": "-rf"}, "bad_name"),
        (made.SCORE, {"scoring_name": "margins"}, "taken"),
        (made.SCORE, {"scoring_options": "--output=/etc/passwd"}, "own_option"),
        (made.SCORE, {"scoring_options": "--work-dir /tmp"}, "own_option"),
        (made.SCORE, {"scoring_options": "--dtype 'float32"}, "bad_options"),
        (made.INJECT, {"inject_types": []}, "no_types"),
        (made.INJECT, {"model_path": ""}, "no_model"),
    ],
)
def test_what_no_command_can_be_made_of_is_refused_in_every_language(words, kind, values, key):
    with pytest.raises(made.Refused) as caught:
        words(kind, SEPO, SCORING | INJECTING, **values)
    assert caught.value.key == key
    told = [make_panels.phrase(language, key, **caught.value.values) for language in LANGUAGES]
    assert len({*told}) == len(LANGUAGES)


def test_a_set_that_the_command_would_take_for_a_folder_is_refused(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "margins").mkdir()
    with pytest.raises(made.Refused, match="also_a_file"):
        words(made.SCORE, SEPO, SCORING)


@pytest.mark.parametrize(("kind", "row"), [(made.SCORE, CDPO), (made.INJECT, SEAPO)])
def test_the_commands_have_the_options_of_the_forms(words, kind, row):
    form = SCORING | INJECTING | {"inject_engine": "openai", "inject_url": "http://h/v1", "finepref_overlong": "skip"}
    found = words(kind, row, form)
    asked = [word.partition("=")[0] for word in found.words if word.startswith("--") and word != "--"]
    command = [*made.FINEPREF, *kind.words, "--help"]
    told = subprocess.run(command, env=os.environ | PLAIN, capture_output=True, text=True, check=True).stdout
    assert [option for option in asked if not re.search(rf"{option}\b", told)] == []


def test_a_job_that_goes_on_runs_only_its_own_command_and_writes_only_where_the_form_says(words, folder, tmp_path):
    """Data folders are passed around, and so is the file that says what was started."""
    found = words(made.SCORE, SEPO, SCORING)
    again = made.again(made.SCORE, status_of(found), str(folder))
    assert (again.command, again.sets) == (found.record.command, found.record.sets)
    bad = [
        "rm",
        "-rf",
        "x",
        "sepo",
        "score",
        "--dataset-dir=/",
        "--output=/etc/passwd",
        "--reference=m",
        "--",
        "pairs",
    ]
    record = replace(found.record, command=bad, dataset_dir="/", sets={"../x": ("x", "pair")})
    again = made.again(made.SCORE, replace(status_of(found), record=record), str(folder))
    assert again.command == [*found.record.command[:7], "--reference=m", "--", "pairs"]
    assert (again.dataset_dir, again.sets) == (str(folder), found.record.sets)


def test_an_input_that_begins_with_dashes_is_no_option(words):
    assert words(made.SCORE, SEPO, SCORING, scoring_dataset="--help", scoring_name="x").words[-2:] == ["--", "--help"]


def test_each_form_offers_the_sets_that_its_command_reads(folder):
    offered = {key: made.sources(kind, str(folder)) for key, kind in made.KINDS.items()}
    own = ["sums", "spans", "margins", "scores", "lists"]
    assert [name for name in offered["scoring"] if name in own] == own[1:-1]
    assert [name for name in offered["inject"] if name in own] == own[1:]  # the first has negatives already
    assert {"tdpo_demo", "sepo_demo"} <= {*offered["scoring"]}


def test_forms_are_there_for_the_stages_that_train_on_what_they_make():
    fits = {
        key: {name for name, row in stages.all_stages().items() if kind.fits(row)} for key, kind in made.KINDS.items()
    }
    assert {"sepo", "tgdpo", "tis_dpo", "cdpo"} == fits["scoring"]
    assert {"seapo_kto", "tdpo", "sepo"} <= fits["inject"]


@pytest.mark.parametrize("key", texts.table()["phrases"])
def test_a_sentence_has_the_same_places_in_every_language_and_other_words(key):
    told = texts.table()["phrases"][key]
    assert [*told] == [*LANGUAGES]
    assert len({frozenset(re.findall(r"{\w+}", text)) for text in told.values()}) == 1
    assert len({*told.values()}) == len(LANGUAGES)


def status_of(found, *, added=(), state=State.done, **values):
    """A status of a job that was prepared."""
    result = Result(code=0, added=added)
    return Status(name=found.job.name, state=state, record=found.record, **({"result": result} | values))


def plain(**values):
    """A status of a job of no particular form."""
    record = Record(kind="scoring", command=[], dataset_dir="", sets={}, parts=["a", "b"])
    return Status(name="made", record=record, **values)


def test_a_running_job_tells_its_share_part_and_time_and_what_it_printed_as_text():
    progress = Progress(part="b", done="3", total="12", percent=25, left="01:10")
    html = make_panels.described(plain(state=State.running, progress=progress, lines=["<img src=x>"]), "en")
    assert "made is being made" in html
    assert "62%" in html  # the first of two parts, and a quarter of the second
    assert "b: 3 of 12" in html
    assert "01:10 left" in html
    assert "&lt;img src=x&gt;" in html
    assert "<img" not in html


@pytest.mark.parametrize(
    ("code", "lines", "told"),
    [
        (1, ["FP001 x.jsonl: no such file"], "FP001 x.jsonl: no such file"),
        (
            1,
            ["Traceback (most recent call last):", '  File "x"', "a.b.OutOfMemoryError: CUDA out of memory", "full"],
            "CUDA out of memory\nfull",
        ),
        (2, ["Usage: finepref sepo score", "Error: No such option: --foo"], "No such option: --foo"),
        (-9, [], "The command was ended from outside by signal 9. Signal 9 is often a lack of memory."),
        (1, ["┃ table ┃", "│ 6     │", "x.jsonl: no row is left"], "x.jsonl: no row is left"),
        (3, [], "exit code 3"),
    ],
)
def test_a_failed_job_tells_its_cause(code, lines, told):
    assert make_panels.cause(plain(state=State.failed, lines=lines, result=Result(code=code)), "en") == told


def test_the_job_that_the_form_names_is_shown_else_the_running_one_else_the_last(tmp_path):
    folder = tmp_path / "finepref"
    for number, name in enumerate(("first", "second")):
        (folder / f"{name}.job").mkdir(parents=True)
        record = {"kind": "scoring", "command": [], "dataset_dir": "", "sets": {}, "begun": number}
        (folder / f"{name}.job" / "record.json").write_text(json.dumps(record))
    form = {"dataset_dir": str(tmp_path)}
    assert made.shown(made.SCORE, form.get).name == "second"
    assert made.shown(made.SCORE, (form | {"scoring_name": "first"}).get).name == "first"
    assert made.shown(made.INJECT, form.get) is None
