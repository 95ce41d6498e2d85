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
}


@pytest.fixture
def on_openrlhf(train, other_model, tmp_path):
    """The first loss of each case, and the folder with the reward model's random head, which no step has changed."""
    losses = {}
    for name, (flags, _) in CASES.items():
        reference = {} if name in ("selective", "apo_rm") else {"ref__model_name_or_path": other_model}
        one_batch = {"train__batch_size": 12, "train__micro_batch_size": 12}
        done = train(name, ckpt__output_dir=tmp_path / name, **one_batch, **reference, **flags)
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
            "model_name_or_path": str(rewarding if name == "apo_rm" else tiny_model),
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
        reference = {} if name in ("selective", "apo_rm") else {"ref_model": str(other_model)}
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
