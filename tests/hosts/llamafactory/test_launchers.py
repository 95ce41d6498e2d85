"""The same recipe through the host's own launchers: the command, torchrun, `lmf`, `python -m`, flags, export."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, weights

BIN = Path(sys.executable).parent
TWO_RANKS = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}


def test_two_torchrun_ranks_draw_what_one_process_draws_and_both_list_every_card(command, run, tmp_path):
    """12 records over 3 epochs: 72 rows, 36 draws. Two ranks take twice the rows per step."""
    alone = run(output_dir=str(tmp_path / "one"), max_steps=-1, num_train_epochs=3)
    both = command(environment=TWO_RANKS, output_dir=str(tmp_path / "two"), max_steps=-1, num_train_epochs=3)
    assert both.code == 0, both.output[-3000:]
    assert both.receipt["draws"] == alone.receipt["draws"]
    ranks = both.receipt["ranks"]
    assert [rank["rank"] for rank in ranks] == [0, 1]
    assert ranks[0]["cards"] == ranks[1]["cards"] == alone.receipt["ranks"][0]["cards"]
    assert [rank["loss_calls"] for rank in ranks] == [both.receipt["expected_loss_calls"]] * 2


def test_the_command_equals_a_call_of_run_exp(command, run, tmp_path):
    called = run(output_dir=str(tmp_path / "called"))
    typed = command(output_dir=str(tmp_path / "typed"))
    assert typed.code == 0, typed.output[-3000:]
    for name, tensor in weights(called.folder).items():
        assert torch.equal(tensor, weights(typed.folder)[name]), name


@pytest.mark.parametrize(
    "launcher", [[str(BIN / "lmf")], [sys.executable, "-m", "llamafactory.cli"]], ids=["lmf", "python -m"]
)
def test_the_stage_and_its_keys_are_in_the_help_of_every_launcher(launcher):
    shown = subprocess.run([*launcher, "train", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert "seapo_kto" in shown.stdout
    assert "--seapo_error_types" in shown.stdout


def test_flags_work_as_yaml_keys_do_and_a_misspelt_value_is_refused_by_argparse(recipe):
    flags = []
    for key, value in recipe(seapo_resample="sometimes").items():
        if value is not None:
            flags += [f"--{key}", str(value)]
    refused = subprocess.run(
        [str(BIN / "llamafactory-cli"), "train", *flags], capture_output=True, text=True, cwd=ROOT
    )
    assert refused.returncode != 0
    assert "seapo_resample" in refused.stderr.splitlines()[-1]
    assert "invalid choice: 'sometimes'" in refused.stderr.splitlines()[-1]


def test_finepref_disable_leaves_the_host_without_the_stage_and_names_the_switch(command):
    off = command(environment={"FINEPREF_DISABLE": "1"})
    assert off.code != 0
    assert not off.folder.exists()
    assert off.output.splitlines()[-1] == ("seapo_kto is finepref's, and FINEPREF_DISABLE=1 switches it off: unset it")
    assert "Traceback" not in off.output


def test_the_watched_modules_are_exactly_those_that_cards_rebind():
    from finepref.attach import WATCHED
    from finepref.hosts.patching import load_cards

    assert set(WATCHED) == {card.module for card in load_cards().values() if card.replacement}
