"""`finepref sepo`: a score for every token of pairs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finepref.commands.engine_options import (
    DeviceMap,
    VllmOptions,
    WorkerCount,
    WorkerCpus,
    WorkerGpus,
    check_device_map,
    check_models,
    for_workers,
    vllm_settings,
    workers_of,
)
from finepref.commands.errors import user_errors
from finepref.commands.input_files import IN_DATASET_INFO, WHAT, Column, DatasetDir, Format, input_of
from finepref.commands.row_options import (
    MAX_BAD,
    BadRowsPolicy,
    MaxBad,
    Policy,
    bad_rows_of,
    exit_if_empty,
    rejected_path,
)
from finepref.commands.sequence_options import (
    OWN,
    TEMPLATE_NEEDS,
    CutoffLen,
    OverlongPolicy,
    TemplateName,
    template_of,
)
from finepref.synth.sepo.summary import described

if TYPE_CHECKING:
    from finepref.synth.scorers.protocol import LocalScorer, Scorer
    from finepref.synth.sepo.score import ScoredPairs


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
    source: Annotated[str, typer.Argument(metavar="INPUT", help=f"Pairs of any layout: {WHAT}.")],
    output: Annotated[Path, typer.Option(help="The JSON Lines file of scored pairs to write.")],
    reference: Annotated[str, typer.Option(help="Folder or name of the model that the oracle was trained from.")],
    oracle: Annotated[str, typer.Option(help="Folder or name of the oracle; default: the reference.")] = "",
    oracle_adapter: Annotated[str | None, typer.Option(help="A LoRA adapter to put on the oracle.")] = None,
    template: TemplateName = "",
    dtype: Annotated[Dtype, typer.Option(help="Number format of both models; auto: each checkpoint's.")] = Dtype.auto,
    engine: Annotated[ScoringEngine, typer.Option(help="The engine that runs the models.")] = ScoringEngine.hf,
    vllm_options: VllmOptions = "",
    workers: WorkerCount = 0,
    worker_cpus: WorkerCpus = 1.0,
    worker_gpus: WorkerGpus = None,
    device_map: DeviceMap = "",
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most tokens in a batch, or in a step of vLLM; default: hf on a GPU 16384, else 2048.",
            show_default=False,
        ),
    ] = None,
    max_prompt: Annotated[int, typer.Option(min=0, help="Leave out longer prompts (paper: 1900 tokens).")] = 0,
    min_response: Annotated[int, typer.Option(min=0, help="Leave out shorter responses (paper: 8 tokens).")] = 0,
    max_total: Annotated[int, typer.Option(min=0, help="Leave out longer dialogues (paper: 2048 tokens).")] = 0,
    cutoff_len: CutoffLen = 0,
    overlong: Annotated[
        OverlongPolicy | None,
        typer.Option(help="Longer records than --cutoff-len; default: host.", show_default=False),
    ] = None,
    contrast: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="cDPO: also write a .contrast.jsonl, with this weight of the reference (paper: 1). The oracle is a "
            "model of right answers, the reference one of wrong answers; both are in memory together.",
            show_default=False,
        ),
    ] = None,
    csv_share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Also the released CSV, this share.")] = 0.0,
    layout: Format = "",
    dataset_dir: DatasetDir = IN_DATASET_INFO,
    column: Column = [],  # noqa: B006 (typer copies defaults)
    bad_rows: BadRowsPolicy = Policy.error,
    max_bad: MaxBad = MAX_BAD,
    work_dir: Annotated[Path | None, typer.Option(help="Folder of the journals; default: beside the output.")] = None,
) -> None:
    """The score of every response token, log oracle - log reference, for the stages that select or weigh tokens.

    SePO and TGDPO: the oracle is trained by DPO, the reference is what it was trained from. TIS-DPO: both are trained
    by DPO, the reference with chosen and rejected exchanged. cDPO: see --contrast.

    An interrupted run resumes. Under torchrun (RANK and WORLD_SIZE) the ranks divide the work. Exit code 1: bad
    input, or no pair could be scored.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    more = [".csv"] * (csv_share > 0) + [".contrast.jsonl"] * (contrast is not None)
    beside = [output.with_suffix(suffix) for suffix in (".parquet", ".report.json", *more)]
    pairs = input_of(source, layout, dataset_dir, column, output, *beside, rejected_path(output))
    needs = 'scoring needs "finepref[model]"; vllm and ray are extras of their own; an adapter needs peft'
    with user_errors(f"{needs}; {TEMPLATE_NEEDS}"):
        if overlong and not cutoff_len:
            raise ValueError("--overlong is for --cutoff-len: give both")
        if not oracle and not oracle_adapter:
            raise ValueError("the oracle is missing: give --oracle, --oracle-adapter or both")
        check_models(oracle or None, reference, oracle_adapter)
        from finepref.synth.sepo.score import PLAIN, Limits
        from finepref.synth.sepo.score import score as run

        check_device_map(device_map, engine, workers=workers, worker_gpus=worker_gpus)
        kind = _kind(engine, vllm_options, device_map)
        shared = workers_of(workers, worker_cpus, worker_gpus, vllm_settings(vllm_options)) if workers else None
        settings = {"dtype": dtype.value, "batch_tokens": batch_tokens}
        if batch_tokens is None and shared is not None and engine is ScoringEngine.hf:
            from finepref.synth.scorers.hf import default_batch_tokens

            settings["batch_tokens"] = default_batch_tokens(on_accelerator=shared.gpus > 0)

        def local(model: str, adapter: str | None = None) -> LocalScorer:
            if shared is None:
                return kind(model, adapter=adapter, **settings)
            return kind(for_workers(model), adapter=adapter and for_workers(adapter), **settings)

        def scorer(one: LocalScorer) -> Scorer:
            if shared is None:
                return one
            from finepref.synth.scorers.ray import RayScorer

            return RayScorer(one, shared)

        first, second = local(oracle or reference, oracle_adapter), local(reference)
        limits = Limits(
            max_prompt=max_prompt,
            min_response=min_response,
            max_total=max_total,
            cutoff_len=cutoff_len,
            overlong=overlong.value if overlong else "host",
        )
        with bad_rows_of(output, bad_rows, max_bad) as collected:
            outcome = run(
                pairs,
                output,
                oracle=scorer(first),
                reference=scorer(second),
                contrast=None if contrast is None else scorer(_contrast_of(first, second, contrast)),
                limits=limits,
                template=PLAIN if template in ("", OWN) else template_of(template),
                bad_rows=collected,
                csv_share=csv_share,
                work_dir=work_dir,
                rank=rank,
                world=world,
            )
    for line in _told(outcome, cutoff_len):
        typer.echo(line)
    left_out = _counts(outcome.dropped)
    if outcome.scored is None:
        typer.echo(f"rank {rank} of {world} is done; the last rank to finish writes {output} (left out: {left_out})")
        return
    typer.echo(f"{output}: {outcome.scored} scored pairs (left out: {left_out})")
    exit_if_empty(outcome.scored, output, f"left out: {left_out}")


