"""Granular SFT: supervised fine-tuning on annotated spans of the better response, before span-masked TDPO.

The data format is that of the granular fork of TDPO, so one file serves this warm-up and `stage: tdpo` after it. The
loss is the host's own, on the tokens in the spans; a response without spans counts as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from finepref.formats.problems import BadData, Problem
from finepref.methods.options import SingleOptions, option
from finepref.methods.pair_rows import PairRow
from finepref.methods.stage import Stage


@dataclass
class GranularOptions(SingleOptions):
    """The key that turns the host's stage `sft` into this one."""

    granular: bool = option(False, "In stage sft, train on the spans of the chosen response only (span_pair records).")


def weigh(row: PairRow, options: GranularOptions, seed: int) -> list[float]:
    """Weight 1 on each token in the chosen response's spans, else 0; 1 on all its tokens if it has no spans.

    Raises:
        BadData: FP216, a span has a weight other than 0 and 1, which labels cannot express.
    """
    if set(row.chosen.weight) - {0.0, 1.0}:
        text = "granular SFT has no weights other than 0 and 1: leave them out"
        raise BadData([row.problem("chosen_spans", "FP216", text)])
    return row.chosen.weight


def check_data(with_spans: int, options: GranularOptions) -> list[Problem]:
    """FP210 if `with_spans`, the number of records with spans, is 0: the run would be plain SFT."""
    if with_spans:
        return []
    text = "no record has any, so every token would be trained on; run stage sft without granular on such data"
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
