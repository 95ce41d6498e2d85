"""The command line of any stage on OpenRLHF: the host's own flags, and a group with the stage's.

    deepspeed --module openrlhf.cli.train_selective --data.dataset sepo_demo ...
    python -m finepref.hosts.openrlhf.train sepo --data.dataset sepo_demo ...

A stage has a name under `openrlhf.cli` (see `openrlhf_command` in `finepref.methods.stage.Stage`), which
finepref's start-up hook makes importable. finepref's own stages also have console scripts, such as
`openrlhf-train-selective`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from finepref import stages
from finepref.hosts.openrlhf import command_line


def main() -> None:
    """Run the stage that the name of the module or script stands for, else the stage named by the first argument.

    Exits with a message if there is no such stage.
    """
    stages.report_broken()
    script = Path(sys.argv[0]).name.removeprefix("openrlhf-").replace("-", "_")
    for name in (__spec__.name.rpartition(".")[2] if __spec__ else "", script):
        if row := stages.of_command(name):
            return command_line.run(row)
    place = next((i for i, word in enumerate(sys.argv) if i and not word.startswith("-")), None)
    known = ", ".join(name for name, row in stages.all_stages().items() if row.command)
    if place is None:
        sys.exit(f"name a stage: {known}")
    try:
        row = stages.find(sys.argv.pop(place))
    except stages.StageError as error:
        sys.exit(str(error))
    if row is None or not row.command:
        sys.exit(f"no such stage on OpenRLHF; choose one of {known}")
    command_line.run(row)


if __name__ == "__main__":
    main()