def _contrast_of(right: LocalScorer, wrong: LocalScorer, contrast: float) -> LocalScorer:
    """The scorer of both models.

    Raises:
        ValueError: an engine that gives no logits.
    """
    from finepref.synth.scorers.contrast import ContrastScorer
    from finepref.synth.scorers.hf import HfScorer

    if not (isinstance(right, HfScorer) and isinstance(wrong, HfScorer)):
        raise ValueError("--contrast needs the logits of both models, which only --engine hf gives")
    return ContrastScorer(right, wrong, contrast=contrast)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())) or "none"


def _told(outcome: ScoredPairs, cutoff_len: int) -> list[str]:
    """Lines about speed, scores and what was cut; the report beside the output has more."""
    lines = [
        f"{role}: {tokens} tokens in {seconds:.0f} s, {tokens / seconds:.0f} a second"
        for role, (tokens, seconds) in outcome.speed.items()
        if tokens
    ]
    for part, count in sorted(outcome.cut.items()):
        lines.append(f"{count} pairs have a {part} that is cut to fit --cutoff-len {cutoff_len}")
    if outcome.not_in_csv:
        lines.append(
            f"{outcome.not_in_csv} pairs are not in the CSV, which has no form for their prompts (see the report)"
        )
    if outcome.scores.get("tokens"):
        lines += described(outcome.scores)
    return lines


def _kind(engine: ScoringEngine, vllm_options: str, device_map: str) -> Callable[..., LocalScorer]:
    """The class of scorer for an engine.

    Raises:
        ValueError: options that the engine does not have, or vLLM under torchrun, where all ranks would use the first
            device.
    """
    if engine is ScoringEngine.hf:
        if vllm_options:
            raise ValueError("--vllm-options are for --engine vllm")
        from finepref.synth.scorers.hf import HfScorer

        return partial(HfScorer, device_map=device_map)
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "--engine vllm does not work under torchrun: use --vllm-options {tensor_parallel_size: N}, or start each "
            "rank on its own with its RANK, WORLD_SIZE and CUDA_VISIBLE_DEVICES"
        )
    from finepref.synth.scorers.vllm import VllmScorer

    return partial(VllmScorer, options=vllm_settings(vllm_options))


def register(app: typer.Typer) -> None:
    """Add this file's command to `app`."""
    group = typer.Typer(
        no_args_is_help=True, help="Token scores, by which SePO, TGDPO, TIS-DPO and cDPO select or weigh tokens."
    )
    group.callback()(lambda: None)
    group.command("score")(score)
    app.add_typer(group, name="sepo")
