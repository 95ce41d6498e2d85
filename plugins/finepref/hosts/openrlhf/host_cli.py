"""OpenRLHF's own command lines, and ours, where there is no flash-attn or no GPU.

    python -m finepref.hosts.openrlhf.host_cli openrlhf.cli.train_sft --ds.attn_implementation sdpa ...

The module named first runs as `python -m` would run it, with the rest as its arguments, when the host has been made
ready for this machine (see `compat`). Behind a launcher: deepspeed --module finepref.hosts.openrlhf.host_cli ...
Where there are flash-attn and a GPU it changes nothing.
"""

import os
import runpy
import sys

from finepref.hosts.openrlhf import compat, environment


def main() -> None:
    """Entry point."""
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank=")]  # DeepSpeed's launcher adds it
    if not words or words[0].startswith("-"):
        sys.exit("which module? openrlhf.cli.train_sft, for example")
    sys.argv = words
    if "RANK" not in os.environ:
        environment.start_alone()
    compat.install()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
