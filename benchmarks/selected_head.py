"""Time and memory of the output head at the needed positions, against OpenRLHF's own forward pass over all positions.

    OMP_NUM_THREADS=1 .venvs/openrlhf/bin/python benchmarks/selected_head.py [--vocabulary 32000] [--share 0.3]

One micro-batch of SePO's loss, forward and backward, on a random 4-layer Llama (H 256; two pairs of 512 tokens, of
which 128 are prompt). Each measurement is a separate process: CPU seconds (median of the rounds), and peak resident
memory above the model and its gradients. Padded, float32, sdpa.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

LENGTH, PROMPT, PAIRS = 512, 128, 2


def measure(kind: str, vocabulary: int, share: float, rounds: int) -> dict[str, float]:
    """Seconds of a micro-batch, MiB above the model, and the loss."""
    from finepref.hosts.openrlhf import compat

    compat.install()
    import torch
    from finepref.hosts.openrlhf import forward
    from finepref.losses import ops, sepo
    from openrlhf.models import Actor
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes))
    model.config.use_cache = False
    actor = Actor(model)
    actor.packing_samples = False
    ids = torch.randint(vocabulary, (2 * PAIRS, LENGTH))
    mask = torch.ones_like(ids)
    weight = (torch.rand(2 * PAIRS, LENGTH - 1) < share).float()
    weight[:, : PROMPT - 1] = 0

    def step() -> float:
        if kind == "host":
            logps, _ = actor(ids, attention_mask=mask, return_output=True, return_logprobs=True)
        else:
            logits, _ = forward.run(actor, ids, mask, weight > 0, ring=None, full=False)
            logps = logits.logps()
        sides = zip(logps.chunk(2), weight.chunk(2), strict=True)
        loss = ops.reduce(sepo.sepo_loss(*(ops.TokenLogps(*side) for side in sides), gamma=2.5, margin=0.0))
        loss.backward()
        return loss.item()

    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    taken = []
    for _ in range(rounds):
        started = time.process_time()
        loss = step()
        taken.append(time.process_time() - started)
    above = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"seconds": statistics.median(taken), "MiB": above, "loss": loss, "needed": int((weight > 0).sum())}


def main() -> None:
    """Print both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--share", type=float, default=0.3, help="share of the response's tokens that the loss reads")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", choices=["host", "needed"], help="measure one in this process")
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measure(asked.measure, asked.vocabulary, asked.share, asked.rounds)))
        return
    found = {}
    for kind in ("host", "needed"):
        options = ["--vocabulary", str(asked.vocabulary), "--share", str(asked.share), "--rounds", str(asked.rounds)]
        program = [sys.executable, __file__, "--measure", kind, *options]
        done = subprocess.run(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
        found[kind] = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{kind:7} {found[kind]['seconds']:7.3f} s {found[kind]['MiB']:8.0f} MiB  loss {found[kind]['loss']:.6f}"
        )
    host, needed = found["host"], found["needed"]
    positions = 2 * PAIRS * (LENGTH - 1)
    print(f"V = {asked.vocabulary}, {needed['needed']} of {positions} positions needed")
    print(
        f"host / needed: {host['seconds'] / needed['seconds']:.2f} x time, {host['MiB'] / needed['MiB']:.2f} x memory"
    )


if __name__ == "__main__":
    main()
