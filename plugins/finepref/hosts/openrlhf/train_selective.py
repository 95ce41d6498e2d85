"""`train_selective`: SePO (arXiv 2408.13518) on OpenRLHF, without a reference model.

    deepspeed --module finepref.hosts.openrlhf.train_selective --data.dataset sepo_demo ...

Also `python -m openrlhf.cli.train_selective` and `openrlhf-train-selective`. Its flags are those of the host's
train_dpo and the group --selective.*
"""

from __future__ import annotations

from finepref.hosts.openrlhf import command_line
from finepref.hosts.options import SepoOptions

UNUSED = (
    "model.beta",
    "model.ipo_enable",
    "model.label_smoothing",
    "model.nll_loss_coef",
    "ref.model_name_or_path",
    "ref.offload",
)


def main() -> None:
    """Console entry point."""
    command_line.run(
        "openrlhf.cli.train_dpo",
        stage="sepo",
        group="selective",
        options=SepoOptions,
        unused=UNUSED,
        prepare="finepref.hosts.openrlhf.selective:prepare",
    )


if __name__ == "__main__":
    main()
