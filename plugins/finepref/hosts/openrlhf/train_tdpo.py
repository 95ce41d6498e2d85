"""`train_tdpo`: TDPO (arXiv 2404.11999) on OpenRLHF, on annotated spans or on whole responses.

    deepspeed --module finepref.hosts.openrlhf.train_tdpo --data.dataset tdpo_demo ...

Also `python -m openrlhf.cli.train_tdpo` and `openrlhf-train-tdpo`. Its flags are those of the host's train_dpo and the
group --tdpo.*
"""

from __future__ import annotations

from finepref.hosts.openrlhf import command_line
from finepref.hosts.options import TdpoOptions

UNUSED = ("model.ipo_enable", "model.label_smoothing", "model.nll_loss_coef")


def main() -> None:
    """Console entry point."""
    command_line.run(
        "openrlhf.cli.train_dpo",
        stage="tdpo",
        group="tdpo",
        options=TdpoOptions,
        unused=UNUSED,
        prepare="finepref.hosts.openrlhf.tdpo:prepare",
    )


if __name__ == "__main__":
    main()
