"""The shipped scripts: every flag is one of the program's, and bash can read them."""

from __future__ import annotations

import re
import subprocess

import pytest
from conftest import BIN, ROOT

SCRIPTS = sorted((ROOT / "examples/openrlhf").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_flag_of_a_script_is_one_of_its_program(script):
    subprocess.run(["bash", "-n", script], check=True)
    text = "\n".join(line for line in script.read_text().splitlines() if not line.startswith("#"))
    text = re.sub(r"`#.*?`", "", text)
    if "finepref sepo score" in text:
        return  # that command has its own tests
    (module,) = re.findall(r"deepspeed --module (\S+)", text)
    if module.endswith("train_sft"):  # the host's own, which needs flash-attn even for its help
        source = (BIN.parent / "lib").glob("python3*/site-packages/openrlhf/cli/train_sft.py")
        known = set(re.findall(r'"--([\w.]+)"', next(source).read_text()))
    else:
        done = subprocess.run([BIN / "python", "-m", module, "--help"], capture_output=True, text=True, timeout=120)
        known = set(re.findall(r"--([\w.]+)", done.stdout))
    used = set(re.findall(r"--([\w.]+)", text)) - {"module"}
    assert used
    assert used <= known
