"""The host's own preference sets train by the entries that its users have, in every stage that can take them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sample_rows import span_rows

PAIRS = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in span_rows()]


def alpaca(row: dict) -> dict:
    first, rest = row["prompt"].split(" ", 1)
    return {
        "instruction": first,
        "input": rest,
        "system": "Add.",
        "chosen": row["chosen"],
        "rejected": row["rejected"],
    }


def sharegpt(row: dict) -> dict:
    answers = {side: {"from": "gpt", "value": row[side]} for side in ("chosen", "rejected")}
    return {"conversations": [{"from": "human", "value": row["prompt"]}], **answers}


def renamed(row: dict) -> dict:
    answers = {f"{side}_answer": {"who": "bot", "says": row[side]} for side in ("chosen", "rejected")}
    return {"talk": [{"who": "person", "says": row["prompt"]}], **answers}


ENTRIES = {
    "alpaca": (
        alpaca,
        {
            "columns": {
                "prompt": "instruction",
                "query": "input",
                "system": "system",
                "chosen": "chosen",
                "rejected": "rejected",
            }
        },
    ),
    "sharegpt": (
        sharegpt,
        {
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
        },
    ),
    "renamed": (
        renamed,
        {
            "formatting": "sharegpt",
            "columns": {"messages": "talk", "chosen": "chosen_answer", "rejected": "rejected_answer"},
            "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "person", "assistant_tag": "bot"},
        },
    ),
}


@pytest.fixture(params=ENTRIES)
def own_set(request, tmp_path) -> Path:
    """A dataset_dir with a ranking set of the host, `own`."""
    make, entry = ENTRIES[request.param]
    (tmp_path / "own.json").write_text(json.dumps([make(row) for row in PAIRS]))
    entry = {"file_name": "own.json", "ranking": True, **entry}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"own": entry}))
    return tmp_path


STAGES = {
    "tdpo_hh": {"finetuning_type": "lora"},
    "sepo": {"sepo_selection": "all"},
    "apo_rm": {"finetuning_type": "lora"},
}


@pytest.mark.parametrize("name", STAGES)
def test_a_ranking_set_of_the_host_trains_by_its_own_entry(run, own_set, name):
    done = run(name=name, dataset="own", dataset_dir=str(own_set), **STAGES[name])
    assert done.receipt["rows"]["in_training_set"] == done.receipt["rows"]["read"] == 12
    assert done.receipt["datasets"][0]["formatting"] in ("alpaca", "sharegpt")


def test_its_tokens_are_those_of_the_hosts_own_dpo(own_set, tiny_model, tmp_path):
    """The same prompt, with `input` and `system`, and the same responses as in the host's own rows."""
    from finepref import stages
    from finepref.hosts.llamafactory import arguments
    from finepref.hosts.packed import whole_pair
    from finepref.hosts.run import Run
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    found = {}
    for stage, keys in {"dpo": {}, "tdpo": {"tdpo_masks": "none"}}.items():
        settings = {
            "stage": stage,
            "do_train": True,
            "model_name_or_path": str(tiny_model),
            "template": "chatml",
            "dataset": "own",
            "dataset_dir": str(own_set),
            "output_dir": str(tmp_path / "out"),
            "finetuning_type": "lora",
            "report_to": "none",
            "cache_dir": str(tmp_path / "cache"),
            **keys,
        }
        model_args, data_args, training_args, finetuning_args, _ = get_train_args(settings)
        module = load_tokenizer(model_args)
        template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
        if stage == "dpo":
            data = get_dataset(template, model_args, data_args, training_args, stage="rm", **module)
        else:
            row = stages.find(stage)
            with Run(row, arguments.options_of(row, finetuning_args), ()).active():
                data = get_dataset(template, model_args, data_args, training_args, stage=stage, **module)
        found[stage] = data["train_dataset"]
    ours = [whole_pair(row) for row in found["tdpo"]]
    for side in ("chosen", "rejected"):
        for part in ("input_ids", "labels"):
            name = f"{side}_{part}"
            assert [row[name] for row in ours] == found["dpo"][name][:]


def test_the_web_ui_lists_it_for_our_stages_and_still_for_the_hosts(own_set):
    from finepref import stages
    from finepref.hosts.llamafactory import data
    from finepref.hosts.llamafactory.webui import datasets

    for name in ("tdpo", "sepo", "apo_rm"):
        assert "own" in datasets.fitting(stages.find(name), str(own_set))
    assert "own" not in datasets.fitting(stages.find("seapo_kto"), str(own_set))
    assert not data.is_ours(data.entries_of(str(own_set))["own"])


def test_a_set_for_sft_is_refused_and_says_which_of_the_hosts_sets_are_read(refused, tmp_path):
    (tmp_path / "sft.json").write_text(json.dumps([{"instruction": "1 + 1?", "input": "", "output": "2"}]))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"sft": {"file_name": "sft.json"}}))
    message = refused(name="tdpo_hh", dataset="sft", dataset_dir=str(tmp_path))
    assert "FP201" in message
    assert "those with `ranking: true` or a `kto_tag` column are read" in message


def test_a_public_layout_is_named_by_formatting(run, tmp_path):
    rows = [
        {"question": row["prompt"], "system": "", "chosen": row["chosen"], "rejected": row["rejected"]}
        for row in PAIRS
    ]
    (tmp_path / "orca.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "dataset_info.json").write_text(
        json.dumps({"orca": {"file_name": "orca.jsonl", "formatting": "orca"}})
    )
    done = run(name="tdpo_hh", dataset="orca", dataset_dir=str(tmp_path), finetuning_type="lora")
    assert done.receipt["rows"]["in_training_set"] == 12


def test_a_folder_of_csv_shards_and_a_packed_file_train_as_json_lines_do(run, tmp_path):
    import csv
    import gzip

    (tmp_path / "shards").mkdir()
    for number in (0, 1):
        with open(tmp_path / "shards" / f"{number}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, ["prompt", "chosen", "rejected"])
            writer.writeheader()
            writer.writerows(PAIRS[6 * number : 6 * number + 6])
    with gzip.open(tmp_path / "packed.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in PAIRS))
    entries = {
        name: {"file_name": file, "formatting": "pair"}
        for name, file in {"shards": "shards", "packed": "packed.jsonl.gz"}.items()
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    for name in entries:
        done = run(name="tdpo_hh", dataset=name, dataset_dir=str(tmp_path), finetuning_type="lora")
        assert done.receipt["rows"]["in_training_set"] == 12


def test_rows_of_equal_content_train_as_on_the_host_and_are_counted(run, refused, tmp_path):
    (tmp_path / "twice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*PAIRS, PAIRS[3]]))
    (tmp_path / "dataset_info.json").write_text(
        json.dumps({"twice": {"file_name": "twice.jsonl", "formatting": "pair"}})
    )
    done = run(name="tdpo_hh", dataset="twice", dataset_dir=str(tmp_path), finetuning_type="lora")
    assert done.receipt["rows"]["in_training_set"] == 13
    assert done.receipt["datasets"][0]["notes"] == {"FP109": 1}
    named = [{**row, "id": "one"} for row in PAIRS]
    assert "'one' is the id of line 1 too" in refused(named, {"formatting": "pair"}, name="tdpo_hh", dataset="sums")
