"""What happens to rows that are longer than cutoff_len, or equal after the cut: as the host does it, and counted."""

from __future__ import annotations

import json
import random
from functools import partial
from types import SimpleNamespace

import pytest
from sample_rows import ranked_rows, rows, span_rows, write_rows

ROWS = 2000
CUTOFF = 128


def numbers(draw: random.Random) -> str:
    """A few numbers, or many: about four tokens each."""
    return " ".join(str(draw.randint(100, 999)) for _ in range(draw.randint(1, draw.choice((6, 50)))))


@pytest.fixture(scope="module")
def tokenized(tiny_model):
    """A function that tokenises records by a stage's processor and by the host's, both with cutoff_len 128."""
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments, ModelArguments
    from llamafactory.model import load_tokenizer

    module = load_tokenizer(ModelArguments(model_name_or_path=str(tiny_model)))
    data_args = DataArguments(template="chatml", cutoff_len=CUTOFF)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    return partial(SimpleNamespace, template=template, data_args=data_args, **module)


def ours(kind, tokenized, records, formatting, **options):
    from finepref.formats.records import parse
    from finepref.hosts.reading import Sourced
    from finepref.hosts.row_cache import cached_row

    cached = [cached_row(Sourced("rows.jsonl", i + 1, parse(row, formatting))) for i, row in enumerate(records)]
    processor = kind(**vars(tokenized()), **options)
    found = processor.preprocess_dataset({name: [row[name] for row in cached] for name in cached[0]})
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


def host_columns(records, responses):
    """Rows as the host's converters make them; `responses` gives the assistant turns of a record."""
    turns = [[{"role": "user", "content": row["prompt"]}] for row in records]
    answers = [[{"role": "assistant", "content": text} for text in responses(row)] for row in records]
    empty = {name: [None] * len(records) for name in ("_images", "_videos", "_audios")}
    blank = {name: [""] * len(records) for name in ("_system", "_tools")}
    return {"_prompt": turns, "_response": answers, **blank, **empty}


def test_by_default_pairs_are_cut_token_for_token_as_the_hosts_dpo_cuts_them(tokenized):
    from finepref.hosts.llamafactory.pairs import PairProcessor
    from finepref.hosts.packed import whole_pair
    from llamafactory.data.processor import PairwiseDatasetProcessor

    draw = random.Random(1)
    records = [
        {"id": str(i), "prompt": numbers(draw), "chosen": numbers(draw), "rejected": "no " + numbers(draw)}
        for i in range(ROWS)
    ]
    host = PairwiseDatasetProcessor(**vars(tokenized())).preprocess_dataset(
        host_columns(records, lambda row: (row["chosen"], row["rejected"]))
    )
    mine = [whole_pair(row) for row in ours(PairProcessor, tokenized, records, "pair")]
    names = [f"{side}_{name}" for side in ("chosen", "rejected") for name in ("input_ids", "labels")]
    kept = [row for row in mine if not row["_skipped"]]
    skipped = {row["_skipped"] for row in mine}
    assert skipped <= {"", "equal_after_cut", "no_room_for_response"}
    by_cut = [sum(row["cut"] == cut for row in kept) for cut in ("", "prompt", "response", "prompt,response")]
    assert all(count > 100 for count in by_cut), by_cut
    for index, row in enumerate(mine):
        if not row["_skipped"]:
            assert [row[name] for name in names] == [host[name][index] for name in names]


