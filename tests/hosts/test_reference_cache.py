"""The plan and the files of the cached reference, without a host: the same whoever makes them, and complete."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest
from finepref.hosts import reference_cache
from finepref.hosts.reference_cache import Cache, Kept, batches_of, fill, parts_of, texts_of

ROWS = [  # prompt, chosen, rejected
    ([1, 2, 3], [4], [5, 6]),
    ([7] * 20, [8] * 30, [9]),
    ([1], [2, 3], [4, 5, 6]),
    ([2], [3], [4]),
]
PAIR = [("chosen", ""), ("rejected", "")]


def table(rows=ROWS) -> pa.Table:
    names, columns = ("prompt", "chosen", "rejected"), zip(*rows, strict=True)
    kind = pa.list_(pa.int32())
    return pa.table({name: pa.array([*each], kind) for name, each in zip(names, columns, strict=True)})


def pairs(tables=None):
    return texts_of(tables or [table()], PAIR, lambda index: (ROWS[index][0], ROWS[index][1:]))


def read(texts) -> np.ndarray:
    """Of each response token a number by the prompt and the token, in place of a model."""
    return np.concatenate([np.float32(sum(prompt)) + np.asarray(response) / 64 for prompt, response in texts])


def test_texts_of_pairs_and_of_lists_of_responses_have_the_lengths_of_each():
    found = pairs()
    assert found.prompts.tolist() == [3, 20, 1, 1]
    assert found.first.tolist() == [0, 2, 4, 6, 8]
    assert found.responses.tolist() == [1, 2, 30, 1, 2, 3, 1, 1]
    kind = pa.list_(pa.int32())
    columns = {"prompt": [[1], [2]], "own": [[3, 4, 5], [6]], "n": [[1, 2], [1]], "kl": [[7], [8, 9]], "m": [[1], [2]]}
    lists = pa.table({name: pa.array(values, kind) for name, values in columns.items()})
    of_lists = texts_of([lists], [("own", "n"), ("kl", "m")], lambda index: None)
    assert of_lists.first.tolist() == [0, 3, 5]
    assert of_lists.responses.tolist() == [1, 2, 1, 1, 2]


def test_the_digest_is_of_the_tokens_whatever_the_chunks():
    whole = table()
    assert pairs([whole.slice(0, 1), whole.slice(1)]).digest == pairs([pa.concat_tables([whole])]).digest
    different = [
        [([1, 2, 3], [4], [5, 7]), *ROWS[1:]],
        [([1, 2], [3, 4], [5, 6]), *ROWS[1:]],
        [([1, 2, 3], [4, 5], [6]), *ROWS[1:]],
        [*ROWS[1:], ROWS[0]],
        ROWS[:3],
    ]
    found = {pairs([table(rows)]).digest for rows in (ROWS, *different)}
    assert len(found) == 6


@pytest.mark.parametrize("tokens", [1, 8, 60, 120, 10_000])
def test_each_response_is_in_one_batch_of_few_tokens_with_those_of_its_row(monkeypatch, tokens):
    monkeypatch.setattr(reference_cache, "BATCH_TOKENS", tokens)
    texts = pairs()
    batches = [*batches_of(texts)]
    assert sorted(np.concatenate(batches).tolist()) == [*range(8)]
    widths = np.repeat(texts.prompts, 2) + texts.responses
    for batch in batches:
        assert len(batch) == 1 or len(batch) * widths[batch].max() <= tokens
    longest = [widths[batch].max() for batch in batches]
    assert longest[0] == 50
    if tokens == 120:  # the longest row, and all others
        assert [batch.tolist() for batch in batches] == [[2, 3], [0, 1, 4, 5, 6, 7]]


def test_large_data_has_parts_of_many_batches(monkeypatch):
    monkeypatch.setattr(reference_cache, "BATCH_TOKENS", 1)
    assert [len(part) for part in parts_of(pairs())] == [1] * 8
    monkeypatch.setattr(reference_cache, "PARTS", 2)
    assert [len(part) for part in parts_of(pairs())] == [1, 7]  # 50 of 91 tokens, and the rest


def test_the_file_has_the_values_of_each_response_and_its_reader_can_be_sent(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_cache, "BATCH_TOKENS", 60)
    cache, told = Cache(pairs(), {"model": "a"}, tmp_path), []
    fill([cache], read, tell=told.append)
    kept = pickle.loads(pickle.dumps(Kept(cache.folder)))
    assert len(kept) == 4
    for index, (prompt, *responses) in enumerate(ROWS):
        expected = [(sum(prompt) + np.asarray(response) / 64).tolist() for response in responses]
        assert [values.tolist() for values in kept[index]] == expected
    assert len(told) == 1
    assert "4 rows, 41 tokens" in told[0]
    assert Cache(pairs(), {"model": "b"}, tmp_path).key != cache.key == Cache(pairs(), {"model": "a"}, tmp_path).key


def test_a_part_that_is_cut_off_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_cache, "BATCH_TOKENS", 1)
    cache, seen = Cache(pairs(), {}, tmp_path), []

    def counted(texts):
        seen.append(len(texts))
        if len(seen) == 6:
            raise RuntimeError("killed")
        return read(texts)

    with pytest.raises(RuntimeError, match="killed"):
        fill([cache], counted, tell=lambda _: None)
    assert not cache.is_complete
    whole = cache.part(2).read_bytes()
    cache.part(2).write_bytes(whole[:-4])
    cache.part(3).write_bytes(b"")
    fill([cache], counted, tell=lambda _: None)
    assert len(seen) == 6 + 8 - 3
    other = Cache(pairs(), {}, tmp_path / "other")
    fill([other], read, tell=lambda _: None)
    assert (cache.folder / "logps.npy").read_bytes() == (other.folder / "logps.npy").read_bytes()
    assert not cache.partial.exists()


def test_a_pass_that_returns_too_few_values_is_refused(tmp_path):
    with pytest.raises(ValueError, match="40 log-probabilities were read, the responses have 41 tokens"):
        fill([Cache(pairs(), {}, tmp_path)], lambda texts: read(texts)[1:], tell=lambda _: None)


def test_a_million_rows_are_planned_in_arrays():
    """No object per row: 10,000 rows make as many batches as their tokens need."""
    count = 10_000
    lengths = np.full(2 * count, 96)
    first = np.arange(0, 2 * count + 1, 2)
    texts = reference_cache.Texts("", np.full(count, 32), first, lengths, lambda index: None)
    batches = [*batches_of(texts)]
    assert len(batches) == -(-2 * count * 128 // reference_cache.BATCH_TOKENS)
    assert sum(map(len, parts_of(texts))) == len(batches)


def test_what_a_reference_is_has_no_paths_where_there_are_digests():
    known = {
        "path": "a",
        "config_sha256": "1",
        "weights_sha256": "2",
        "weights_hashed": "contents",
        "weights_bytes": 3,
    }
    unknown = {**dict.fromkeys(known), "path": "org/model"}
    about = reference_cache.about
    assert about(known, []) == about(known | {"path": "b"}, [])
    assert about(known, []) != about(known | {"weights_sha256": "4"}, [])
    assert about(unknown, [])["model"] == "org/model"
    assert about(known, [unknown])["adapters"] == ["org/model"]
