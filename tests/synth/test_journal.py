"""The journal: what was appended is there after any crash, once, and only for the job that asked for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from finepref.synth.journal import Journal, JournalBusy, JournalChanged, JournalDamaged
from hypothesis import given, settings
from hypothesis import strategies as st

JOB = {
    "job": "a test",
    "model": "m",
    "prompt_version": "1",
    "sampling": {"temperature": 0.0, "max_new_tokens": 8},
    "seed": 0,
    "input_digest": "00",
}
BATCHES = [
    [{"id": "a", "text": "one"}, {"id": "b", "text": "two"}],
    [{"id": "c", "text": "x\ny \u2028 é"}],
    [{"id": "d", "text": "four"}, {"id": "e", "text": "five"}],
]


def write(folder: Path, batches: list[list[dict[str, str]]]) -> bytes:
    with Journal(folder, **JOB) as journal:
        for batch in batches:
            journal.append(batch)
    return (folder / "journal.jsonl").read_bytes()


def test_what_was_appended_is_there_when_the_journal_is_opened_again(tmp_path):
    write(tmp_path, BATCHES)
    with Journal(tmp_path, **JOB) as journal:
        assert list(journal.done.values()) == [entry for batch in BATCHES for entry in batch]
        assert journal.torn_bytes == 0


def test_a_tail_torn_at_any_byte_loses_the_last_record_only_and_the_journal_can_be_used(tmp_path):
    """The last line is `[{"id": "d", ...}, {"id": "e", ...}]` and a line end. Cut before its closing bracket it is no
    record and goes; with the bracket and without the line end it is one and stays."""
    whole = write(tmp_path, BATCHES)
    last = len(whole.splitlines(keepends=True)[-1])
    for kept in range(last + 1):
        (tmp_path / "journal.jsonl").write_bytes(whole[: len(whole) - last + kept])
        with Journal(tmp_path, **JOB) as journal:
            survives = kept >= last - 1
            assert list(journal.done) == ["a", "b", "c", *(["d", "e"] if survives else [])]
            assert journal.torn_bytes == (0 if survives else kept)
            if not survives:
                journal.append(BATCHES[-1])
        assert (tmp_path / "journal.jsonl").read_bytes() == whole


@pytest.mark.parametrize("tail", [b"\0" * 40, b"\0" * 40 + b"\n", b'"d"}]\n', b"[1]\n", b"[\n", b"\xff\xfe"])
def test_a_tail_of_anything_that_is_no_record_is_cut_off(tmp_path, tail):
    whole = write(tmp_path, BATCHES)
    (tmp_path / "journal.jsonl").write_bytes(whole + tail)
    with Journal(tmp_path, **JOB) as journal:
        assert len(journal.done) == 5
        assert journal.torn_bytes == len(tail)
    assert (tmp_path / "journal.jsonl").read_bytes() == whole


def test_damage_before_the_last_record_is_named_by_file_and_line_and_left_alone(tmp_path):
    whole = write(tmp_path, BATCHES)
    damaged = whole.replace(b'"c"', b'"c')
    (tmp_path / "journal.jsonl").write_bytes(damaged)
    with pytest.raises(JournalDamaged, match=r"journal\.jsonl:2 is not a record"), Journal(tmp_path, **JOB):
        pass
    assert (tmp_path / "journal.jsonl").read_bytes() == damaged


def test_an_id_that_the_journal_holds_twice_is_damage(tmp_path):
    whole = write(tmp_path, BATCHES[:1])
    (tmp_path / "journal.jsonl").write_bytes(whole * 2)
    with pytest.raises(JournalDamaged, match=r"journal\.jsonl:2 repeats the id 'a'"), Journal(tmp_path, **JOB):
        pass


def test_a_journal_without_a_manifest_is_refused(tmp_path):
    write(tmp_path, BATCHES)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(JournalDamaged, match="no manifest"), Journal(tmp_path, **JOB):
        pass


def test_another_job_is_refused_and_every_field_that_differs_is_named(tmp_path):
    write(tmp_path, BATCHES)
    other = JOB | {"model": "n", "sampling": {"temperature": 0.5, "max_new_tokens": 8}}
    with pytest.raises(JournalChanged) as caught, Journal(tmp_path, **other):
        pass
    assert caught.value.fields == {
        "model": ("m", "n"),
        "sampling": (JOB["sampling"], other["sampling"]),
    }
    assert "model: 'm' there, 'n' now" in str(caught.value)
    write(tmp_path, [])  # the lock was given back, and nothing was changed


@pytest.mark.parametrize("field", ["job", "model", "prompt_version", "seed", "input_digest"])
def test_each_field_of_the_manifest_is_compared(tmp_path, field):
    write(tmp_path, BATCHES)
    with pytest.raises(JournalChanged), Journal(tmp_path, **(JOB | {field: "other"})):
        pass


def test_a_journal_without_an_answer_is_bound_to_no_job(tmp_path):
    write(tmp_path, [])
    with Journal(tmp_path, **(JOB | {"model": "n"})) as journal:
        journal.append(BATCHES[0])
    with pytest.raises(JournalChanged), Journal(tmp_path, **JOB):
        pass


def test_a_second_writer_is_refused_until_the_first_one_is_killed(tmp_path):
    holder = f"""
