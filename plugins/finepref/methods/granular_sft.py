"""Granular SFT: supervised fine-tuning on annotated spans of the better response, before span-masked TDPO.

The spans are those of the granular fork of TDPO, so one file feeds this warm-up and `stage: tdpo` after it. The loss
is the host's own, over the labels that are left; a response without spans counts as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from finepref.formats.problems import BadData, Problem
from finepref.methods.options import Options, option
from finepref.methods.pair_rows import PairRow
from finepref.methods.stage import Stage


@dataclass
class GranularOptions(Options):
    """The key that turns the host's stage `sft` into this one."""

    granular: bool = option(False, "In stage sft, train on the spans of the chosen response only (span_pair records).")


def weigh(row: PairRow, options: GranularOptions, seed: int) -> list[float]:
    """1 on the tokens of the chosen response's spans, or on all of its tokens where there is no span.

    Raises:
        BadData: a span has a weight other than 0 and 1, which labels cannot express.
    """
    if set(row.chosen.weight) - {0.0, 1.0}:
        text = "granular SFT takes a token or leaves it: leave the weights out"
        raise BadData([row.problem("chosen_spans", "FP216", text)])
    return row.chosen.weight


def check_data(with_spans: int, options: GranularOptions) -> list[Problem]:
    """Without any span the run would be plain SFT."""
    if with_spans:
        return []
    text = "no record has any, so nothing would be masked; run stage sft without granular on such data"
    return [Problem("the training data", 0, "chosen_spans", "FP210", text)]


STAGE = Stage(
    name="granular_sft",
    title="Granular SFT: supervised fine-tuning on annotated spans, the warm-up of span-masked TDPO",
    paper="granular fork of arXiv 2404.11999",
    shape="single",
    formats=("span_pair",),
    options=GranularOptions,
    weigh=weigh,
    check_data=check_data,
    recipe="examples/granular_sft.yaml",
    demo_dataset="granular_demo",
    switch="granular",
)
