"""Our rows are read by our reader, once: what `finepref validate` accepts trains, and a second start maps nothing."""

from __future__ import annotations

import json
from functools import wraps
from pathlib import Path

import pytest
from sample_rows import granular_rows, ranked_rows, rows, scored_rows, span_rows, write_rows

PAIRS = [{key: row[key] for key in ("id", "prompt", "chosen", "rejected")} for row in span_rows()]


def write(folder: Path, files: dict[str, bytes], **entry: object) -> str:
    """A dataset_dir whose set `sums` is a folder with these files, or a file if there is one."""
    data = folder / "data"
    data.mkdir(parents=True)
    for name, content in files.items():
        (data / name).write_bytes(content)
    name = "data" if len(files) > 1 else f"data/{next(iter(files))}"
    (folder / "dataset_info.json").write_text(json.dumps({"sums": {"file_name": name, **entry}}))
    return str(folder)


def lines(records: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in records).encode()


def test_a_column_that_no_format_reads_may_have_any_types(run, tmp_path):
    records = [row | {"meta": i if i % 2 else {"note": [i, "x", None]}} for i, row in enumerate(rows())]
    done = run(dataset_dir=write(tmp_path / "d", {"x.jsonl": lines(records)}, formatting="negatives"))
    assert done.receipt["rows"]["in_training_set"] == 12


def test_shards_may_differ_in_their_types(run, tmp_path):
    """One shard has other error types than the other, and spans as pairs where the other has objects."""
    first, second = rows(12)[:6], rows(12)[6:]
    for row in first:
        row["negatives"] = {"correctness": row["negatives"]["correctness"]}
        row["spans"] = {"correctness": [[0, 1]]}
    for row in second:
        row["spans"] = {"logic": [{"start": 0, "end": 1}]}
    files = {"a.jsonl": lines(first), "b.jsonl": lines(second)}
    done = run(dataset_dir=write(tmp_path / "d", files, formatting="negatives"))
    assert done.receipt["rows"]["in_training_set"] == 12
    assert done.receipt["datasets"][0]["files"].keys() == {"a.jsonl", "b.jsonl"}


def test_texts_that_look_like_dates_and_a_byte_order_mark_before_an_array_are_read(run, tmp_path):
    records = [row | {"chosen": f"2024-01-{i + 10}", "rejected": f"2023-01-{i + 10}"} for i, row in enumerate(PAIRS)]
    content = b"\xef\xbb\xbf" + json.dumps(records).encode()
    done = run(
        name="tdpo_hh",
        finetuning_type="lora",
        dataset="sums",
        tdpo_masks="none",
        dataset_dir=write(tmp_path / "d", {"x.json": content}, formatting="pair"),
    )
    assert done.receipt["rows"]["in_training_set"] == 12


def test_a_type_that_changes_after_ten_megabytes_does_not_matter(run, tmp_path):
    records = [row | {"margin": 1} for row in PAIRS]
    records[-1]["margin"] = 0.5
    filler = [row | {"id": f"f{i}", "note": "x" * 100_000} for i, row in enumerate(PAIRS * 10)]
    content = lines([*filler, {**records[-1], "note": ["now", "a", "list"]}])
    done = run(
        name="tdpo_hh",
        finetuning_type="lora",
        dataset="sums",
        dataset_dir=write(tmp_path / "d", {"x.jsonl": content}, formatting="pair"),
    )
    assert done.receipt["rows"]["read"] == 121


def test_a_mix_that_repeats_or_leaves_out_rows_trains_with_its_own_count(run, tmp_path):
    folder = write_rows(tmp_path / "d", rows(12), name="a")
    write_rows(
        folder, [row | {"id": f"b{i}", "prompt": f"b {row['prompt']}"} for i, row in enumerate(rows(5))], name="b"
    )
    under = run(dataset="a,b", dataset_dir=str(folder), mix_strategy="interleave_under").receipt["rows"]
    assert under["read"] == 17
    assert under["in_training_set"] + under["skipped"]["left_out_by_mixing"] == 17
    over = run(dataset="a,b", dataset_dir=str(folder), mix_strategy="interleave_over").receipt["rows"]
    assert over["in_training_set"] == 24
    assert over["repeated"] == 7


@pytest.mark.parametrize(("wanted", "skipped", "repeated"), [(5, {"left_out_by_num_samples": 7}, 0), (20, {}, 8)])
def test_num_samples_draws_rows_or_repeats_them(run, tmp_path, wanted, skipped, repeated):
    folder = write_rows(tmp_path / "d", rows(12), num_samples=wanted)
    found = run(dataset_dir=str(folder)).receipt["rows"]
    assert (found["read"], found["in_training_set"]) == (12, wanted)
    assert (found["skipped"], found["repeated"]) == (skipped, repeated)


@pytest.mark.parametrize(
    ("entry", "overrides", "message"),
    [
        ({}, {"max_samples": -1}, "`max_samples: -1` leaves no row"),
        ({}, {"max_samples": 0}, "`max_samples: 0` leaves no row"),
        ({"num_samples": 0}, {}, "`num_samples: 0` of dataset sums leaves no row"),
        ({}, {"streaming": True, "max_steps": 2}, "`dataloader_num_workers`, so set it to 1 or more"),
    ],
)
def test_a_number_that_would_end_in_a_traceback_of_the_host_is_one_line(refused, entry, overrides, message):
    assert message in refused(rows(), entry, **overrides)


