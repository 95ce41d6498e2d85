"""A stage of another package, by its row and its method file alone, on the real host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import own_stage
import pytest
import webui_browser
from conftest import ROOT
from plain_pairs import Plain
from sample_rows import span_rows

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    return own_stage.install(tmp_path_factory.mktemp("own_stage"))


def test_its_recipe_trains_by_the_real_command_with_the_loss_computed_without_finepref(command, installed, tiny_model):
    done = command(
        environment=installed,
        name="own_stage/recipe",
        dataset="spans",
        finetuning_type="full",
        per_device_train_batch_size=12,
        gradient_accumulation_steps=1,
        wsimpo_gamma=0.3,
        plot_loss=True,
    )
    assert done.code == 0, done.output[-3000:]
    log = json.loads((done.folder / "trainer_state.json").read_text())["log_history"]
    expected = own_stage.first_loss(Plain(tiny_model), span_rows(), beta=2.0, gamma=0.3)
    assert log[0]["loss"] == pytest.approx(expected, abs=1e-5)
    assert {"rewards/margins", "logps/chosen"} <= log[0].keys()
    assert done.receipt["stage"] == "wsimpo"
    of_every_stage = {
        "finepref_overlong": "host",
        "finepref_bad_rows": "error",
        "finepref_max_bad": "1%",
        "finepref_batch_tokens": None,
        "finepref_resume_changed": False,
        "finepref_reference_cache": False,
        "finepref_full_logits": False,
    }
    own = {"wsimpo_beta": 2.0, "wsimpo_gamma": 0.3, "finetuning_type": "full"}
    assert done.receipt["settings"] == of_every_stage | own
    assert done.receipt["ranks"][0]["loss_calls"] == done.receipt["expected_loss_calls"] == 2
    assert done.receipt["rows"]["in_training_set"] == 12
    assert "SimPO on weighted tokens (arXiv 2405.14734)" in (done.folder / "README.md").read_text()
    assert (done.folder / "training_rewards_chosen.png").stat().st_size > 1000


def test_its_options_are_checked_as_ours_are(command, installed):
    done = command(environment=installed, name="own_stage/recipe", dataset="spans", wsimpo_beta=-1.0)
    assert done.code != 0
    assert "`wsimpo_beta` must be above 0, not -1.0" in done.output


def test_it_is_in_the_web_uis_list_with_its_options_and_its_data_sets(installed):
    program = (
        "import gradio, json\n"
        "from finepref import stages\n"
        "from finepref.hosts.llamafactory.webui import datasets, forms, texts\n"
        "row = stages.find('wsimpo')\n"
        "with gradio.Blocks():\n"
        "    elements = forms.build(row)\n"
        "words = {key: texts.of_option(row, option) for key, option in forms.options_of(row).items()}\n"
        "shown = {'label': forms.label_of(row), 'elements': [*elements], 'words': words}\n"
        "print(json.dumps(shown | {'datasets': datasets.fitting(row, 'no_such_folder')}))\n"
    )
    process = {**os.environ, **installed}
    done = subprocess.run([BIN / "python", "-c", program], env=process, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout.splitlines()[-1])
    assert shown["label"] == "SimPO on weighted tokens (wsimpo)"
    every = ("overlong", "bad_rows", "max_bad", "batch_tokens", "resume_changed", "reference_cache")
    of_every_stage = [f"finepref_{name}" for name in every]
    own = ["wsimpo_beta", "wsimpo_gamma"]
    assert {*shown["elements"]} == {f"wsimpo.{name}" for name in (*own, *of_every_stage, "finepref_full_logits")}
    assert shown["words"]["wsimpo_beta"]["ja"] == {
        "label": "wsimpo_beta",
        "info": "Scale of the mean log-probability.",
    }
    assert "tdpo_demo" in shown["datasets"]


def test_it_is_chosen_and_previewed_in_the_real_web_ui(installed, sums, tiny_model, tmp_path_factory):
    folder, profile = (tmp_path_factory.mktemp(name) for name in ("webui", "chromium"))
    with webui_browser.serve(folder, **installed) as address, webui_browser.chromium(profile) as page:
        page.open(address)
        page.choose("Model name", "Custom")
        page.fill("Model path", str(tiny_model))
        page.fill("Data dir", str(sums))
        page.choose("Stage", "SimPO on weighted tokens (wsimpo)")
        page.visible("//span[normalize-space()='SimPO on weighted tokens (wsimpo) configurations']")
        page.choose("Dataset", "spans")
        page.fill("wsimpo_gamma", "0.4")
        page.click("Preview command")
        command = page.shows("--wsimpo_gamma 0.4 ")
        page.picture(ROOT / "build" / "webui" / "own_stage.png")
    assert "--stage wsimpo " in command
    assert "--wsimpo_beta 2" in command


def test_the_conformance_tests_take_it_by_its_row(installed, tmp_path):
    program = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-k",
        "wsimpo",
        str(Path(__file__).with_name("test_conformance.py")),
    ]
    program += ["--basetemp", str(tmp_path / "conformance"), "-p", "no:cacheprovider"]
    done = subprocess.run(program, env={**os.environ, **installed}, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "12 passed" in done.stdout
