"""`finepref sepo`: a score for every token of pairs."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finepref.commands.engine_options import (
    VllmOptions,
    WorkerCount,
    WorkerCpus,
    WorkerGpus,
    for_workers,
    vllm_settings,
    workers_of,
)
from finepref.commands.errors import user_errors

if TYPE_CHECKING:
    from finepref.synth.scorers.protocol import LocalScorer, Scorer


class ScoringEngine(StrEnum):
    """The engines that can score."""

    hf = "hf"
    vllm = "vllm"


class Dtype(StrEnum):
    """Number formats to run a model in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def score(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Pairs {prompt or messages, chosen, rejected}.")],
    output: Annotated[Path, typer.Option(help="The JSON Lines file of scored pairs to write.")],
    reference: Annotated[str, typer.Option(help="Folder or name of the model that the oracle was trained from.")],
    oracle: Annotated[str, typer.Option(help="Folder or name of the oracle; default: the reference.")] = "",
    oracle_adapter: Annotated[str | None, typer.Option(help="A LoRA adapter to put on the oracle.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Number format of both models; auto: each checkpoint's.")] = Dtype.auto,
    engine: Annotated[ScoringEngine, typer.Option(help="The engine that runs the models.")] = ScoringEngine.hf,
    vllm_options: VllmOptions = "",
    workers: WorkerCount = 0,
    worker_cpus: WorkerCpus = 1.0,
    worker_gpus: WorkerGpus = None,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Most tokens in a batch, or in a step of vLLM.")] = 2048,
    max_prompt: Annotated[int, typer.Option(min=0, help="Leave out longer prompts (paper: 1900 tokens).")] = 0,
    min_response: Annotated[int, typer.Option(min=0, help="Leave out shorter responses (paper: 8 tokens).")] = 0,
    max_total: Annotated[int, typer.Option(min=0, help="Leave out longer dialogues (paper: 2048 tokens).")] = 0,
    csv_share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Also the released CSV, this share.")] = 0.0,
    work_dir: Annotated[Path | None, typer.Option(help="Folder of the journals; default: beside the output.")] = None,
) -> None:
    """The reward of every response token, log oracle - log reference, for any share selected later (SePO).

    An interrupted run resumes. Under torchrun (RANK and WORLD_SIZE) the ranks divide the work.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    with user_errors('scoring needs "finepref[model]"; vllm and ray are extras of their own; an adapter needs peft'):
        if not oracle and not oracle_adapter:
            raise ValueError("the oracle is missing: give --oracle, --oracle-adapter or both")
        from finepref.synth.sepo.score import Limits
        from finepref.synth.sepo.score import score as run

        kind = _kind(engine, vllm_options)
        shared = workers_of(workers, worker_cpus, worker_gpus) if workers else None

        def scorer(model: str, adapter: str | None = None) -> Scorer:
            if shared is None:
                return kind(model, adapter=adapter, dtype=dtype.value, batch_tokens=batch_tokens)
            from finepref.synth.scorers.ray import RayScorer

            adapter = adapter and for_workers(adapter)
            own = kind(for_workers(model), adapter=adapter, dtype=dtype.value, batch_tokens=batch_tokens)
            return RayScorer(own, shared)

        outcome = run(
            source,
            output,
            oracle=scorer(oracle or reference, oracle_adapter),
            reference=scorer(reference),
            limits=Limits(max_prompt=max_prompt, min_response=min_response, max_total=max_total),
            csv_share=csv_share,
            work_dir=work_dir,
            rank=rank,
            world=world,
        )
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(outcome.dropped.items())) or "none"
    if outcome.scored is None:
        typer.echo(f"rank {rank} of {world} is done; the last rank to finish writes {output} (left out: {left_out})")
    else:
        typer.echo(f"{output}: {outcome.scored} scored pairs (left out: {left_out})")


def _kind(engine: ScoringEngine, vllm_options: str) -> Callable[..., LocalScorer]:
    """The class of scorer for an engine.

    Raises:
        ValueError: options that the engine does not have, or vLLM under torchrun, where all ranks would use the first
            device.
    """
    if engine is ScoringEngine.hf:
        if vllm_options:
            raise ValueError("--vllm-options are for --engine vllm")
        from finepref.synth.scorers.hf import HfScorer

        return HfScorer
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "--engine vllm does not work under torchrun: use --vllm-options {tensor_parallel_size: N}, or start each "
            "rank on its own with its RANK, WORLD_SIZE and CUDA_VISIBLE_DEVICES"
        )
    from finepref.synth.scorers.vllm import VllmScorer

    return partial(VllmScorer, options=vllm_settings(vllm_options))


def register(app: typer.Typer) -> None:
    """Add this file's command to `app`."""
    group = typer.Typer(no_args_is_help=True, help="SePO: token scores, of which training selects any share.")
    group.callback()(lambda: None)
    group.command("score")(score)
    app.add_typer(group, name="sepo")
