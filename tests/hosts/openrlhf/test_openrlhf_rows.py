"""Rows that do not fit, have problems or are beyond a limit: what is trained on, and what is said of the rest."""

from __future__ import annotations

import json
import re
from functools import partial
from types import SimpleNamespace

import pytest
from sample_rows import ranked_rows, rows, scored_rows, span_rows, write_rows
from tiny_llama import CHATML

LONG = "and so on " * 90


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    from openrlhf.utils import get_tokenizer

    return get_tokenizer(str(tiny_model), None, "right", None, use_fast=True)


@pytest.fixture
def tokenised(host, tokenizer, monkeypatch):
    """Tokenise records of a stage with the options of a method. Returns the rows and the notes."""
    from finepref.formats import records
    from finepref.hosts.openrlhf import data, pairs, ranked_data, unpaired
    from finepref.hosts.openrlhf.notes import Notes
    from finepref.hosts.reading import Sourced
    from finepref.hosts.rows import Rows
    from finepref.methods import apo_rm, dpo_pl, seapo_kto, sepo, tdpo
    from finepref.methods.options import in_yaml

    stages = {method.STAGE.name: method.STAGE for method in (tdpo, sepo, seapo_kto, apo_rm, dpo_pl)}

    def call(name: str, table: list[dict], formatting: str, *, max_len: int, template: str = CHATML, **given: object):
        stage = stages[name]
        options = stage.options.read("openrlhf", given, in_yaml)
        monkeypatch.setattr(tokenizer, "chat_template", template)
        settings = {"apply_chat_template": True, "tokenizer_chat_template": None, "input_template": None}
        encoder = data.Encoder(
            tokenizer,
            SimpleNamespace(max_len=max_len, **settings),
            policy=options.overlong,
            rule=data.reward_rule if stage.shape == "ranked" else data.dpo_rule,
        )
        notes = Notes(Rows(), options.bad_rows)
        found = [Sourced("x.jsonl", i, records.parse(row, formatting)) for i, row in enumerate(table, start=1)]
        if stage.shape == "pair":
            weigh = partial(stage.weigh or pairs.weigh_all, options=options, seed=0)
            return pairs.tokenise(found, encoder, "x", notes, weigh=weigh), notes
        if stage.shape in ("ranked", "lists"):
            given = {"options": options} if stage.shape == "ranked" else {}
            return ranked_data.tokenise(found, encoder, "x", notes, **given), notes
        return unpaired.tokenise(found, encoder, "x", notes, types=options.error_types), notes

    return call


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def prompt_of(tokenizer, text: str) -> list[int]:
    return ids_of(tokenizer, f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")


def lines_of(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def said(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("finepref: ") and "tokens of" not in line]


# records that are too long


@pytest.mark.parametrize(
    ("name", "table", "formatting", "field", "group"),
    [
        ("tdpo", span_rows, "span_pair", "rejected", "tdpo"),
        ("kto", rows, "negatives", "chosen", "kto"),
    ],
)
def test_a_run_trains_on_what_the_host_keeps_and_names_the_rest(
    train, tmp_path, name, table, formatting, field, group
):
    """Row 3 has a prompt that is too long, row 6 a response; the others have at most 60 tokens."""
    records = table()
    records[2]["prompt"] = LONG
    records[5][field] += f" {LONG}"
    folder = write_rows(tmp_path / "data", records, "long", formatting=formatting)
    done = train(name, data__dataset="long", data__dataset_dir=folder, data__max_len=96)
    identifier = records[2]["id"]
    seen = done.receipt["rows"].pop("seen")
    assert seen == 8 * (2 if name == "kto" else 1)
    assert done.receipt["rows"] == {
        "read": 12,
        "in_training_set": 11,
        "in_evaluation_set": 0,
        "repeated": 0,
        "skipped": {"overlong": 1},
        "rejected": {},
        "cut": {"response": 1} | ({"mismatched_response": 1} if name == "kto" else {}),
        "responses_skipped": {},
    }
    assert done.receipt["settings"]["finepref_overlong"] == "host"
    assert done.receipt["records_left_out_per_epoch"] == 3
    place = f"{folder}/long.jsonl:3"
    assert lines_of(done.folder / "skipped.jsonl") == [{"id": identifier, "place": place, "reason": "overlong"}]
    assert not (done.folder / "rejected.jsonl").exists()
    lines = said(done.output)
    assert lines[0] == f"finepref: 1 rows skipped: overlong, such as {identifier} ({place})"
    assert "finepref: 1 rows have a response that is cut to fit --data.max_len" in lines


def test_every_response_of_a_kto_record_sees_the_same_prompt_tokens(tokenised, tokenizer):
    """The cut is by the record's longest response; the mismatched responses get what room it leaves."""
    table = rows(4)
    table[1]["negatives"]["logic"] += " and so on" * 40
    for policy in ("host", "keep_prompt", "truncate_left"):
        made, notes = tokenised("seapo_kto", table, "negatives", max_len=64, finepref_overlong=policy)
        assert len(made) == 4
        whole = prompt_of(tokenizer, table[1]["prompt"])
        kept = made[1].prompt.tolist()
        assert kept == (whole[-1:] if policy == "truncate_left" else whole)
        for row in made:
            each = [row.chosen, *row.negatives.values(), row.other_chosen, *row.other_negatives.values()]
            assert all(1 <= len(response) <= 64 - len(row.prompt) for response in each)
        assert len(made[1].negatives["logic"]) == 64 - len(kept)
        assert made[1].negatives["logic"][-1] == tokenizer.eos_token_id
        assert made[1].chosen.tolist() == ids_of(tokenizer, f"{table[1]['chosen']}<|im_end|>\n")
        assert notes.rows.cut == ({"prompt": 1} if policy == "truncate_left" else {}) | {
            "response": 1,
            "mismatched_response": 1,
        }


def test_an_error_type_that_is_not_drawn_does_not_cut_a_record(tokenised):
    table = rows(4)
    table[1]["negatives"]["logic"] += " and so on" * 40
    given = {"finepref_overlong": "truncate_left", "seapo_error_types": "correctness,hallucination"}
    made, notes = tokenised("seapo_kto", table, "negatives", max_len=96, **given)
    assert made[1].negatives.keys() == {"correctness", "hallucination"}
    assert not notes.rows.cut


def test_a_list_is_cut_at_the_beginning_of_its_prompt_for_all_responses_alike(tokenised, tokenizer):
    table = ranked_rows()
    prompt = prompt_of(tokenizer, table[4]["prompt"])
    responses = [ids_of(tokenizer, f"{text}<|im_end|>\n") for text in table[4]["responses"]]
    beyond = 2
    longest = len(prompt) + max(map(len, responses)) - beyond
    for pooling, dropped in (("eos", 1), ("last", 2)):
        made, notes = tokenised("apo_rm", table[4:5], "ranked", max_len=longest, apo_pooling=pooling)
        expected = [prompt[beyond:] + ids[: len(ids) - dropped] for ids in responses]
        assert [ids.tolist() for ids in made[0].sequences] == expected
        assert notes.rows.cut == {"prompt": 1}


def test_a_response_longer_than_the_whole_sequence_keeps_its_end_token(tokenised, tokenizer):
    """Once it stopped the run (FP221)."""
    table = ranked_rows(1)
    table[0]["responses"][0] += " and so on" * 40
    made, notes = tokenised("apo_rm", table, "ranked", max_len=32, apo_pooling="eos")
    last = prompt_of(tokenizer, table[0]["prompt"])[-1]
    text = ids_of(tokenizer, table[0]["responses"][0])
    assert made[0].sequences[0].tolist() == [last, *text[:30], tokenizer.eos_token_id]
    assert made[0].sequences[1].tolist() == [last, *ids_of(tokenizer, f"{table[0]['responses'][1]}<|im_end|>")]
    assert notes.rows.cut == {"prompt": 1, "response": 1}


def test_a_policy_reads_lists_as_a_whole_best_first_with_one_prompt_and_leaves_out_what_cannot_be_compared(
    tokenised, tokenizer
):
    """Responses have their end tokens and the line break after them. Equal scores have equal ranks."""
    table = ranked_rows(4)
    table[1] |= {"responses": ["worst", "best", "middle"], "scores": [-3, 9, 2]}
    table[2] |= {"responses": ["one", "two", "three"], "scores": [1, 0, 1]}
    table[3] |= {"responses": [f"{LONG}{end}" for end in "ab"], "scores": [1, 0]}
    made, notes = tokenised("dpo_pl", table, "ranked", max_len=64)
    written = [(["best", "middle", "worst"], [2, 1, 0]), (["one", "three", "two"], [1, 1, 0])]
    for row, record, (texts, ranks) in zip([made[1], made[2]], table[1:3], written, strict=True):
        prompt = prompt_of(tokenizer, record["prompt"])
        assert [ids.tolist() for ids in row.sequences] == [
            prompt + ids_of(tokenizer, f"{text}<|im_end|>\n") for text in texts
        ]
        assert (row.ranks, row.prompt) == (ranks, len(prompt))
    assert len(made) == 3
    assert notes.rows.skipped == {"equal_after_cut": 1}


def test_the_end_token_that_is_kept_has_its_own_score(tokenised, tokenizer, tiny_model):
    """The three highest scores are at the end token and at two tokens that are cut off."""
    table = scored_rows(tiny_model, 1)
    count = len(table[0]["chosen_scores"])
    assert count > 12
    table[0]["chosen_scores"] = [*([0.0] * (count - 3)), 7.0, 8.0, 9.0]
    prompt = prompt_of(tokenizer, table[0]["prompt"])
    given = {"sepo_ratio_chosen": 0.1, "sepo_ratio_rejected": 1.0}
    made, notes = tokenised("sepo", table, "scored_pair", max_len=len(prompt) + 11, **given)
    weight = made[0].chosen.weight.tolist()
    assert weight == [0.0] * (len(prompt) + 10) + [1.0]
    assert made[0].chosen.ids[-1] == tokenizer.eos_token_id
    assert notes.rows.cut == {"response": 1}


@pytest.mark.parametrize(
    ("name", "table", "formatting", "masks"),
    [("tdpo", span_rows, "span_pair", {"tdpo__masks": "annotated"}), ("apo_rm", ranked_rows, "ranked", {})],
)
def test_the_policy_error_stops_the_run_with_file_line_and_lengths(attempt, tmp_path, name, table, formatting, masks):
    group = {"tdpo": "tdpo", "apo_rm": "apo"}[name]
    records = table()
    records[6]["prompt"] = LONG
    folder = write_rows(tmp_path / "data", records, "long", formatting=formatting)
    given = {"data__dataset": "long", "data__dataset_dir": folder, "data__max_len": 96, f"{group}__overlong": "error"}
    done = attempt(name, **given, **masks)
    assert done.code == 1
    assert f"FP203 {folder}/long.jsonl:7 prompt: the prompt has " in done.output
    assert " tokens and its longest response " in done.output
    assert re.search(r"together above --data.max_len 96 \(id \S+\)\n1 problem$", done.output.rstrip())
    assert not done.folder.exists()


def test_the_policy_skip_leaves_out_every_record_that_is_too_long(tokenised):
    table = span_rows(6)
    table[1]["prompt"] = LONG
    table[4]["rejected"] += f" {LONG}"
    made, notes = tokenised("tdpo", table, "span_pair", max_len=96, finepref_overlong="skip")
    assert len(made) == 4
    assert [row["id"] for row in notes.rows.named] == ["span-1", "span-4"]
    assert notes.rows.skipped == {"overlong": 2}
    assert not notes.rows.cut


def test_a_run_in_which_many_prompts_are_cut_warns_and_names_the_other_policies(train, tmp_path):
    records = span_rows()
    for row in records[:3]:
        row["prompt"] = f"{row['prompt']} {LONG}"
    folder = write_rows(tmp_path / "data", records, "long", formatting="span_pair")
    given = {"data__dataset": "long", "data__dataset_dir": folder, "data__max_len": 96}
    done = train("tdpo", **given, tdpo__overlong="truncate_left")
    (warning,) = (line for line in said(done.output) if "warning" in line)
    assert warning.startswith("finepref: warning: 3 of 12 prompts (25.0%) are cut")
    assert "--tdpo.overlong keep_prompt cuts only responses, skip leaves such records out" in warning
    assert done.receipt["rows"]["cut"] == {"prompt": 3}


def test_of_several_processes_the_first_one_tells_and_writes(train, tmp_path):
    records = span_rows()
    records[2]["prompt"] = LONG
    folder = write_rows(tmp_path / "data", records, "long", formatting="span_pair")
    done = train("tdpo", processes=2, data__dataset="long", data__dataset_dir=folder, data__max_len=96)
    assert len(said(done.output)) == 1
    assert not said((tmp_path / "output.1").read_text())
    assert len(lines_of(done.folder / "skipped.jsonl")) == 1
    assert done.receipt["rows"]["skipped"] == {"overlong": 1}


# records of which nothing is left to learn


def test_a_pair_that_the_cut_makes_equal_is_skipped(tokenised):
    """Their ends differ, and both keep an end token."""
    table = [{"id": f"p-{i}", "prompt": "Why?", "chosen": "yes", "rejected": "no"} for i in range(3)]
    table[1] |= {"chosen": f"{LONG} yes", "rejected": f"{LONG} no"}
    made, notes = tokenised("tdpo", table, "pair", max_len=64, tdpo_masks="none")
    assert len(made) == 2
    assert notes.rows.named == [{"id": "p-1", "place": "x.jsonl:2", "reason": "equal_after_cut"}]


WITHOUT_THOUGHT = CHATML.replace("m['content'] }}<|im_end|>", "m['content'].split('</think>')[-1] }}<|im_end|>")


def test_a_pair_that_the_template_makes_equal_is_skipped(tokenised):
    """The template drops thoughts."""
    table = [{"id": f"p-{i}", "prompt": "Why?", "chosen": "yes", "rejected": "no"} for i in range(2)]
    table[0] |= {"chosen": "<think>one</think>yes", "rejected": "<think>two</think>yes"}
    made, notes = tokenised("tdpo", table, "pair", max_len=64, tdpo_masks="none", template=WITHOUT_THOUGHT)
    assert len(made) == 1
    assert notes.rows.named == [{"id": "p-0", "place": "x.jsonl:1", "reason": "equal_after_template"}]
    lists = [{"id": "a", "prompt": "Why?", "responses": ["yes", "<think>b</think>yes", "no"], "scores": [2, 1, 0]}]
    made, notes = tokenised("apo_rm", lists, "ranked", max_len=64, template=WITHOUT_THOUGHT)
    assert not made
    assert notes.rows.skipped == {"equal_after_template": 1}


def test_equal_responses_of_a_list_with_equal_scores_are_no_reason_to_skip_it(tokenised):
    lists = [{"id": "a", "prompt": "Why?", "responses": ["yes", "no", "no"], "scores": [2, 1, 1]}]
    made, notes = tokenised("apo_rm", lists, "ranked", max_len=64)
    assert len(made) == 1
    assert not notes.rows.skipped


def test_a_negative_that_becomes_the_desirable_response_is_not_drawn(tokenised):
    table = rows(4)
    table[1]["negatives"]["logic"] = f"<think>wrong</think>{table[1]['chosen']}"
    made, notes = tokenised("seapo_kto", table, "negatives", max_len=256, template=WITHOUT_THOUGHT)
    assert [sorted(row.negatives) for row in made] == [
        ["correctness", "hallucination", "logic"],
        ["correctness", "hallucination"],
        ["correctness", "hallucination", "logic"],
        ["correctness", "hallucination", "logic"],
    ]
    assert notes.rows.responses_skipped == {"equal_after_template": 1}
    assert notes.rows.named == [
        {"id": "sum-1", "place": "x.jsonl:2", "response": "logic", "reason": "equal_after_template"}
    ]
    assert notes.kept == 4


def test_a_record_without_another_negative_is_skipped(tokenised):
    table = rows(4)
    table[1]["negatives"] = {"logic": f"<think>wrong</think>{table[1]['chosen']}"}
    table[2]["negatives"]["logic"] = f"<think>wrong</think>{table[2]['chosen']}"
    given = {"template": WITHOUT_THOUGHT, "seapo_error_types": "logic"}
    made, notes = tokenised("seapo_kto", table, "negatives", max_len=256, **given)
    assert [row.record_id for row in made] == ["sum-0", "sum-3"]
    assert notes.rows.skipped == {"equal_after_template": 2}
    assert not notes.rows.responses_skipped


def test_mismatched_responses_are_never_the_rows_own(tokenised, tokenizer):
    """Of four prompts two have the same answers. The ring is by the hash of the prompt, so all orders are tried."""
    same, other = {"chosen": "Yes.", "negatives": {"logic": "No."}}, {"chosen": "Four.", "negatives": {"logic": "5."}}
    for chance in range(8):
        table = [{"id": str(i), "prompt": f"{chance} {i}?", **(same if i < 3 else other)} for i in range(4)]
        made, _ = tokenised("seapo_kto", table, "negatives", max_len=64)
        four, yes = (ids_of(tokenizer, f"{text}<|im_end|>\n") for text in ("Four.", "Yes."))
        assert [row.other_chosen.tolist() for row in made] == [four, four, four, yes]


def test_a_pair_whose_selected_tokens_are_cut_off_is_skipped_and_not_an_error(tokenised):
    table = span_rows(3)
    start = len(table[1]["rejected"]) + len(LONG) + 1
    table[1] |= {"rejected": f"{table[1]['rejected']} {LONG}wrong", "rejected_spans": [[start, start + 5]]}
    made, notes = tokenised("tdpo", table, "span_pair", max_len=96)
    assert len(made) == 2
    assert notes.rows.named == [{"id": "span-1", "place": "x.jsonl:2", "reason": "selected_tokens_cut"}]
    assert not notes.bad_rows.problems


def test_a_pair_without_any_weight_is_an_error_also_where_it_is_cut(tokenised):
    table = span_rows(3)
    table[1] |= {"rejected": f"{table[1]['rejected']} {LONG}", "rejected_spans": [[0, 1, 0.0]]}
    _, notes = tokenised("tdpo", table, "span_pair", max_len=96)
    assert [problem.code for problem in notes.bad_rows.problems] == ["FP214"]
    assert not notes.rows.skipped


# rows with problems


def test_bad_rows_are_left_out_counted_and_written_with_their_text(train, tmp_path):
    """One is found by the reader, one by the check of the stage, one while tokenising."""
    records = span_rows(16)
    records[1]["chosen"] = 7
    del records[4]["rejected_spans"]
    records[8]["chosen_spans"] = [[0, 1]]
    folder = write_rows(tmp_path / "data", records, "some", formatting="span_pair")
    given = {"tdpo__bad_rows": "skip", "tdpo__max_bad": "20%", "tdpo__sides": "one"}
    done = train("tdpo", data__dataset="some", data__dataset_dir=folder, **given)
    counted = {"FP011": 1, "FP210": 1, "FP215": 1}
    assert done.receipt["rows"]["rejected"] == done.receipt["datasets"][0]["rejected"] == counted
    assert done.receipt["rows"]["in_training_set"] == 13
    rejected = lines_of(done.folder / "rejected.jsonl")
    assert [(row["line"], row["problems"][0]["code"]) for row in rejected] == [
        (2, "FP011"),
        (5, "FP210"),
        (9, "FP215"),
    ]
    assert {row["file"] for row in rejected} == {f"{folder}/some.jsonl"}
    assert [json.loads(row["row"]) for row in rejected] == [records[1], records[4], records[8]]
    assert rejected[0]["problems"][0]["field"] == "chosen"
    assert "finepref: 1 rows rejected: FP210, see rejected.jsonl" in said(done.output)


def test_more_bad_rows_than_allowed_stop_the_run(attempt, tmp_path):
    records = span_rows(16)
    records[1]["chosen"] = 7
    del records[4]["rejected_spans"]
    folder = write_rows(tmp_path / "data", records, "some", formatting="span_pair")
    done = attempt("tdpo", data__dataset="some", data__dataset_dir=folder, tdpo__bad_rows="skip", tdpo__max_bad="10%")
    assert done.code == 1
    assert "FP091 " in done.output
    assert "2 of 16 rows are bad, 12.5%; max_bad is 10" in done.output
    assert "some.jsonl:5 rejected_spans: --tdpo.masks annotated needs spans" in done.output
    assert not done.folder.exists()


def test_rejected_and_skipped_rows_of_an_earlier_run_are_removed(train, tmp_path):
    for name in ("rejected.jsonl", "skipped.jsonl"):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text("{}\n")
    done = train("tdpo", ckpt__output_dir=tmp_path / "out")
    assert {file.name for file in done.folder.glob("*.jsonl")} == {"trainer_log.jsonl"}


def test_a_dialogue_that_the_template_refuses_is_named(attempt, tmp_path):
    """Gemma's template has no system turn."""
    refusing = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + CHATML
    )
    records = span_rows()
    records[3]["system"] = "Be brief."
    folder = write_rows(tmp_path / "data", records, "system", formatting="span_pair")
    given = {
        "data__dataset": "system",
        "data__dataset_dir": folder,
        "data__tokenizer_chat_template": refusing + CHATML,
    }
    done = attempt("tdpo", **given)
    assert done.code == 1
    assert "Traceback" not in done.output
    assert f"FP240 {folder}/system.jsonl:4 system: " in done.output
    assert "System role not supported" in done.output


def test_feedback_of_a_prompt_that_contradicts_itself_is_rejected_as_a_whole(train, tmp_path):
    feedback = []
    for row in rows():
        feedback.append({"prompt": row["prompt"], "response": row["chosen"], "label": True})
        feedback += [
            {"prompt": row["prompt"], "response": text, "label": False, "error_type": kind}
            for kind, text in row["negatives"].items()
        ]
    feedback.append({**feedback[4], "response": feedback[4]["response"] + " ", "label": False, "error_type": "other"})
    folder = write_rows(tmp_path / "data", feedback, "feedback", formatting="feedback")
    given = {"data__dataset": "feedback", "data__dataset_dir": folder, "kto__bad_rows": "skip", "kto__max_bad": "15%"}
    done = train("kto", **given)
    assert done.receipt["rows"]["read"] == 49
    assert done.receipt["rows"]["in_training_set"] == 44
    assert done.receipt["rows"]["rejected"] == {"FP032": 5}
    rejected = lines_of(done.folder / "rejected.jsonl")
    assert [row["line"] for row in rejected] == [5, 6, 7, 8, 49]
    assert {problem["code"] for row in rejected for problem in row["problems"]} == {"FP032"}
    assert json.loads(rejected[-1]["row"]) == feedback[48]


# several data sets


def two_sets(folder, second: list[dict]) -> None:
    write_rows(folder, span_rows(), "one", formatting="span_pair")
    write_rows(folder, second, "two", formatting="span_pair")


def test_a_problem_of_the_second_of_two_sets_with_the_same_ids_names_the_second_file(attempt, tmp_path):
    second = span_rows()
    del second[4]["rejected_spans"]
    two_sets(tmp_path / "data", second)
    done = attempt("tdpo", data__dataset="one,two", data__dataset_dir=tmp_path / "data")
    assert f"FP210 {tmp_path}/data/two.jsonl:5 rejected_spans: " in done.output
    assert "one.jsonl" not in done.output


def test_a_set_that_is_given_twice_is_read_twice_and_its_problems_are_named_once(train, attempt, tmp_path):
    records = span_rows()
    del records[4]["rejected_spans"]
    folder = write_rows(tmp_path / "data", records, "one", formatting="span_pair")
    given = {"data__dataset": "one,one", "data__dataset_dir": folder}
    refused = attempt("tdpo", **given)
    assert refused.output.count("FP210 ") == 1
    assert "1 problem" in refused.output
    done = train("tdpo", **given, tdpo__bad_rows="skip", tdpo__max_bad="10%", eval__dataset="one")
    assert done.receipt["rows"]["read"] == 36
    assert done.receipt["rows"]["in_training_set"] == 22
    assert done.receipt["rows"]["in_evaluation_set"] == 11
    assert done.receipt["rows"]["rejected"] == {"FP210": 3}
    assert len(lines_of(done.folder / "rejected.jsonl")) == 1


# what a run needs


def test_the_numbers_of_the_receipt_add_up(train, tmp_path):
    """16 rows: one bad, 12 of the others within max_samples, of which one is too long."""
    records = span_rows(16)
    records[0]["chosen"] = 7
    records[2]["prompt"] = LONG
    folder = write_rows(tmp_path / "data", records, "some", formatting="span_pair")
    given = {"data__dataset": "some", "data__dataset_dir": folder, "data__max_len": 96, "data__max_samples": 12}
    done = train("tdpo", **given, tdpo__bad_rows="skip", tdpo__max_bad="10%", eval__dataset="some")
    counts = done.receipt["rows"]
    assert counts["read"] == 32
    assert counts["in_training_set"] == 11
    assert counts["in_evaluation_set"] == 14
    assert counts["skipped"] == {"max_samples": 3, "overlong": 2}
    assert counts["rejected"] == {"FP011": 2}
    assert [entry["skipped"] for entry in done.receipt["datasets"]] == [3, 0]
    assert len(lines_of(done.folder / "skipped.jsonl")) == 1


def test_a_row_that_went_missing_fails_the_run(host):
    from finepref.formats.bad_rows import BadRows
    from finepref.hosts.openrlhf.notes import Notes
    from finepref.hosts.receipt import UnprovenRun
    from finepref.hosts.rows import Rows

    Notes(Rows(), BadRows()).close(read=3, training=2, evaluation=1)
    with pytest.raises(UnprovenRun, match="do not add up"):
        Notes(Rows(), BadRows()).close(read=4, training=2, evaluation=1)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"data__max_samples": 0}, "--data.max_samples must be at least 1, not 0"),
        ({"data__max_samples": -1}, "--data.max_samples must be at least 1, not -1"),
        ({"data__max_len": 16}, "0 records make no batch of --train.batch_size 4"),
        ({"eval__dataset": "long"}, "--eval.dataset long: no record is left to evaluate on"),
    ],
)
def test_a_run_without_rows_is_refused_and_says_where_they_are(attempt, sums, tmp_path, given, expected):
    folder = write_rows(tmp_path / "data", span_rows(), "spans", formatting="span_pair")
    write_rows(folder, [row | {"prompt": LONG} for row in span_rows()], "long", formatting="span_pair")
    done = attempt("tdpo", data__dataset="spans", data__dataset_dir=folder, **{"data__max_len": 96} | given)
    assert done.code == 1
    assert expected in done.output
    assert "Traceback" not in done.output
    if "samples" not in expected:
        assert "finepref: 12 rows skipped: overlong, such as span-0 (" in done.output


def test_an_evaluation_set_of_one_prompt_is_refused_by_its_name(attempt, tmp_path):
    folder = write_rows(tmp_path / "data", rows(), "sums")
    write_rows(folder, rows(1), "alone")
    done = attempt("kto", data__dataset="sums", data__dataset_dir=folder, eval__dataset="alone")
    assert done.code == 1
    assert "FP205 alone prompt: KTO needs two different prompts" in done.output
