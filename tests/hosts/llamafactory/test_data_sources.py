"""Where seapo_kto's records may come from: shipped and own tables, own columns, release files, streams.

Tokenised folders and streams of all stages: test_conformance.py.
"""

from __future__ import annotations

import json
import sys

import pytest
from sample_rows import rows, write_rows


def test_the_shipped_demo_set_is_found_by_name_beside_a_users_own(run, sums):
    done = run(dataset="sums,seapo_demo")
    names = [entry["name"] for entry in done.receipt["datasets"]]
    assert names == ["sums", "seapo_demo"]
    assert done.receipt["rows"]["in_training_set"] == sum(entry["read"] for entry in done.receipt["datasets"])


def test_columns_may_have_any_names(run, tmp_path):
    records = [
        {"key": r["id"], "question": r["prompt"], "answer": r["chosen"], "wrong": r["negatives"]} for r in rows()
    ]
    columns = {"id": "key", "prompt": "question", "chosen": "answer", "negatives": "wrong"}
    plain = run(output_dir=str(tmp_path / "plain"))
    named = run(
        output_dir=str(tmp_path / "named"),
        dataset_dir=str(write_rows(tmp_path / "named_data", records, columns=columns)),
    )
    assert named.receipt["draws"] == plain.receipt["draws"]
    assert named.log[0]["loss"] == plain.log[0]["loss"]


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("hf_hub_url", "FP111 them/set: Couldn't reach 'them/set' on the Hub"),
        ("ms_hub_url", "FP110 them/set: modelscope is not installed: pip install modelscope"),
    ],
)
def test_a_hub_that_cannot_be_had_is_one_line_with_what_to_do(refused, tmp_path, monkeypatch, key, told):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setitem(sys.modules, "modelscope", None)
    entry = {key: "them/set", "formatting": "negatives"}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"sums": entry}))
    message = refused(dataset_dir=str(tmp_path))
    assert message.startswith(told)
    assert "download the data" in message
    assert "name a file_name" in message


def release_files(folder, count: int = 12):
    """The SeaPO release's form: one file per error type, each prompt's original (true) and injected (false) answer."""
    for name in ("correctness", "logic"):
        records = []
        for row in rows(count):
            turn = {"role": "user", "content": row["prompt"]}
            for text, label in ((row["chosen"], True), (row["negatives"][name], False)):
                records.append({"messages": [turn, {"role": "assistant", "content": text}], "label": label})
        write_rows(folder, records, name=name, formatting="feedback", error_type=name)
    return folder


def test_the_files_of_the_seapo_release_load_as_they_are(run, tmp_path):
    done = run(dataset="correctness,logic", dataset_dir=str(release_files(tmp_path / "release")), max_steps=6)
    assert done.receipt["rows"]["read"] == done.receipt["rows"]["in_training_set"] == 48
    assert sum(done.receipt["draws"]["counts"].values()) == 12
    assert set(done.receipt["draws"]["counts"]) == {"correctness", "logic"}


def test_max_samples_counts_what_it_leaves_out_even_inside_a_prompt(run, tmp_path):
    """7 of 24 rows a file: 3 whole prompts each, the 4th has only its original in both files: 6 + 6 + 2 cut rows."""
    folder = release_files(tmp_path / "release")
    done = run(dataset="correctness,logic", dataset_dir=str(folder), max_samples=7)
    assert done.receipt["rows"]["in_training_set"] == 12
    assert done.receipt["rows"]["skipped"] == {"max_samples": 34, "prompt_split_by_max_samples": 2}
    assert [entry["skipped"] for entry in done.receipt["datasets"]] == [17, 17]


def test_a_stream_stops_at_a_prompt_beyond_cutoff_len_only_if_it_is_told_to(run, tmp_path):
    records = rows()
    records[5]["prompt"] = "Why? " * 80
    folder = write_rows(tmp_path / "long", records)
    stream = {"dataset_dir": str(folder), "streaming": True, "dataloader_num_workers": 1, "cutoff_len": 128}
    with pytest.raises(ValueError, match=r"FP203 .*sums.jsonl:6 prompt"):
        run(**stream, max_steps=6, finepref_overlong="error")
    assert run(**stream, max_steps=6).receipt["ranks"][0]["loss_calls"] >= 12
    assert run(**stream, max_steps=6, finepref_overlong="skip").receipt["ranks"][0]["loss_calls"] >= 12


def test_a_stream_of_feedback_rows_is_refused_with_the_way_out(run, tmp_path):
    folder = release_files(tmp_path / "release")
    with pytest.raises(ValueError, match="finepref convert --from feedback --to negatives"):
        run(dataset="logic", dataset_dir=str(folder), streaming=True, dataloader_num_workers=1)


def test_records_with_system_and_several_turns_keep_them(run, tmp_path):
    records = rows()
    for record in records:
        record["messages"] = [
            {"role": "system", "content": "Be exact."},
            {"role": "user", "content": "Ready?"},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": record.pop("prompt")},
        ]
    folder = write_rows(tmp_path / "turns", records)
    done = run(dataset_dir=str(folder), max_steps=1)
    assert done.receipt["rows"]["in_training_set"] == 12


def test_kl_partners_never_share_the_prompt_even_when_rows_of_one_prompt_sit_side_by_side(tmp_path):
    import random

    from finepref.methods.draws import partners

    drawn = random.Random(0)
    for _ in range(200):
        keyed = [(f"prompt-{drawn.randrange(5)}", f"id-{i}") for i in range(drawn.randrange(6, 40))]
        if len({key for key, _ in keyed}) < 2:
            continue
        for row, partner in enumerate(partners(keyed)):
            assert keyed[row][0] != keyed[partner][0]


def test_an_edited_row_is_tokenised_again_not_served_from_the_cache(run, tmp_path):
    records = rows()
    folder = write_rows(tmp_path / "data", records)
    before = run(output_dir=str(tmp_path / "before"), dataset_dir=str(folder), max_steps=6)
    records[0]["chosen"] = "Quite another answer."
    write_rows(tmp_path / "data", records)
    after = run(output_dir=str(tmp_path / "after"), dataset_dir=str(folder), max_steps=6)
    assert [entry.get("loss") for entry in after.log] != [entry.get("loss") for entry in before.log]
    assert json.dumps(before.receipt["datasets"]) != json.dumps(after.receipt["datasets"])
