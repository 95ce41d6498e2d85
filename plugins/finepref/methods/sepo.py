"""SePO, selective preference optimization (arXiv 2408.13518): a preference loss on the tokens that matter most.

The tokens are selected during training by a score per token, or given as spans in the data. Not SeaPO (`seapo_kto`).
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
from finepref.methods.scored import MAKE, MAP_SCORES, check_scores
from finepref.methods.stage import Stage

if TYPE_CHECKING:
    from torch import Tensor

    from finepref.losses.ops import LossOut


@dataclass
class SepoOptions(PairOptions):
    """SePO's options. It has no reference model and reads none of the hosts' own preference options."""

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
    sepo_map_scores: bool = option(False, MAP_SCORES)
    sepo_pair_margins: bool = option(
        False, "The chosen response must lead by the pair's `margin` beside sepo_margin; both are taken off the logit."
    )


def weigh(row: PairRow, options: SepoOptions, seed: int) -> Weights:
    """Token weights of a tokenised pair by `sepo_selection`.

    `oracle` selects a share of the scored tokens: the highest scores of chosen, the lowest of rejected. Spans are used
    as they are; if only one response has spans, the other one counts as a whole. `random` selects the same share of
    all response tokens at random, the same tokens in every epoch and on every rank. `all` selects every token.

    Raises:
        BadData: the data has neither scores nor spans (FP210), the scores belong to another tokenizer (FP212) or
            another prompt (FP250) or are of another kind (FP262), or no selected token is left (FP214). Or the pair
            has no margin (FP264).
    """
    oracle = options.sepo_selection == "oracle"
    if oracle and not row.annotated:
        chosen, whole = (options.key("sepo_selection", value) for value in ("oracle", "all"))
        missing = f"{chosen} needs them: run {MAKE[False]}, or set {whole}"
        check_scores(row, options, contrast=False, map_scores="sepo_map_scores", missing=missing)
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
    return row.with_margin(Weights(*weights), options, "sepo_pair_margins")


def _share(reward: list[float], among: list[float], options: SepoOptions, side: str) -> list[float]:
    """Weight 1 on the share of a response's tokens with the highest (chosen) or lowest (rejected) rewards, else 0."""
    import torch

    from finepref.losses.sepo import select_tokens

    ratio = options.sepo_ratio_chosen if side == "chosen" else options.sepo_ratio_rejected
    mask = torch.tensor(among) > 0
    rewards = torch.tensor(reward, dtype=torch.float64)
    return select_tokens(rewards, ratio, highest=side == "chosen", mask=mask).float().tolist()


def _chance(row: PairRow, side: str, response: ResponseRow, seed: int) -> list[float]:
    """A random number in [0, 1) per token, which depends only on seed, record, side and position."""
    import torch

    digest = blake2b(f"{seed}:{row.record_id}:{side}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.rand(len(response.labels), generator=generator, dtype=torch.float64).tolist()


def constants(options: SepoOptions) -> dict[str, float]:
    """gamma and margin: as given, or those of the preset."""
    from finepref.losses.sepo import PRESETS

    values = dict(PRESETS[options.sepo_preset])
    given = {"gamma": options.sepo_gamma, "margin": options.sepo_margin}
    return values | {name: value for name, value in given.items() if value is not None}


def settings(options: SepoOptions) -> dict[str, Any]:
    """The constants in use, for the receipt."""
    return {f"sepo_{name}": value for name, value in constants(options).items()}


def losses(pairs: Pairs, options: SepoOptions) -> tuple[LossOut, dict[str, Tensor]]:
    """SePO loss [B] of each pair, see `finepref.losses.sepo`; the metrics are means over the selected tokens."""
    from finepref.losses.ops import TokenLogps, weighted_mean
    from finepref.losses.sepo import sepo_loss

    chosen, rejected = (TokenLogps(side.logps, side.weight) for side in (pairs.chosen, pairs.rejected))
    given = constants(options)
    out = sepo_loss(chosen, rejected, gamma=given["gamma"], margin=given["margin"] + pairs.margin)
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
