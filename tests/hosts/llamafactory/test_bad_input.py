"""Whatever is wrong with data or options is one coded, located error before any model loads."""

from __future__ import annotations

import json
import shutil

import pytest
from sample_rows import rows, write_rows


def changed(index: int, **fields: object) -> list[dict]:
    """Twelve good rows with one of them changed; a field of None is taken out."""
    records = rows()
    records[index] = {key: value for key, value in (records[index] | fields).items() if value is not None}
    return records


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"negatives": None}, "FP010", "negatives"),
        ({"negatives": {}}, "FP030", "negatives"),
        ({"negatives": {"logic": ""}}, "FP012", "negatives.logic"),
        ({"chosen": "  "}, "FP012", "chosen"),
        ({"chosen": "Same.", "negatives": {"logic": "Same."}}, "FP032", "negatives.logic"),
        ({"id": "sum-2"}, "FP060", "id"),
        ({"prompt": 7}, "FP011", "prompt"),
    ],
)
def test_a_bad_row_is_named_by_code_file_line_and_field(refused, fields, code, field):
    message = refused(changed(4, **fields))
    assert f"{code} " in message
    assert "sums.jsonl:5 " in message
    assert f" {field}:" in message


def test_all_problems_of_a_file_come_at_once(refused):
    records = changed(4, negatives={})
    records[9]["chosen"] = ""
    records[11]["id"] = "sum-0"
    message = refused(records)
    assert [f"sums.jsonl:{line}" in message for line in (5, 10, 12)] == [True] * 3
    assert message.endswith("3 problems")


def test_a_type_that_no_record_has_is_refused_by_name(refused):
    assert "no record has an error of type spelling" in refused(rows(), seapo_error_types="logic,spelling")


def test_a_record_without_any_of_the_asked_types_is_named(refused):
    message = refused(changed(4, negatives={"logic": "Wrong."}), seapo_error_types="correctness")
    assert "FP204" in message
    assert "sums.jsonl:5 negatives" in message


def test_a_data_set_of_one_prompt_cannot_form_kl_pairs(refused):
    records = rows(3)
    for record in records:
        record["prompt"] = "Always the same?"
    assert "FP205 the training split prompt: KTO needs two different prompts" in refused(records)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"val_size": 1}, "the evaluation split, val_size 1"),
        ({"eval_dataset": "one"}, "the evaluation split, eval_dataset"),
    ],
)
def test_an_evaluation_split_of_one_prompt_is_named(refused, sums, tmp_path, given, named):
    folder = shutil.copytree(sums, tmp_path / "data")
    write_rows(folder, rows()[:1], "one")
    message = refused(dataset_dir=str(folder), eval_strategy="steps", eval_steps=1, **given)
    assert message.startswith(f"FP205 {named} prompt: KTO needs two different prompts for its KL term")


def test_the_hosts_own_format_is_refused_by_our_stage(refused):
    message = refused(rows(), {"formatting": "alpaca"})
    assert "FP201" in message
    assert "stage seapo_kto trains on negatives or feedback, this dataset is alpaca" in message


def test_our_format_is_refused_by_the_hosts_own_stage(refused):
    message = refused(rows(), stage="kto")
    assert "the host's stage kto cannot read negatives; stage seapo_kto can" in message


def test_a_pairwise_data_set_is_refused(refused):
    assert "FP201" in refused(rows(), {"ranking": True, "formatting": "sharegpt"})


@pytest.mark.parametrize(
    ("file_name", "code"),
    [
        ("../secret.jsonl", "FP074"),
        ("link.jsonl", "FP074"),
        ("linked", "FP074"),
        ("missing.jsonl", "FP075"),
        ("mixed", "FP076"),
    ],
)
def test_a_path_that_leads_out_of_the_dataset_folder_or_to_no_data_is_refused(refused, tmp_path, file_name, code):
    secret = write_rows(tmp_path / "outside", rows()) / "sums.jsonl"
    secret.rename(tmp_path / "secret.jsonl")
    data = tmp_path / "bad"
    (data / "mixed").mkdir(parents=True)
    for name in ("1.jsonl", "2.txt"):
        (data / "mixed" / name).write_text("{}\n")
    (data / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (data / "linked").symlink_to(tmp_path / "outside")
    message = refused(rows(), {"file_name": file_name})
    assert f"{code} " in message
    assert " sums.file_name: " in message
    assert message.endswith("1 problem")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"pref_beta": -0.1}, "`pref_beta` must be above 0, not -0.1"),
        ({"kto_rejected_weight": 0.0}, "`kto_rejected_weight` must be above 0, not 0.0"),
        ({"pref_ftx": -1.0}, "`pref_ftx` must not be negative, but is -1.0"),
        ({"seapo_resample": "never"}, "`seapo_resample` must be epoch or once, not 'never'"),
        ({"seapo_error_types": "logic,,"}, "`seapo_error_types` has an empty name"),
        ({"stage": "sft", "seapo_resample": "once"}, "`seapo_resample` is a key of stage seapo_kto, not of sft"),
        ({"model_name_or_path": "models/smollm2-no"}, "`finepref model smollm2 --output models/smollm2-no`"),
        ({"model_name_or_path": "models/nowhere"}, "there is no model folder 'models/nowhere'"),
        ({"dataset": "seapo_ultrafeedback", "dataset_dir": "dataset_info"}, "make it with: finepref seapo inject"),
        ({"dataset": "sums,nothing"}, "Undefined dataset nothing"),
    ],
)
def test_bad_options_give_one_clear_line(refused, overrides, message, monkeypatch):
    from conftest import ROOT

    monkeypatch.chdir(ROOT)
    assert message in refused(**overrides)


def test_a_misspelt_key_is_named_by_the_host(refused):
    assert "seapo_eror_types" in refused(seapo_eror_types="logic")


def test_a_tokenised_folder_of_another_stage_is_refused(run, refused, tmp_path):
    folder = tmp_path / "tokens"
    run(tokenized_path=str(folder))
    assert json.loads((folder / "finepref_tokenized.json").read_text())["stage"] == "seapo_kto"
    message = refused(stage="kto", tokenized_path=str(folder))
    assert "was written for stage seapo_kto" in message
    assert "this run is a stage of the host" in message
