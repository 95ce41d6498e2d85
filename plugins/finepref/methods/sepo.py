"""SePO, selective preference optimization (arXiv 2408.13518): a preference loss on the tokens that matter most.

The tokens are chosen at train time from one score per token, or the data brings spans. Not SeaPO (`seapo_kto`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

from finepref.formats.problems import BadData
from finepref.methods.batches import Pairs, Weights
from finepref.methods.options import PairOptions, option
from finepref.methods.pair_rows import PairRow, ResponseRow
from finepref.methods.stage import Stage

if TYPE_CHECKING:
    from torch import Tensor

    from finepref.losses.ops import LossOut


@dataclass
class SepoOptions(PairOptions):
    """There is no reference model, and of the hosts' preference options none is read."""

    sepo_preset: Literal["paper", "released"] = option(
        "paper",
        "Values for sepo_gamma and sepo_margin: the paper's gamma 2.5 or the released code's 1, both with margin 0.",
    )
    sepo_gamma: float | None = option(
        None, "Scale of the mean log-probability of the selected tokens, in place of the preset's.", above=0
    )
    sepo_margin: float | None = option(
        None, "Margin (lambda) by which chosen must lead rejected, in place of the preset's.", at_least=0
    )
    sepo_selection: Literal["oracle", "random", "all"] = option(
        "oracle", "Tokens to train on: by the scores or spans of the data; as many at random; every token."
    )
    sepo_ratio_chosen: float = option(
        0.3,
        "Share of the chosen tokens, those with the highest scores. Spans are taken as they are.",
        above=0,
        at_most=1,
    )
    sepo_ratio_rejected: float = option(
        0.3,
        "Share of the rejected tokens, those with the lowest scores. Spans are taken as they are.",
        above=0,
        at_most=1,
    )
    sepo_map_scores: bool = option(
        False, "Carry scores of another tokenizer over by their character offsets; else they are refused."
    )


def weigh(row: PairRow, options: SepoOptions, seed: int) -> Weights:
    """Token weights of a tokenised row under the selection asked for.

    Scores select the asked share of the tokens that have one. Spans are a selection already; a response without spans
    beside one with them counts as a whole. `random` takes as large a share of the response's tokens, the same ones in
    every epoch and on every rank; `all` takes all of them.

    Raises:
        BadData: there is nothing to select by, or nothing left that is selected.
    """
    oracle = options.sepo_selection == "oracle"
    if oracle and not row.annotated and not row.chosen.scored:
        text = f"{options.key('sepo_selection', 'oracle')} needs them"
        raise BadData([row.problem("chosen_scores", "FP210", text)])
    if oracle and row.mapped and not options.sepo_map_scores:
        text = f"set {options.key('sepo_map_scores')} to carry them over by their character offsets"
        raise BadData([row.problem("tokenizer", "FP212", text)])
    weights, problems = [], []
    for side, response in row.sides():
        if options.sepo_selection == "random":
            weight = _share(_chance(row, side, response, seed), response.whole(), options, side)
        elif oracle and row.annotated:
            weight = response.weight
        elif oracle:
            scored = [float(not math.isnan(score)) for score in response.score]
            weight = _share(response.score, scored, options, side)
        else:
            weight = response.whole()
        if not any(weight):
            problems.append(row.nothing_left(side, options))
        weights.append(weight)
    if problems:
        raise BadData(problems)
    return Weights(*weights)


def _share(reward: list[float], among: list[float], options: SepoOptions, side: str) -> list[float]:
    """Weight 1 for the share of one response's tokens with the highest (chosen) or lowest (rejected) rewards."""
    import torch

    from finepref.losses.sepo import select_tokens

    ratio = options.sepo_ratio_chosen if side == "chosen" else options.sepo_ratio_rejected
    mask = torch.tensor(among) > 0
    rewards = torch.tensor(reward, dtype=torch.float64)
    return select_tokens(rewards, ratio, highest=side == "chosen", mask=mask).float().tolist()


def _chance(row: PairRow, side: str, response: ResponseRow, seed: int) -> list[float]:
    """A number per token that depends on seed, record, side and place only."""
    import torch

    digest = blake2b(f"{seed}:{row.record_id}:{side}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.rand(len(response.labels), generator=generator, dtype=torch.float64).tolist()


def constants(options: SepoOptions) -> dict[str, float]:
    """gamma and margin: the preset's, unless given."""
    from finepref.losses.sepo import PRESETS

    values = dict(PRESETS[options.sepo_preset])
    given = {"gamma": options.sepo_gamma, "margin": options.sepo_margin}
    return values | {name: value for name, value in given.items() if value is not None}


def settings(options: SepoOptions) -> dict[str, Any]:
    """The constants that were used, whether they came from the preset or not."""
    return {f"sepo_{name}": value for name, value in constants(options).items()}


def losses(pairs: Pairs, options: SepoOptions) -> tuple[LossOut, dict[str, Tensor]]:
    """SePO of each pair; `logps/*` are means over the selected tokens."""
    from finepref.losses.ops import TokenLogps, weighted_mean
    from finepref.losses.sepo import sepo_loss

    chosen, rejected = (TokenLogps(side.logps, side.weight) for side in (pairs.chosen, pairs.rejected))
    out = sepo_loss(chosen, rejected, **constants(options))
    return out, {"logps/chosen": weighted_mean(*chosen), "logps/rejected": weighted_mean(*rejected)}


STAGE = Stage(
    name="sepo",
    title="SePO: selective preference optimization, on the tokens that an oracle finds decisive",
    paper="arXiv 2408.13518",
    shape="pair",
    formats=("scored_pair", "span_pair", "pair"),
    options=SepoOptions,
    weigh=weigh,
    losses=losses,
    metrics=("logps/chosen", "logps/rejected"),
    settings=settings,
    recipe="examples/sepo.yaml",
    demo_dataset="sepo_demo",
    openrlhf_command="train_selective",
    openrlhf_group="selective",
)
