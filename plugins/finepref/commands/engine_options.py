"""What the commands that ask a model share: options, the names of the engines, and an engine from the options."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from finepref.synth.engines.protocol import Engine
    from finepref.synth.engines.ray import Workers


VllmOptions = Annotated[
    str, typer.Option(metavar="MAPPING", help='For vllm: its own options, such as "{tensor_parallel_size: 2}".')
]


WorkerCount = Annotated[
    int, typer.Option(min=0, help="For hf, vllm: processes of Ray that share the work; 0: this one.")
]
WorkerCpus = Annotated[float, typer.Option(min=0.0, help="CPUs of each worker.")]
WorkerGpus = Annotated[float | None, typer.Option(min=0.0, help="GPUs of each worker; default: 1 where there are.")]


class EngineName(StrEnum):
    """What answers."""

    hf = "hf"
    vllm = "vllm"
    openai = "openai"
    rules = "rules"


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What every command that asks a model can be told of its engine; the annotations are its options."""

    base_url: Annotated[str, typer.Option(envvar="OPENAI_BASE_URL", help="Address of the endpoint.")] = ""
    batch_size: Annotated[int, typer.Option(min=1, help="For hf: requests per batch.")] = 8
    concurrency: Annotated[int, typer.Option(min=1, help="For openai: requests under way at a time.")] = 16
    vllm_options: VllmOptions = ""
    workers: WorkerCount = 0
    worker_cpus: WorkerCpus = 1.0
    worker_gpus: WorkerGpus = None


def with_engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of `EngineOptions` in place of its parameter `engine_options`."""
    fields = signature(EngineOptions, eval_str=True).parameters
    parameters: list[Parameter] = []
    for parameter in signature(command, eval_str=True).parameters.values():
        own = [parameter] if parameter.name != "engine_options" else fields.values()
        parameters += [each.replace(kind=Parameter.KEYWORD_ONLY) for each in own]

    def call(**given: Any) -> None:
        options = EngineOptions(**{name: given.pop(name) for name in fields})
        command(**given, engine_options=options)

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    return call


def engine_of(name: EngineName, model: str, options: EngineOptions) -> Engine | None:
    """The engine that the options name, not started yet; None for rules.

    Raises:
        ValueError: the remote engine has no address, or none that is one; or options that the engine does not have.
    """
    if options.vllm_options and name is not EngineName.vllm:
        raise ValueError("--vllm-options are for --engine vllm")
    if options.workers and name in {EngineName.rules, EngineName.openai}:
        raise ValueError("--workers are for --engine hf and vllm; an endpoint has --concurrency")
    if name is EngineName.rules:
        return None
    if name is EngineName.openai:
        if not options.base_url:
            raise ValueError("--engine openai needs --base-url (or OPENAI_BASE_URL), such as http://localhost:8000/v1")
        from finepref.synth.engines.openai import OpenAIEngine

        return OpenAIEngine(model, base_url=options.base_url, concurrency=options.concurrency)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if options.workers:
        model = for_workers(model)
    from finepref.synth.engines.hf import HfEngine
    from finepref.synth.engines.vllm import VllmEngine

    engine = (
        VllmEngine(model, **vllm_settings(options.vllm_options))
        if name is EngineName.vllm
        else HfEngine(model, batch_size=options.batch_size)
    )
    if not options.workers:
        return engine
    from finepref.synth.engines.ray import RayEngine

    return RayEngine(engine, workers_of(options.workers, options.worker_cpus, options.worker_gpus))


def for_workers(model: str) -> str:
    """A model's name for processes with another working directory, such as a cluster's."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def workers_of(count: int, cpus: float, gpus: float | None) -> Workers:
    """What --workers, --worker-cpus and --worker-gpus say."""
    from finepref.synth.engines.ray import Workers

    if gpus is None:
        import torch

        gpus = float(torch.accelerator.current_accelerator(check_available=True) is not None)
    return Workers(count=count, cpus=cpus, gpus=gpus)


def vllm_settings(text: str) -> dict[str, object]:
    """What --vllm-options say: a YAML or JSON mapping, with or without braces around it.

    Raises:
        ValueError: it is none.
    """
    import yaml

    try:
        found = yaml.safe_load(text if text.lstrip().startswith("{") else f"{{{text}}}")
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"--vllm-options {text!r} is not a mapping such as {{tensor_parallel_size: 2}}")
    return found
