"""`finepref sepo score` against the released algorithm on the same models and pairs: time, peak memory, agreement.

    .venvs/core/bin/python benchmarks/sepo_scoring.py [--pairs 12] [--shots 0] [--device cpu] [--dtypes float32]
    .venvs/vllm/bin/python benchmarks/sepo_scoring.py --engines hf,vllm --model FOLDER [...]
    .venvs/core/bin/python benchmarks/sepo_scoring.py --parts [--device cpu]

The released algorithm (SteveKGYang/SePO, 82fab6c) is reimplemented below: both models in memory, batch 1, every
response read with its prompt, float32, autograd on, log-softmax over the whole vocabulary at every position copied to
the CPU, and an argmax loop that picks 30 %. The reference is SmolLM2-135M-Instruct (or `--model`). The oracle is the
reference with every weight perturbed at random (fixed seed), or `--oracle`. The weights of both are rounded to
bfloat16, as in published checkpoints. A pair is a question of seapo_demo with its good answer and the next question's
good answer. (An injected error would share a prefix with the good answer and favour our shared prefix.) `--shots N`
puts N solved questions before it, for longer prompts.

Every variant runs in its own process. Time is CPU time of all threads, without loading, or wall time with `--device
cuda`, where ours has the larger batch that is its default there. Memory is the peak of the process, or of the
accelerator's allocations. The FLOP limit is the time for the matrix products of both forward passes (each distinct
token through the layers, each response token through the output head), at the rate of one large matrix product
measured in the same process.

`--parts` loads no model: the time of what is made for a batch besides the model's own forward, in milliseconds, the
best of seven. Two responses of 500 tokens follow a prompt, and share no beginning.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

SAMPLES = Path(__file__).parents[1] / "dataset_info" / "samples" / "seapo_demo.jsonl"
SHARE = 0.3


def make_models(folder: Path, given: Path | None, oracle: Path | None) -> None:
    """The reference, and the oracle: the given one, or the reference plus noise of 0.02 std of each matrix."""
    import torch
    from finepref.synth.smollm2 import convert
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if given is None:
        given = folder / "given"
        convert(given, dtype="float32")
    for name, source in (("reference", given), ("oracle", oracle or given)):
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                if name == "oracle" and oracle is None and weight.dim() == 2:
                    weight.add_(torch.randn_like(weight), alpha=0.02 * weight.std().item())
                weight.copy_(weight.bfloat16())
        model.save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(given).save_pretrained(folder / name)


def make_items(folder: Path, pairs: int, shots: int) -> list:
    """Pairs as token ids."""
    from finepref.formats.check import read_records
    from finepref.formats.records import Message
    from finepref.synth.encoding import by_prompt_and_end_token
    from finepref.synth.engines.checkpoint import load_tokenizer
    from finepref.synth.scorers.protocol import Item

    encode = by_prompt_and_end_token(load_tokenizer(str(folder / "reference")))
    records = read_records(SAMPLES, "negatives")
    items = []
    for i in range(pairs):
        mine, other = records[i % len(records)], records[(i + 1) % len(records)]
        solved = [records[(i + 2 + shot) % len(records)] for shot in range(shots)]
        turns = [turn for each in solved for turn in (*each.prompt, Message("assistant", each.chosen))]
        sides = {"chosen": mine.chosen, "rejected": other.chosen}
        encoded = {side: encode((*turns, *mine.prompt), text) for side, text in sides.items()}
        responses = {side: tokens.response for side, tokens in encoded.items()}
        items.append(Item(str(i), encoded["chosen"].prompt, responses))
    return items


def released(folder: Path, items: list, device: str) -> tuple[float, dict[str, list[list[float]]]]:
    """Seconds, and per item the rewards of both responses, first tokens left out as released."""
    import torch
    from transformers import AutoModelForCausalLM

    models = [
        AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).to(device).eval()
        for name in ("oracle", "reference")
    ]
    started = clock(device)
    rewards: dict[str, list[list[float]]] = {}
    for item in items:
        for response in item.responses.values():
            ids = torch.tensor([[*item.prompt, *response]], device=device)
            logps = []
            for model in models:
                whole = model(ids).logits.cpu().log_softmax(-1)[0]  # [T, V]
                places = range(len(item.prompt), ids.shape[1] - 1)
                logps.append([whole[place, ids[0, place + 1]].item() for place in places])
            found = [a - b for a, b in zip(*logps, strict=True)]
            rewards.setdefault(item.id, []).append(found)
            left = torch.tensor(found)
            for _ in range(max(1, int(SHARE * len(found)))):
                left[left.argmax()] = -torch.inf
    return clock(device) - started, rewards


def by_hf(folder: Path, items: list, device: str, dtype: str) -> tuple[float, dict[str, list[list[float]]]]:
    """As `released`, by the code behind `finepref sepo score`: one model after the other."""
    from finepref.synth.scorers.hf import HfScorer, default_batch_tokens

    most = default_batch_tokens(on_accelerator=device != "cpu")
    logps: dict[str, list[list[list[float]]]] = {item.id: [] for item in items}
    taken = 0.0
    for name in ("oracle", "reference"):
        scorer = HfScorer(str(folder / name), dtype=dtype, batch_tokens=most)
        with scorer.loaded(items) as read:
            started = clock(device)
            for together in read(scorer.groups(items)):
                for item, found in together:
                    logps[item].append([values.tolist() for values in found.values()])
            taken += clock(device) - started
        gc.collect()
    return taken, rewards_of(logps)


def by_vllm(folder: Path, items: list, device: str, dtype: str) -> tuple[float, dict[str, list[list[float]]]]:
    """As `released`, by the code behind `finepref sepo score --engine vllm`, all items in one group."""
    from finepref.synth.scorers.vllm import VllmScorer, read

    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    logps: dict[str, list[list[list[float]]]] = {item.id: [] for item in items}
    taken = 0.0
    for name in ("oracle", "reference"):
        engine = VllmScorer(str(folder / name), dtype=dtype, options={"enforce_eager": True}).load(items)
        started = clock(device)
        for together in read(engine, items):
            for item, found in together:
                logps[item].append([values.tolist() for values in found.values()])
        taken += clock(device) - started
        engine.engine_core.shutdown()
        del engine
        gc.collect()
    return taken, rewards_of(logps)


def rewards_of(logps: dict[str, list[list[list[float]]]]) -> dict[str, list[list[float]]]:
    """Oracle - reference per item and response, without the first token, from both models' log-probabilities."""
    return {
        name: [[a - b for a, b in zip(*sides, strict=True)][1:] for sides in zip(*both, strict=True)]
        for name, both in logps.items()
    }


