"""`finepref eval`: tasks of lm-eval and our own on models and adapters, each model's results in a folder."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finepref.commands.engine_options import MergeSystem, check_models
from finepref.commands.errors import user_errors
from finepref.commands.input_files import IN_DATASET_INFO, WHAT, Column, DatasetDir, Format, given_of
from finepref.commands.row_options import BadRowsPolicy, MaxBad, Policy
from finepref.commands.sequence_options import OWN, TEMPLATE_NEEDS, template_of
from finepref.commands.trained import trained_of
from finepref.formats.bad_rows import MAX_BAD, BadRows

if TYPE_CHECKING:
    from finepref.evals.model_folder import Target

NEEDS = f'models need "finepref[model]", lm-eval\'s tasks "finepref[eval]", gym "finepref[data]"; {TEMPLATE_NEEDS}'


class Backend(StrEnum):
    """What runs a model."""

    hf = "hf"
    vllm = "vllm"


class Measure(StrEnum):
    """The reward of a policy."""

    mean = "mean"
    sum = "sum"


def show_suites(wanted: bool) -> None:
    """Print the suites with their tasks, and leave."""
    if not wanted:
        return
    from finepref.evals.suites import LOCAL, NOTES, SUITES

    for name, parts in SUITES.items():
        typer.echo(f"{name}: {NOTES[name]}")
        for part in parts:
            note = f" ({part.note})" if part.note else ""
            typer.echo(f"    {part.label:24} {', '.join(part.tasks)}{note}")
    typer.echo("finepref's own tasks, without a network (local = all of them that have their data):")
    for name, told in LOCAL.items():
        typer.echo(f"    {name:24} {told}")
    typer.echo("Every task, group and tag of lm-eval: `lm-eval ls tasks`.")
    raise typer.Exit


def evaluate(
    what: Annotated[
        list[str],
        typer.Argument(metavar="WHAT...", help="Suites, own tasks and tasks of lm-eval; --list names them."),
    ],
    model: Annotated[
        list[str],
        typer.Option(metavar="[NAME=]MODEL", help="Folder or name of a model, or folder of an adapter; repeatable."),
    ],
    output: Annotated[Path, typer.Option(help="Folder; each model has one in it. The same command resumes.")],
    adapter: Annotated[str, typer.Option(help="A LoRA adapter to put on the one model.")] = "",
    base: Annotated[str, typer.Option(help="The model under adapter folders; default: the one they name.")] = "",
    backend: Annotated[Backend, typer.Option(help="What runs the model.")] = Backend.hf,
    data: Annotated[
        list[str], typer.Option(metavar="[TASK,...=]INPUT", help=f"Data of own tasks, repeatable: {WHAT}.")
    ] = [],  # noqa: B006 (typer copies defaults)
    skip: Annotated[list[str], typer.Option(help="A task of a suite to leave out; repeatable.")] = [],  # noqa: B006
    limit: Annotated[
        float | None, typer.Option(min=0.0, help="Documents of each task, or below 1 a share.", show_default=False)
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option(
            "--num-fewshot", "--num_fewshot", min=0, help="lm-eval: examples in a prompt.", show_default=False
        ),
    ] = None,
    batch_size: Annotated[
        str,
        typer.Option(
            "--batch-size", "--batch_size", help="lm-eval: a number, auto or auto:N; default: 1, vllm: auto."
        ),
    ] = "",
    device: Annotated[str, typer.Option(help="lm-eval: such as cuda:1.")] = "",
    model_args: Annotated[
        str, typer.Option("--model-args", "--model_args", help="lm-eval: NAME=VALUE,... of the backend.")
    ] = "",
    gen_kwargs: Annotated[
        str, typer.Option("--gen-kwargs", "--gen_kwargs", help="lm-eval: NAME=VALUE,... of generation.")
    ] = "",
    apply_chat_template: Annotated[
        bool,
        typer.Option("--apply-chat-template", "--apply_chat_template", help="lm-eval: prompts in the chat template."),
    ] = False,
    fewshot_as_multiturn: Annotated[
        bool,
        typer.Option(
            "--fewshot-as-multiturn/--no-fewshot-as-multiturn",
            "--fewshot_as_multiturn",
            help="lm-eval: with the chat template, examples are turns of their own.",
        ),
    ] = True,
    system_instruction: Annotated[
        str, typer.Option("--system-instruction", "--system_instruction", help="lm-eval: a system turn.")
    ] = "",
    include_path: Annotated[
        str, typer.Option("--include-path", "--include_path", help="lm-eval: a folder of further tasks.")
    ] = "",
    confirm_run_unsafe_code: Annotated[
        bool,
        typer.Option(
            "--confirm-run-unsafe-code",
            "--confirm_run_unsafe_code",
            help="lm-eval: allow tasks that run code which the model writes.",
        ),
    ] = False,
    log_samples: Annotated[
        bool, typer.Option("--log-samples", "--log_samples", help="lm-eval: keep documents and prompts too.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Random seed of examples, sampling and the questions of gym.")] = 1234,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="gym: longest answer.")] = 512,
    reward: Annotated[
        Measure, typer.Option(help="preferences: a policy's reward, the mean or the sum of log-probabilities.")
    ] = Measure.mean,
    reference: Annotated[
        str, typer.Option(help="preferences: subtract the log-probabilities of this model (DPO's implicit reward).")
    ] = "",
    beta: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="preferences: factor of a policy's reward. Default: 1; 0.1 with --reference.",
            show_default=False,
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="preferences: LLaMA-Factory's template, or tokenizer for the chat template. Default: the receipt's.",
            show_default=False,
        ),
    ] = None,
    merge_system: MergeSystem = False,
    layout: Format = "",
    dataset_dir: DatasetDir = IN_DATASET_INFO,
    column: Column = [],  # noqa: B006
    bad_rows: BadRowsPolicy = Policy.error,
    max_bad: MaxBad = MAX_BAD,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results with other settings.")] = False,
    list_: Annotated[
        bool, typer.Option("--list", callback=show_suites, is_eager=True, help="Show the suites and their tasks.")
    ] = False,
) -> None:
    """Evaluate models: suites (seapo, sepo, honesty, reward, local), own tasks, and any task of lm-eval.

    Finished tasks are not run again, and unfinished ones resume. Results: OUTPUT/MODEL/results.json.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with user_errors(NEEDS):
        from finepref.evals.lm_tasks import Options
        from finepref.evals.local_tasks import Local
        from finepref.evals.run import Job
        from finepref.evals.run import evaluate as run
        from finepref.evals.suites import wanted

        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            told = "--model-args parallelize=True, or --backend vllm --model-args tensor_parallel_size=N"
            raise ValueError(f"finepref eval is one process; for several GPUs: {told}")
        names = [each.strip() for one in what for each in one.split(",") if each.strip()]
        files = _data(data, names, layout, dataset_dir, column)
        tasks = wanted(names, data=files, skip=[each for one in skip for each in one.split(",")])
        if unused := files.keys() - {each.local for each in tasks}:
            raise ValueError(f"--data {', '.join(sorted(unused))}: no such task is asked for")
        targets = _targets(model, adapter, base)
        check_models(*(each for target in targets for each in (target.model, target.adapter)), reference or None)
        BadRows.of(bad_rows.value, max_bad)
        settings: dict[str, Any] = {
            "reward": reward.value,
            "reference": reference or None,
            "beta": beta if beta is not None else (0.1 if reference else 1.0),
            "template": template,
        }

        def local(target: Target) -> Local:
            return Local(
                target=target,
                engine=lambda: _engine(target, backend, merge_system),
                reward=lambda: _reward(target, **settings),
                data=files,
                limit=limit,
                seed=seed,
                max_new_tokens=max_new_tokens,
                merge_system=merge_system,
                backend=backend.value,
                bad_rows=lambda: BadRows.of(bad_rows.value, max_bad),
            )

        options = Options(
            backend=backend.value,
            model_args=_mapping(model_args, "--model-args"),
            batch_size=batch_size,
            device=device,
            num_fewshot=num_fewshot,
            limit=limit,
            seed=seed,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=fewshot_as_multiturn,
            system_instruction=system_instruction,
            gen_kwargs=_mapping(gen_kwargs, "--gen-kwargs"),
            include_path=include_path,
            confirm_run_unsafe_code=confirm_run_unsafe_code,
            log_samples=log_samples,
        )
        job = Job(tasks, targets, output, options, local, overwrite)
        found = run(job, lambda line: typer.echo(line, err=True))
    for name, content in found.items():
        _print(name, content, [each.name for each in tasks], names)
        typer.echo(f"{output / name / 'results.json'}")


