"""`finepref apo sample|pair|select|eval`: what goes in, what comes out, and what is left out with a reason."""

from __future__ import annotations

import json

import pytest
from finepref.cli import app
from finepref.formats.apo_samples import read_apo_samples
from finepref.formats.check import check_file, read_records
from finepref.formats.jsonl import read_jsonl, write_jsonl
from finepref.formats.problems import BadData
from finepref.formats.records import Message
from finepref.synth.apo.pair import pair
from finepref.synth.apo.sample import PRESETS, sample
from finepref.synth.apo.score import read_scorable
from finepref.synth.apo.scored import read_scored
from finepref.synth.engines.protocol import Completion, request_seed
from typer.testing import CliRunner
from usage_errors import unboxed

TURNS = [
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Why?"},
]
QUERIES = [
    {"query_id": 7, "query": "\n\nHuman: What is 2 + 2?\n\nAssistant:"},
    {"query_id": "b", "query": "How many?"},
    {"id": "c", "prompt": "What is 3 + 3?", "answer": "6"},
    {"id": "d", "messages": TURNS},
]


class Told:
    """An engine that answers a query's i-th request with the i-th of its texts, and fails where that is None."""

    model = "told"

    def __init__(self, texts):
        self.texts, self.asked = texts, []

    def generate(self, requests):
        for request in requests:
            self.asked.append(request)
            key, _, name = request.id.rpartition("/")
            text = self.texts[key][int(name.removeprefix("sample_")) if name != "golden" else 0]
            yield [Completion(request.id, error="no") if text is None else Completion(request.id, text, "stop")]


def rows_of(path):
    return [row for _, row in read_jsonl(path, problems=None)]


def run(*words, code=0):
    outcome = CliRunner().invoke(app, ["apo", *map(str, words)])
    assert outcome.exit_code == code, outcome.output
    return outcome.output


@pytest.fixture
def file(tmp_path):
    """Writes rows to a file of that name."""

    def write(name, rows):
        write_jsonl(tmp_path / name, rows)
        return tmp_path / name

    return write


def test_queries_of_both_layouts_are_asked_as_dialogues_and_samples_come_in_the_released_layout(file, tmp_path):
    engine = Told({key: ["one", "two"] for key in ("7", "b", "c", "d")})
    output = tmp_path / "samples.jsonl"
    outcome = sample(file("q.jsonl", QUERIES), output, engine=engine, sampling=PRESETS["paper"], n=2, seed=3)
    assert outcome == (4, 0)
    assert [request.messages for request in engine.asked[::2]] == [
        (Message("user", "What is 2 + 2?"),),
        (Message("user", "How many?"),),
        (Message("user", "What is 3 + 3?"),),
        tuple(Message(**turn) for turn in TURNS),
    ]
    rows = rows_of(output)
    assert rows[0] == {"query_id": "7", "query": QUERIES[0]["query"], "sample_0": "one", "sample_1": "two"}
    assert rows[3]["query"] == "\n\nHuman: Hello.\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant:"
    request = engine.asked[1]
    assert (request.temperature, request.top_p, request.top_k, request.max_new_tokens) == (1.2, 1.0, 0, 256)
    assert request.seed == request_seed(3, "7/sample_1")


def test_the_papers_answers_to_test_are_drawn_as_it_says():
    preset = PRESETS["paper_test"]
    assert (preset.temperature, preset.top_k, preset.top_p) == (0.3, 5, 0.85)
    assert (preset.repetition_penalty, preset.max_new_tokens) == (1.05, 512)


def test_a_query_that_failed_is_set_aside_and_asked_again_with_nothing_else(file, tmp_path):
    path, output = file("q.jsonl", QUERIES[:2]), tmp_path / "samples.jsonl"
    common = {"sampling": PRESETS["paper"], "n": 2}
    outcome = sample(path, output, engine=Told({"7": ["a", "b"], "b": ["c", None]}), **common)
    assert outcome == (1, 1)
    failed = rows_of(output.with_suffix(".failed.jsonl"))
    assert failed == [{"query_id": "b", "query": "How many?", "errors": {"sample_1": "no"}}]
    engine = Told({"b": ["never", "d"]})
    assert sample(path, output, engine=engine, **common) == (2, 0)
    assert [request.id for request in engine.asked] == ["b/sample_1"]
    assert rows_of(output)[1] == {"query_id": "b", "query": "How many?", "sample_0": "c", "sample_1": "d"}
    assert not output.with_suffix(".failed.jsonl").exists()