def floor_seconds(folder: Path, items: list, device: str, dtype: str) -> float:
    """Seconds that the products of both forward passes take at the rate of one large matrix product."""
    import torch
    from finepref.synth.scorers.token_tree import nodes
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder / "reference")
    width, heads, kv = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    layer = 2 * width * width + 2 * width * width * kv // heads + 3 * width * config.intermediate_size
    tokens = sum(len(nodes(item).tokens) for item in items)
    read = sum(len(nodes(item).edges) for item in items)
    products = 2 * 2 * (tokens * layer * config.num_hidden_layers + read * width * config.vocab_size)
    a, b = (torch.randn(1536, 1536, dtype=getattr(torch, dtype), device=device) for _ in range(2))
    rates = []
    for _ in range(8):
        started = clock(device)
        a @ b
        rates.append(2 * 1536**3 / (clock(device) - started))
    return products / max(rates)


def clock(device: str) -> float:
    """CPU seconds of this process, or wall seconds of a synchronised accelerator."""
    if device == "cpu":
        return time.process_time()
    import torch

    torch.accelerator.synchronize()
    return time.perf_counter()


def peak_bytes(device: str) -> int:
    """The process's peak memory, or the accelerator's."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    import torch

    return torch.get_device_module().max_memory_allocated()


def environment_for(device: str) -> dict[str, str]:
    """The environment of a process that takes this device; on a CPU the code under test must see no accelerator.

    Raises:
        SystemExit: there is no such device.
    """
    if device == "cpu":
        return {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None or found.type != torch.device(device).type:
        raise SystemExit(f"torch {torch.__version__} sees no {device} here, but {found or 'a CPU only'}")
    return {**os.environ}


def variant(name: str, folder: Path, arguments: argparse.Namespace) -> dict:
    """One variant, in this process."""
    items = make_items(folder, arguments.pairs, arguments.shots)
    kind, dtype = name.split()
    if kind == "released":
        seconds, rewards = released(folder, items, arguments.device)
    else:
        seconds, rewards = {"hf": by_hf, "vllm": by_vllm}[kind](folder, items, arguments.device, dtype)
    memory = peak_bytes(arguments.device)
    return {
        "seconds": seconds,
        "bytes": memory,
        "rewards": rewards,
        "floor": floor_seconds(folder, items, arguments.device, dtype),
    }


def selections(rewards: dict[str, list[list[float]]]) -> dict[str, list[set[int]]]:
    """Per item the tokens selected: the highest of the chosen, the lowest of the rejected response."""
    import torch
    from finepref.losses.sepo import select_tokens

    return {
        name: [
            {*select_tokens(torch.tensor(side), SHARE, highest=highest).nonzero().flatten().tolist()}
            for side, highest in zip(sides, (True, False), strict=True)
        ]
        for name, sides in rewards.items()
    }


def agreement(wanted: dict[str, list[set[int]]], found: dict[str, list[set[int]]]) -> float:
    """The share of the wanted tokens that were selected."""
    both = [(a, b) for name in wanted for a, b in zip(wanted[name], found[name], strict=True)]
    return sum(len(a & b) for a, b in both) / sum(len(a) for a, _ in both)


def parts(device: str) -> None:
    """Print the time of each part of making a batch, and what is copied to the device."""
    import random

    import torch
    from finepref.synth.scorers.hf import model_inputs
    from finepref.synth.scorers.protocol import Item
    from finepref.synth.scorers.token_tree import batches, nodes, pack

    def best(work: Callable[[], object]) -> float:
        times = []
        for _ in range(7):
            started = clock(device)
            work()
            times.append(1000 * (clock(device) - started))
        return min(times)

    draw = random.Random(0)
    print(f"{'rows x tokens':15}{'grouping':>10}{'trees':>8}{'packing':>9}{'inputs, mask':>14}{'copied':>10}")
    for count, prompt in ((1, 1048), (2, 24), (8, 1048)):
        texts = [[[draw.randrange(49000) for _ in range(size)] for size in (prompt, 500, 500)] for _ in range(count)]
        items = [Item(f"{i}", first, {"a": a, "b": b}) for i, (first, a, b) in enumerate(texts)]
        trees = [nodes(item) for item in items]
        packed = pack(trees)
        times = [
            best(partial(batches, items, batch_tokens=16384)),
            best(lambda: [nodes(item) for item in items]),  # noqa: B023 (called at once)
            best(partial(pack, trees)),
            best(partial(model_inputs, packed, branching=True, device=torch.device(device), dtype=torch.bfloat16)),
        ]
        copied = sum(each.nbytes for each in packed)
        rows, width = packed.ids.shape
        shown = "".join(f"{value:{space}.2f}" for value, space in zip(times, (10, 8, 9, 14), strict=True))
        print(f"{f'{rows} x {width}':15}{shown}{copied / 1e3:7.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="of ours; slow on a CPU without bfloat16")
    parser.add_argument("--engines", default="hf", help="of ours: hf, vllm or both")
    parser.add_argument("--model", type=Path, help="folder of the reference")
    parser.add_argument("--oracle", type=Path, help="folder of the oracle; default: the reference moved at random")
    parser.add_argument("--parts", action="store_true", help="the parts of making a batch, without a model")
    parser.add_argument("--variant", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(variant(arguments.variant, arguments.folder, arguments)))
        return
    from finepref.synth.scorers.hf import default_batch_tokens
    from finepref.synth.scorers.token_tree import batches, padding

    environment = environment_for(arguments.device)
    if arguments.parts:
        parts(arguments.device)
        return
    most = default_batch_tokens(on_accelerator=arguments.device != "cpu")
    with tempfile.TemporaryDirectory() as folder:
        make_models(Path(folder), arguments.model, arguments.oracle)
        items = make_items(Path(folder), arguments.pairs, arguments.shots)
        prompt = sum(len(item.prompt) for item in items) / len(items)
        response = sum(len(each) for item in items for each in item.responses.values()) / len(items) / 2
        print(f"{len(items)} pairs, {prompt:.0f} tokens of prompt and {response:.0f} of response on average")
        print(f"padding {padding(batches(items, batch_tokens=most)):.2%} of the batches' tokens")
        print(
            f"{'':18}{'seconds':>9}{'ratio':>7}{'GiB':>7}{'ratio':>7}{'same 30 %':>11}{'x FLOP limit':>14}", flush=True
        )
        peer: dict = {}
        variants = product(arguments.engines.split(","), arguments.dtypes.split(","))
        for name in ("released float32", *map(" ".join, variants)):
            command = [sys.executable, __file__, "--variant", name, "--folder", folder, "--device", arguments.device]
            command += ["--pairs", str(arguments.pairs), "--shots", str(arguments.shots)]
            ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            each = json.loads(ran.stdout.splitlines()[-1])
            peer = peer or each
            same = agreement(selections(peer["rewards"]), selections(each["rewards"]))
            print(
                f"{name:18}{each['seconds']:9.2f}{peer['seconds'] / each['seconds']:7.2f}{each['bytes'] / 2**30:7.2f}"
                f"{peer['bytes'] / each['bytes']:7.2f}{same:11.1%}{each['seconds'] / each['floor']:14.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
