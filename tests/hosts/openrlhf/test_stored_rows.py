"""Tokenised rows are made once, in a file that all processes share; a row needs no memory until it is read."""

from __future__ import annotations

import random
from functools import partial
from types import SimpleNamespace

import pytest
from sample_rows import ranked_rows, rows, scored_rows, span_rows, write_rows
from tiny_llama import CHATML

PROMPT, RESPONSE = 100, 390
KINDS = ("correctness", "logic", "hallucination", "style")


@pytest.fixture(scope="module")
def encoder(tiny_model):
    from finepref.hosts.openrlhf import data
    from openrlhf.utils import get_tokenizer

    tokenizer = get_tokenizer(str(tiny_model), None, "right", None, use_fast=True)
    settings = {"apply_chat_template": True, "tokenizer_chat_template": None, "input_template": None}
    return data.Encoder(tokenizer, SimpleNamespace(max_len=1024, **settings), policy="host")


@pytest.fixture
def stored(host, encoder, tmp_path):
    """The rows of a table, tokenised into a file."""
    from finepref.formats import records
    from finepref.hosts.openrlhf import pairs, ranked, unpaired
    from finepref.hosts.openrlhf.notes import Notes
    from finepref.hosts.reading import Sourced
    from finepref.hosts.rows import Rows
    from finepref.methods import apo_rm, seapo_kto, sepo, tdpo
    from finepref.methods.options import in_yaml

    stages = {"tdpo": tdpo.STAGE, "sepo": sepo.STAGE, "seapo_kto": seapo_kto.STAGE, "apo_rm": apo_rm.STAGE}

    def call(name: str, table: list[dict], formatting: str, file: str = "0.arrow"):
        stage = stages[name]
        options = stage.options.read("openrlhf", {}, in_yaml)
        found = [Sourced("x.jsonl", i, records.parse(row, formatting)) for i, row in enumerate(table, start=1)]
        if name == "seapo_kto":
            tokenise = partial(unpaired.tokenise, types=None)
        elif name == "apo_rm":
            tokenise = partial(ranked.tokenise, options=options)
        else:
            tokenise = partial(pairs.tokenise, weigh=partial(stage.weigh, options=options, seed=0))
        made = tokenise(found, encoder, "x", Notes(Rows(), options.bad_rows), tmp_path / file if file else None)
        assert len(made) == len(table)
        return made

    return call


def text(draw: random.Random, tokens: int) -> str:
    """A text of about so many tokens, a letter and a space each."""
    return " ".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=tokens // 2))


def scored(count: int, tokenizer) -> list[dict]:
    from finepref.formats.scores import fingerprint

    draw, table = random.Random(0), []
    for i in range(count):
        row = {"id": str(i), "prompt": text(draw, PROMPT)}
        row["tokenizer"] = fingerprint(tokenizer.backend_tokenizer.to_str())
        for side in ("chosen", "rejected"):
            row[side] = text(draw, RESPONSE)
            tokens = len(tokenizer(row[side], add_special_tokens=False)["input_ids"])
            row[f"{side}_scores"] = [draw.random() for _ in range(tokens)]
        table.append(row)
    return table


def bytes_per_row(made) -> float:
    return sum(batch.nbytes for batch in made.batches) / len(made)


def test_a_scored_pair_has_four_bytes_per_token_and_a_bit_for_its_weight(stored, encoder):
    """As Python's objects it had 115,000 bytes in each process."""
    made = stored("sepo", scored(10, encoder.tokenizer), "scored_pair")
    tokens = sum(row.chosen.length + row.rejected.length for row in made)
    assert tokens > 10 * RESPONSE
    assert bytes_per_row(made) < 4_500


def test_a_record_of_four_negatives_is_stored_once_and_its_partner_is_an_index(stored, encoder):

    draw = random.Random(0)
    table = [
        {"id": str(i), "prompt": text(draw, PROMPT), "chosen": text(draw, RESPONSE)}
        | {"negatives": {kind: text(draw, RESPONSE) for kind in KINDS}}
        for i in range(10)
    ]
    made = stored("seapo_kto", table, "negatives")
    assert sum(len(ids) for ids in (made[0].chosen, *made[0].negatives.values())) > 5 * RESPONSE * 0.9
    assert bytes_per_row(made) < 10_000
    partner = int(made.more["partner"][0])
    assert partner != 0
    assert made[0].other_chosen.tolist() == made[partner].chosen.tolist()


@pytest.mark.parametrize("name", ["tdpo", "seapo_kto"])
def test_opening_the_file_takes_no_memory_for_the_rows(stored, tmp_path, name):
    import pyarrow as pa
    from finepref.hosts.openrlhf import pairs, unpaired
    from finepref.hosts.openrlhf.stored_rows import TokenisedRows

    if name == "tdpo":
        made, make = stored(name, span_rows(40), "span_pair"), pairs.pair_of
    else:
        made, make = stored(name, rows(40), "negatives"), unpaired.record_of
    before = pa.total_allocated_bytes()
    opened = TokenisedRows.opened(tmp_path / "0.arrow", make)
    chosen = opened.select(range(30)).select([4, 7, 29])
    assert len(opened) == 40
    assert str([*chosen]) == str([made[i] for i in (4, 7, 29)])
    del chosen
    assert pa.total_allocated_bytes() - before < 1000
    with pytest.raises(IndexError):
        opened[40]