def test_answers_of_a_better_model_can_be_the_golden_ones(file, tmp_path):
    path, output = file("q.jsonl", QUERIES[2:]), tmp_path / "golden.jsonl"
    common = {"engine": Told({"c": ["6"], "d": ["So."]}), "sampling": PRESETS["paper_test"]}
    with pytest.raises(ValueError, match="one golden answer"):
        sample(path, output, golden=True, n=4, **common)
    sample(path, output, golden=True, n=1, **common)
    assert [(row["query_id"], row["golden"]) for row in rows_of(output)] == [("c", "6"), ("d", "So.")]


def test_four_samples_without_a_temperature_are_refused(file, tmp_path):
    output = run(
        *("sample", file("q.jsonl", QUERIES), "--model", "x", "--temperature", "0"),
        *("--output", tmp_path / "s.jsonl"),
        code=1,
    )
    assert "all the same" in output


@pytest.mark.parametrize(
    ("row", "code", "field"),
    [
        ({"query_id": 1, "query": " "}, "FP012", "query"),
        ({"query": "q"}, "FP010", "query_id"),
        ({"id": "c", "prompt": "again"}, "FP060", "query_id"),
    ],
)
def test_a_query_that_cannot_be_asked_is_named(file, tmp_path, row, code, field):
    path = file("q.jsonl", [QUERIES[2], row])
    with pytest.raises(BadData) as caught:
        sample(path, tmp_path / "s.jsonl", engine=Told({}), sampling=PRESETS["paper"])
    assert [(p.code, p.line, p.field) for p in caught.value.problems] == [(code, 2, field)]


SPACED = [*TURNS[:2], {"role": "user", "content": " spaced "}]


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        (
            {"id": "x", "prompt": "q", "system": "Be brief."},
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"}],
        ),
        ({"id": "x", "messages": SPACED}, SPACED),
    ],
)
def test_a_dialogue_that_no_query_can_hold_has_its_messages_in_samples_records_and_scored_rows(
    file, tmp_path, row, turns
):
    samples, output = tmp_path / "s.jsonl", tmp_path / "apo.jsonl"
    sample(file("q.jsonl", [row]), samples, engine=Told({"x": ["sampled"]}), sampling=PRESETS["paper"], n=1)
    (made,) = rows_of(samples)
    assert (made["query_id"], made["messages"], "query" in made) == ("x", turns, False)
    pair(samples, file("golden.jsonl", [row | {"chosen": "gold"}]), output)
    (record,) = read_records(output, "ranked")
    assert ([turn._asdict() for turn in record.prompt], record.responses) == (turns, ("gold", made["sample_0"]))
    (scored,) = read_scorable(samples)
    assert ([turn._asdict() for turn in scored.prompt], scored.responses) == (turns, (made["sample_0"],))


def test_the_tiny_model_is_sampled_by_the_command_and_a_second_call_asks_nothing(file, tiny_model, tmp_path):
    output = tmp_path / "samples.jsonl"
    words = ("sample", file("q.jsonl", QUERIES), "--model", tiny_model, "--output", output, "--max-new-tokens", "5")
    assert "4 queries with 4 answers each" in run(*words)
    first = output.read_bytes()
    assert all({f"sample_{i}" for i in range(4)} <= row.keys() for row in rows_of(output))
    assert any(row["sample_0"] != row["sample_1"] for row in rows_of(output))
    journal = output.with_suffix(".work") / "journal.jsonl"
    size = journal.stat().st_size
    run(*words)
    assert (output.read_bytes(), journal.stat().st_size) == (first, size)
    assert "holds the answers of another job" in run(*words, "--top-k", "3", code=1)


SAMPLES = [
    {"query_id": 1, "query": "q", "sample_0": "a\n\nHuman: more", "sample_1": "", "sample_2": "\nHuman"},
    {"query_id": 2, "query": "p", "sample_0": "gold", "sample_1": "Humans", "sample_10": "z", "sample_9": "y"},
]
GOLDEN = [{"query_id": 2, "query": "p", "golden": "gold"}, {"id": "1", "prompt": "q", "chosen": "best"}]


