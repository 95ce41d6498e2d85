"""`finepref view` writes a page that holds the records as data; what the page does is tested in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
import subprocess
import sys
from array import array
from pathlib import Path

import pytest
from finepref.cli import app
from finepref.formats.scores import fingerprint
from finepref.hosts.token_view import Entry, Response
from finepref.hosts.view_page import page
from typer.testing import CliRunner

PAIR = {"id": "p", "prompt": "?", "chosen": "yes", "rejected": "no"}
SCORED = PAIR | {"tokenizer": "letters", "chosen_scores": [0.5, -0.25, 0.125], "rejected_scores": [1, 0]}
SCORED |= {"chosen_offsets": [[0, 1], [1, 2], [2, 3]], "rejected_offsets": [[0, 2], [2, 2]]}


def data_of(page: Path) -> dict:
    """The data in a page."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(text)


@pytest.fixture
def viewed(tmp_path):
    """The data in the page of a file, and what the command printed."""

    def run(file, *words, code=0):
        output = tmp_path / "page.html"
        outcome = CliRunner().invoke(app, ["view", str(file), "--output", str(output), *map(str, words)])
        assert outcome.exit_code == code, outcome.output
        return outcome.output if code else data_of(output)["records"]

    return run


def values(record, side=0):
    return record["responses"][side]["values"]


def test_a_scored_pair_has_a_reward_for_each_token(viewed, rows):
    (record,) = viewed(rows(SCORED))
    chosen, rejected = record["responses"]
    assert (chosen["text"], chosen["sizes"], chosen["sign"]) == ("yes", [1, 1, 1], 1)
    assert chosen["values"] == {"reward": [0.5, -0.25, 0.125]}
    assert (rejected["text"], rejected["sizes"], rejected["sign"]) == ("no", [2, 0], -1)
    assert record["turns"] == [["user", "?"]]
    assert record["at"].endswith("rows.jsonl:1")


def test_what_is_after_the_last_scored_token_is_shown_without_a_reward(viewed, rows):
    row = SCORED | {"chosen": "yes indeed"}
    (record,) = viewed(rows(row))
    assert record["responses"][0]["sizes"] == [1, 1, 1, 7]
    assert values(record)["reward"] == [0.5, -0.25, 0.125, None]


def test_spans_cut_a_response_into_runs_of_characters(viewed, rows):
    spans = {"rejected_spans": [[3, 5, -2], [6, 8]]}
    (record,) = viewed(rows(PAIR | {"rejected": "not at all"} | spans))
    (rejected,) = record["responses"][1:]
    assert (rejected["unit"], rejected["sizes"]) == ("characters", [3, 2, 1, 2, 2])
    assert rejected["values"] == {"span": [0, -2, 0, 1, 0]}
    assert values(record) == {}


@pytest.mark.parametrize(
    ("row", "names", "signs", "errors"),
    [
        ({"chosen": "a", "negatives": {"fact": "b", "logic": "c"}}, ["chosen", "fact", "logic"], [1, -1, -1], 2),
        ({"responses": ["a", "b", "c"], "scores": [1, 2, 3]}, [f"responses[{i}]" for i in range(3)], [0, 0, 0], 0),
        ({"response": "a", "label": False, "error_type": "fact"}, ["response"], [-1], 1),
        ({"response": "a", "label": True}, ["response"], [1], 0),
    ],
)
def test_records_of_every_shape_have_their_responses(viewed, rows, row, names, signs, errors):
    (record,) = viewed(rows({"id": "x", "prompt": "?"} | row))
    assert [each["name"] for each in record["responses"]] == names
    assert [each["sign"] for each in record["responses"]] == signs
    assert len(record.get("errors", [])) == errors


def test_pieces_are_measured_as_javascript_counts(viewed, rows):
    """A llama is one character in Python and two in JavaScript."""
    row = SCORED | {"chosen": "🦙é!", "chosen_offsets": [[0, 1], [1, 2], [2, 3]]}
    (record,) = viewed(rows(row))
    assert record["responses"][0]["sizes"] == [2, 1, 1]


def test_a_stage_weighs_the_tokens_of_its_model(viewed, rows, tiny_model):
    row = PAIR | {"rejected": "a no", "rejected_spans": [[2, 4]]}
    (record,) = viewed(rows(row), "tdpo_sides=two", "--stage", "tdpo", "--model", tiny_model)
    assert values(record) == {"weight": 1}  # one number for all
    assert values(record, 1) == {"weight": [0, 0, 1, 1, 0], "span": [0, 0, 1, 1, 0]}
    assert record["responses"][1]["text"] == "a no</s>"


def test_a_data_set_is_viewed_by_its_name(viewed):
    found = viewed("sepo_demo", "--count", 3)
    assert len(found) == 3
    assert "reward" in values(found[0])