def test_the_rows_of_a_file_are_those_in_memory_also_beyond_one_batch(stored, monkeypatch, tmp_path):
    from finepref.hosts.openrlhf import stored_rows

    whole = str([*stored("seapo_kto", rows(11), "negatives", file="")])
    monkeypatch.setattr(stored_rows, "BATCH", 4)
    parts = stored("seapo_kto", rows(11), "negatives", file="1.arrow")
    assert [batch.num_rows for batch in parts.batches] == [4, 4, 3]
    assert str([*parts]) == whole


def tokenised_anew(done) -> bool:
    """Whether a run that ended for its batch size had tokenised its rows and not found them in the cache."""
    assert "12 records make no batch of --train.batch_size 100" in done.output, done.output[-2000:]
    return "tokens of" in done.output


def test_rows_are_tokenised_again_only_where_something_that_they_depend_on_has_changed(attempt, tmp_path, tiny_model):
    folder = write_rows(tmp_path / "data", scored_rows(tiny_model), "scores", formatting="scored_pair")
    base = {"data__dataset": "scores", "data__dataset_dir": folder, "train__batch_size": 100}

    def anew(**given: object) -> bool:
        return tokenised_anew(attempt("selective", **base | given))

    assert anew()
    assert not anew()
    assert not anew(adam__lr=0.5, train__max_epochs=3)
    assert anew(selective__ratio_chosen=0.7)
    assert anew(data__max_len=300)
    assert anew(train__seed=7)
    assert anew(data__tokenizer_chat_template=CHATML.replace("<|im_end|>", " <|im_end|>"))
    file = folder / "scores.jsonl"
    text = file.read_text()
    file.write_text(text.replace("What is 0 + 1?", "What is 0 - 1?"))
    assert anew()
    file.write_text(text)  # the first rows again, with another time of change
    assert not anew()


def test_a_stage_whose_code_has_changed_tokenises_again(host, encoder, tmp_path, monkeypatch):
    """The weights are stored, so those of older code must not be used."""
    import importlib
    import sys

    from finepref.hosts.openrlhf import training
    from finepref.methods import tdpo

    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_weights.py").write_text("def weigh(row, options, seed):\n    return row.whole()\n")
    module = importlib.import_module("own_weights")
    stage = SimpleNamespace(name="own", weigh=module.weigh, check_record=None, check_data=None)
    request = SimpleNamespace(
        stage=stage, options=tdpo.STAGE.options(), host=SimpleNamespace(train=SimpleNamespace(seed=1))
    )
    before = training._depends_on(request, [], encoder)
    assert training._depends_on(request, [], encoder) == before
    (tmp_path / "own_weights.py").write_text("def weigh(row, options, seed):\n    return row.annotated_or_whole()\n")
    assert training._depends_on(request, [], encoder) != before
    del sys.modules["own_weights"]


def test_of_two_processes_one_tokenises(attempt, sums, tmp_path):
    """Each prints the progress of its tokenising, so only one does."""
    folder = write_rows(tmp_path / "data", span_rows(), "fresh", formatting="span_pair")
    attempt("tdpo", processes=2, data__dataset="fresh", data__dataset_dir=folder, train__batch_size=100)
    told = [(tmp_path / f"output.{rank}").read_text() for rank in range(2)]
    assert all("make no batch" in text for text in told)
    assert sum("tokens of fresh" in text for text in told) == 1


@pytest.mark.parametrize("file", ["0.arrow", ""])
def test_the_lengths_of_rows_are_those_of_their_longest_sequences(stored, file):
    from finepref.hosts.openrlhf import pairs, ranked, unpaired

    cases = (
        ("tdpo", span_rows(), "span_pair", pairs.PairDataset),
        ("seapo_kto", rows(), "negatives", unpaired.UnpairedDataset),
        ("apo_rm", ranked_rows(), "ranked", ranked.RankedDataset),
    )
    for name, table, formatting, kind in cases:
        for i, row in enumerate(table):
            row["prompt"] += " Please." * (i * 5 % 7)
        made = stored(name, table, formatting, f"{name}.{file}" if file else "").select([3, 1, 8])
        dataset = object.__new__(kind)
        dataset.rows = made
        read = []
        for row in made:
            if name == "seapo_kto":
                found = [len(row.prompt) + len(ids) for ids in (row.chosen, *row.negatives.values())]
            else:
                found = (
                    [*map(len, row.sequences)] if name == "apo_rm" else [len(row.chosen.ids), len(row.rejected.ids)]
                )
            read.append(max(found))
        assert dataset.lengths().tolist() == read