def test_golden_answers_stand_above_samples_and_what_ranks_nothing_is_reported(file, tmp_path):
    output = tmp_path / "apo.jsonl"
    told = run("pair", file("s.jsonl", SAMPLES), "--golden", file("g.jsonl", GOLDEN), "--output", output)
    assert "4 records (left out: 2 empty, 1 equals golden)" in told
    records = read_records(output, "ranked")
    assert [(record.id, record.responses) for record in records] == [
        ("1:sample_0", ("best", "a\n")),
        ("2:sample_1", ("gold", "Humans")),
        ("2:sample_9", ("gold", "y")),
        ("2:sample_10", ("gold", "z")),
    ]
    assert {(record.scores, record.kind) for record in records} == {((1.0, 0.0), "apo")}
    report = json.loads(output.with_suffix(".report.json").read_text())
    assert [(each["query_id"], each["sample"], each["reason"]) for each in report["left_out_samples"]] == [
        ("1", "sample_1", "empty"),
        ("1", "sample_2", "empty"),
        ("2", "sample_0", "equals golden"),
    ]


def test_a_sample_is_compared_with_the_golden_answer_as_both_are_cut(file, tmp_path):
    output = tmp_path / "apo.jsonl"
    golden = [{"query_id": 1, "query": "q", "golden": "gold\n\nHuman: thanks"}]
    samples = [{"query_id": 1, "query": "q", "sample_0": "gold", "sample_1": "other"}]
    told = run("pair", file("s.jsonl", samples), "--golden", file("g.jsonl", golden), "--output", output)
    assert "1 records (left out: 1 equals golden)" in told
    assert [record.responses for record in read_records(output, "ranked")] == [("gold\n", "other")]


def test_without_cutting_a_sample_keeps_the_turn_that_it_wrote_for_the_user(file, tmp_path):
    output = tmp_path / "apo.jsonl"
    run("pair", file("s.jsonl", SAMPLES), "--golden", file("g.jsonl", GOLDEN), "--output", output, "--no-cut")
    assert read_records(output, "ranked")[0].responses == ("best", "a\n\nHuman: more")


def test_one_sample_of_each_query_is_drawn_by_the_seed_and_the_query_alone(file, tmp_path):
    golden, output = file("g.jsonl", GOLDEN), tmp_path / "apo.jsonl"
    drawn = set()
    for seed in range(12):
        found = []
        for rows in (SAMPLES, SAMPLES[::-1]):
            pair(file("s.jsonl", rows), golden, output, take="one", seed=seed)
            found.append({record.id for record in read_records(output, "ranked")})
        assert found[0] == found[1]
        assert sorted(name.partition(":")[0] for name in found[0]) == ["1", "2"]
        drawn |= found[0]
    assert drawn == {"1:sample_0", "2:sample_1", "2:sample_9", "2:sample_10"}


def test_ids_in_one_file_only_are_errors_unless_they_are_allowed_and_then_named(file, tmp_path):
    samples = file("s.jsonl", [*SAMPLES, {"query_id": 3, "query": "r", "sample_0": "s"}])
    golden = file("g.jsonl", [*GOLDEN, {"query_id": 4, "query": "t", "golden": "u"}])
    output = tmp_path / "apo.jsonl"
    words = ("pair", samples, "--golden", golden, "--output", output)
    told = run(*words, code=1)
    assert f"FP067 {samples}:3 query_id: '3' has no golden answer" in told
    assert f"FP067 {golden}:3 query_id: '4' has no samples" in told
    assert not output.exists()
    assert "1 no golden answer, 1 no samples" in run(*words, "--allow-missing")
    assert len(read_records(output, "ranked")) == 4
    named = json.loads(output.with_suffix(".report.json").read_text())["left_out_samples"]
    assert {"query_id": "4", "reason": "no samples"} in named


def test_a_query_that_differs_between_the_files_is_an_error_even_so(file, tmp_path):
    golden = file("g.jsonl", [GOLDEN[0] | {"query": "other"}, GOLDEN[1]])
    with pytest.raises(BadData, match=r"FP067 .*s\.jsonl:2 query"):
        pair(file("s.jsonl", SAMPLES), golden, tmp_path / "apo.jsonl", allow_missing=True)


