"""Answers with errors that people marked train by an entry that names their layout."""

from __future__ import annotations

import json

from span_layout_rows import answers


def test_rows_with_marked_errors_train_by_the_name_of_their_layout_and_the_receipt_counts_them(train, tmp_path):
    (tmp_path / "answers.json").write_text(json.dumps(answers()), encoding="utf-8")
    entry = {"file_name": "answers.json", "formatting": "finegrained_rlhf"}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"answers": entry}))
    done = train("tdpo", data__dataset="answers", data__dataset_dir=tmp_path, tdpo__masks="annotated")
    rows = done.receipt["rows"]
    assert (rows["read"], rows["in_training_set"], rows["rejected"]) == (13, 12, {"FP120": 1})
    (found,) = done.receipt["datasets"]
    assert (found["formatting"], found["notes"]) == ("finegrained_rlhf", {"FP100": 1, "FP103": 1, "FP120": 1})
    assert 0 < done.receipt["tokens"]["rejected_selected"] < done.receipt["tokens"]["rejected_responses"]
