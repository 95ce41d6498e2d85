"""Gradients of a batch with the head at the needed positions and with full logits: python head_gradients.py MODEL

Run in a process of its own, so that forked tests inherit no autograd state. Prints the largest difference of each.
"""

from __future__ import annotations

import sys

import torch


def gradients(folder: str, *, packed: bool, full: bool, loss: str, attention: str) -> dict[str, torch.Tensor]:
    from finepref.hosts.openrlhf import forward
    from openrlhf.models import Actor

    actor = Actor(folder, attn_implementation=attention, param_dtype="fp32", packing_samples=packed)
    reference = Actor(folder, attn_implementation=attention, param_dtype="fp32", packing_samples=packed)
    torch.manual_seed(2)
    for parameter in reference.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    ids = torch.randint(3, 250, (4, 9))
    mask = (torch.arange(9) < torch.tensor([[9], [5], [7], [6]])).long()
    needed = (torch.rand(4, 8) < 0.4) & mask[:, 1:].bool()
    needed[3] = False  # a response without a needed token
    rows = forward.Rows(ids, mask, needed, int(needed.sum()), None, full)
    theirs = forward.reference_of(reference, rows, actor, kl="loss")
    found, _ = forward.values(actor, rows, theirs, kl="loss")
    values = found.logps if loss == "logps" else found.kl
    scale = torch.linspace(-1, 1, needed.numel()).view_as(needed)
    (values * scale).sum().backward()
    return {name: parameter.grad for name, parameter in actor.named_parameters()}


def main() -> None:
    from finepref.hosts.openrlhf import compat

    compat.install()
    compat.allow_fp32()
    torch.set_num_threads(1)
    for loss in ("logps", "kl"):
        expected = gradients(sys.argv[1], packed=False, full=True, loss=loss, attention="eager")
        assert max(gradient.abs().max() for gradient in expected.values()) > 1e-2
        for packed, full, attention in (
            (False, False, "eager"),
            (False, False, "sdpa"),
            (True, False, "eager"),
            (True, False, "sdpa"),
            (True, True, "sdpa"),
        ):
            found = gradients(sys.argv[1], packed=packed, full=full, loss=loss, attention=attention)
            worst = max((found[name] - expected[name]).abs().max().item() for name in expected)
            print(f"difference {loss} packed={packed} full={full} {attention} {worst:.3g}")


if __name__ == "__main__":
    main()
