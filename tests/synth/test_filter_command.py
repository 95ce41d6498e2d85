"""`finepref filter` and the forecast behind it: which records a run would train on, cut, skip or refuse."""

from __future__ import annotations

import json

import pytest
from finepref.cli import app
from finepref.formats import records
from finepref.formats.jsonl import read_jsonl, write_jsonl
from finepref.hosts.forecast import Tokeniser, forecast
from finepref.hosts.reading import Sourced, join_feedback
from finepref.methods import apo_rm, host_rules
from finepref.methods.options import in_yaml
from finepref.synth.encoding import by_chat_template
from transformers import AutoTokenizer
from typer.testing import CliRunner
from usage_errors import unboxed

# By the tiny model's chat template a prompt of n bytes has n + 18 tokens, and a response its bytes and an end token.
FRAME = 18


def text_of(tokens):
    return ("abcdefghij" * 20)[: tokens - 1]


def pair(name, prompt, chosen, rejected, **more):
    """A pair by its numbers of tokens."""
    return {"id": name, "prompt": "p" * (prompt - FRAME), "chosen": text_of(chosen), "rejected": rejected, **more}


PAIRS = [
    pair("fits", 30, 10, "no"),
    pair("long prompt", 60, 10, "no"),
    pair("long response", 24, 80, "no"),
    pair("equal", 30, 80, text_of(90)),
    pair("fits too", 40, 10, "no", margin=2),
]


def rows_of(path):
    return [row for _, row in read_jsonl(path, problems=None)]


@pytest.fixture
def filtered(tiny_model, tmp_path):
    def run(rows, *words, stage="sepo", code=0, model=None, cutoff=50):
        source = tmp_path / "rows.jsonl"
        write_jsonl(source, rows)
        command = ["filter", str(source), "--stage", stage, "--model", str(model or tiny_model)]
        command += ["--cutoff-len", str(cutoff), "--output", str(tmp_path / "kept.jsonl"), *words]
        if stage == "sepo":
            command += ["--set", "sepo_selection=all"]
        outcome = CliRunner().invoke(app, command)
        assert outcome.exit_code == code, outcome.output
        return outcome.output

    return run


@pytest.mark.parametrize(
    ("policy", "kept", "left_out"),
    [
        ("skip", ["fits", "fits too"], {"long prompt": "overlong", "long response": "overlong", "equal": "overlong"}),
        ("host", ["fits", "long prompt", "long response", "fits too"], {"equal": "equal_after_cut"}),
        (
            "keep_prompt",
            ["fits", "long response", "fits too"],
            {"long prompt": "no_room_for_response", "equal": "equal_after_cut"},
        ),
        ("truncate_left", ["fits", "long prompt", "long response", "fits too"], {"equal": "equal_after_cut"}),
    ],
)
def test_the_rows_that_a_run_trains_on_are_kept_as_they_are_and_the_others_named(
    filtered, tmp_path, policy, kept, left_out
):
    output = filtered(PAIRS, "--overlong", policy)
    assert rows_of(tmp_path / "kept.jsonl") == [row for row in PAIRS if row["id"] in kept]
    found = {row["id"]: row["left_out"]["reason"] for row in rows_of(tmp_path / "kept.left_out.jsonl")}
    assert found == left_out
    assert f"5 rows: {len(kept)} trained on, {len(left_out)} skipped, 0 refused" in output


def test_what_is_cut_is_told_by_part_with_examples(filtered, tmp_path):
    output = filtered(PAIRS, "--overlong", "host")
    where = tmp_path / "rows.jsonl"
    assert f"cut: 1 rows, the prompt, to fit cutoff_len 50, such as long prompt ({where}:2)" in output
    assert f"cut: 1 rows, the response, to fit cutoff_len 50, such as long response ({where}:3)" in output


