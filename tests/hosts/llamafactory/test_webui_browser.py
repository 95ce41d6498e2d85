"""Headless Chromium on the real web UI: each stage chosen, previewed, trained, its loss curve seen, its files found.

What the browser showed is kept in build/webui.
"""

from __future__ import annotations

import json
import re
import threading
from types import SimpleNamespace

import pytest
import webui_browser
import yaml
from chat_endpoint import answering
from conftest import DATASETS, OF_A_LOSS, ROOT
from finepref import stages
from finepref.hosts.llamafactory.webui.jobs import Job
from sample_rows import margin_rows, write_rows

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
        yield SimpleNamespace(page=page, folder=folder, address=address)


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

    page.click("Open viewer page")
    with page.inside("//iframe[@title='finepref view']"):
        shown = page.shows("span-10")
    assert "stage tdpo" in shown
    assert page.visible("//*[normalize-space()='Save viewer page']").is_enabled()
    page.click("Tokens")


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


def test_pairs_are_scored_looked_at_and_trained_on_without_a_shell(web, page, other_model, tmp_path):
    """The oracle is another model than the policy, which is the reference."""
    folder = write_rows(tmp_path, margin_rows(), "sums_of_two", formatting="pair")
    page.fill("Output dir", "run_on_scores")
    page.fill("Data dir", str(folder))
    page.choose("Stage", label_of("sepo"))
    page.fill("Ratio of chosen tokens", "0.4")
    page.click("Make token scores (finepref sepo score)")
    page.choose("Pairs to score", "sums_of_two")
    page.fill("Oracle", str(other_model))
    page.fill("Name of the scores", "seen")
    page.click("Score")
    page.shows("seen is done · in the list of data sets: seen", seconds=300)
    page.picture(PICTURES / "scored.png")

    page.click("Use these scores")
    shown = page.shows("span-0: chosen")
    assert re.search(r"rejected [1-9]\d* / \d+", shown)
    page.lacks("Finished.")
    page.click("Start")
    assert "Failed." not in page.shows("Finished.", seconds=300)
    receipt = json.loads((web.folder / "saves/Custom/lora/run_on_scores/finepref_receipt.json").read_text())
    assert receipt["stage"] == "sepo"
    assert [each["name"] for each in receipt["datasets"]] == ["seen"]
    page.click("Make token scores (finepref sepo score)")


@pytest.fixture
def wrong(tmp_path):
    """A data folder with good answers, and the job that makes negatives of them; it is ended with the test."""
    job = Job(write_rows(tmp_path, margin_rows(6), "answers", formatting="pair") / "finepref" / "wrong.job")
    yield job
    job.abort()


def test_negatives_are_made_seen_and_aborted_in_another_tab_and_gone_on_with(web, page, tmp_path, wrong):
    """The endpoint answers two of the 18 requests, and holds the third until the job has been aborted."""
    let_go = threading.Event()

    def reply(asked):
        if len(endpoint.requests) > 2:
            let_go.wait(webui_browser.PATIENCE)
        first, second, result = re.search(r"(\d+) \+ (\d+) = (\d+)\. The answer", asked).groups()
        wrong = int(result) + len(endpoint.requests)
        return {"content": f"{first} + {second} = {wrong}. The answer is {wrong}."}

    with answering(reply) as endpoint:
        page.fill("Data dir", str(tmp_path))
        page.choose("Stage", label_of("tdpo"))
        page.click("Make negatives with one error (finepref seapo inject)")
        page.choose("Good answers", "answers")
        page.choose("Engine", "openai")
        page.fill("Address of the endpoint", endpoint.url)
        page.fill("Name of the negatives", "wrong")
        page.fill("Further options of seapo inject", "--concurrency 1 --types logic")
        page.click("Make negatives")
        page.shows("--types is set by the form itself.")
        page.fill("Further options of seapo inject", "--concurrency 1")
        page.click("Make negatives")
        page.lacks("--types is set by the form itself.")
        webui_browser.until(lambda: len(endpoint.requests) == 3, "the third request")
        page.shows(" of 18")
        page.click("Make negatives")
        page.shows("wrong is being made already; it is not started twice.")
        page.picture(PICTURES / "injecting.png")

        with page.new_tab(web.address):  # it has the stage, the folder and the open form of the running job
            page.shows("wrong is being made")
            page.click("Abort making negatives")
            page.shows("wrong was stopped; what was done is kept")
        assert not wrong.running()
        page.shows("wrong was stopped; what was done is kept")
        let_go.set()
        page.click("Resume making negatives")
        page.shows("wrong is done", seconds=300)
        page.picture(PICTURES / "injected.png")
        page.click("Use these negatives")
        page.shows("wrong_span_pair 1")
        asked = [json.dumps(request["messages"]) for request in endpoint.requests]
    assert [asked.count(each) for each in asked[:3]] == [1, 1, 2]
