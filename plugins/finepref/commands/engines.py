"""What the commands that ask a model share: options, the names of the engines, and an engine from the options."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from finepref.synth.engines import Engine


class EngineName(StrEnum):
    """What answers."""

    hf = "hf"
    vllm = "vllm"
    openai = "openai"
    rules = "rules"


VllmOptions = Annotated[
    str, typer.Option(metavar="MAPPING", help='For vllm: its own options, such as "{tensor_parallel_size: 2}".')
]
Workers = Annotated[int, typer.Option(min=0, help="For hf, vllm: processes of Ray that share the work; 0: this one.")]
WorkerCpus = Annotated[float, typer.Option(min=0.0, help="CPUs of each worker.")]
WorkerGpus = Annotated[float | None, typer.Option(min=0.0, help="GPUs of each worker; default: 1 where there are.")]


def engine_of(
    name: EngineName,
    *,
    model: str,
    base_url: str,
    batch_size: int,
    concurrency: int,
    vllm_options: str = "",
    workers: int = 0,
    worker_cpus: float = 1,
    worker_gpus: float | None = None,
) -> Engine | None:
    """The engine that the options name, not started yet; None for rules.

    Raises:
        ValueError: the remote engine has no address, or none that is one; or options that the engine does not have.
    """
    if vllm_options and name is not EngineName.vllm:
        raise ValueError("--vllm-options are for --engine vllm")
    if workers and name in {EngineName.rules, EngineName.openai}:
        raise ValueError("--workers are for --engine hf and vllm; an endpoint has --concurrency")
    if name is EngineName.rules:
        return None
    if name is EngineName.openai:
        if not base_url:
            raise ValueError("--engine openai needs --base-url (or OPENAI_BASE_URL), such as http://localhost:8000/v1")
        from finepref.synth.engine_openai import OpenAIEngine

        return OpenAIEngine(model, base_url=base_url, concurrency=concurrency)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if workers and Path(model).is_dir():
        model = str(Path(model).resolve())  # a cluster's workers have another working directory
    from finepref.synth.engine_hf import HfEngine
    from finepref.synth.engine_vllm import VllmEngine

    engine = (
        VllmEngine(model, **_options(vllm_options))
        if name is EngineName.vllm
        else HfEngine(model, batch_size=batch_size)
    )
    if not workers:
        return engine
    from finepref.synth.engine_ray import RayEngine

    if worker_gpus is None:
        import torch

        worker_gpus = float(torch.accelerator.current_accelerator(check_available=True) is not None)
    return RayEngine(engine, workers=workers, cpus=worker_cpus, gpus=worker_gpus)


def _options(text: str) -> dict[str, object]:
    """A YAML or JSON mapping, with or without braces around it."""
    import yaml

    try:
        found = yaml.safe_load(text if text.lstrip().startswith("{") else f"{{{text}}}")
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"--vllm-options {text!r} is not a mapping such as {{tensor_parallel_size: 2}}")
    return found