def test_released_files_pair_as_convert_reads_them(file, tmp_path):
    """JSON arrays, HH transcripts, integer ids; the names in the release end in .json."""
    query = "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"
    samples = [{"query_id": i, "query": query, "sample_0": " So.", "sample_1": " No.\n\nHuman: x"} for i in (1, 2)]
    golden = [{"query_id": i, "query": query, "golden": " Because."} for i in (1, 2)]
    paths = []
    for name, rows in (("s.json", samples), ("g.json", golden)):
        paths.append(tmp_path / name)
        paths[-1].write_text(json.dumps(rows, indent=1))
    pair(*paths, tmp_path / "apo.jsonl")
    converted = [record for row in read_apo_samples(*paths) for record in row.records]
    assert read_records(tmp_path / "apo.jsonl", "ranked") == converted
    assert converted[1].responses == ("Because.", "No.")


def scored(name, responses, rewards, **more):
    return {"id": name, "prompt": f"{name}?", "responses": responses, "rewards": rewards} | more


SCORED = [
    scored("best", ["a", "b", "c"], [-3.0, -1.0, -2.0]),
    scored("tie", ["a", "b", "c", "d"], [0.5, 1.0, 1.0, 0.5]),
    scored("blank", ["", "b", " "], [None, -9.0, None]),
    scored("same", ["a", "b", "a "], [0.0, 0.0, 0.0]),
    scored("none", [], []),
    scored("blanks", [" "], [None]),
    scored("one", ["a"], [2.0]),
]


def select(file, tmp_path, target, rows=SCORED):
    output = tmp_path / f"{target}.jsonl"
    run("select", file("scored.jsonl", rows), "--to", target, "--output", output)
    report = json.loads(output.with_suffix(".report.json").read_text())
    return rows_of(output), {each["id"]: each["reason"] for each in report["left_out_rows"]}, report


def test_the_best_response_wins_ties_go_to_the_first_and_empty_ones_never_win(file, tmp_path):
    rows, left_out, report = select(file, tmp_path, "sft")
    assert {row["id"]: row["messages"][-1] for row in rows} == {
        name: {"role": "assistant", "content": text}
        for name, text in (("best", "b"), ("tie", "b"), ("blank", "b"), ("same", "a"), ("one", "a"))
    }
    assert rows[0]["messages"][0] == {"role": "user", "content": "best?"}
    assert left_out == {"none": "empty", "blanks": "empty"}
    assert report["mean_reward_selected"] == pytest.approx((-1 + 1 - 9 + 0 + 2) / 5)
    assert report["mean_reward_of_all"] == pytest.approx((-6 + 3 - 9 + 0 + 2) / (3 + 4 + 1 + 3 + 1))


def test_a_pair_has_the_best_above_the_worst_and_rows_that_rank_nothing_are_named(file, tmp_path):
    rows, left_out, _ = select(file, tmp_path, "pair")
    assert [(row["id"], row["chosen"], row["rejected"], row["margin"]) for row in rows] == [
        ("best", "b", "a", 2.0),
        ("tie", "b", "a", 0.5),
    ]
    assert left_out == {"blank": "single", "same": "equal", "none": "empty", "blanks": "empty", "one": "single"}
    assert check_file(tmp_path / "pair.jsonl", "pair").total_problems == 0


def test_what_is_selected_of_a_row_with_tools_keeps_them_and_its_calls(file, tmp_path):
    tools, call = '[{"name": "f"}]', {"function_call": '{"name": "f", "arguments": {}}'}
    scored_row = scored("best", ["a", call, "c"], [-3.0, -1.0, -2.0], tools=tools)
    ((row,), _, _) = select(file, tmp_path, "sft", [scored_row])
    assert row["tools"] == tools
    assert row["messages"] == [
        {"role": "user", "content": "best?"},
        {"role": "function_call", "content": call["function_call"]},
    ]
    ((row,), _, _) = select(file, tmp_path, "pair", [scored_row])
    assert (row["tools"], row["chosen"], row["rejected"]) == (tools, call, "a")


def test_a_ranking_has_all_responses_best_first(file, tmp_path):
    rows, left_out, _ = select(file, tmp_path, "ranked", [*SCORED, scored("twice", ["x", "y", "x"], [1.0, 2.0, 1.1])])
    assert [(row["responses"], row["scores"]) for row in rows] == [
        (["b", "c", "a"], [-1.0, -2.0, -3.0]),
        (["b", "c", "a", "d"], [1.0, 1.0, 0.5, 0.5]),
        (["y", "x"], [2.0, 1.0]),
    ]
    assert len(left_out) == 5
    assert check_file(tmp_path / "ranked.jsonl", "ranked").total_problems == 0


