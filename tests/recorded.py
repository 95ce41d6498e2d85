"""`scripts/compare_with_record.py` for tests, and what one run of each stage gives in this environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import own_scripts

ROOT = Path(__file__).parents[1]

script = own_scripts.loaded("compare_with_record")

# The run of each stage that the hosts' tests repeat; the script has more.
CASES = {
    "llamafactory": ("seapo_kto", "sepo_oracle", "tdpo_tdpo2_one", "granular_sft", "apo_rm_ranking_per_type_last"),
    "openrlhf": ("seapo_kto", "sepo_oracle", "tdpo_tdpo2_one", "apo_rm_ranking_per_type_last"),
}


def recorded(host: str) -> dict[str, Any]:
    """The record of a host."""
    return json.loads(script.record_of(host).read_text(encoding="utf-8"))


def found_here(host: str) -> dict[str, Any]:
    """The same of the runs in CASES with the code of this environment."""
    return script.found_in(Path(sys.prefix), host, list(CASES[host]))


def differences(host: str, found: dict[str, Any], case: str) -> list[str]:
    """Where one run is not as recorded."""
    return script.differences(recorded(host), found | {"runs": {case: found["runs"][case]}})