def test_the_problem_of_a_stream_is_one_line_with_code_file_and_line(refused, capfd):
    records = rows()
    records[9]["prompt"] = "Why? " * 100
    with pytest.raises(ValueError, match=r"FP203 .*sums\.jsonl:10 prompt"):
        raise ValueError(
            refused(records, streaming=True, dataloader_num_workers=1, cutoff_len=128, finepref_overlong="error")
        )


def test_a_stream_whose_last_batch_has_one_record_trains_to_its_end(run, tmp_path):
    """13 records in batches of 4: the last one takes its mismatched responses from the batch before."""
    folder = write_rows(tmp_path / "data", rows(13))
    stream = {"streaming": True, "dataloader_num_workers": 1, "preprocessing_batch_size": 4, "buffer_size": 1}
    done = run(dataset_dir=str(folder), max_steps=12, **stream)
    assert sum(done.receipt["draws"]["counts"].values()) >= 13


def test_a_problem_names_the_file_of_its_record_even_if_another_set_has_the_same_ids(refused, tmp_path):
    folder = write_rows(tmp_path / "two", span_rows(), "first", formatting="span_pair")
    second = span_rows()
    del second[4]["rejected_spans"]
    write_rows(folder, second, "second", formatting="span_pair")
    message = refused(name="tdpo_spans", dataset="first,second", dataset_dir=str(folder))
    assert "second.jsonl:5 rejected_spans" in message
    assert "first.jsonl" not in message


def test_a_set_that_is_named_twice_is_read_once_as_on_the_host(run):
    assert run(dataset="sums,sums").receipt["rows"]["read"] == 12


def test_responses_that_the_template_makes_equal_are_skipped_by_id(run, tmp_path):
    """Without thinking, the template takes out the thought of a response, in which alone these two differ."""
    records = [dict(row) for row in PAIRS]
    records[4] |= {"chosen": "<think>\nso\n</think>\n\nyes", "rejected": "<think>\nno\n</think>\n\nyes"}
    folder = write_rows(tmp_path / "data", records, formatting="pair")
    template = {"template": "qwen3", "enable_thinking": False}
    done = run(name="tdpo_hh", finetuning_type="lora", dataset="sums", dataset_dir=str(folder), **template)
    assert done.receipt["rows"]["skipped"] == {"equal_after_template": 1}
    assert json.loads((done.folder / "skipped.jsonl").read_text())["id"] == "span-4"


STAGES = {
    "seapo_kto": (rows(), "negatives"),
    "sepo": (None, "scored_pair"),
    "tdpo_spans": (span_rows(), "span_pair"),
    "apo_rm": (ranked_rows(), "ranked"),
    "granular_sft": (granular_rows(), "span_pair"),
}


@pytest.fixture
def starts(run, tmp_path, tiny_model):
    """Train one step; returns the names of the functions that `datasets` mapped rows by, not from its cache."""
    import datasets

    def train(name: str, **overrides: object) -> list[str]:
        records, formatting = STAGES[name]
        folder = tmp_path / "data"
        if not folder.exists():
            write_rows(folder, records or scored_rows(tiny_model), formatting=formatting)
        mapped: list[str] = []
        original = datasets.Dataset._map_single

        @wraps(original)  # its signature decides what the cache's fingerprint is made of
        def note(*, function, **options):
            mapped.append(getattr(function, "__qualname__", type(function).__name__))
            yield from original(function=function, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(datasets.Dataset, "_map_single", staticmethod(note))
            run(name=name, dataset="sums", dataset_dir=str(folder), max_steps=1, **overrides)
        return mapped

    return train


@pytest.mark.parametrize("name", STAGES)
def test_a_second_start_maps_nothing_and_reads_no_row(starts, name, monkeypatch):
    assert len(starts(name)) >= 2
    from finepref.hosts import reading

    monkeypatch.setattr(reading, "rows_of", lambda path: pytest.fail("the file was read again"))
    assert starts(name) == []


def test_a_changed_option_checks_again_and_a_changed_cutoff_tokenises_again(starts):
    starts("tdpo_spans")
    assert starts("tdpo_spans", pref_beta=0.3) == ["RecordCheck", "PairCheck"]
    assert starts("tdpo_spans", cutoff_len=300) == ["RecordProcessor.preprocess_dataset", "PairCheck"]
    assert starts("tdpo_spans", learning_rate=1e-4, num_train_epochs=2) == []


def test_a_file_with_other_rows_is_read_again_even_if_its_name_and_size_are_the_same(starts, tmp_path):
    starts("tdpo_spans")
    file = tmp_path / "data" / "sums.jsonl"
    text = file.read_text()
    file.write_text(text.replace("What is 0 + 1?", "What is 0 - 1?"))
    assert "RecordProcessor.preprocess_dataset" in starts("tdpo_spans")
    file.write_text(text)  # the first rows again, with another time of change
    assert starts("tdpo_spans") == []