def test_a_stage_that_needs_scores_refuses_pairs_without_them_unless_it_is_told_otherwise(tiny_model, tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", PAIRS[:1])
    words = [
        "filter",
        str(tmp_path / "rows.jsonl"),
        "--stage",
        "sepo",
        "--model",
        str(tiny_model),
        "--cutoff-len",
        "50",
    ]
    words += ["--output", str(tmp_path / "kept.jsonl")]
    outcome = CliRunner().invoke(app, words)
    assert outcome.exit_code == 1
    assert f"FP210 {tmp_path / 'rows.jsonl'}:1 chosen_scores" in outcome.output
    outcome = CliRunner().invoke(app, [*words, "--set", "nonsense=1"])
    assert outcome.exit_code == 1
    assert "--set nonsense=1: stage sepo has the options " in outcome.output
    assert CliRunner().invoke(app, [*words, "--set", "sepo_selection=all"]).exit_code == 0


SPANS = [
    pair("seen", 30, 30, "no", chosen_spans=[[0, 3]]),
    pair("cut off", 30, 80, "no", chosen_spans=[[70, 75]]),
]


@pytest.mark.parametrize("stage", ["tdpo", "granular_sft"])
def test_a_response_that_loses_its_spans_by_the_cut_is_left_out(filtered, tmp_path, stage):
    filtered(SPANS, "--overlong", "keep_prompt", "--format", "span_pair", stage=stage)
    assert [row["id"] for row in rows_of(tmp_path / "kept.jsonl")] == ["seen"]
    (row,) = rows_of(tmp_path / "kept.left_out.jsonl")
    assert (row["id"], row["left_out"]["reason"]) == ("cut off", "selected_tokens_cut")


def test_rows_with_problems_are_errors_or_go_to_a_file(filtered, tmp_path):
    """A bad row, a span of negative weight, and a record that is too long for the policy `error`."""
    good = pair("good", 30, 10, "no", chosen_spans=[[0, 3]])
    rows = [good, {"prompt": "?"}, good | {"id": "minus", "chosen_spans": [[0, 3, -1]]}, SPANS[1]]
    words = ("--overlong", "error", "--format", "span_pair")
    message = filtered(rows, *words, stage="granular_sft", code=1)
    for code, line in (("FP010", 2), ("FP217", 3), ("FP203", 4)):
        assert f"{code} {tmp_path / 'rows.jsonl'}:{line} " in message
    skip = ("--bad-rows", "skip", "--max-bad", "80%")
    message = filtered(rows, *words, *skip, stage="granular_sft")
    assert "4 rows: 1 trained on, 0 skipped, 3 refused" in message
    found = [(row["line"], row["problems"][0]["code"]) for row in rows_of(tmp_path / "kept.jsonl.rejected.jsonl")]
    assert sorted(found) == [(2, "FP010"), (3, "FP217"), (4, "FP203")]
    assert [row["id"] for row in rows_of(tmp_path / "kept.jsonl")] == ["good"]


def test_rows_of_a_prompt_stay_together(filtered, tmp_path):
    def row(prompt, response, **more):
        return {"prompt": prompt, "response": response, **more}

    rows = [
        row("one", "right", label=True),
        row("two", text_of(60), label=True),
        row("one", "wrong", label=False, error_type="logic"),
        row("two", "wrong", label=False, error_type="logic"),
        row("three", "right", label=True),
        row("three", "wrong", label=False, error_type="logic"),
        row("four", "alone", label=True),
    ]
    message = filtered(rows, stage="seapo_kto")
    assert "single rows, by their own label: 1 desirable, 0 undesirable" in message
    assert rows_of(tmp_path / "kept.jsonl") == [rows[i] for i in (0, 2, 4, 5, 6)]
    assert [row["left_out"]["reason"] for row in rows_of(tmp_path / "kept.left_out.jsonl")] == ["overlong"] * 2


def test_a_prompt_whose_rows_contradict_each_other_is_rejected(filtered, tmp_path):
    good = {"id": "a", "prompt": "one", "response": "right", "label": True}
    other = {"prompt": "two", "response": "right", "label": True}
    rows = [good, good | {"id": "b", "label": False}, other]
    assert "FP032" in filtered(rows, stage="seapo_kto", code=1)
    filtered(rows, "--bad-rows", "skip", "--max-bad", "70%", stage="seapo_kto")
    assert [row["line"] for row in rows_of(tmp_path / "kept.jsonl.rejected.jsonl")] == [1, 2]


def test_single_rows_are_each_cut_or_left_out_alone(filtered, tmp_path):
    rows = [
        {"prompt": "one", "response": "right", "label": True},
        {"prompt": "one", "response": text_of(60), "label": False},
        {"prompt": "two", "response": "right", "label": True},
    ]
    told = filtered(rows, stage="seapo_kto")
    assert "3 rows: 2 trained on, 1 skipped, 0 refused" in told
    assert rows_of(tmp_path / "kept.jsonl") == [rows[0], rows[2]]


@pytest.mark.parametrize("label", [True, False])
def test_a_file_of_one_label_fails_validate_but_not_the_forecast_of_a_stage_that_trains_on_it(
    label, tiny_model, tmp_path
):
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": f"{n}", "response": "yes", "label": label} for n in range(3)])
    command = ["validate", str(tmp_path / "rows.jsonl")]
    assert CliRunner().invoke(app, command).exit_code == 1
    stage = ["--stage", "seapo_kto", "--model", str(tiny_model), "--cutoff-len", "50"]
    outcome = CliRunner().invoke(app, [*command, *stage])
    assert outcome.exit_code == 0, outcome.output
    assert "3 rows: 3 trained on, 0 skipped, 0 refused" in outcome.output
    assert "warning: all have the same label (FP061)" in outcome.output


def test_a_negative_that_the_cut_makes_equal_is_named_and_the_others_are_trained_on(filtered, tmp_path):
    rows = [
        {"id": "a", "prompt": "one", "chosen": text_of(60), "negatives": {"logic": text_of(70), "fact": "wrong"}},
        {"id": "b", "prompt": "two", "chosen": text_of(60), "negatives": {"logic": text_of(70)}},
        {"id": "c", "prompt": "three", "chosen": "right", "negatives": {"logic": "wrong"}},
    ]
    output = filtered(rows, "--overlong", "keep_prompt", stage="seapo_kto")
    assert [row["id"] for row in rows_of(tmp_path / "kept.jsonl")] == ["a", "c"]
    assert "1 responses of records that are trained on, equal_after_cut, such as a (" in output
    (row,) = rows_of(tmp_path / "kept.left_out.jsonl")
    assert (row["id"], row["left_out"]["reason"]) == ("b", "equal_after_cut")


def test_one_prompt_is_not_enough_for_kto(filtered):
    rows = [{"id": "a", "prompt": "one", "chosen": "right", "negatives": {"logic": "wrong"}}]
    assert "refused: the data as a whole: FP205" in filtered(rows, stage="seapo_kto")


def test_a_format_that_the_stage_does_not_read_is_refused(filtered):
    message = filtered([{"prompt": "?", "response": "a", "label": True}], "--format", "feedback", code=1)
    assert "FP201" in message


def test_the_input_is_never_the_output(tiny_model, tmp_path):
    source = tmp_path / "rows.jsonl"
    write_jsonl(source, PAIRS)
    before = source.read_bytes()
    words = ["filter", str(source), "--stage", "sepo", "--model", str(tiny_model), "--cutoff-len", "50"]
    outcome = CliRunner().invoke(app, [*words, "--output", str(source)])
    assert outcome.exit_code != 0
    assert "also an input" in unboxed(outcome.output)
    assert source.read_bytes() == before


def test_two_rows_in_one_line_of_an_array_are_two_rows(tiny_model, tmp_path):
    source = tmp_path / "rows.json"
    source.write_text(json.dumps(PAIRS))
    words = ["filter", str(source), "--stage", "sepo", "--model", str(tiny_model), "--cutoff-len", "50"]
    words += ["--output", str(tmp_path / "kept.jsonl"), "--set", "sepo_selection=all"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert [row["id"] for row in rows_of(tmp_path / "kept.jsonl")] == ["fits", "fits too"]


def lists(tiny_model, rows, policy, pooling="last"):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    values = {"apo_pooling": pooling} | ({"finepref_overlong": policy} if policy else {})
    options = apo_rm.STAGE.options.read("llamafactory", values, in_yaml)
    rule = host_rules.llamafactory
    tokeniser = Tokeniser(tokenizer, "chat", by_chat_template(tokenizer), 50, "cutoff_len", rule)
    found = [Sourced("f", n, records.parse(row, "ranked", file="f", line=n)) for n, row in enumerate(rows, 1)]
    return forecast(found, apo_rm.STAGE, options, tokeniser)


RANKED = [
    {"id": "fits", "prompt": "p", "responses": ["a", "b"], "scores": [1, 0]},
    {"id": "long", "prompt": "p", "responses": [text_of(80), "b"], "scores": [1, 0]},
    {"id": "same", "prompt": "p", "responses": [text_of(80), text_of(90)], "scores": [1, 0]},
    {"id": "tie", "prompt": "p", "responses": [text_of(80), text_of(90), "c"], "scores": [1, 1, 0]},
]


def test_lists_are_compared_as_they_are_cut(tiny_model):
    """Two responses of one score may be equal; the end token of a long response is cut off."""
    told = lists(tiny_model, RANKED, "truncate_left")
    assert [each.skipped for each in told.verdicts] == ["", "", "equal_after_cut", ""]
    assert told.rows.content()["cut"] == {"prompt": 2, "response": 2}
    told = lists(tiny_model, RANKED, "truncate_left", pooling="eos")
    assert [each.skipped for each in told.verdicts] == ["", "end_token_cut", "equal_after_cut", "end_token_cut"]
    assert told.rows.add_up()


def test_without_a_policy_a_stage_has_its_own(tiny_model):
    """A reward model keeps the end of a prompt; the host's rule would cut less of it, and more of the response."""
    by_default, left, host = (lists(tiny_model, RANKED, policy) for policy in (None, "truncate_left", "host"))
    assert by_default.rows.content() == left.rows.content() != host.rows.content()


def test_a_dialogue_that_the_template_refuses_is_a_problem_with_its_place(tiny_model):
    from finepref.methods import sepo

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    options = sepo.STAGE.options.read("llamafactory", {"sepo_selection": "all"}, in_yaml)
    rule = host_rules.llamafactory
    tokeniser = Tokeniser(tokenizer, "chat", by_chat_template(tokenizer), 50, "cutoff_len", rule)
    told = forecast([Sourced("f", 7, records.parse(PAIRS[0], "pair"))], sepo.STAGE, options, tokeniser)
    ((problem,),) = (verdict.problems for verdict in told.verdicts)
    assert (problem.code, problem.file, problem.line) == ("FP240", "f", 7)
    assert (told.rows.training, dict(told.rows.rejected)) == (0, {"FP240": 1})


def test_feedback_of_several_files_is_joined_at_its_first_row():
    rows = [("f", 1, True, "right", None), ("g", 1, False, "wrong", "logic")]
    found = [
        Sourced(file, line, records.Feedback(f"{n}", (records.Message("user", "q"),), text, label, kind))
        for n, (file, line, label, text, kind) in enumerate(rows)
    ]
    joined = join_feedback(found, singles=False)
    (only,), bad = joined.records, joined.wrong
    assert (only.place, only.rows, only.record.negatives, bad) == ("f:1", 2, {"logic": "wrong"}, {})


def validated(rows, tiny_model, tmp_path, *words, code=0):
    write_jsonl(tmp_path / "rows.jsonl", rows)
    command = ["validate", str(tmp_path / "rows.jsonl"), "--stage", "sepo", "--model", str(tiny_model)]
    outcome = CliRunner().invoke(app, [*command, "--cutoff-len", "50", "--set", "sepo_selection=all", *words])
    assert outcome.exit_code == code, outcome.output
    return outcome.output


def test_validate_tells_beforehand_what_a_run_would_do_and_agrees_with_filter(filtered, tiny_model, tmp_path):
    """The stage's default cuts as the host does; skipped rows are no failure, refused ones are."""
    told = validated(PAIRS, tiny_model, tmp_path).splitlines()
    by_filter = filtered(PAIRS, "--overlong", "host").splitlines()
    begin = next(i for i, line in enumerate(told) if line.startswith("forecast for stage sepo"))
    assert told[begin + 1 :] == by_filter[:-1]
    assert "5 rows: 4 trained on, 1 skipped, 0 refused" in told
    content = json.loads(validated(PAIRS, tiny_model, tmp_path, "--json"))["forecast"]
    assert (content["read"], content["in_training_set"], content["skipped"]) == (5, 4, {"equal_after_cut": 1})
    assert content["skipped_records"] == [
        {"id": "equal", "place": f"{tmp_path / 'rows.jsonl'}:4", "reason": "equal_after_cut"}
    ]


def test_validate_fails_where_the_run_would_refuse_a_row(tiny_model, tmp_path):
    told = validated(PAIRS, tiny_model, tmp_path, "--set", "finepref_overlong=error", code=1)
    assert "refused: 3 rows, FP203" in told
    assert f"  FP203 {tmp_path / 'rows.jsonl'}:2 prompt: the prompt has 60 tokens" in told


def test_a_forecast_needs_all_of_its_options(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", PAIRS)
    outcome = CliRunner().invoke(app, ["validate", str(tmp_path / "rows.jsonl"), "--stage", "sepo"])
    assert outcome.exit_code == 1
    assert "a forecast needs --stage, --model and --cutoff-len together" in outcome.output
