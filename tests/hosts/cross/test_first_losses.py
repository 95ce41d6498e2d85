"""The same records, models and options have the same first loss on OpenRLHF and on LLaMA-Factory.

Each host runs in its own environment: this file in OpenRLHF's, LLaMA-Factory in the one that LLAMAFACTORY_ENV names,
or else in .venvs/llamafactory.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from openrlhf_runs import ROOT, tensors
from safetensors.torch import save_file

# name -> (flags on OpenRLHF, LLaMA-Factory's stage, data and keys)
CASES = {
    "selective": (
        {"selective__ratio_chosen": 0.5, "selective__gamma": 2.1, "selective__margin": 0.3},
        {"stage": "sepo", "dataset": "scores", "sepo_ratio_chosen": 0.5, "sepo_gamma": 2.1, "sepo_margin": 0.3},
    ),
    "tdpo": (
        {"tdpo__alpha": 0.7, "tdpo__sides": "one", "model__beta": 0.2},
        {"stage": "tdpo", "dataset": "spans", "tdpo_alpha": 0.7, "tdpo_sides": "one", "pref_beta": 0.2},
    ),
    "kto": (
        {"model__beta": 0.3, "kto__rejected_weight": 0.5, "kto__error_types": "logic,correctness"},
        {
            "stage": "seapo_kto",
            "dataset": "sums",
            "pref_beta": 0.3,
            "kto_rejected_weight": 0.5,
            "seapo_error_types": "logic,correctness",
        },
    ),
    "apo_rm": (
        {"apo__coeff": 0.5, "apo__sample_num": 2, "apo__pooling": "last", "adam__lr": 0.0},
        {"stage": "apo_rm", "dataset": "lists", "apo_coeff": 0.5, "apo_sample_num": 2, "apo_pooling": "last"},
    ),
    "tgdpo": (
        {"tgdpo__alpha": 2.0, "model__beta": 0.2},
        {"stage": "tgdpo", "dataset": "scores", "tgdpo_alpha": 2.0, "pref_beta": 0.2},
    ),
    "tis_dpo": (
        {"tis_dpo__weights": "rank_based", "model__beta": 0.2},
        {"stage": "tis_dpo", "dataset": "scores", "tis_weights": "rank_based", "pref_beta": 0.2},
    ),
    "cdpo": ({"model__beta": 1.0}, {"stage": "cdpo", "dataset": "contrasts", "pref_beta": 1.0}),
    "confpo": ({"confpo__gamma": 0.5}, {"stage": "confpo", "dataset": "spans", "confpo_gamma": 0.5}),
    "simper": ({}, {"stage": "simper", "dataset": "spans"}),
    "mask_dpo": (
        {"tdpo__variant": "dpo", "tdpo__end_token": True},
        {"stage": "tdpo", "dataset": "spans", "tdpo_variant": "dpo", "tdpo_end_token": True, "pref_beta": 0.1},
    ),
    "margins": (
        {"data__dataset": "margins", "tdpo__masks": "none", "tdpo__pair_margins": True},
        {"stage": "tdpo", "dataset": "margins", "tdpo_masks": "none", "tdpo_pair_margins": True, "pref_beta": 0.1},
    ),
    "plackett_luce": (
        {"apo__loss": "plackett_luce", "apo__coeff": 1.0, "apo__pooling": "last", "adam__lr": 0.0},
        {
            "stage": "apo_rm",
            "dataset": "lists",
            "apo_loss": "plackett_luce",
            "apo_coeff": 1.0,
            "apo_pooling": "last",
        },
    ),
    "dpo_pl": (
        {"dpo_pl__ties": "breslow", "model__beta": 0.2},
        {"stage": "dpo_pl", "dataset": "lists", "dpo_pl_ties": "breslow", "pref_beta": 0.2},
    ),
}
COMMANDS = {"mask_dpo": "tdpo", "margins": "tdpo", "plackett_luce": "apo_rm"}
"""The command of a case, where it is not its name."""
WITHOUT_REFERENCE = ("selective", "apo_rm", "confpo", "simper", "plackett_luce")


@pytest.fixture
def on_openrlhf(train, other_model, tmp_path):
    """The first loss of each case, and the folder with the reward model's random head, which no step has changed.

    The head depends on the seed only, so the two reward models have the same.
    """
    losses = {}
    for name, (flags, _) in CASES.items():
        reference = {} if name in WITHOUT_REFERENCE else {"ref__model_name_or_path": other_model}
        one_batch = {"train__batch_size": 12, "train__micro_batch_size": 12}
        done = train(COMMANDS.get(name, name), ckpt__output_dir=tmp_path / name, **one_batch, **reference, **flags)
        losses[name] = done.log["train/loss_mean"][0]
    return losses, tmp_path / "apo_rm"


@pytest.fixture
def on_llamafactory(on_openrlhf, tiny_model, other_model, sums, tmp_path):
    """The same there. A batch of KTO has two rows per record; the reward model gets the other host's head."""
    rewarding = tmp_path / "rewarding"
    shutil.copytree(tiny_model, rewarding)
    head = {"v_head.summary.weight": tensors(on_openrlhf[1])["score.weight"], "v_head.summary.bias": torch.zeros(1)}
    save_file(head, rewarding / "value_head.safetensors", metadata={"format": "pt"})
    runs = []
    for name, (_, keys) in CASES.items():
        settings = {
            "model_name_or_path": str(rewarding if keys["stage"] == "apo_rm" else tiny_model),
            "template": "chatml",
            "dataset_dir": str(sums),
            "do_train": True,
            "finetuning_type": "full",
            "output_dir": str(tmp_path / f"lf-{name}"),
            "cutoff_len": 512,
            "per_device_train_batch_size": 24 if name == "kto" else 12,
            "max_steps": 1,
            "logging_steps": 1,
            "report_to": "none",
            "cache_dir": str(tmp_path / "cache"),
        }
        reference = {} if name in WITHOUT_REFERENCE else {"ref_model": str(other_model)}
        runs.append(settings | reference | keys)
    environment = Path(os.environ.get("LLAMAFACTORY_ENV", ROOT / ".venvs/llamafactory"))
    program = [
        environment / "bin/python",
        Path(__file__).with_name("llamafactory_losses.py"),
        tmp_path / "losses.json",
    ]
    done = subprocess.run(program, input=json.dumps(runs), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(zip(CASES, json.loads((tmp_path / "losses.json").read_text()), strict=True))


def test_the_hosts_have_the_same_first_loss_for_every_method(on_openrlhf, on_llamafactory):
    losses, _ = on_openrlhf
    for name in CASES:
        print(f"{name}: OpenRLHF {losses[name]:.7f}, LLaMA-Factory {on_llamafactory[name]:.7f}")
    assert losses == pytest.approx(on_llamafactory, abs=1e-5)
