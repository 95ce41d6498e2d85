"""The tests that OpenRLHF ships in its wheel, with finepref's stand-ins for flash-attn and CPUs in place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
import pytest
from finepref.hosts.openrlhf import compat

compat.install()
sys.exit(pytest.main(sys.argv[1:]))
"""


def test_the_hosts_own_tests_pass_with_our_stand_ins(tmp_path):
    import openrlhf

    root = Path(openrlhf.__file__).parents[1]
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", root]
    done = subprocess.run(
        [sys.executable, "-B", "-c", PROGRAM, *map(str, options), str(root / "tests")],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
