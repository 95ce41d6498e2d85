"""`train_apo_rm`: the reward model's step of APO, ADVERSARIAL preference optimization (arXiv 2311.08045), on OpenRLHF.

    deepspeed --module finepref.hosts.openrlhf.train_apo_rm --data.dataset apo_demo ...

Also `python -m openrlhf.cli.train_apo_rm` and `openrlhf-train-apo-rm`. Its flags are those of the host's train_rm and
the group --apo.*
"""

from dataclasses import dataclass, field
from typing import Literal

from finepref.hosts.openrlhf import command_line
from finepref.hosts.options import ApoOptions

UNUSED = ("model.loss_type", "model.margin_loss_enable", "model.compute_fp32_loss_enable")


@dataclass
class RewardOptions(ApoOptions):
    """Flags of the group --apo.*"""

    apo_pooling: Literal["eos", "last"] = field(
        default="eos",
        metadata={"help": "Read the reward at the end token, as the host's PPO and serve_rm do, or right before it."},
    )
    apo_keep_value_head: bool = field(
        default=False,
        metadata={"help": "Go on with the value head of a reward model; the host draws a new one at random."},
    )


def main() -> None:
    """Console entry point."""
    command_line.run(
        "openrlhf.cli.train_rm",
        stage="apo_rm",
        group="apo",
        options=RewardOptions,
        unused=UNUSED,
        prepare="finepref.hosts.openrlhf.apo_rm:prepare",
    )


if __name__ == "__main__":
    main()
