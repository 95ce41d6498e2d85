"""A changed host or a missing card stops our command lines with HostDrift; OpenRLHF's own go on."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from importlib import import_module

import pytest
from finepref import stages
from finepref.hosts import patching
from openrlhf_runs import BIN

CARDS = sorted(name for name, card in patching.load_cards().items() if card.host == "openrlhf")
STAGES = [row for row in stages.all_stages().values() if row.command]


@pytest.fixture
def changed(host, monkeypatch):
    """Change what a card names as an upgrade of the host could, or the card itself."""

    def change(name: str, mutation: str) -> None:
        card = patching.load_cards()[name]
        module = import_module(card.module)
        original = getattr(module, card.attribute)
        monkeypatch.setattr(patching, "STATES", {})
        if mutation == "deleted":
            monkeypatch.delattr(module, card.attribute)
        elif mutation == "signature" and card.methods:
            method = {next(iter(card.methods)): lambda self, context, *rest: None}
            monkeypatch.setattr(module, card.attribute, type(original.__name__, (original,), method))
        elif mutation == "signature":
            monkeypatch.setattr(module, card.attribute, lambda context, *rest: None)
        elif mutation == "other kind":
            other = (lambda *arguments: None) if isinstance(original, type) else type("other", (), {})
            monkeypatch.setattr(module, card.attribute, other)
        elif mutation == "version":
            monkeypatch.setitem(patching.load_cards(), name, replace(card, versions=">=99"))
        else:
            monkeypatch.delitem(patching.load_cards(), name)

    return change


@pytest.mark.parametrize("mutation", ["deleted", "signature", "other kind", "version", "card removed"])
@pytest.mark.parametrize("card", CARDS)
def test_any_change_to_what_a_card_names_is_host_drift(changed, card, mutation):
    row = next(row for row in STAGES if card in row.openrlhf_cards)
    patching.require(row.openrlhf_cards, needed_by=row.name)
    changed(card, mutation)
    with pytest.raises(patching.HostDrift, match=f"'{card}'"):
        patching.require(row.openrlhf_cards, needed_by=row.name)


def test_every_card_is_required_by_some_stage():
    assert set(CARDS) == {name for row in STAGES for name in row.openrlhf_cards}


def test_a_drifted_host_ends_a_run_in_one_message_before_the_tokenizer_is_loaded(attempt, changed, monkeypatch):
    changed("openrlhf-actor", "version")
    monkeypatch.setattr("openrlhf.utils.get_tokenizer", lambda *arguments, **options: 1 / 0)
    done = attempt("selective")
    assert done.code == 1
    assert "the host differs from what finepref expects" in done.output
    assert "card 'openrlhf-actor' (openrlhf 0.11.2): expected openrlhf >=99, found 0.11.2" in done.output


def test_a_name_that_the_hosts_train_no_longer_uses_is_host_drift(host):
    from finepref.hosts.openrlhf.training import rebind
    from openrlhf.cli.train_rm import train

    assert rebind(train, RewardDataset=int).__globals__["RewardDataset"] is int
    assert train.__globals__["RewardDataset"] is not int
    with pytest.raises(patching.HostDrift, match=r"openrlhf\.cli\.train_rm\.train does not use DPOTrainer"):
        rebind(train, DPOTrainer=int)


@pytest.mark.parametrize(
    "source",
    ["def train(args): pass\n", "if __name__ == '__main__':\n    args = 1\n    other(args)\n"],
    ids=["no block", "other last line"],
)
def test_a_command_line_of_another_shape_is_host_drift(host, tmp_path, monkeypatch, source):
    from finepref.hosts.openrlhf import command_line, compat

    (tmp_path / "cli.py").write_text(source)
    monkeypatch.setattr(compat, "file_of", lambda module: str(tmp_path / "cli.py"))
    with pytest.raises(patching.HostDrift, match="expected one block"):
        command_line.main_block("openrlhf.cli.train_dpo")


def test_the_doctor_finds_every_card_of_this_host_in_place():
    done = subprocess.run([BIN / "finepref", "doctor", "--json"], capture_output=True, text=True, timeout=300)
    table = json.loads(done.stdout)["cards"]
    assert done.returncode == 0
    states = {row["card"]: row["state"] for row in table if row["host"] == "openrlhf"}
    assert states == dict.fromkeys(CARDS, "verified, source tested")
    assert {row["state"] for row in table if row["host"] == "llamafactory"} == {"host not installed"}
