"""Whether the responses of a record share their common beginning in a run, and why not: a trial at the first use.

The trial is the scorers' (`token_tree.why_apart`), through the host's own forward pass. It depends on the models
alone, and all ranks agree on its result, since each must run as many forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist

from finepref.hosts.evaluating import evaluating
from finepref.losses.chunked import logps_at, whole
from finepref.synth.scorers.token_tree import Packed, Tree, by_response, mask, why_apart, window_of

MASKED = {"sdpa": torch.bool, "eager": None}
"""Attention that takes a mask [B, 1, T, T], and the mask's dtype; None: that of the model."""


class Model(NamedTuple):
    """A model as a host runs it: the Hugging Face model, and a function from its inputs to its logits [B, T, V]."""

    network: nn.Module
    run: Callable[[dict[str, Tensor]], Tensor]


class Sharing:
    """The answer for one run. It is no until there has been a trial.

    Args:
        why_not: a reason that is known before; "" if there is none.
        longest: the most tokens of a prompt with its response.
        tell: prints a line, on the first process.
        balanced: whether models of experts are read with their balancing loss, if their configuration asks for it.
    """

    def __init__(self, why_not: str, *, longest: int, tell: Callable[[str], None], balanced: bool = True) -> None:
        self.longest, self.tell, self.balanced = longest, tell, balanced
        self.works, self.mask = False, torch.bool
        self.settled = False
        if why_not:
            self._settle(why_not)

    @property
    def possible(self) -> bool:
        """Whether trees have to be made."""
        return self.works or not self.settled

    def try_once(self, models: Callable[[], Iterable[Model]]) -> bool:
        """Whether records are read as trees. Every process must call this in its first step.

        Args:
            models: the policy, and the reference if it is a model of its own.
        """
        if not self.settled:
            found = [*models()]
            reasons = (why_not_in(each.network.config, self.longest, balanced=self.balanced) for each in found)
            self._settle(next(filter(None, reasons), "") or self._trial(found))
            network = found[0].network
            self.mask = MASKED.get(_attention(network.config)) or network.dtype
        return self.works

    def _settle(self, why_not: str) -> None:
        self.settled, self.works = True, not why_not
        if why_not:
            self.tell(f"Each response is read with its whole prompt, prefix sharing is off: {why_not}")

    def _trial(self, models: Sequence[Model]) -> str:
        found = ""
        for each in models:
            found = found or trial(each)
        if not (dist.is_available() and dist.is_initialized()):
            return found
        agreed = torch.tensor(int(not found), device=next(models[0].network.parameters()).device)
        dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
        return found or ("" if agreed.item() else "it fails on another process")


def why_not_in(config: Any, longest: int, *, balanced: bool = True) -> str:
    """What in a model's configuration is against trees, "" if nothing. For the arguments see `Sharing`."""
    config = config.get_text_config()
    attention, window = _attention(config), window_of(config)
    if attention not in MASKED:
        return f"attention by {attention} takes no mask of a tree; sdpa does"
    if window < longest:
        return f"the model's attention reaches back {window} tokens, and a row may have {longest}"
    if balanced and getattr(config, "output_router_logits", False):
        return "the balancing loss of the model's experts counts tokens"
    if getattr(config, "group_size_ratio", None):
        return "with shift_attn the model's attention is shifted"
    return ""


def _attention(config: Any) -> str:
    return str(getattr(config.get_text_config(), "_attn_implementation", "unknown"))


def trial(model: Model) -> str:
    """Why the model cannot read trees, "" if it can. It runs without dropout, and leaves no trace."""
    network = model.network
    device, config = next(network.parameters()).device, network.config.get_text_config()
    dtype = MASKED[_attention(config)] or network.dtype

    def read(trees: Sequence[Tree], packed: Packed, *, branching: bool) -> list[list[Tensor]]:
        ids, first, last, depths, sources, targets = (
            each.to(device)
            for each in (packed.ids, packed.first, packed.last, packed.depths, packed.sources, packed.targets)
        )
        seen = mask(first, last, dtype) if branching else torch.ones_like(ids)
        logits = whole(model.run({"input_ids": ids, "attention_mask": seen, "position_ids": depths})).flatten(0, 1)
        logps = logps_at(logits[sources], targets.to(logits.device))
        return by_response(trees, logps)

    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices), evaluating(network):
        return why_apart(read, config, network.dtype)
