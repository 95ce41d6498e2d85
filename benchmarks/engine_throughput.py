"""Generation through our engines, with journal, against the same library's own batch call on the same prompts.

    .venvs/vllm/bin/python benchmarks/engine_throughput.py MODEL [--engines hf,vllm] [--prompts 32] [--tokens 32]

MODEL is a folder, such as `finepref model smollm2` makes. The prompts are the questions of seapo_demo in the model's
chat template, answered greedily. Bare is `model.generate` over the same batches of prompts of similar length, and
`LLM.generate` of vLLM over all prompts. Both share one loaded model and take turns; the answers are compared. Time is
CPU time of the process (wall time on an accelerator), without loading and the first batch. A ratio of 1 means that
nothing is lost.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from finepref.formats.check import read_records
from finepref.synth.engine_hf import HfEngine, left_padded, prompt_ids
from finepref.synth.engine_vllm import VllmEngine
from finepref.synth.engines import Divisible, Request, ask
from finepref.synth.journal import Journal

SAMPLES = Path(__file__).parents[1] / "dataset_info" / "samples" / "seapo_demo.jsonl"


def make_requests(prompts: int, tokens: int) -> list[Request]:
    """Questions of the demo, round and round, each with a number so that no two are equal."""
    records = islice(cycle(read_records(SAMPLES, "negatives")), prompts)
    turns = [(i, each.prompt) for i, each in enumerate(records)]
    return [
        Request(f"{i}", (*prompt[:-1], prompt[-1]._replace(content=f"({i}) {prompt[-1].content}")), tokens)
        for i, prompt in turns
    ]


def bare_hf(engine: HfEngine, requests: list[Request]) -> Callable[[], dict[str, str]]:
    """`model.generate` over the engine's batches, tokenised beforehand."""
    import torch

    model, tokenizer = engine._loaded
    batches = [
        (
            [request.id for request in group],
            left_padded([prompt_ids(tokenizer, each.messages) for each in group], device=model.device),
        )
        for group in engine.groups(requests)
    ]

    def run() -> dict[str, str]:
        texts: dict[str, str] = {}
        for names, (ids, mask) in batches:
            with torch.inference_mode():
                made = model.generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=requests[0].max_new_tokens, do_sample=False
                )
            found = tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)
            texts |= dict(zip(names, found, strict=True))
        return texts

    return run


def bare_vllm(engine: VllmEngine, requests: list[Request]) -> Callable[[], dict[str, str]]:
    """`LLM.generate` over all prompts, tokenised beforehand, by the engine's own loaded model."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
    from transformers import AutoConfig
    from vllm import LLM, SamplingParams

    dtype = str(AutoConfig.from_pretrained(engine.name).dtype).removeprefix("torch.")
    llm = LLM(engine.name, generation_config="vllm", dtype=dtype, disable_log_stats=True, **engine.options)
    tokenizer = llm.get_tokenizer()
    ends = [tokenizer.eos_token_id]
    engine.__dict__["_loaded"] = (llm.llm_engine, tokenizer, ends)
    prompts = [{"prompt_token_ids": prompt_ids(tokenizer, each.messages)} for each in requests]
    settings = SamplingParams(temperature=0, max_tokens=requests[0].max_new_tokens, stop_token_ids=ends)

    def run() -> dict[str, str]:
        llm.reset_prefix_cache()
        outputs = llm.generate(prompts, settings, use_tqdm=False)
        llm.reset_prefix_cache()
        return {request.id: each.outputs[0].text for request, each in zip(requests, outputs, strict=True)}

    return run


def ours(engine: Divisible, requests: list[Request], seed: int) -> dict[str, str]:
    """The answers through the engine and a fresh journal."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Journal(
            folder, job="bench", model=engine.model, prompt_version="1", sampling={}, seed=seed, input_digest=""
        ) as journal,
    ):
        return {each.id: each.text for each in ask(requests, engine=engine, journal=journal)}


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came of it."""
    import torch

    clock = time.perf_counter if torch.accelerator.is_available() else time.process_time
    started = clock()
    found = run()
    return clock() - started, found


def main() -> None:
    """Print a line per engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--engines", default="hf,vllm")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    requests = make_requests(options.prompts, options.tokens)
    for name in options.engines.split(","):
        if name == "hf":
            engine: Any = HfEngine(options.model, batch_size=options.batch_size)
            bare = bare_hf(engine, requests)
        else:
            engine = VllmEngine(options.model, enforce_eager=True)
            bare = bare_vllm(engine, requests)
        ours(engine, requests[:2], 0)  # what is done once: threads, buffers
        pairs = []
        for seed in range(options.rounds):
            pairs.append((timed(bare), timed(lambda: ours(engine, requests, seed))))  # noqa: B023 (called at once)
        equal = statistics.mean(
            pairs[0][0][1][each.id].strip() == pairs[0][1][1][each.id].strip() for each in requests
        )
        alone, through = (statistics.median(pair[side][0] for pair in pairs) for side in (0, 1))
        each = ", ".join(f"{a[0] / b[0]:.3f}" for a, b in pairs)
        print(
            f"{name}: {options.prompts} prompts, at most {options.tokens} tokens: bare {alone:.1f} s, "
            f"ours {through:.1f} s, throughput {alone / through:.3f} of bare (rounds {each}); "
            f"{equal:.0%} of the answers equal",
            flush=True,
        )


if __name__ == "__main__":
    main()
