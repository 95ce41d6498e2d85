"""The judge `gym` on items that reasoning-gym makes."""

from __future__ import annotations

import json

import pytest
from finepref.cli import app
from finepref.formats.jsonl import read_jsonl
from finepref.synth.judges.reasoning_gym import answer_in, gym
from reasoning_gym.factory import create_dataset
from typer.testing import CliRunner

TASKS = [
    "gsm_symbolic",
    "chain_sum",
    "countdown",
    "puzzle24",
    "number_sorting",
    "knights_knaves",
    "word_ladder",
    "gcd",
]


def item(task: str) -> dict:
    row = create_dataset(task, seed=5, size=1)[0]
    return json.loads(json.dumps(row)) | {"prompt": row["question"]}


@pytest.mark.parametrize("task", TASKS)
def test_the_answer_of_the_item_passes_and_another_one_fails(task):
    row = item(task)
    right = gym({**row, "response": f"Let me think.\n<answer>{row['answer']}</answer>"})
    assert (right.passed, right.score) == (True, 1.0)
    wrong = gym({**row, "response": "<answer>17</answer>"})
    assert wrong.passed is False
    assert wrong.score < 1


def test_the_verifier_accepts_what_equals_the_answer_in_another_form():
    """countdown's item says how to make its target; the same numbers in another order make it too."""
    row = {
        "prompt": "?",
        "answer": "2*3 + 4",
        "metadata": {"source_dataset": "countdown", "numbers": [2, 3, 4], "target": 10},
    }
    assert gym({**row, "response": "4 + 3*2"}).passed is True
    assert gym({**row, "response": "5*2"}).passed is False


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<answer>1</answer> no, <answer> 2 </answer>", "2"),
        ("He has 3.\nThe answer is 288.", "288"),
        ("So the answer is: Bob", "Bob"),
        ("3 + 4 = 7\n#### 7", "7"),
        (" 12 ", "12"),
    ],
)
def test_where_a_response_has_its_answer(response, answer):
    assert answer_in(response) == answer


@pytest.mark.parametrize("text", ["open('stolen', 'w')", "9**9", "9* *9", "[1]*9", "(1,)*9", "lambda: 1", "x"])
@pytest.mark.parametrize("field", ["response", "answer"])
def test_no_text_is_run_as_code(text, field, tmp_path, monkeypatch):
    """Verifiers evaluate such answers; `number_sorting` that of the row too."""
    monkeypatch.chdir(tmp_path)
    row = item("number_sorting") | {"response": "['1', '2']"} | {field: text}
    assert gym(row).passed is None
    assert "as code" in gym(row).reason
    assert [*tmp_path.iterdir()] == []


def test_a_task_whose_verifier_evaluates_the_row_gives_no_verdict():
    row = item("simple_integration")
    assert gym({**row, "response": row["answer"]}).passed is None


@pytest.mark.parametrize(
    "row",
    [
        {"response": "1"},
        {"response": "1", "answer": "1", "metadata": {"source_dataset": "no_such_task"}},
        {"response": "1", "answer": "1", "metadata": {"source_dataset": ["gcd"]}},
        {"response": "", "answer": "1", "metadata": {"source_dataset": "gcd"}},
        {"response": "A is a knight", "answer": "1", "metadata": {"source_dataset": "word_ladder"}},
    ],
)
def test_a_row_that_no_verifier_can_read_has_no_verdict(row):
    assert gym(row).passed is None


def test_the_command_labels_rows_by_their_task(tmp_path):
    rows = [item("gcd") | {"response": text} for text in (item("gcd")["answer"], "0", "")]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = CliRunner().invoke(app, ["judge", str(source), "--judge", "gym", "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert [row["label"] for _, row in read_jsonl(output, problems=None)] == [True, False]
    assert "1 passed, 1 failed, 1 without a verdict" in result.output