def test_bad_rows_are_shown_beside_good_ones_with_their_problems(viewed, rows):
    found = viewed(rows(PAIR, PAIR | {"id": "q", "rejected": "yes"}, PAIR | {"id": 7.5}))
    assert [each["id"] for each in found] == ["p", "q", ""]
    assert [[code for code, *_ in each.get("problems", [])] for each in found] == [[], ["FP034"], ["FP011"]]
    assert [each["name"] for each in found[1]["responses"]] == ["chosen", "rejected", "the row"]


def test_a_file_of_rejected_rows_is_shown_with_place_row_and_problems(viewed, rows, tmp_path):
    rejected = tmp_path / "rejected.jsonl"
    file = rows(PAIR, PAIR | {"id": "q", "rejected": "yes"})
    words = ["validate", str(file), "--max-bad", "60%", "--rejected", str(rejected)]
    assert CliRunner().invoke(app, words).exit_code == 0
    (record,) = viewed(rejected)
    assert (record["id"], record["at"]) == ("q", f"{file}:2")
    assert record["problems"][0][:2] == ["FP034", "rejected"]
    assert json.loads(record["responses"][-1]["text"]) == PAIR | {"id": "q", "rejected": "yes"}


def test_bytes_that_are_no_text_are_shown_with_marks_for_what_is_missing(viewed, rows, tmp_path):
    file, rejected = rows(PAIR), tmp_path / "rejected.jsonl"
    with file.open("ab") as more:
        more.write(b'{"id": "\xff"}\n')
    words = ["validate", str(file), "--max-bad", "60%", "--rejected", str(rejected)]
    assert CliRunner().invoke(app, words).exit_code == 0
    (record,) = viewed(rejected)
    assert record["problems"][0][0] == "FP003"
    assert record["responses"][-1]["text"] == '{"id": "\ufffd"}'


def test_a_row_that_is_none_of_a_file_of_rejected_rows_is_named(viewed, rows):
    good = {"file": "f", "line": 1, "row": "{}", "problems": []}
    output = viewed(rows(good, {"row": "{}"}, name="rejected.jsonl"), code=1)
    assert "FP312" in output
    assert "rejected.jsonl:2" in output


@pytest.fixture
def parquet(tmp_path, rows):
    """The parquet file of `sepo score`, as it writes it, of the pair above; the rewards are those of the scores."""
    import pyarrow
    from pyarrow import parquet

    def write(tokenizer="letters", texts=True, **changes):
        if texts:
            rows(SCORED | {"tokenizer": tokenizer}, name="scores.jsonl")
        row = {"id": "p", "tokenizer": tokenizer, "chosen_tokens": [5, 6, 7], "rejected_tokens": [8, 9]}
        row |= {"chosen_oracle": [-1.0, -2.0, -3.0], "chosen_reference": [-1.5, -1.75, -3.125]}
        row |= {"rejected_oracle": [-1.0, -2.0], "rejected_reference": [-2.0, -2.0]}
        parquet.write_table(pyarrow.Table.from_pylist([row | changes]), tmp_path / "scores.parquet")
        return tmp_path / "scores.parquet"

    return write


def test_the_parquet_file_of_scores_has_its_texts_from_the_score_file_beside_it(viewed, parquet):
    (record,) = viewed(parquet(chosen_kl=[0.1, 0.2, 0.3], rejected_kl=[0.5, 0.0]))
    assert record["responses"][0]["text"] == "yes"
    assert values(record) == {
        "reward": [0.5, -0.25, 0.125],
        "oracle": [-1, -2, -3],
        "reference": [-1.5, -1.75, -3.125],
        "kl": [0.1, 0.2, 0.3],
    }
    assert values(record, 1)["reward"] == [1, 0]


