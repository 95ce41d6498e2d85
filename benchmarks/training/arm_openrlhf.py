"""One epoch of OpenRLHF's own DPO, or of one of our stages there: `host` or the stage's name, then the flags.

The first step is the warm-up, in which memory is measured. Both arms of a claim read the rows in the same order, which
depends on the seed only.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import wraps
from typing import Any

import meter


def main() -> None:
    """Run the arm: a JSON object of `stage` and `flags`."""
    settings = json.loads(sys.argv[1])
    stage, flags = settings["stage"], settings["flags"]
    from finepref.hosts.openrlhf import compat, environment

    environment.start_alone()
    compat.install()
    watch()
    sys.argv = [f"train_{stage}", *(str(word) for name, value in flags.items() for word in words(name, value))]
    try:
        if stage == "dpo":
            compat.allow_fp32()
            host_main()
        else:
            from finepref import stages
            from finepref.hosts.openrlhf import command_line

            command_line.run(stages.find(stage))
    except meter.Measured as measured:
        meter.told(measured)


def words(name: str, value: Any) -> list[Any]:
    """A flag on the command line."""
    return [f"--{name}"] if value is True else [f"--{name}", value]


def host_main() -> None:
    """The host's own command line, which may load models in float32, and tokenises in this process."""
    from finepref.hosts.openrlhf.command_line import main_block
    from openrlhf.cli import train_dpo

    parse = argparse.ArgumentParser.parse_args

    def parse_args(self: Any, *arguments: Any) -> Any:
        for action in self._actions:
            if action.dest == "ds.param_dtype":
                action.choices = [*action.choices, "fp32"]
        return parse(self, *arguments)

    argparse.ArgumentParser.parse_args = parse_args
    exec(main_block("openrlhf.cli.train_dpo"), {**vars(train_dpo), "__name__": "__main__"})


def watch() -> None:
    """Measure memory in the first step, and time from its end to the end of the last."""
    from openrlhf.trainer.dpo_trainer import DPOTrainer
    from openrlhf.utils.deepspeed.deepspeed import DeepspeedStrategy

    measure, fit, step = meter.Meter(), DPOTrainer.fit, DeepspeedStrategy.optimizer_step
    done = {"steps": 0, "all": 0}

    @wraps(fit)
    def watched_fit(self: Any, *arguments: Any, **named: Any) -> Any:
        reference = getattr(self, "ref_model", None)
        measure.load(self.model.model, getattr(reference, "model", None))
        done["all"] = len(self.train_dataloader)
        return fit(self, *arguments, **named)

    @wraps(step)
    def watched_step(self: Any, *arguments: Any, **named: Any) -> Any:
        made = step(self, *arguments, **named)
        done["steps"] += 1
        if done["steps"] == 1:
            measure.start()
        if done["steps"] == done["all"]:
            raise meter.Measured(measure.stop(done["steps"] - 1))
        return made

    DPOTrainer.fit, DeepspeedStrategy.optimizer_step = watched_fit, watched_step


if __name__ == "__main__":
    main()
