"""The shipped scripts: every flag is one of the program's, and bash can read them."""

from __future__ import annotations

import re
import subprocess
from functools import cache

import pytest
import yaml
from finepref.cli import app
from finepref.pipelines import openrlhf
from openrlhf_runs import BIN, ROOT
from typer.main import get_command

SCRIPTS = sorted((ROOT / "examples/openrlhf").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_flag_of_a_script_is_one_of_its_program(script):
    subprocess.run(["bash", "-n", script], check=True)
    text = "\n".join(line for line in script.read_text().splitlines() if not line.startswith("#"))
    text = re.sub(r"`#.*?`", "", text)
    used = set(re.findall(r"--([\w.-]+)", text)) - {"module"}
    assert used
    if commands := re.findall(r"^finepref (\w+) (\w+)", text, re.MULTILINE):
        (words,) = commands
        assert used <= options_of(*words)
    else:
        (module,) = re.findall(r"deepspeed --module (\S+)", text)
        assert used <= flags_of(module)


def options_of(*words: str) -> set[str]:
    """All options of a command of `finepref`."""
    command = get_command(app)
    for word in words:
        command = command.commands[word]
    return {flag.removeprefix("--") for parameter in command.params for flag in parameter.opts}


@cache
def flags_of(module: str) -> set[str]:
    """All flags of a command line."""
    if module.endswith("train_sft"):  # the host's own, which needs flash-attn even for its help
        source = (BIN.parent / "lib").glob("python3*/site-packages/openrlhf/cli/train_sft.py")
        return set(re.findall(r'"--([\w.]+)"', next(source).read_text()))
    done = subprocess.run([BIN / "python", "-m", module, "--help"], capture_output=True, text=True, timeout=120)
    return set(re.findall(r"--([\w.]+)", done.stdout))


@pytest.mark.parametrize(("section", "module"), [("reward", "train_apo_rm"), ("policy", "train_sft")])
def test_every_flag_of_the_game_is_one_of_the_program_that_gets_it(section, module):
    settings = yaml.safe_load((ROOT / "examples/pipelines/apo_openrlhf.yaml").read_text())
    assert openrlhf.flat(settings[section]).keys() <= flags_of(f"openrlhf.cli.{module}")
