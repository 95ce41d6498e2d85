"""Losses of both hosts' stages without any host: own templating, own masks, sums in float64 over Python lists."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class Token(NamedTuple):
    """A response token.

    Attributes:
        place: its characters; None for the end tokens.
        policy, reference: their log-probabilities of it.
        kl: of the reference to the policy at its place, over the vocabulary.
        likeliest: whether the policy finds no token likelier.
    """

    place: tuple[int, int] | None
    policy: float
    reference: float
    kl: float
    likeliest: bool


class Plain:
    """Two models over one tokenizer, asked for the tokens of a response."""

    def __init__(self, policy: Path, reference: Path | None = None) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(policy)
        self.models = [
            AutoModelForCausalLM.from_pretrained(folder).double() for folder in (policy, reference or policy)
        ]

    @torch.no_grad()
    def tokens(self, prompt: str, response: str) -> list[Token]:
        context = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        before = self.tokenizer(context, add_special_tokens=False)["input_ids"]
        encoded = self.tokenizer(response, add_special_tokens=False, return_offsets_mapping=True)
        end = self.tokenizer("<|im_end|>\n", add_special_tokens=False)["input_ids"]
        places = [*map(tuple, encoded["offset_mapping"]), *[None] * len(end)]
        ids = [*before, *encoded["input_ids"], *end]
        policy, reference = (model(torch.tensor([ids])).logits[0].log_softmax(-1) for model in self.models)
        found = []
        for k, place in enumerate(places):
            at, label = len(before) + k - 1, ids[len(before) + k]
            kl = (reference[at].exp() * (reference[at] - policy[at])).sum().item()
            likeliest = policy[at].argmax().item() == label
            found.append(Token(place, policy[at, label].item(), reference[at, label].item(), kl, likeliest))
        return found


def minus_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x))


def overlaps(token: Token, spans: list[dict]) -> bool:
    return token.place is not None and any(
        token.place[0] < span["end"] and span["start"] < token.place[1] for span in spans
    )


def sepo_loss(plain: Plain, row: dict, *, ratio: float, gamma: float, margin: float) -> float:
    """The share `ratio` of the scored tokens, the end token among them, by sorting."""
    u = {}
    for side, sign in (("chosen", -1), ("rejected", 1)):
        tokens, scores = plain.tokens(row["prompt"], row[side]), row[f"{side}_scores"]
        kept = sorted(range(len(scores)), key=lambda k: (sign * scores[k], k))[: max(1, int(ratio * len(scores)))]
        u[side] = gamma * sum(tokens[k].policy for k in kept) / len(kept)
    return minus_log_sigmoid(u["chosen"] - u["rejected"] - margin)


def tdpo_loss(
    plain: Plain, row: dict, *, variant: str, masks: str, sides: str, normalize: bool, beta: float, alpha: float
) -> float:
    m, d = {}, {}
    for side in ("chosen", "rejected"):
        tokens, spans = plain.tokens(row["prompt"], row[side]), row.get(f"{side}_spans")
        if masks == "annotated" and spans:
            tokens = [token for token in tokens if overlaps(token, spans)]
        elif masks == "annotated" and sides == "one":
            tokens = []
        share = len(tokens) if normalize and tokens else 1
        m[side] = sum(token.policy - token.reference for token in tokens) / share
        d[side] = sum(token.kl for token in tokens) / share
    factor = {"tdpo1": 1.0, "tdpo2": alpha, "dpo": 0.0}[variant]
    return minus_log_sigmoid(beta * ((m["chosen"] - m["rejected"]) - factor * (d["rejected"] - d["chosen"])))
