"""Operations per second of the matrix products of a model's layers and head, as JSON."""

from __future__ import annotations

import json
import sys
import time

import torch


def rate(rows: int, inputs: int, outputs: int, dtype: torch.dtype, device: str) -> float:
    """The best of some products [rows, inputs] x [inputs, outputs]."""
    a = torch.randn(rows, inputs, dtype=dtype, device=device)
    b = torch.randn(outputs, inputs, dtype=dtype, device=device).t()
    product = torch.empty(rows, outputs, dtype=dtype, device=device)
    best, until = float("inf"), time.perf_counter() + 0.6
    while time.perf_counter() < until:
        began = time.perf_counter()
        torch.mm(a, b, out=product)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * rows * inputs * outputs / best


def main() -> None:
    """Print both rates."""
    asked = json.loads(sys.argv[1])
    dtype, device = getattr(torch, asked["dtype"]), asked["device"]
    shapes = {"layers": asked["intermediate"], "head": asked["vocabulary"]}
    print(json.dumps({name: rate(asked["tokens"], asked["hidden"], n, dtype, device) for name, n in shapes.items()}))


if __name__ == "__main__":
    main()
