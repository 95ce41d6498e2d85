"""Peak memory of the head and the loss for models of 7 and 8 billion weights, on fake tensors: sizes without numbers.

    .venvs/core/bin/python benchmarks/training/meta_memory.py [--json FILE]

The functions are those that training uses: `finepref.losses.fused_head`, or `losses.chunked` in a finepref without it.
4 x 2,048 positions, bfloat16, the head frozen, chunks as on a GPU. What is counted is every storage that is made
beside hidden states, weights and targets; `possible` is what a first prototype of the fused head needed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

GIB = 2**30
POSITIONS = 4 * 2048
MODELS = {"Qwen2.5-7B": (3584, 152_064), "Llama-3.1-8B": (4096, 128_256)}
POSSIBLE = {
    ("Qwen2.5-7B", "tdpo2, all tokens"): (2.9, 1.8),
    ("Llama-3.1-8B", "tdpo2, all tokens"): (2.5, 1.5),
    ("Qwen2.5-7B", "sepo, 30 %"): (0.9, 0.9),
    ("Llama-3.1-8B", "sepo, 30 %"): (0.7, 0.8),
    ("Qwen2.5-7B", "log-probabilities, all tokens"): (0.9, 0.9),
    ("Llama-3.1-8B", "log-probabilities, all tokens"): (0.7, 0.8),
}
"""GiB, forward and backward: issue 22's table. KTO's log-probabilities are those of all response tokens."""


class Peak(TorchDispatchMode):
    """Counts the bytes of live storages that are made in the context."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.add, out)
        return out

    def add(self, tensor: Tensor) -> None:
        """Follow the storage of a tensor to its end."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.live:
            self.live[key] = size
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self.live.pop(key, 0)

    def forget(self) -> None:
        """Count what there is as nothing."""
        self.live, self.now, self.most = dict.fromkeys(self.live, 0), 0, 0

    def part(self) -> float:
        """GiB at the peak since the last call."""
        most, self.most = self.most, self.now
        return most / GIB


def log_probabilities(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log pi(y) at each position [N], from hidden states."""
    if fused := fused_head():
        return fused.values(hidden, fused.Head(weight), targets).logps
    from finepref.losses import chunked

    return chunked.logps_at((hidden @ weight.t()).float(), targets)


def with_kl(hidden: Tensor, weight: Tensor, targets: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """log pi(y) and KL(pi_ref || pi), both [N]; the reference's hidden states go through the same head."""
    if fused := fused_head():

        def logits(start: int, stop: int) -> Tensor:
            return reference[start:stop] @ weight.t()

        return fused.values(hidden, fused.Head(weight), targets, logits)[:2]
    from finepref.losses import chunked

    with torch.no_grad():
        others = (reference @ weight.t()).float()
    logits = (hidden @ weight.t()).float()
    return chunked.logps_at(logits, targets), chunked.kl_at(logits, others)


def fused_head() -> Any:
    """The module, with a GPU's size of chunks; None in a finepref without it."""
    try:
        sizes = importlib.import_module("finepref.losses.output_head")
    except ModuleNotFoundError:
        return None
    sizes.CPU_BYTES = sizes.ACCELERATOR_BYTES
    return importlib.import_module("finepref.losses.fused_head")


def host(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """As a host computes log-probabilities: all logits in float32, and their log-softmax."""
    logits = (hidden @ weight.t()).float()
    return logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def traced(loss: Callable[..., Any], positions: int, hidden_size: int, vocabulary: int, *, kl: bool) -> list[float]:
    """GiB at the peak of forward and backward."""
    with FakeTensorMode(), Peak() as peak:
        hidden = torch.empty(positions, hidden_size, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.empty(vocabulary, hidden_size, dtype=torch.bfloat16)
        targets = torch.zeros(positions, dtype=torch.long)
        given = [hidden, weight, targets, *([torch.empty_like(hidden, requires_grad=False)] if kl else [])]
        peak.forget()
        values = loss(*given)
        forward = peak.part()
        (sum(each.sum() for each in values) if kl else values.sum()).backward()
        return [forward, peak.part()]


def rows() -> list[dict[str, Any]]:
    """What is printed: model, loss, GiB, and the limits."""
    found = []
    for model, sizes in MODELS.items():
        cases = {
            "log-probabilities, as a host": traced(host, POSITIONS, *sizes, kl=False),
            "log-probabilities, all tokens": traced(log_probabilities, POSITIONS, *sizes, kl=False),
            "tdpo2, all tokens": traced(with_kl, POSITIONS, *sizes, kl=True),
            "sepo, 30 %": traced(log_probabilities, POSITIONS * 3 // 10, *sizes, kl=False),
        }
        for name, gib in cases.items():
            possible = POSSIBLE.get((model, name))
            found.append({"model": model, "loss": name, "GiB": gib, "possible": possible})
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file of the results")
    asked = parser.parse_args()
    result = {"with": "fused head" if fused_head() else "logits of all positions in the loss", "rows": rows()}
    print(result["with"])
    for row in result["rows"]:
        limit = "" if row["possible"] is None else " (possible: {:.1f}, {:.1f})".format(*row["possible"])
        print(
            "{}: {}: forward {:.2f} GiB, backward {:.2f} GiB{}".format(row["model"], row["loss"], *row["GiB"], limit)
        )
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
