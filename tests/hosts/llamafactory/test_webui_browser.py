"""Headless Chromium on the real web UI: each stage chosen, previewed, trained, its loss curve seen, its files found.

What the browser showed is kept in build/webui.
"""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import webui_browser
import yaml
from conftest import DATASETS, OF_A_LOSS, ROOT
from finepref import stages

STEPS = 4
EXTRA = {"max_steps": STEPS, "logging_steps": 1, "gradient_accumulation_steps": 1, "preprocessing_num_workers": 1}
EXTRA |= {"optim": "adamw_torch", "plot_loss": False}
CURVE = "//*[contains(@class, 'plot') or @data-testid='matplotlib']//img"
PICTURES = ROOT / "build" / "webui"


@pytest.fixture(scope="module")
def web(tmp_path_factory, tiny_model):
    """One server in an empty folder, so that no saved configuration interferes, and one page of one browser with
    what all tests want filled in."""
    folder = tmp_path_factory.mktemp("webui")
    profile = tmp_path_factory.mktemp("chromium")
    with webui_browser.serve(folder) as address, webui_browser.chromium(profile) as page:
        page.open(address)
        page.choose("Model name", "Custom")
        page.fill("Model path", str(tiny_model))
        page.choose("Chat template", "chatml")
        page.choose("Compute type", "fp32")
        page.fill("Val size", "0.25")
        page.click("Extra configurations")
        page.fill("Extra arguments", json.dumps(EXTRA))
        page.click("Extra configurations")
        yield SimpleNamespace(page=page, folder=folder)


@pytest.fixture
def page(web, sums, request):
    """The page with the tests' data folder; what it shows at the end is kept."""
    web.page.fill("Data dir", str(sums))
    yield web.page
    web.page.picture(PICTURES / f"{request.node.name}.png")


def label_of(stage):
    """The stage in the Stage list."""
    return f"{stages.find(stage).title.partition(':')[0]} ({stage})"


def fitting(stage, folder):
    """The data sets of a folder and of finepref's own that have a file of one of the stage's formats."""
    names = []
    for table in (folder, ROOT / "dataset_info"):
        entries = json.loads((table / "dataset_info.json").read_text(encoding="utf-8"))
        formats = {name: entry.get("formatting") for name, entry in entries.items()}
        there = [name for name, entry in entries.items() if (table / entry.get("file_name", "none")).is_file()]
        names += [name for name in there if formats[name] in stages.find(stage).formats]
    return names


# An option to set for each stage; of a stage that is not here, its first number, if it has any.
OPTIONS = {"seapo_kto": "kto_rejected_weight", "sepo": "sepo_ratio_chosen", "tdpo": "tdpo_alpha"}


def option_of(stage):
    """The key of a numeric option and its English label; None for a stage without any."""
    from finepref.hosts.llamafactory.webui import forms, texts

    row = stages.find(stage)
    options = forms.options_of(row)
    first = next((key for key, field in options.items() if type(field.default) is float), None)
    key = OPTIONS.get(stage, first)
    return (key, texts.of_option(row, options[key])["en"]["label"]) if key else None


@pytest.mark.parametrize("stage", sorted({*stages.all_stages()} - {*OF_A_LOSS[1:]}))
def test_a_stage_is_chosen_previewed_and_trained_in_the_browser(web, page, sums, stage):
    option = option_of(stage)
    page.fill("Output dir", f"run_{stage}")  # first, because the host then takes a while to empty its output box
    page.choose("Stage", label_of(stage))
    page.visible(f"//span[normalize-space()='{label_of(stage)} configurations']")
    offered = fitting(stage, sums)
    webui_browser.until(lambda: page.offered("Dataset") == offered, f"{offered} offered")
    page.choose("Dataset", DATASETS[stage])
    if option:
        page.fill(option[1], "0.4")

    page.click("Preview command")
    command = page.shows(f"--{option[0]} 0.4 " if option else f"--stage {stage} ")
    assert f"--stage {stage} " in command
    assert f"--dataset {DATASETS[stage]} " in command
    page.picture(PICTURES / f"{stage}_preview.png")

    before = page.sources(CURVE)
    page.lacks("Finished.")
    page.click("Start")
    assert "Failed." not in page.shows("Finished.", seconds=300)
    webui_browser.until(lambda: page.sources(CURVE) not in ([], before), "a loss curve of its own")
    folder = web.folder / "saves" / "Custom" / "lora" / f"run_{stage}"
    assert (folder / "adapter_model.safetensors").is_file()
    if option:
        assert yaml.safe_load((folder / "training_args.yaml").read_text())[option[0]] == 0.4
    receipt = json.loads((folder / "finepref_receipt.json").read_text())
    assert receipt["stage"] == stage
    assert receipt["rows"]["in_evaluation_set"] == 3
    log = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]
    assert [entry["current_steps"] for entry in log if entry.get("loss") is not None] == list(range(1, STEPS + 1))


def test_the_view_of_tokens_highlights_the_spans_of_a_record(web, page):
    page.choose("Stage", label_of("tdpo"))
    page.choose("Dataset", "spans")
    page.click("Tokens")
    page.fill("Record", "11")
    page.click("Show tokens")
    shown = page.shows("span-10")  # whose wrong 24 is marked twice; the tokenizer has a token for each digit
    assert re.search(r"rejected 4 / \d+", shown)
    marked = page.visible("//*[contains(@class, 'textspan') and contains(@class, 'hl') and contains(., '24')]")
    assert marked.text.split()[0] == "24"


def test_a_bad_value_is_refused_in_one_line_before_anything_starts(web, page):
    page.fill("Output dir", "never")
    page.choose("Stage", label_of("sepo"))
    page.choose("Dataset", "scores")
    page.fill("Ratio of chosen tokens", "2")
    page.click("Start")
    page.shows("must be above 0 and at most 1, not 2")
    assert not (web.folder / "saves" / "Custom" / "lora" / "never").exists()


def test_data_that_cannot_be_trained_on_is_named_above_the_traceback(web, page, tmp_path):
    """Whether there are spans is found when the rows are read, in the training process, before it loads a model."""
    pairs = [{"id": f"p{i}", "prompt": f"{i}?", "chosen": "yes", "rejected": "no"} for i in range(4)]
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    entry = {"plain": {"file_name": "plain.jsonl", "formatting": "pair"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entry))
    page.fill("Output dir", "no_spans")
    page.fill("Data dir", str(tmp_path))
    page.choose("Stage", label_of("tdpo"))
    page.choose("Dataset", "plain")
    page.click("Start")
    shown = page.shows("Failed.", seconds=300)
    first = shown[shown.index("Failed.") :].splitlines()[1]
    named = rf"FP210 {tmp_path}/plain\.jsonl:[1-4] rejected_spans: `tdpo_masks: annotated` needs spans; .*"
    assert re.fullmatch(rf"{named} \(id p[0-3]\)", first), first
