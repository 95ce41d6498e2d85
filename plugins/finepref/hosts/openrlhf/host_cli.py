"""Runs OpenRLHF's command lines, and ours, on a machine without flash-attn or without a GPU.

    python -m finepref.hosts.openrlhf.host_cli openrlhf.cli.train_sft --ds.attn_implementation sdpa ...

The first argument names a module, which runs as with `python -m`, with the other arguments as its own. Before that,
OpenRLHF is adapted to this machine (see `compat`). With a launcher: deepspeed --module
finepref.hosts.openrlhf.host_cli ... On a machine with flash-attn and a GPU nothing is changed.
"""

import os
import runpy
import sys

from finepref.hosts.openrlhf import compat, environment


def main() -> None:
    """Run the module that the first argument names. Exits with a message if it is missing."""
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank=")]  # DeepSpeed's launcher adds it
    if not words or words[0].startswith("-"):
        sys.exit("name a module to run, for example openrlhf.cli.train_sft")
    sys.argv = words
    if "RANK" not in os.environ:
        environment.start_alone()
    compat.install()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