import sys, time
from finepref.synth.journal import Journal
with Journal({str(tmp_path)!r}, **{JOB!r}) as journal:
    journal.append([{{"id": "held"}}])
    print("locked", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(JournalBusy), Journal(tmp_path, **JOB):
            pass
    finally:
        process.kill()
        process.communicate()
    with Journal(tmp_path, **JOB) as journal:
        assert list(journal.done) == ["held"]


def test_an_id_is_journalled_once(tmp_path):
    with Journal(tmp_path, **JOB) as journal:
        journal.append(BATCHES[0])
        with pytest.raises(ValueError, match="already in the journal"):
            journal.append([{"id": "z"}, {"id": "a"}])
        with pytest.raises(ValueError, match="already in the journal"):
            journal.append([{"id": "z"}, {"id": "z"}])
        assert list(journal.done) == ["a", "b"]


def test_an_append_that_fails_leaves_no_trace(tmp_path, monkeypatch):
    with Journal(tmp_path, **JOB) as journal:
        journal.append(BATCHES[0])
        before = (tmp_path / "journal.jsonl").read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("the disk is full")))
            with pytest.raises(OSError, match="full"):
                journal.append(BATCHES[1])
        assert (tmp_path / "journal.jsonl").read_bytes() == before
        journal.append(BATCHES[1])
    with Journal(tmp_path, **JOB) as journal:
        assert list(journal.done) == ["a", "b", "c"]


@settings(deadline=None)
@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3), max_size=4))
def test_any_text_comes_back_as_it_was(tmp_path_factory, batches):
    folder = tmp_path_factory.mktemp("journal")
    entries = [[{"id": f"{i}-{j}", "text": text} for j, text in enumerate(batch)] for i, batch in enumerate(batches)]
    write(folder, entries)
    with Journal(folder, **JOB) as journal:
        assert list(journal.done.values()) == [entry for batch in entries for entry in batch]


def test_only_entries_that_are_not_done_are_computed_and_each_batch_is_journalled_at_once(tmp_path):
    def compute(dies, seen):
        def batches(done):
            seen.append([*done])
            for batch in (["a", "b"], ["c"]):
                if not {*batch} <= {*done}:
                    if dies and batch == ["c"]:
                        raise KeyboardInterrupt
                    yield [{"id": each, "value": each.upper()} for each in batch]

        return batches

    calls = []
    with pytest.raises(KeyboardInterrupt), Journal(tmp_path, **JOB) as journal:
        journal.complete(["a", "b", "c"], compute(True, calls), unit="entry")
    with Journal(tmp_path, **JOB) as journal:
        found = journal.complete(["a", "b", "c"], compute(False, calls), unit="entry")
        assert {key: each["value"] for key, each in found.items()} == {"a": "A", "b": "B", "c": "C"}
        journal.complete(["c", "a"], compute(False, calls), unit="entry")
    assert calls == [[], ["a", "b"]], "nothing is computed where everything is done"
