"""Engines on the command line: their names and options, and the engine for given options."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from finepref.synth.engines.protocol import Engine
    from finepref.synth.ray_workers import Workers


VllmOptions = Annotated[
    str, typer.Option(metavar="MAPPING", help='vllm: options of vLLM, such as "{tensor_parallel_size: 2}".')
]


WorkerCount = Annotated[int, typer.Option(min=0, help="hf, vllm: Ray processes; 0 = run in this process.")]
WorkerCpus = Annotated[float, typer.Option(min=0.0, help="CPUs per worker.")]
WorkerGpus = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="GPUs per worker; default: if a GPU is present 1, or with vLLM its tensor times pipeline parallel size.",
        show_default=False,
    ),
]
DeviceMap = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="hf: divide the layers among all GPUs, for a model above one: auto, balanced, sequential ...",
    ),
]


MergeSystem = Annotated[
    bool, typer.Option("--merge-system", help="hf, vllm: a system turn that the template refuses joins the user turn.")
]


class EngineName(StrEnum):
    """The engines."""

    hf = "hf"
    vllm = "vllm"
    openai = "openai"
    rules = "rules"


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The engine options of every command that asks a model; the annotations define them."""

    base_url: Annotated[str, typer.Option(envvar="OPENAI_BASE_URL", help="Address of the endpoint.")] = ""
    batch_size: Annotated[int, typer.Option(min=1, help="hf: requests per batch.")] = 8
    concurrency: Annotated[int, typer.Option(min=1, help="openai: requests at a time.")] = 16
    vllm_options: VllmOptions = ""
    workers: WorkerCount = 0
    worker_cpus: WorkerCpus = 1.0
    worker_gpus: WorkerGpus = None
    device_map: DeviceMap = ""
    merge_system: MergeSystem = False


def with_engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with one option per field of `EngineOptions` instead of its parameter `engine_options`."""
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


def engine_of(
    name: EngineName, model: str, options: EngineOptions, *, variables: Mapping[str, object] | None = None
) -> Engine | None:
    """The engine for the options, not started yet; None for rules.

    Args:
        name: of the engine.
        model: folder or name, or folder of a LoRA adapter that names its base, for hf.
        options: of the engine.
        variables: of the chat template, see `checkpoint.rendered`.

    Raises:
        ValueError: the remote engine has no address or an invalid one, or the engine has no such option; an adapter
            names no base, or is given to vLLM.
        FileNotFoundError: see `check_models`.
    """
    if options.vllm_options and name is not EngineName.vllm:
        raise ValueError("--vllm-options are for --engine vllm")
    if options.merge_system and name in {EngineName.rules, EngineName.openai}:
        raise ValueError("--merge-system is for --engine hf and vllm; an endpoint applies its own chat template")
    if options.workers and name in {EngineName.rules, EngineName.openai}:
        raise ValueError("--workers are for --engine hf and vllm; an endpoint has --concurrency")
    if name is EngineName.rules:
        return None
    if name is EngineName.openai:
        if not options.base_url:
            raise ValueError("--engine openai needs --base-url (or OPENAI_BASE_URL), such as http://localhost:8000/v1")
        from finepref.synth.engines.openai import OpenAIEngine

        return OpenAIEngine(model, base_url=options.base_url, concurrency=options.concurrency, variables=variables)
    check_device_map(options.device_map, name, workers=options.workers, worker_gpus=options.worker_gpus)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from finepref.synth.engines.checkpoint import with_base
    from finepref.synth.engines.hf import HfEngine
    from finepref.synth.engines.vllm import VllmEngine

    model, adapter = with_base(model)
    if adapter and name is EngineName.vllm:
        raise ValueError(f"{adapter} is an adapter, which --engine vllm does not load: merge it, or use hf")
    check_models(model)
    if options.workers:
        model, adapter = for_workers(model), adapter and for_workers(adapter)
    own = vllm_settings(options.vllm_options)
    written: dict[str, Any] = {"merge_system": options.merge_system, "variables": variables}
    engine = (
        VllmEngine(model, **written, **own)
        if name is EngineName.vllm
        else HfEngine(model, adapter=adapter, batch_size=options.batch_size, device_map=options.device_map, **written)
    )
    if not options.workers:
        return engine
    from finepref.synth.engines.ray import RayEngine

    return RayEngine(engine, workers_of(options.workers, options.worker_cpus, options.worker_gpus, own))


def engine_for(name: EngineName, model: str, options: EngineOptions) -> Engine:
    """The engine for commands that always ask a model.

    Raises:
        ValueError: the engine is rules, or see `engine_of`.
    """
    made = engine_of(name, model, options)
    if made is None:
        raise ValueError("--engine rules cannot answer: use hf, vllm or openai")
    return made


def check_models(*models: str | None) -> None:
    """Check that local folders among the models exist, before anything is loaded; None is ignored.

    Raises:
        FileNotFoundError: the first that does not exist.
    """
    from finepref.hosts.missing_model import missing_model_hint

    for model in models:
        if model is not None and (hint := missing_model_hint(model)):
            raise FileNotFoundError(hint)


def for_workers(model: str) -> str:
    """A model's name for processes with another working directory, such as those of a cluster."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def workers_of(count: int, cpus: float, gpus: float | None, vllm: Mapping[str, object]) -> Workers:
    """The workers for --workers, --worker-cpus and --worker-gpus.

    Args:
        count: processes.
        cpus: of each.
        gpus: of each. None: 0 without a GPU here, else as many as vLLM's options divide a model among, or 1.
        vllm: vLLM's options, {} for another engine.

    Raises:
        ValueError: a parallel size of vLLM is not a whole number.
    """
    from finepref.synth.engines.checkpoint import accelerator
    from finepref.synth.ray_workers import Workers

    if gpus is None:
        gpus = 0.0 if accelerator() is None else 1.0
        for name in ("tensor_parallel_size", "pipeline_parallel_size"):
            size = vllm.get(name, 1)
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"--vllm-options: {name} {size!r} is not a whole number of 1 or more")
            gpus *= size
    return Workers(count=count, cpus=cpus, gpus=gpus)


def check_device_map(device_map: str, engine: str, *, workers: int, worker_gpus: float | None) -> None:
    """Check that a --device-map can have an effect, before anything is loaded.

    Args:
        device_map: as given, "" for none.
        engine: name of the engine.
        workers, worker_gpus: as given.

    Raises:
        ValueError: another engine than hf; under torchrun, where all ranks would take all GPUs; or workers without
            their number of GPUs.
    """
    if not device_map:
        return
    if engine != EngineName.hf:
        raise ValueError("--device-map is for --engine hf; vLLM has --vllm-options {tensor_parallel_size: N}")
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise ValueError("--device-map takes all GPUs for one process: do not start it under torchrun")
    if workers and worker_gpus is None:
        raise ValueError(
            "--device-map with --workers needs --worker-gpus, the number among which each divides a model"
        )


def vllm_settings(text: str) -> dict[str, object]:
    """The mapping in --vllm-options: YAML or JSON, with or without braces around it.

    Raises:
        ValueError: it is not a mapping.
    """
    import yaml

    try:
        found = yaml.safe_load(text if text.lstrip().startswith("{") else f"{{{text}}}")
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"--vllm-options {text!r} is not a mapping such as {{tensor_parallel_size: 2}}")
    return found


def exit_if_unanswered(count: int, *, keep_going: bool = False) -> None:
    """Exit with code 1 if the engine failed on requests, unless the user wants to keep going."""
    if count and not keep_going:
        typer.echo(f"failed requests: {count}; run the same command again to repeat them", err=True)
        raise typer.Exit(1)