@pytest.mark.parametrize(
    ("row", "code", "field"),
    [
        (scored("x", ["a"], []), "FP051", "rewards"),
        (scored("x", ["a"], ["1"]), "FP011", "rewards[0]"),
        (scored("x", [3], [1.0]), "FP011", "responses[0]"),
        ({"id": "x", "prompt": "x?", "responses": ["a"]}, "FP010", "rewards"),
        ({"prompt": "x?", "responses": ["a"], "rewards": [1.0]}, "FP010", "id"),
        (scored("x", ["a", "b"], [1.0, 2.0], scores=[1.0]), "FP051", "scores"),
        (scored("best", ["a"], [1.0]), "FP060", "id"),
    ],
)
def test_a_row_without_usable_rewards_is_named(file, row, code, field):
    with pytest.raises(BadData) as caught:
        read_scored(file("scored.jsonl", [SCORED[0], row]))
    assert [(p.code, p.line, p.field) for p in caught.value.problems] == [(code, 2, field)]


def test_accuracy_and_calibration_are_those_of_the_pairs_by_hand(file, tmp_path):
    """Margins 2 (right) and -1 (wrong), each pair once: confidences sigmoid(2) = .881 and sigmoid(1) = .731.

    Two bins of one pair each: the gaps are 1 - .881 = .119 and .731, both shares 1/2.
    """
    rows = [
        scored("a", ["x", "y"], [1.0, -1.0], scores=[3, 0]),
        scored("b", ["x", "y"], [0.0, 1.0], scores=[1, 0], kind="apo"),
    ]
    output = tmp_path / "eval.json"
    scores = file("scored.jsonl", rows)
    scores.with_suffix(".report.json").write_text(json.dumps({"job": "apo score", "model": "saves/reward"}))
    told = run("eval", f"both={scores}", "--output", output, "--diagram")
    found = json.loads(output.read_text())["both"]
    assert found["model"] == "saves/reward"
    assert (found["records"], found["responses"], found["empty"]) == (2, 4, 0)
    assert found["rewards/accuracies"] == 0.5
    assert (found["rewards/accuracies/human"], found["rewards/accuracies/apo"]) == (1, 0)
    assert found["calibration/ece"] == pytest.approx((0.119203 + 0.731059) / 2, abs=1e-6)
    bins = [(each["n"], each["confidence"], each["accuracy"]) for each in found["calibration"]["bins"]]
    assert bins == [(1, pytest.approx(0.731059, abs=1e-6), 0), (1, pytest.approx(0.880797, abs=1e-6), 1)]
    assert "both: neither over- nor underconfidence is shown" in told
    assert (tmp_path / "both_reliability.png").stat().st_size > 1000


def test_rewards_are_compared_with_scores_without_ids_but_a_win_rate_needs_them(file, tmp_path):
    rows = [{key: value for key, value in scored("x", ["a", "b"], [1.0, 0.0], scores=[1, 0]).items() if key != "id"}]
    words = ("eval", file("scored.jsonl", [*rows, *rows]), "--output", tmp_path / "eval.json")
    run(*words)
    found = json.loads((tmp_path / "eval.json").read_text())["scored"]
    assert (found["records"], found["calibration"]["n"]) == (2, 2)
    assert "FP010" in run(*words, "--against", file("other.jsonl", [scored("x", ["a"], [1.0])]), code=1)


def test_win_rate_and_mean_reward_of_samples_by_hand(file, tmp_path):
    """a: 2 > 1 and 2 = 2 (tie): 3/4. b: an empty answer loses. c: both empty: 1/2."""
    ours = [scored("a", ["x"], [2.0]), scored("b", [""], [None]), scored("c", [""], [None])]
    theirs = [scored("a", ["x", "y"], [1.0, 2.0]), scored("b", ["x"], [-5.0]), scored("c", [" "], [None])]
    output = tmp_path / "eval.json"
    words = ("eval", file("ours.jsonl", ours), "--output", output, "--against")
    run(*words, file("theirs.jsonl", theirs))
    found = json.loads(output.read_text())["ours"]
    assert found == {"records": 3, "responses": 1, "empty": 2, "rewards/mean": 2.0, "win_rate": (0.75 + 0 + 0.5) / 3}
    assert "1 ids are in one of the files only, such as c" in run(*words, file("less.jsonl", theirs[:2]), code=1)


SKIP = ("--bad-rows", "skip", "--max-bad", "50%")
BAD = {"query": "no id"}


