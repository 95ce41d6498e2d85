"""The view of tokens shows what training selects, with the model's tokenizer and without one."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import webui_form
from conftest import DATASETS
from finepref import stages
from finepref.cli import app
from sample_rows import span_rows, write_rows
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def ui(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("webui"))
        yield webui_form.build()


@pytest.fixture
def shown(ui, tiny_model, sums):
    """What the view shows for a record: its line, and for each side all text and the highlighted pieces of it."""
    from finepref.hosts.llamafactory.webui import forms, tokens

    def view(stage, record=1, model=tiny_model, **values):
        label = forms.label_of(stages.find(stage))
        given = {"dataset": [DATASETS[stage]], "dataset_dir": str(sums), "tokens_record": record, **values}
        form = ui.form(model, training_stage=label, **given)
        line, *sides = tokens.view(lambda name: form[ui.manager.get_elem_by_id(name)])
        if sides == [None, None]:
            return SimpleNamespace(line=line)
        return SimpleNamespace(
            line=line,
            text=["".join(text for text, _ in side) for side in sides],
            marked=[[(text, weight) for text, weight in side if weight] for side in sides],
        )

    return view


def test_without_a_tokenizer_exactly_the_characters_of_the_spans_are_marked(shown):
    """Record 2 is 1 + 2 = 6 with the wrong 6 marked twice; its right answer has no spans and counts as a whole."""
    row = span_rows()[1]
    found = shown("tdpo", 2, model="")
    assert found.text == [row["chosen"], row["rejected"]]
    assert found.marked[1] == [("6", "1"), ("6", "1")]
    assert "".join(text for text, _ in found.marked[0]) == row["chosen"]
    assert f"rejected 2 / {len(row['rejected'])}" in found.line
    assert "What is 1 + 2?" in found.line


def test_sides_one_leaves_the_side_without_spans_unmarked(shown):
    found = shown("tdpo", 2, model="", **{"train.tdpo.tdpo_sides": "one"})
    assert found.marked == [[], [("6", "1"), ("6", "1")]]


def test_with_a_tokenizer_the_tokens_that_overlap_a_span_are_marked(shown):
    """The tokenizer writes a number with the space before it; the template ends the response with <|im_end|>."""
    row = span_rows()[10]
    found = shown("tdpo", 11)
    assert [text.rstrip() for text in found.text] == [f"{row[side]}<|im_end|>" for side in ("chosen", "rejected")]
    marked = "".join(text for text, _ in found.marked[1])
    assert marked.replace(" ", "") == "2424"


@pytest.mark.parametrize(("ratio", "picked"), [(1.0, 4), (0.5, 2), (0.25, 1)])
def test_the_highest_and_the_lowest_scores_are_marked_by_the_ratio_of_the_form(shown, tmp_path, ratio, picked):
    record = {"id": "a", "prompt": "?", "chosen": "abcd", "rejected": "efgh", "tokenizer": "letters"}
    record |= {"chosen_scores": [0.4, 0.3, 0.2, 0.1], "rejected_scores": [0.4, 0.3, 0.2, 0.1]}
    record |= {f"{side}_offsets": [[i, i + 1] for i in range(4)] for side in ("chosen", "rejected")}
    folder = write_rows(tmp_path, [record], "letters", formatting="scored_pair")
    ratios = {f"train.sepo.sepo_ratio_{side}": ratio for side in ("chosen", "rejected")}
    found = shown("sepo", model="", dataset=["letters"], dataset_dir=str(folder), **ratios)
    chosen, rejected = ("".join(text for text, _ in side) for side in found.marked)
    assert chosen == "abcd"[:picked]
    assert rejected == "efgh"[4 - picked :]


def test_the_view_counts_the_tokens_that_training_counts(shown, run):
    """One step on records 1 and 2 alone: the receipt's token counts are the sums of the view's."""
    done = run(name="sepo", max_samples=2, per_device_train_batch_size=2, gradient_accumulation_steps=1, max_steps=1)
    lines = [shown("sepo", record, **{"train.cutoff_len": 2048}).line for record in (1, 2)]
    words = [line.split("`: ")[1].split("\n")[0].replace(",", "").split() for line in lines]
    counts = [{"chosen": (int(w[1]), int(w[3])), "rejected": (int(w[5]), int(w[7]))} for w in words]
    for side in ("chosen", "rejected"):
        assert done.receipt["tokens"][f"{side}_selected"] == sum(count[side][0] for count in counts)
        assert done.receipt["tokens"][f"{side}_responses"] == sum(count[side][1] for count in counts)


def test_a_character_of_several_tokens_is_shown_whole(tiny_model):
    from finepref.hosts.llamafactory.webui.tokens import token_texts
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    text = "naïve 🦙 の答え"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text
    assert "🦙" in texts


@pytest.mark.parametrize(
    ("stage", "values", "message"),
    [
        ("tdpo", {"dataset": []}, "choose a dataset first"),
        ("tdpo", {"record": 13}, "dataset spans has no record 13"),
        ("tdpo", {"record": 0}, "dataset spans has no record 0"),
        ("tdpo", {"dataset": ["sums"]}, "stage tdpo trains on span_pair or pair, this dataset is negatives"),
        ("tdpo", {"train.tdpo.tdpo_alpha": "-1"}, "`tdpo_alpha` must not be negative, but is -1.0"),
        ("sepo", {"train.sepo.sepo_ratio_chosen": 2}, "`sepo_ratio_chosen` must be above 0 and at most 1, not 2"),
        ("sepo", {"model": "models/smollm2-no"}, "`finepref model smollm2 --output models/smollm2-no`"),
        ("sepo", {"model": "models/nowhere"}, "there is no model folder 'models/nowhere'"),
        ("sepo", {"model": "nobody/nothing"}, "nobody/nothing: Failed to load tokenizer."),
    ],
)
def test_what_cannot_be_shown_is_said_in_the_view(shown, stage, values, message):
    assert message in shown(stage, **values).line


def test_a_pair_without_spans_has_nothing_to_mark_and_the_code_says_so(shown, tmp_path):
    pairs = [{"id": "plain", "prompt": "?", "chosen": "yes", "rejected": "no"}]
    folder = write_rows(tmp_path, pairs, "plain", formatting="pair")
    where = {"dataset": ["plain"], "dataset_dir": str(folder)}
    assert "FP210 record plain rejected_spans: `tdpo_masks: annotated` needs spans" in shown("tdpo", **where).line
    everything = shown("tdpo", model="", **{"train.tdpo.tdpo_masks": "none"}, **where)
    assert everything.text == ["yes", "no"]
    assert len(everything.marked[0]) == 3


@pytest.mark.parametrize("stage", ["sepo", "tdpo", "tgdpo", "tis_dpo", "cdpo", "confpo", "simper"])
def test_finepref_tokens_tells_the_same_tokens_and_weights_as_the_view(shown, tiny_model, sums, stage):
    """The view tokenises by the host's processor, the command without a host but for the template."""
    found = shown(stage, 3, **{"train.cutoff_len": 2048})
    words = ["tokens", DATASETS[stage], "--dataset-dir", str(sums), "--stage", stage, "--model", str(tiny_model)]
    words += ["--template", "chatml", "--cutoff-len", "2048", "--record", "3", "--json"]
    outcome = CliRunner().invoke(app, words)
    assert outcome.exit_code == 0, outcome.output
    responses = json.loads(outcome.stdout.splitlines()[-1])["responses"]
    assert ["".join(each["texts"]) for each in responses] == found.text
    marked = [
        [(text, f"{weight:g}") for text, weight in zip(each["texts"], each["weight"], strict=True) if weight]
        for each in responses
    ]
    assert marked == found.marked
    assert any(marked)


def test_the_viewer_page_is_asked_for_with_the_options_that_were_changed_and_shows_what_is_wrong(ui, tiny_model, sums):
    from finepref.hosts.llamafactory.webui import forms, view_page

    def words(stage, **values):
        given = {"dataset": ["spans"], "dataset_dir": str(sums), "tokens_record": 3, "cutoff_len": 64} | values
        form = ui.form(tiny_model, training_stage=forms.label_of(stages.find(stage)), **given)
        return lambda name: form[ui.manager.get_elem_by_id(name)]

    command = view_page.command(words("tdpo", **{"train.tdpo.tdpo_sides": "one"}), sums / "page.html")
    assert command[1:] == [
        *("-m", "finepref", "view", f"--dataset-dir={sums}", "--stage=tdpo", f"--output={sums}/page.html"),
        *("--record=3", "--count=200", f"--model={tiny_model}", "--template=chatml", "--cutoff-len=64"),
        *("--", "spans", "tdpo_sides=one"),
    ]
    for values, told in ({"dataset": []}, "choose a dataset first"), ({"tokens_record": 13}, "spans has no record 13"):
        shown, button = view_page.frame(words("tdpo", **values))
        assert told in shown.value
        assert not button.visible
