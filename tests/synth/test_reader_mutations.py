"""Rows of random values in every field: each reader of the commands gives a row or a problem, and loses none."""

from __future__ import annotations

import json
import random
from functools import partial

import pytest
from finepref.formats.bad_rows import BadRows
from finepref.formats.check import read_records
from finepref.formats.identified import read_each
from finepref.formats.jsonl import read_rows
from finepref.formats.problems import BadData
from finepref.synth.data_sources.hub import SOURCES, write_pairs
from finepref.synth.dedup import read_texts
from finepref.synth.judges import label_rows
from finepref.synth.judges.by_model import guard
from finepref.synth.reversegen.few_shots import read_few_shots, read_seeds
from finepref.synth.reversegen.instructions import read_instructions, read_judged
from finepref.synth.seapo.inject import read_sources

TURNS = [{"role": "user", "content": "x"}]
VALUES = [None, True, 0, 1.5, -1, 1e308, "", "  ", "text", "Q1. a\n\nQ2.", "\n\nHuman: a\n\nAssistant: b", "\u2028"]
VALUES += [[], {}, ["a"], [1], [{}], [["a"]], TURNS, [{"role": "system", "content": "s"}, *TURNS], {"role": "user"}]
VALUES += [[{"role": "user", "content": None}], [{"role": ["a"], "content": {}}], [*TURNS, {"role": "assistant"}]]
FIELDS = "id prompt messages system chosen rejected target attacker_prompt label verdict response few_shot negatives"
FIELDS += " few_shot_prompt spans score_chosen score_rejected prompt_id tools"
READERS = {
    "dedup": lambda path, bad: read_texts(path, ["prompt", "chosen"], bad_rows=bad)[0],
    "seapo inject": read_sources,
    "seapo margins": lambda path, bad: read_records(path, "negatives", bad_rows=bad),
    "warmup": lambda path, bad: read_seeds(path, group_field="id", bad_rows=bad),
    "propose --ready": lambda path, bad: read_few_shots(path, bad_rows=bad),
    "answer": lambda path, bad: read_instructions(path, bad_rows=bad),
    "pair": lambda path, bad: read_judged(path, ("prompt", "few_shot"), bad_rows=bad),
    "judge": lambda path, bad: read_each(path, partial(label_rows._read, judge=guard(), engine=None), bad_rows=bad),
}


@pytest.fixture(scope="module")
def mutated(tmp_path_factory):
    """2,000 rows, one of twenty torn."""
    chance = random.Random(0)
    path = tmp_path_factory.mktemp("mutated") / "x.jsonl"
    names = FIELDS.split()
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(2000):
            row = {name: chance.choice(VALUES) for name in chance.sample(names, chance.randint(0, 9))}
            text = json.dumps(row)
            file.write(text[: chance.randrange(1, len(text))] if chance.random() < 0.05 else text)
            file.write("\n")
    return path


@pytest.mark.parametrize("name", READERS)
def test_every_mutated_row_is_read_or_rejected(mutated, name):
    bad = BadRows(skip=True, max_bad=0.9999)
    total = sum(row.line > 0 for row in read_rows(mutated))
    try:
        good = len(READERS[name](mutated, bad))
    except BadData as error:
        if error.problems[0].code != "FP091":
            raise
        good = 0  # all rows are bad to this reader
    assert (bad.read, good + len(bad.rejected)) == (total, total)
    assert sum(bad.codes.values()) == len(bad.rejected)


@pytest.mark.parametrize("name", SOURCES)
def test_every_mutated_row_of_a_public_set_is_a_pair_left_out_or_rejected(mutated, tmp_path, name):
    bad = BadRows(skip=True, max_bad=0.5)
    written = write_pairs(read_rows(mutated), tmp_path / "o.jsonl", SOURCES[name], name=name, bad_rows=bad)
    assert written.rows + len(written.left_out) + len(bad.rejected) == bad.read
