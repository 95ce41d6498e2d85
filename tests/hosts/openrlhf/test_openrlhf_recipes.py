"""The shipped scripts: every flag is one of the program's, and bash can read them."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml
from conftest import BIN, ROOT
from finepref.pipelines import openrlhf

SCRIPTS = sorted((ROOT / "examples/openrlhf").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_flag_of_a_script_is_one_of_its_program(script):
    subprocess.run(["bash", "-n", script], check=True)
    text = "\n".join(line for line in script.read_text().splitlines() if not line.startswith("#"))
    text = re.sub(r"`#.*?`", "", text)
    if "finepref sepo score" in text:
        return  # that command has its own tests
    (module,) = re.findall(r"deepspeed --module (\S+)", text)
    used = set(re.findall(r"--([\w.]+)", text)) - {"module"}
    assert used
    assert used <= flags_of(module)


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