def rejected(output):
    return [
        (row["line"], row["problems"][0]["code"]) for row in rows_of(output.with_name(f"{output.name}.rejected.jsonl"))
    ]


def test_bad_queries_can_be_left_out_of_sampling(file, tiny_model, tmp_path):
    output = tmp_path / "s.jsonl"
    words = ("sample", file("q.jsonl", [QUERIES[0], BAD]), "--model", tiny_model, "--output", output)
    words += ("--max-new-tokens", "2", "--n", "1")
    assert "FP010" in run(*words, code=1)
    assert "1 queries with 1 answers each" in run(*words, *SKIP)
    assert rejected(output) == [(2, "FP010")]


ANSWERS = [{"query_id": i, "query": f"q{i}", "golden": "right"} for i in range(4)]
SAMPLED = [{"query_id": i, "query": f"q{i}", "sample_0": "wrong", "sample_1": "also wrong"} for i in range(4)]


def test_bad_rows_of_both_files_can_be_left_out_of_pairing(file, tmp_path):
    """Query 1 has another text among the samples, query 3 has no golden answer, and one row of each file is bad."""
    samples = file("s.jsonl", [SAMPLED[0], SAMPLED[1] | {"query": "other"}, *SAMPLED[2:], BAD])
    golden = file("g.jsonl", [*ANSWERS[:3], BAD])
    output = tmp_path / "pairs.jsonl"
    words = ("pair", samples, "--golden", golden, "--output", output)
    message = run(*words, code=1)
    assert "FP010" in message
    assert "--bad-rows skip" in message
    run(*words, *SKIP)
    assert {row["id"] for row in rows_of(output)} == {f"{i}:sample_{n}" for i in (0, 2) for n in range(2)}
    assert rejected(output) == [(4, "FP010"), (5, "FP010"), (2, "FP067"), (4, "FP067")]
    report = json.loads(output.with_suffix(".report.json").read_text())
    assert report["left_out"] == {}, "a row is counted once, as rejected"


def test_a_share_of_bad_rows_above_the_limit_is_an_error(file, tmp_path):
    output = tmp_path / "pairs.jsonl"
    words = (
        "pair",
        file("s.jsonl", [*SAMPLED[:1], BAD]),
        "--golden",
        file("g.jsonl", ANSWERS[:1]),
        "--output",
        output,
    )
    assert "FP091" in run(*words, "--bad-rows", "skip", code=1)
    assert not output.exists()


def test_bad_rows_can_be_left_out_of_selection_and_evaluation(file, tmp_path):
    rows = [*SCORED, {"id": "bad", "prompt": "q", "responses": ["a"], "rewards": []}]
    source = file("scored.jsonl", rows)
    for words, output in (
        (("select", source, "--output", tmp_path / "best.jsonl"), tmp_path / "best.jsonl"),
        (("eval", f"x={source}", "--output", tmp_path / "eval.json"), tmp_path / "eval.json"),
    ):
        assert "FP051" in run(*words, code=1)
        run(*words, *SKIP)
        assert rejected(output) == [(len(rows), "FP051")]


def test_an_output_that_is_an_input_is_refused_and_the_input_stays(file, tmp_path):
    samples, golden = file("s.jsonl", SAMPLED), file("g.jsonl", ANSWERS)
    scored_rows = file("scored.jsonl", SCORED)
    for words in (
        ("sample", samples, "--model", "x", "--output", samples),
        ("pair", samples, "--golden", golden, "--output", golden),
        ("pair", samples, "--golden", golden, "--output", samples),
        ("score", samples, "--model", "x", "--output", samples),
        ("select", scored_rows, "--output", scored_rows),
        ("eval", f"x={scored_rows}", "--output", scored_rows),
    ):
        before = [path.read_bytes() for path in (samples, golden, scored_rows)]
        assert "also an input" in unboxed(run(*words, code=2))
        assert [path.read_bytes() for path in (samples, golden, scored_rows)] == before


def test_no_row_left_is_a_failure_unless_it_is_allowed(file, tmp_path):
    output = tmp_path / "pairs.jsonl"
    samples = file("s.jsonl", [SAMPLED[0] | {"sample_0": "right", "sample_1": " "}])
    words = ("pair", samples, "--golden", file("g.jsonl", ANSWERS[:1]), "--output", output)
    assert "no row is left" in run(*words, code=1)
    run(*words, "--allow-empty")
