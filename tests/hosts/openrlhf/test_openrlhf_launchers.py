"""Every way to start our command lines, and the host's own, which finepref leaves alone."""

from __future__ import annotations

import subprocess

import pytest
import torch
from finepref import stages
from openrlhf_runs import BIN, DATA, MODULE, ROOT, tensors
from sample_rows import write_rows
from warm import free_port

LAUNCHED = {("selective", 2), *((name, 1) for name in DATA)}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("name", sorted(DATA))
def test_a_command_line_trains_on_one_process_and_on_two(command, train, name, processes):
    """By the deepspeed launcher each of them, and one on two processes; the others on two without it."""
    if (name, processes) in LAUNCHED:
        launcher = ("deepspeed", "--num_gpus", str(processes), "--master_port", free_port())
        done = command(*launcher, "--module", MODULE.format(name), name=name)
        assert done.code == 0, done.output[-4000:]
    else:
        done = train(name, processes=processes)
    assert [rank["loss_calls"] for rank in done.receipt["ranks"]] == [6 // processes] * processes
    assert len(done.log["train/loss_mean"]) == 3
    assert (done.folder / "config.json").is_file()


@pytest.mark.parametrize(
    "program",
    [
        ("python", "-m", "finepref.hosts.openrlhf.train", "{stage}"),
        ("python", "-m", "openrlhf.cli.train_{}"),
        ("openrlhf-train-{}",),
    ],
    ids=["our module", "the host's name", "console script"],
)
@pytest.mark.parametrize("name", sorted(DATA))
def test_three_names_give_one_command_line_with_the_hosts_flags_and_ours(program, name):
    group = {"apo_rm": "apo"}.get(name, name)
    stage = stages.of_command(f"train_{name}").name
    words = [part.format(name if "." in part else name.replace("_", "-"), stage=stage) for part in program]
    done = subprocess.run([BIN / words[0], *words[1:], "--help"], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert f"finepref {group}:" in done.stdout
    assert f"--{group}." in done.stdout
    assert "--ds.zero_stage" in done.stdout


def test_the_help_imports_no_model_library():
    program = (
        "import sys; sys.argv = ['train', '--help']\n"
        "from openrlhf.cli import train_selective\n"
        "try:\n    train_selective.main()\n"
        "except SystemExit:\n    print('loaded:', sorted({'torch', 'transformers', 'deepspeed'} & set(sys.modules)))\n"
    )
    done = subprocess.run([BIN / "python", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.rstrip().endswith("loaded: []")


HOST_CLI = "finepref.hosts.openrlhf.host_cli"


def test_the_hosts_own_train_dpo_is_the_same_with_finepref_attached_and_without(command, tmp_path):
    """Both with the stand-ins without which the host does not start here."""
    pairs = [{"prompt": f"{i}?", "chosen": f"{i} is it.", "rejected": "No."} for i in range(8)]
    folder = write_rows(tmp_path / "data", pairs, "pairs", formatting="pair")
    done = {}
    for disabled in ("", "1"):
        out = tmp_path / f"out{disabled}"
        done[disabled] = command(
            *("python", "-m", HOST_CLI, "openrlhf.cli.train_dpo"),
            name="dpo",
            environment={"FINEPREF_DISABLE": disabled},
            data__dataset=folder / "pairs.jsonl",
            data__dataset_dir=None,
            data__prompt_key="prompt",
            data__apply_chat_template=None,
            ds__param_dtype="bf16",
            ds__attn_implementation="sdpa",
            ckpt__output_dir=out,
            ckpt__path=out / "ckpt",
            logger__tensorboard_dir=out / "tb",
        )
        assert done[disabled].code == 0, done[disabled].output[-4000:]
        assert done[disabled].receipt is None
    assert done[""].log["train/loss"] == done["1"].log["train/loss"]
    for name, tensor in tensors(done[""].folder).items():
        assert torch.equal(tensor, tensors(done["1"].folder)[name])


def test_the_hosts_own_train_sft_runs_anywhere_on_two_processes_of_the_deepspeed_launcher(command, tmp_path):
    rows = [{"messages": [{"role": r, "content": f"{i}"} for r in ("user", "assistant")]} for i in range(8)]
    folder = write_rows(tmp_path / "data", rows)
    launcher = ("deepspeed", "--num_gpus", "2", "--master_port", free_port(), "--module", HOST_CLI)
    done = command(
        *(*launcher, "openrlhf.cli.train_sft"),
        name="sft",
        data__dataset=folder / "sums.jsonl",
        data__dataset_dir=None,
        data__input_key="messages",
        train__max_epochs=1,
        ds__param_dtype="bf16",
        ds__attn_implementation="sdpa",
    )
    assert done.code == 0, done.output[-4000:]
    assert len(done.log["train/loss_mean"]) == 2
    assert (done.folder / "config.json").is_file()


def test_a_program_that_runs_another_one_anywhere_needs_its_name():
    done = subprocess.run([BIN / "python", "-m", HOST_CLI, "--help"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "name a module to run, for example openrlhf.cli.train_sft\n")