def test_with_a_model_the_parquet_file_needs_no_other_one(viewed, parquet, tiny_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    own = fingerprint(tokenizer.backend_tokenizer.to_str())
    ids = tokenizer("yes", add_special_tokens=False)["input_ids"]
    file = parquet(own, texts=False, chosen_tokens=ids)
    (record,) = viewed(file, "--model", tiny_model)
    assert (record["responses"][0]["text"], record["responses"][0]["sizes"]) == ("yes", [1, 1, 1])
    assert values(record)["reward"] == [0.5, -0.25, 0.125]


def test_texts_that_are_missing_or_of_other_tokens_are_refused_with_their_codes(viewed, parquet, rows, tiny_model):
    file = parquet(texts=False)
    assert "FP310" in viewed(file, code=1)
    assert "FP212" in viewed(file, "--model", tiny_model, code=1)
    rows(SCORED | {"id": "another"}, name="scores.jsonl")
    assert "FP311" in viewed(file, code=1)
    rows(SCORED, name="scores.jsonl")
    longer = {"chosen_tokens": [5, 6, 7, 8], "chosen_oracle": [-1.0] * 4, "chosen_reference": [-1.0] * 4}
    assert "FP311" in viewed(parquet(**longer), code=1)


def test_kl_in_a_row_colours_its_tokens_if_it_fits_them(viewed, rows):
    fits, not_ = viewed(rows(SCORED | {"chosen_kl": [1, 2, 3]}, SCORED | {"id": "q", "chosen_kl": [1, 2]}))
    assert values(fits)["kl"] == [1, 2, 3]
    assert "kl" not in values(not_)
    assert not_["notes"] == ["chosen_kl has 2 numbers for 3 tokens: not shown"]


def test_a_page_of_a_part_says_which_and_that_more_follow(rows, tmp_path):
    file = rows(*(PAIR | {"id": f"r{i}"} for i in range(4)))
    output = tmp_path / "page.html"
    words = ["view", str(file), "--output", str(output), "--record", "2", "--count", "2"]
    outcome = CliRunner().invoke(app, words)
    told = "records 2 to 3 of rows.jsonl; more follow: --record 4, or a larger --count"
    assert outcome.output.splitlines()[0] == told
    found = data_of(output)
    assert ([each["id"] for each in found["records"]], found["about"]) == (["r1", "r2"], [told])
    words[-1] = "3"
    assert "more follow" not in CliRunner().invoke(app, words).output


EVIL = "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 1'>"


def test_nothing_in_a_record_is_markup_and_the_policy_names_what_may_run(viewed, rows, tmp_path):
    (record,) = viewed(rows(PAIR | {"id": "<b>", "prompt": EVIL, "chosen": EVIL}, name="<i>.jsonl"))
    assert (record["id"], record["responses"][0]["text"]) == ("<b>", EVIL)
    text = (tmp_path / "page.html").read_text()
    assert not re.search("<img|<i>|<b>", text)
    assert re.findall("<title>(.*)</title>", text) == ["&lt;i&gt;.jsonl"]
    assert len(re.findall("<script", text)) == 2
    (policy,) = re.findall('Content-Security-Policy" content="(.*)"', text)
    parts = dict(part.split(" ", 1) for part in policy.split("; "))
    assert parts.keys() == {"default-src", "base-uri", "form-action", "script-src", "style-src"}
    for kind in ("script", "style"):
        (content,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert parts.pop(f"{kind}-src") == f"'sha256-{digest}'"
    assert {*parts.values()} == {"'none'"}
    assert not re.search("https?:|innerHTML|outerHTML|insertAdjacent|document.write|eval", text)


def test_a_half_of_a_surrogate_in_a_bad_row_does_not_stop_the_page(viewed, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(PAIR) + '\n{"id": "q", "prompt": "?", "chosen": "\\ud83e", "rejected": "no"}\n')
    found = viewed(file, "--format", "pair")
    assert [code for code, *_ in found[1]["problems"]] == ["FP008"]


def test_values_in_the_page_are_as_float32_what_they_were_so_that_selections_agree():
    draw = random.Random(0)
    scores = array("f", (draw.gauss(0, 10 ** draw.randint(-6, 3)) for _ in range(2000)))
    entry = Entry("a", "f:1", [], [Response("chosen", "", 1, "tokens", ["x"] * 2000, {"reward": scores.tolist()})])
    (text,) = re.findall(r'id="data">(.*?)</script>', page([entry], title="t"), re.DOTALL)
    (response,) = json.loads(text)["records"][0]["responses"]
    assert array("f", response["values"]["reward"]) == scores


def test_a_token_without_a_value_is_null():
    entry = Entry("a", "f:1", [], [Response("chosen", "", 1, "tokens", ["x", "y"], {"reward": [math.nan, 2.0]})])
    assert '"reward":[null,2]' in page([entry], title="t")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--colour", "kl"], "--colour kl: the records have reward"),
        (["--record", "2"], "has no record 2"),
        (["sepo_ratio_chosen=0.5"], "sepo_ratio_chosen=0.5 is an option of a stage: give --stage"),
        (["--model", "m"], "give --stage"),
        (["--stage", "granular_sft", "--model", "MODEL"], "FP201"),
    ],
)
def test_what_cannot_be_viewed_is_said(viewed, rows, tiny_model, words, message):
    given = [str(tiny_model) if word == "MODEL" else word for word in words]
    assert message in viewed(rows(SCORED), *given, code=1)


def test_the_input_is_not_overwritten_and_one_output_is_needed(rows):
    file = rows(PAIR)
    outcome = CliRunner().invoke(app, ["view", str(file), "--output", str(file)])
    assert (outcome.exit_code, json.loads(file.read_text())) == (2, PAIR)
    assert CliRunner().invoke(app, ["view", str(file)]).exit_code == 2


def test_a_picture_without_a_browser_says_what_is_missing(rows, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = CliRunner().invoke(app, ["view", str(rows(PAIR)), "--png", str(tmp_path / "a.png")])
    assert outcome.exit_code == 1
    assert "a picture needs one of chromium, " in outcome.output


def test_data_as_it_is_needs_neither_torch_nor_transformers(rows, tmp_path):
    words = ["view", str(rows(SCORED)), "--output", str(tmp_path / "page.html")]
    program = "import sys\nsys.modules.update(torch=None, transformers=None)\nfrom finepref.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert (done.returncode, len(data_of(tmp_path / "page.html")["records"])) == (0, 1), done.stderr