def test_by_default_a_response_alone_is_cut_token_for_token_as_the_hosts_kto_cuts_it(tokenized):
    """Compared where the host keeps as much of the prompt of the good row as of the bad one, as ours always does."""
    from finepref.hosts.llamafactory.unpaired_data import UnpairedProcessor, sequences
    from llamafactory.data.processor import FeedbackDatasetProcessor

    draw = random.Random(2)
    records = []
    for i in range(ROWS * 3 // 2):
        answer = numbers(draw)
        negative = answer[:-1] + str((int(answer[-1]) + 1) % 10)
        records.append({"id": str(i), "prompt": numbers(draw), "chosen": answer, "negatives": {"logic": negative}})
    mine = ours(UnpairedProcessor, tokenized, records, "negatives")
    processor = FeedbackDatasetProcessor(**vars(tokenized()))
    good = processor.preprocess_dataset(host_columns(records, lambda row: (row["chosen"], "")))
    bad = processor.preprocess_dataset(host_columns(records, lambda row: ("", row["negatives"]["logic"])))
    alike = [
        index
        for index in range(ROWS * 3 // 2)
        if good["labels"][index].count(-100) == bad["labels"][index].count(-100)
        and len(good["labels"][index]) == len(bad["labels"][index])
        and not mine[2 * index]["_skipped"]
    ]
    assert len(alike) >= ROWS, len(alike)
    assert sum(bool(mine[2 * index]["cut"]) for index in alike) > 500
    for index in alike[:ROWS]:
        for row, host in ((mine[2 * index], good), (mine[2 * index + 1], bad)):
            assert sequences(row)[0] == (host["input_ids"][index], host["labels"][index])


@pytest.fixture
def told(monkeypatch) -> list[str]:
    """The lines that a run logs about its rows."""
    from finepref.hosts.llamafactory import workflow

    lines: list[str] = []
    logger = SimpleNamespace(info_rank0=lines.append, warning_rank0=lines.append)
    monkeypatch.setattr(workflow, "logger", logger)
    return lines


LONG = "Why is it so, and not otherwise? " * 40  # about 1,000 characters, far above a cutoff of 512 tokens


def one_percent(records: list[dict], **fields: object) -> list[dict]:
    """The records with every hundredth of them, from the 50th on, changed."""
    return [row | fields if i % 100 == 50 else row for i, row in enumerate(records)]


@pytest.mark.parametrize(
    ("recipe_name", "records", "formatting"),
    [
        (
            "tdpo_hh",
            [{key: row[key] for key in ("id", "prompt", "chosen", "rejected")} for row in span_rows(200)],
            "pair",
        ),
        ("apo_rm", ranked_rows(200), "ranked"),
    ],
)
def test_a_recipe_trains_with_its_own_cutoff_on_data_with_one_percent_of_overlong_rows(
    run, tmp_path, told, recipe_name, records, formatting
):
    folder = write_rows(tmp_path / "data", one_percent(records, prompt=LONG), formatting=formatting)
    done = run(name=recipe_name, dataset_dir=str(folder), dataset="sums", finetuning_type="lora", cutoff_len=512)
    assert done.receipt["rows"] == {
        "read": 200,
        "in_training_set": 200,
        "in_evaluation_set": 0,
        "repeated": 0,
        "skipped": {},
        "rejected": {},
        "cut": {"prompt": 2},
        "responses_skipped": {},
        "seen": 8,
    }
    assert told == ["2 rows have a prompt that is cut to fit `cutoff_len`"]


@pytest.mark.parametrize(
    ("policy", "cut", "skipped"),
    [
        ("host", {"prompt": 1, "response": 1}, {}),
        ("keep_prompt", {"response": 1}, {"no_room_for_response": 1}),
        ("truncate_left", {"prompt": 1, "response": 1}, {}),
        ("skip", {}, {"overlong": 2}),
    ],
)
def test_a_policy_says_what_becomes_of_a_long_prompt_and_a_long_response(run, tmp_path, policy, cut, skipped):
    """keep_prompt has no room for a response after the long prompt; truncate_left drops nothing of a short prompt but
    its beginning if the response is too long: one token of it stays."""
    records = rows()
    records[3]["prompt"] = LONG
    records[7]["chosen"] = LONG
    folder = write_rows(tmp_path / "data", records)
    done = run(dataset_dir=str(folder), cutoff_len=200, finepref_overlong=policy)
    found = done.receipt["rows"]
    if policy == "truncate_left":
        cut = {"prompt": 2, "response": 1}
    assert found["cut"] == cut
    assert found["skipped"] == skipped
    assert found["in_training_set"] == 12 - sum(skipped.values())
    named = done.folder / "skipped.jsonl"
    lines = [json.loads(line) for line in named.read_text().splitlines()] if named.exists() else []
    assert [line["id"] for line in lines] == (["sum-3", "sum-7"][: sum(skipped.values())])
    assert all(line["place"].endswith(("sums.jsonl:4", "sums.jsonl:8")) for line in lines)


def test_the_policy_error_names_every_record_that_is_too_long(refused):
    records = rows()
    for index in (3, 7):
        records[index]["prompt"] = LONG
    message = refused(records, cutoff_len=128, finepref_overlong="error")
    assert "FP203" in message
    assert "sums.jsonl:4 prompt" in message
    assert "sums.jsonl:8" in message
    assert "above cutoff_len 128" in message


def test_many_cut_prompts_give_a_warning_that_names_the_way_out(run, tmp_path, told):
    folder = write_rows(tmp_path / "data", [row | {"prompt": LONG + row["prompt"]} for row in rows()])
    run(dataset_dir=str(folder), cutoff_len=200)
    assert told[-1].startswith("12 of 12 prompts (100.0%) are cut")
    assert "`finepref_overlong` keep_prompt cuts only responses" in told[-1]


PAIRS = [{key: row[key] for key in ("id", "prompt", "chosen", "rejected")} for row in span_rows(12)]


@pytest.mark.parametrize("name", ["tdpo_hh", "sepo", "apo_rm"])
def test_responses_that_are_equal_after_the_cut_are_skipped_by_id(run, tmp_path, name):
    records = [dict(row) for row in PAIRS]
    records[4] |= {"chosen": LONG + "yes", "rejected": LONG + "no"}
    folder = write_rows(tmp_path / "data", records, formatting="pair")
    options = {"sepo_selection": "all"} if name == "sepo" else {"finetuning_type": "lora"}
    done = run(name=name, dataset_dir=str(folder), dataset="sums", cutoff_len=128, **options)
    assert done.receipt["rows"]["skipped"] == {"equal_after_cut": 1}
    assert done.receipt["rows"]["in_training_set"] == 11
    (line,) = (done.folder / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == records[4]["id"]


def test_a_run_that_has_no_row_left_says_why(refused):
    records = [{**row, "chosen": LONG + "yes", "rejected": LONG + "no"} for row in PAIRS]
    entry = {"name": "plain", "formatting": "pair"}
    message = refused(records, entry, name="tdpo_hh", dataset="plain", cutoff_len=128)
    assert message.startswith("no row is left; 12 rows skipped: equal_after_cut, such as span-0 (")


def test_a_negative_that_is_equal_after_the_cut_is_not_drawn_and_a_record_without_another_is_skipped(run, tmp_path):
    records = rows()
    records[2]["chosen"] = LONG + "yes"
    records[2]["negatives"]["logic"] = LONG + "no"
    records[5] |= {"chosen": LONG + "yes", "negatives": {"logic": LONG + "no"}}
    folder = write_rows(tmp_path / "data", records)
    done = run(dataset_dir=str(folder), cutoff_len=128)
    assert done.receipt["rows"]["skipped"] == {"equal_after_cut": 1}
    assert done.receipt["rows"]["responses_skipped"] == {"equal_after_cut": 1}
    named = [json.loads(line) for line in (done.folder / "skipped.jsonl").read_text().splitlines()]
    assert {line["id"]: line.get("response") for line in named} == {"sum-2": "logic", "sum-5": None}


def test_a_response_whose_selected_tokens_are_all_cut_is_skipped(run, tmp_path):
    records = span_rows()
    text = LONG + records[4]["rejected"]
    records[4] |= {"rejected": text, "rejected_spans": [{"start": len(text) - 3, "end": len(text)}]}
    folder = write_rows(tmp_path / "data", records, formatting="span_pair")
    done = run(name="tdpo_spans", dataset_dir=str(folder), dataset="sums", cutoff_len=128)
    assert done.receipt["rows"]["skipped"] == {"selected_tokens_cut": 1}


def test_all_responses_of_a_record_and_its_kl_responses_follow_the_same_prompt_tokens(tokenized):
    from finepref.hosts.llamafactory.unpaired_data import UnpairedProcessor, sequences

    records = rows()
    for i, row in enumerate(records):
        row["negatives"]["correctness"] = f"{i} {LONG}"  # somebody's mismatched response
    records[2] |= {"prompt": "Please add the two numbers " * 3, "chosen": "5."}
    records[2]["negatives"]["logic"] = LONG
    found = ours(UnpairedProcessor, tokenized, records, "negatives")
    starts = set()
    for row in found:
        if row["example_id"] == "sum-2":
            for kind in ("", "kl_"):
                for each, label in sequences(row, kind):
                    starts.add(tuple(each[: label.count(-100)]))
                    assert len(each) <= CUTOFF
                    assert label.count(-100) < len(each)
    assert len(starts) == 1


def test_bad_rows_are_errors_and_too_many_of_them_are_so_even_if_they_may_be_skipped(refused):
    records = rows(40)
    records[9]["chosen"] = ""
    message = refused(records)
    assert "FP012" in message
    message = refused(records, finepref_bad_rows="skip")
    assert "FP091" in message
    assert "1 of 40 rows are bad, 2.5%" in message
    assert "sums.jsonl:10 chosen" in message


def test_a_skipped_bad_row_is_counted_by_code_and_written_beside_the_model(run, tmp_path):
    records = rows(40)
    records[9]["chosen"] = ""
    records[11]["id"] = "sum-3"
    folder = write_rows(tmp_path / "data", records)
    done = run(dataset_dir=str(folder), finepref_bad_rows="skip", finepref_max_bad="5%")
    found = done.receipt["rows"]
    assert found["rejected"] == {"FP012": 1, "FP060": 1}
    assert (found["read"], found["in_training_set"]) == (40, 38)
    lines = [json.loads(line) for line in (done.folder / "rejected.jsonl").read_text().splitlines()]
    assert [(line["line"], line["problems"][0]["code"]) for line in lines] == [(10, "FP012"), (12, "FP060")]
    assert done.receipt["datasets"][0]["rejected"] == {"FP012": 1, "FP060": 1}


def test_a_folder_of_tokenised_rows_keeps_the_reasons_why_rows_were_skipped_and_cut(run, tmp_path):
    records = span_rows()
    records[3]["chosen"] += f" {LONG}"
    records[5]["prompt"] = LONG
    folder = write_rows(tmp_path / "data", records, formatting="span_pair")
    given = {"name": "tdpo_spans", "dataset_dir": str(folder), "dataset": "sums", "cutoff_len": 128, "max_steps": 1}
    given |= {"finepref_overlong": "keep_prompt", "tokenized_path": str(tmp_path / "tokens")}
    first = run(**given).receipt["rows"]
    assert first["skipped"] == {"no_room_for_response": 1}
    assert first["cut"] == {"response": 1}
    assert run(**given).receipt["rows"] == first