def _print(model: str, content: dict[str, Any], tasks: list[str], asked: list[str]) -> None:
    """Print a model's figures: the lines of the suites that were asked for, and all metrics of single tasks."""
    typer.echo(f"\n{model}")
    shown: set[str] = set()
    for suite in asked:
        for label, line in content["suites"].get(suite, {}).items():
            typer.echo(_line(f"{suite}: {label}", line, line["n"]))
            shown |= {*line["tasks"]}
    for task in tasks:
        own = content["tasks"][task]
        for name in () if task in shown else (task, *own.get("tasks", ())):
            part = content["tasks"][name]
            for metric, value in part["metrics"].items():
                typer.echo(_line(f"{name}: {metric}", value, part["n"]))
        for group, figures in own["by"].items():
            told = ", ".join(f"{key} {_number(value)}" for key, value in figures.items())
            typer.echo(f"    {group}: {told}")


def _line(label: str, value: dict[str, Any], n: int) -> str:
    error = f" ± {value['stderr']:.4f}" if value.get("stderr") is not None else ""
    return f"  {label:44} {_number(value['value'])}{error}  (n = {n})"


def _number(value: float | int | None) -> str:
    if value is None:
        return "none"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _targets(models: list[str], adapter: str, base: str) -> list[Target]:
    """The models, each with the name of its folder.

    Raises:
        ValueError: an adapter for several models, a folder of an adapter that names no base, or two models of a name.
    """
    from finepref.evals.model_folder import Target, file_name
    from finepref.synth.margins import model_at

    if adapter and len(models) > 1:
        raise ValueError("--adapter is for one model: give folders of adapters as --model")
    found: dict[str, Target] = {}
    for given in models:
        own = model_at(given)
        path, on = own.path, own.adapter
        name = own.name or Path(path).resolve().name
        if on and base:
            path = base
        if adapter:
            if on:
                raise ValueError(f"{on} is an adapter itself: leave --adapter out, or give the model under it")
            on, name = adapter, name if given.startswith(f"{name}=") else f"{name}+{Path(adapter).resolve().name}"
        if file_name(name) in found:
            raise ValueError(f"two models have the name {name}: give NAME={on or path}")
        found[file_name(name)] = Target(file_name(name), path, on)
    return [*found.values()]


