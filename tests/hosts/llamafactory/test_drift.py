"""A changed host or a missing card stops a stage of ours with HostDrift before anything is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from drift_probe import MUTATIONS
from finepref import stages
from finepref.hosts.patching import load_cards
from finepref.methods.shapes import EXPORT_CARDS, WEBUI_CARDS

CARDS = sorted({name for stage in stages.all_stages().values() for name in stage.llamafactory_cards})


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drift")
    for stage in stages.all_stages().values():
        settings = {"stage": stage.name, "do_train": True, "output_dir": str(folder / "out")}
        settings |= {"model_name_or_path": str(folder), "dataset": stage.demo_dataset, "template": "chatml"}
        (folder / f"{stage.name}.yaml").write_text(yaml.safe_dump(settings))
    probe = Path(__file__).with_name("drift_probe.py")
    done = subprocess.run([sys.executable, str(probe), str(folder)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("card", CARDS)
def test_any_change_to_what_a_card_names_gives_host_drift_before_a_model_loads(outcomes, card, mutation):
    found = outcomes[f"{card}/{mutation}"]
    assert found["ended"] == "HostDrift", found
    assert f"'{card}'" in found["message"]
    assert not found["loaded"]


def test_every_card_is_required_by_some_stage_or_by_the_web_ui_or_the_export_and_by_one_of_them_only():
    cards = {name for name, card in load_cards().items() if card.host == "llamafactory"}
    assert cards == {*CARDS, *WEBUI_CARDS, *EXPORT_CARDS}
    assert len(cards) == len({*CARDS}) + len(WEBUI_CARDS) + len(EXPORT_CARDS)


def test_a_source_that_we_never_tested_warns_and_is_unverified_in_the_receipt(run, monkeypatch, capfd):
    from dataclasses import replace

    from finepref.hosts import patching

    card = load_cards()["sequence-lengths"]
    monkeypatch.setitem(load_cards(), card.name, replace(card, tested={"0.9.5": "0" * 16}))
    monkeypatch.setitem(patching.STATES, card.name, patching.State(load_cards()[card.name]))
    done = run()
    sources = {entry["card"]: entry["source"] for entry in done.receipt["ranks"][0]["cards"]}
    assert sources["sequence-lengths"] == "unverified"
    assert "card sequence-lengths: source" in capfd.readouterr().err


def test_drift_leaves_the_hosts_own_stages_alone(recipe, tmp_path):
    """The host's sft runs though every one of our cards is out of range; only a line on standard error tells."""
    code = (
        "import dataclasses, sys, yaml\n"
        "from finepref.hosts import patching\n"
        "cards = patching.load_cards()\n"
        "cards.update({n: dataclasses.replace(c, versions='>=99') for n, c in cards.items()})\n"
        "from llamafactory.train.tuner import run_exp\n"
        "run_exp(yaml.safe_load(sys.stdin))\n"
    )
    settings = recipe(stage="sft", dataset="sft", dataset_dir=str(tmp_path))
    for key in [key for key in settings if key.startswith(("seapo_", "pref_", "kto_"))]:
        del settings[key]
    (tmp_path / "sft.json").write_text(json.dumps([{"instruction": "1+1?", "input": "", "output": "2"}] * 8))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"sft": {"file_name": "sft.json"}}))
    done = subprocess.run(
        [sys.executable, "-c", code], input=yaml.safe_dump(settings), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    installed = version("llamafactory")
    assert (
        f"finepref: card 'finetuning-arguments' (llamafactory {installed}): expected llamafactory >=99" in done.stderr
    )
