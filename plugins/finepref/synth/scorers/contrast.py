"""The contrast of two Hugging Face models at every response token (cDPO, arXiv 2411.19943), both in memory together.

A token's contrast needs the logits of both models over the whole vocabulary, so that they cannot be read one after the
other; each reads every batch once, and one number per token is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from finepref.synth.ahead import ahead
from finepref.synth.engines.checkpoint import load_network
from finepref.synth.scorers.hf import Batch, HfScorer, Reader
from finepref.synth.scorers.protocol import Item, LocalScorer, Logps, Read
from finepref.synth.scorers.token_tree import by_response

if TYPE_CHECKING:
    from torch import Tensor


class ContrastScorer(LocalScorer):
    """A `Scorer` with two models. For each response NAME it gives three results of one number per token.

    They are NAME (log-probabilities of `right`), NAME_reference (those of `wrong`) and NAME_contrast (s_t, see
    `finepref.losses.cdpo`).

    Args:
        right, wrong: models trained on right and on wrong answers, of one vocabulary.
        contrast: b in s_t.
    """

    def __init__(self, right: HfScorer, wrong: HfScorer, *, contrast: float) -> None:
        self.right, self.wrong, self.contrast = right, wrong, contrast
        self.name, self.batch_tokens = right.name, right.batch_tokens
        self.model = f"contrast {contrast}: {right.model} {wrong.model}"

    def groups(self, items: Iterable[Item]) -> list[list[Item]]:
        """The batches of the first model."""
        return self.right.groups(items)

    @contextmanager
    def loaded(self, items: Sequence[Item]) -> Iterator[Read]:
        """See `LocalScorer`; all items of a batch are ready together."""
        readers = [
            Reader(load_network(each.name, adapter=each.adapter, dtype=each.dtype, device_map=each.device_map))
            for each in (self.right, self.wrong)
        ]
        first, second = readers
        shared, window = first.shares_prompt and second.shares_prompt, min(first.window, second.window)
        for each in readers:
            each.shares_prompt, each.window = shared, window

        def read(groups: Iterable[Sequence[Item]]) -> Iterator[list[tuple[str, Logps]]]:
            for batch in ahead(first.batch, groups):
                yield _read(batch, first, second, self.contrast)

        yield read


def _read(batch: Batch, right: Reader, wrong: Reader, contrast: float) -> list[tuple[str, Logps]]:
    """(id, results) of each item of a batch."""
    import torch

    from finepref.losses import cdpo
    from finepref.losses.chunked import logps_at

    found: list[tuple[Tensor, ...]] = []
    chunks = (each.logits(batch.packed, branching=batch.shared) for each in (right, wrong))
    with torch.inference_mode():
        for (logits, targets), (others, _) in zip(*chunks, strict=True):
            others = others.to(logits.device)
            both = logps_at(logits, targets), logps_at(others, targets)
            found.append((*both, cdpo.contrast(logits, others, targets, contrast=contrast).exp()))
    values = [torch.cat(each) for each in zip(*found, strict=True)]  # [N] each
    paths = [iter([path for tree in by_response(batch.trees, each) for path in tree]) for each in values]
    results = []
    for item in batch.items:
        sides: dict[str, Tensor] = {}
        for name in item.responses:
            for suffix, each in zip(("", "_reference", "_contrast"), paths, strict=True):
                sides[f"{name}{suffix}"] = next(each)
        results.append((item.id, sides))
    return results
