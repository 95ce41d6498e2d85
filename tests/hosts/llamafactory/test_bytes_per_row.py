"""How many bytes a tokenised row has in the Arrow file, for a prompt of 100 tokens and responses of 390."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

PROMPT, RESPONSE = 100, 390
KINDS = ("correctness", "logic", "hallucination", "style")
WORDS = [chr(ord("a") + i) for i in range(26)]


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(tiny_model)
    data_args = DataArguments(template="chatml", cutoff_len=1024)
    return SimpleNamespace(
        tokenizer=found, template=get_template_and_fix_tokenizer(found, data_args), data_args=data_args
    )


@pytest.fixture
def stored(tokenizer):
    """The tokenised rows of ten records as `datasets` writes them, without the verdicts, which are dropped."""
    import datasets
    from finepref.formats import records
    from finepref.hosts import row_cache
    from finepref.hosts.llamafactory.verdicts import COLUMNS
    from finepref.hosts.reading import Sourced

    def call(processor, table: list[dict], formatting: str):
        made = processor(
            tokenizer=tokenizer.tokenizer, template=tokenizer.template, processor=None, data_args=tokenizer.data_args
        )
        cached = [
            row_cache.cached_row(Sourced("x.jsonl", i, records.parse(row, formatting)))
            for i, row in enumerate(table, start=1)
        ]
        rows = datasets.Dataset.from_list(cached)
        found = rows.map(made.preprocess_dataset, batched=True, remove_columns=rows.column_names)
        assert set(found["_problem"]) == set(found["_skipped"]) == {""}
        return found.remove_columns(list(COLUMNS))

    return call


def text(draw: random.Random, tokens: int) -> str:
    """A text of about so many tokens, a letter and a space each."""
    return " ".join(draw.choices(WORDS, k=tokens // 2))


def bytes_per_record(found, count: int) -> float:
    return found.data.nbytes / count


def test_a_scored_pair_has_less_than_nine_bytes_per_response_token(stored, tokenizer):
    """Four for the id and four for the score; 64-bit numbers, labels and masks made it 58."""
    from finepref.formats.scores import fingerprint
    from finepref.hosts.llamafactory.pairs import PairProcessor

    draw, table = random.Random(0), []
    own = fingerprint(tokenizer.tokenizer.backend_tokenizer.to_str())
    for i in range(10):
        row = {"id": str(i), "prompt": text(draw, PROMPT), "tokenizer": own}
        for side in ("chosen", "rejected"):
            row[side] = text(draw, RESPONSE)
            count = len(tokenizer.tokenizer(row[side], add_special_tokens=False)["input_ids"])
            row[f"{side}_scores"] = [draw.random() for _ in range(count)]
        table.append(row)
    found = stored(PairProcessor, table, "scored_pair")
    tokens = sum(len(ids) for side in ("chosen", "rejected") for ids in found[f"{side}_ids"])
    assert tokens > 10 * RESPONSE
    assert 8 < found.data.nbytes / tokens < 9.5
    assert bytes_per_record(found, 10) < 8_000
    assert {len(weight) for weight in found["chosen_weight"]} == {0}


def test_a_pair_with_spans_of_weight_1_has_a_bit_for_each_weight(stored):
    from finepref.hosts.llamafactory.pairs import PairProcessor

    draw = random.Random(0)
    table = [
        {"id": str(i), "prompt": text(draw, PROMPT), "chosen": text(draw, RESPONSE), "rejected": text(draw, RESPONSE)}
        | {"chosen_spans": [[0, 9]], "rejected_spans": [[0, 9]]}
        for i in range(10)
    ]
    found = stored(PairProcessor, table, "span_pair")
    assert {len(weight) for weight in found["chosen_weight"]} == {0}
    assert 0 < sum(found["chosen_marks"][0]) < 20
    assert bytes_per_record(found, 10) < 4_500
    table[0]["chosen_spans"] = [{"start": 0, "end": 9, "weight": 0.3}]
    weights = stored(PairProcessor, table, "span_pair")["chosen_weight"]
    assert sorted(set(weights[0])) == pytest.approx([0.0, 0.3])
    assert weights[1] == []


def test_a_seapo_record_with_four_negatives_has_less_than_20_kilobytes(stored):
    """Two rows, each with its responses and those of the partner; labels and 64-bit ids made it 71."""
    from finepref.hosts.llamafactory.unpaired_data import UnpairedProcessor

    draw = random.Random(0)
    table = [
        {"id": str(i), "prompt": text(draw, PROMPT), "chosen": text(draw, RESPONSE)}
        | {"negatives": {kind: text(draw, RESPONSE) for kind in KINDS}}
        for i in range(10)
    ]
    found = stored(UnpairedProcessor, table, "negatives")
    assert len(found) == 20
    assert sum(found["lengths"][1]) > 4 * RESPONSE * 0.9
    assert bytes_per_record(found, 10) < 20_000


def test_a_partner_is_an_index_and_its_text_is_stored_nowhere_else(tmp_path, run, monkeypatch):
    from finepref.hosts.llamafactory.unpaired import UnpairedAdapter

    seen = []
    prepare = UnpairedAdapter.prepare

    def note(self, dataset, *, streaming):
        made = prepare(self, dataset, streaming=streaming)
        seen.append((made.column_names, dataset.column_names, made.features["_partner"].dtype))
        return made

    monkeypatch.setattr(UnpairedAdapter, "prepare", note)
    run(max_steps=1)
    (names, before, kind), *_ = seen
    assert set(names) - set(before) == {"_partner"}
    assert kind == "int32"
