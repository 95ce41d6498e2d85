"""First-step losses on LLaMA-Factory: reads a JSON list of settings, writes the list of losses to the file named."""

from __future__ import annotations

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    from llamafactory.train.tuner import run_exp

    found = []
    for settings in json.load(sys.stdin):
        run_exp(dict(settings))
        state = json.loads(Path(settings["output_dir"], "trainer_state.json").read_text())
        found.append(next(entry["loss"] for entry in state["log_history"] if "loss" in entry))
    Path(sys.argv[1]).write_text(json.dumps(found))
