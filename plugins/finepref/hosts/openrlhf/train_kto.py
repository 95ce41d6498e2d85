"""`train_kto`: KTO (arXiv 2402.01306) on SeaPO's records (arXiv 2509.24781) on OpenRLHF, which has no KTO of its own.

    deepspeed --module finepref.hosts.openrlhf.train_kto --data.dataset seapo_demo ...

Also `python -m openrlhf.cli.train_kto` and `openrlhf-train-kto`. Its flags are those of the host's train_dpo and the
group --kto.*; a batch size counts records, each of which is one desirable and one undesirable response.
"""

from dataclasses import dataclass, field

from finepref.hosts.openrlhf import command_line
from finepref.hosts.options import PairOptions, SeapoOptions

UNUSED = ("model.ipo_enable", "model.label_smoothing", "model.nll_loss_coef", "data.rejected_key")


@dataclass
class KtoOptions(SeapoOptions, PairOptions):
    """Flags of the group --kto.*"""

    kto_chosen_weight: float = field(default=1.0, metadata={"help": "Weight of the desirable responses."})
    kto_rejected_weight: float = field(default=1.0, metadata={"help": "Weight of the undesirable responses."})


def main() -> None:
    """Console entry point."""
    command_line.run(
        "openrlhf.cli.train_dpo",
        stage="seapo_kto",
        group="kto",
        options=KtoOptions,
        unused=UNUSED,
        prepare="finepref.hosts.openrlhf.kto:prepare",
    )


if __name__ == "__main__":
    main()