def _data(given: list[str], names: list[str], layout: str, dataset_dir: Path, column: list[str]) -> dict[str, Any]:
    """The data of our own tasks, by task.

    Raises:
        ValueError: a file is given without a task, and several tasks or none need one.
        BadData: see `given_of`.
    """
    from finepref.evals.suites import NEED_DATA, SUITES

    needing = [each for each in names if each in NEED_DATA]
    needing += [task for each in names if each in SUITES for part in SUITES[each] for task in part.tasks]
    needing = [*dict.fromkeys(each for each in needing if each in NEED_DATA)]
    found: dict[str, Any] = {}
    for each in given:
        names_, named, source = each.partition("=")
        own = [name.strip() for name in names_.split(",")]
        if not named or not {*own} <= {*NEED_DATA}:
            if len(needing) != 1:
                told = f"say for which task it is: --data TASK={each}, where TASK is one of {', '.join(NEED_DATA)}"
                raise ValueError(f"--data {each}: {told}")
            own, source = needing, each
        for task in own:
            if task in found:
                raise ValueError(f"--data: {task} has two inputs")
            found[task] = given_of(source, layout, dataset_dir, column)
    return found


def _mapping(text: str, option: str) -> dict[str, Any]:
    """lm-eval's NAME=VALUE,... or a JSON object.

    Raises:
        ValueError: it is neither.
    """
    if not text:
        return {}
    import yaml

    if text.lstrip().startswith("{"):
        found = yaml.safe_load(text)
        if isinstance(found, dict):
            return found
    parts = [part.partition("=") for part in text.split(",")]
    if not all(equals and name.strip() for name, equals, _ in parts):
        raise ValueError(f"{option} {text!r} is not NAME=VALUE,...")
    return {name.strip(): yaml.safe_load(value) for name, _, value in parts}


def _engine(target: Target, backend: Backend, merge_system: bool) -> Any:
    if backend is Backend.vllm:
        if target.adapter:
            raise ValueError(
                "own tasks with --backend vllm take no adapter: merge it (llamafactory-cli export), or use hf"
            )
        from finepref.synth.engines.vllm import VllmEngine

        return VllmEngine(target.model, merge_system=merge_system)
    from finepref.synth.engines.hf import HfEngine

    return HfEngine(target.model, adapter=target.adapter, merge_system=merge_system)


def _reward(target: Target, *, template: str | None, reward: str, reference: str | None, beta: float) -> Any:
    """The reward model in the target's folder, or the policy's log-probabilities."""
    from finepref.evals.policy_reward import PolicyReward
    from finepref.synth.apo.reward_model import RewardModel, head_of

    folder = Path(target.adapter or target.model)
    trained = trained_of(folder)
    written = template_of((trained.template if template is None else template) or OWN)
    try:
        has_head = folder.is_dir() and head_of(folder) is not None
    except FileNotFoundError as error:
        if "no value head" not in str(error):
            raise
        has_head = False
    if has_head:
        return RewardModel(
            folder,
            base=target.model if target.adapter else None,
            template=written,
            pooling=trained.pooling or "last",
            cutoff_len=trained.cutoff_len or 2048,
        )
    return PolicyReward(target, reference=reference, measure=reward, beta=beta, template=written)


def register(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command("eval")(evaluate)
