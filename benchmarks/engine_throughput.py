"""Generation throughput of our engines, journal included, against the same library's own batch call.

    .venvs/vllm/bin/python benchmarks/engine_throughput.py MODEL [--engines hf,vllm,openai] [--prompts 32]

MODEL is a model folder, such as the output of `finepref model smollm2`. The prompts are the questions of seapo_demo in
the model's chat template, answered greedily. The baseline ("bare") is `model.generate` over the same batches of
prompts of similar length, or vLLM's `LLM.generate` over all prompts; both use the same loaded model as our engine. For
openai, the script starts vLLM's server, and the baseline is the openai client with the same number of concurrent
requests. Baseline and engine alternate; their answers are compared. Time is CPU time of the process (wall time on an
accelerator and for openai), without loading and the first batch. A ratio of 1 means no overhead.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from finepref.formats.check import read_records
from finepref.synth.ask import ask_stream
from finepref.synth.engines.checkpoint import prompt_ids
from finepref.synth.engines.hf import HfEngine, left_padded
from finepref.synth.engines.openai import OpenAIEngine
from finepref.synth.engines.protocol import Engine, Request
from finepref.synth.engines.vllm import VllmEngine
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


@contextmanager
def served(model: str) -> Iterator[str]:
    """The address of vLLM's server, without a cache of prompts; its command `vllm` does not know the CPU build."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", str(port)]
    words += ["--served-model-name", "model", "--enforce-eager", "--no-enable-prefix-caching"]
    words += ["--generation-config", "vllm"]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1"} | os.environ  # on a CPU it would otherwise take nearly all memory
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(words, env=settings, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        while True:
            assert server.poll() is None, "the server has ended"
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def bare_openai(engine: OpenAIEngine, requests: list[Request]) -> Callable[[], dict[str, str]]:
    """The openai client, with the engine's number of requests under way."""
    from openai import AsyncOpenAI

    async def all_of_them() -> dict[str, str]:
        under_way = asyncio.Semaphore(engine.concurrency)
        async with AsyncOpenAI(api_key="none", base_url=engine.base_url) as client:

            async def one(request: Request) -> tuple[str, str]:
                async with under_way:
                    reply = await client.chat.completions.create(
                        model=engine.name,
                        messages=[message._asdict() for message in request.messages],
                        max_tokens=request.max_new_tokens,
                        temperature=0,
                    )
                return request.id, reply.choices[0].message.content or ""

            return dict(await asyncio.gather(*map(one, requests)))

    return lambda: asyncio.run(all_of_them())


def ours(engine: Engine, requests: list[Request], seed: int) -> dict[str, str]:
    """The answers through the engine and a fresh journal."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Journal(
            folder, job="bench", model=engine.model, prompt_version="1", sampling={}, seed=seed, input_digest=""
        ) as journal,
    ):
        return {each.id: each.text for each in ask_stream(requests, engine=engine, journal=journal)}


def timed(run: Callable[[], Any], *, remote: bool) -> tuple[float, Any]:
    """Seconds, and what came of it."""
    import torch

    clock = time.perf_counter if remote or torch.accelerator.is_available() else time.process_time
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
        with served(options.model) if name == "openai" else nullcontext("") as address:
            compare(name, requests, options, address)


def compare(name: str, requests: list[Request], options: argparse.Namespace, address: str) -> None:
    """Print the line of one engine."""
    if name == "hf":
        engine: Any = HfEngine(options.model, batch_size=options.batch_size)
        bare = bare_hf(engine, requests)
    elif name == "vllm":
        engine = VllmEngine(options.model, enforce_eager=True)
        bare = bare_vllm(engine, requests)
    else:
        engine = OpenAIEngine("model", base_url=address)
        bare = bare_openai(engine, requests)
    ours(engine, requests[:2], 0)  # what is done once: threads, buffers
    remote = name == "openai"
    pairs = [
        (timed(bare, remote=remote), timed(partial(ours, engine, requests, seed), remote=remote))
        for seed in range(options.rounds)
    ]
    equal = statistics.mean(pairs[0][0][1][each.id].strip() == pairs[0][1][1][each.id].strip() for each in requests)
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
