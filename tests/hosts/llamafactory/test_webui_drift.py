"""On a changed host the web UI stays the host's own and says why; without finepref it is the host's own too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from finepref import stages
from finepref.methods.shapes import WEBUI_CARDS
from webui_drift_probe import MUTATIONS

HERE = Path(__file__).parent
STAGES = set(stages.all_stages())


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    done = subprocess.run(
        [sys.executable, str(HERE / "webui_drift_probe.py")],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=tmp_path_factory.mktemp("webui"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_on_a_host_as_the_cards_say_all_stages_are_offered_and_nothing_is_told(outcomes):
    found = outcomes[f"{WEBUI_CARDS[0]}/none"]
    assert not found["ended"]
    assert set(found["stages"]) > STAGES
    assert "HostDrift" not in found["told"]


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("card", WEBUI_CARDS)
def test_any_change_to_what_a_card_names_leaves_the_hosts_own_web_ui_and_tells_host_drift(outcomes, card, mutation):
    found = outcomes[f"{card}/{mutation}"]
    assert not found["ended"], found
    assert "finepref: HostDrift: " in found["told"]
    assert f"'{card}'" in found["told"]
    assert not STAGES & set(found["stages"])
    ours = ("sepo_", "tdpo_", "seapo_", "tokens_", "scoring_", "inject_")
    assert not [name for name in found["elements"] if name.startswith(ours)]


CODE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import webui_form
ui = webui_form.build()
from llamafactory.extras.constants import TRAINING_STAGES
from llamafactory.webui.locales import LOCALES
commands = {}
for label in ("Supervised Fine-Tuning", "Reward Modeling", "DPO", "KTO", "Pre-Training"):
    form = ui.form("model", training_stage=label, dataset=["a", "b"], pref_beta=0.3)
    commands[label] = ui.runner._parse_train_args(form)
names = [name for name, _ in ui.manager.get_elem_iter()]
print(json.dumps({"stages": TRAINING_STAGES, "names": names, "commands": commands, "texts": LOCALES}))
"""


def test_with_finepref_disabled_the_web_ui_is_the_hosts_and_enabled_it_only_adds_to_it(tmp_path):
    results = []
    for value in ("1", "0"):
        done = subprocess.run(
            [sys.executable, "-c", CODE, str(HERE)],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path,
            env=os.environ | {"FINEPREF_DISABLE": value},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(json.loads(done.stdout.splitlines()[-1]))
    host, ours = results
    assert not [text for text in host["names"] + list(host["texts"]) if text.startswith(("sepo", "tdpo", "seapo"))]
    assert host["commands"] == ours["commands"]
    assert list(host["stages"]) == list(ours["stages"])[: len(host["stages"])]
    assert set(ours["stages"].values()) - set(host["stages"].values()) == STAGES
    assert [name for name in ours["names"] if name in host["names"]] == host["names"]
    assert {name: ours["texts"][name] for name in host["texts"]} == host["texts"]
