"""Tasks of lm-eval on a model: loaded before the model is, run one after the other, each with a store of its answers.

lm-eval's cache keeps every answer as it comes (but no sampled ones), so a task that is killed resumes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from math import exp, isfinite
from pathlib import Path
from typing import Any, NamedTuple

from finepref.evals.model_folder import Result, Target
from finepref.evals.suites import LOCAL, SUITES, Wanted
from finepref.formats.problems import BadData, Problem

EXTRA = 'the tasks are lm-eval\'s: pip install "finepref[eval]"'
UNSAFE = "--confirm-run-unsafe-code"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of lm-eval by its own names; see `lm-eval run --help`.

    Attributes:
        backend: hf or vllm.
        model_args: of the backend, besides model and adapter.
        batch_size: a number, "auto" or "auto:N"; "" = 1 with hf, auto with vllm.
        device: such as cuda:0; "" = the backend's default.
        num_fewshot: in place of that of a task's file and of a suite.
        limit: documents of each task; below 1 a share.
        seed: of few-shot examples and sampling.
        apply_chat_template, fewshot_as_multiturn, system_instruction: how prompts are written.
        gen_kwargs: in place of those of a task's file.
        include_path: folder of further task files.
        confirm_run_unsafe_code: allows tasks that run code of the model.
        log_samples: keep documents and prompts in the samples, not only metrics and answers.
    """

    backend: str = "hf"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    batch_size: str = ""
    device: str = ""
    num_fewshot: int | None = None
    limit: float | None = None
    seed: int = 1234
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = True
    system_instruction: str = ""
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict)
    include_path: str = ""
    confirm_run_unsafe_code: bool = False
    log_samples: bool = False

    def settings(self, task: Wanted) -> dict[str, Any]:
        """What the result of a task depends on, besides the model: the same settings give the same result."""
        names = ("backend", "limit", "seed", "apply_chat_template", "fewshot_as_multiturn", "system_instruction")
        own = {name: asdict(self)[name] for name in (*names, "gen_kwargs", "model_args")}
        shots = task.num_fewshot if self.num_fewshot is None else self.num_fewshot
        return own | {"num_fewshot": shots, "changes": dict(task.changes), "metric_options": task.metric_options}


class Loaded(NamedTuple):
    """A task of lm-eval with its documents: the task or group itself, and all tasks in it by name."""

    wanted: Wanted
    top: Sequence[Any]
    tasks: Mapping[str, Any]


def load(wanted: Sequence[Wanted], options: Options) -> list[Loaded]:
    """Read tasks and their data, before any model is loaded.

    Raises:
        BadData: lm-eval has no such task (FP300), its data or metric cannot be had (FP301), it needs a package that
            is not installed or an option that is not given (FP303).
        ModuleNotFoundError: lm-eval is not installed.
    """
    if options.confirm_run_unsafe_code:
        os.environ.setdefault("HF_ALLOW_CODE_EVAL", "1")  # asked for by the metric, when its module is imported
    manager = _manager(options.include_path)
    known = {*manager.all_tasks}
    if unknown := [each.name for each in wanted if each.name not in known and not Path(each.name).is_file()]:
        raise BadData([Problem(name, 0, "", "FP300", _unknown(name, known)) for name in unknown])
    return [_load(manager, each, options) for each in wanted]


def _load(manager: Any, wanted: Wanted, options: Options) -> Loaded:
    with _problems_of(wanted.name):
        found = manager.load([wanted.name])
    tasks, group = found["tasks"], found["groups"].get(wanted.name)
    unsafe = [name for name, task in tasks.items() if getattr(task, "UNSAFE_CODE", False)]
    if unsafe and not options.confirm_run_unsafe_code:
        text = f"{unsafe[0]} runs code that the model writes: {UNSAFE} allows it, --skip {wanted.name} leaves it out"
        raise BadData([Problem(wanted.name, 0, "", "FP303", text)])
    for task in tasks.values():
        if wanted.num_fewshot is not None:
            task.set_config("num_fewshot", wanted.num_fewshot)
        for name, value in wanted.changes.items():
            task.set_config(name, dict(value) if isinstance(value, Mapping) else value, isinstance(value, Mapping))
        for metric, changed in wanted.metric_options.items():
            if metric not in task._metric_fn_kwargs:
                raise BadData([Problem(wanted.name, 0, "", "FP300", f"lm-eval's {task.task_name} has no {metric}")])
            task._metric_fn_kwargs[metric] = {**task._metric_fn_kwargs[metric], **changed}
    return Loaded(wanted, [*tasks.values()] if group is None else [group], tasks)


@contextmanager
def _problems_of(name: str) -> Iterator[None]:
    """What goes wrong when a task is read, as a coded problem."""
    try:
        yield
    except (ModuleNotFoundError, AssertionError) as error:  # tasks check versions of packages by assertions
        told = " ".join(str(error).split())
        text = f'{told[:300]}; finepref\'s extra has what its suites need: pip install "finepref[eval]"'
        raise BadData([Problem(name, 0, "", "FP303", text)]) from error
    except OSError as error:  # of the hub's client and of datasets, and of local files
        told = " ".join(str(error).split())
        advice = (
            "without a network: run it once where there is one, copy ~/.cache/huggingface (or HF_HOME) and set "
            f"HF_HUB_OFFLINE=1; or --skip {name}"
        )
        raise BadData([Problem(name, 0, "", "FP301", f"{told[:300]}; {advice}")]) from error


def _unknown(name: str, known: set[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, [*known, *SUITES, *LOCAL], n=3)
    told = f", perhaps {' or '.join(near)}" if near else ""
    return f"is no suite, no task of finepref's own and none of lm-eval{told}; `finepref eval --list` names suites"


@cache
def _manager(include_path: str) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        raise ModuleNotFoundError(EXTRA, name="lm_eval") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return TaskManager(include_path=include_path or None)


def backend(target: Target, options: Options) -> Any:
    """The model in lm-eval's backend.

    Raises:
        ModuleNotFoundError: vLLM is not installed.
        OSError, ValueError: the model cannot be loaded.
    """
    from lm_eval.api.registry import get_model

    from finepref.synth.engines.checkpoint import accelerator

    given: dict[str, Any] = {"pretrained": target.model, "tokenizer": target.tokenizer, "dtype": "auto"}
    if target.adapter:
        given["peft" if options.backend == "hf" else "lora_local_path"] = target.adapter
    if options.backend == "vllm":  # whose "auto" reads weights in float32 as bfloat16
        from transformers import AutoConfig

        dtype = AutoConfig.from_pretrained(target.model).dtype
        given["dtype"] = str(dtype).removeprefix("torch.") if dtype else "auto"
    device = options.device
    if options.backend == "hf" and not device:  # its own default is cuda, which a torch without it does not know
        device = str(accelerator() or "cpu")
    batch = options.batch_size or ("auto" if options.backend == "vllm" else "1")
    further = {"batch_size": batch, "device": device or None}
    return get_model(options.backend).create_from_arg_obj({**given, **options.model_args}, further)


def run(loaded: Loaded, model: Any, options: Options, work: Path) -> dict[str, Result]:
    """Run a task of lm-eval.

    Args:
        loaded: the task.
        model: see `backend`.
        options: of lm-eval.
        work: folder of the answers so far.

    Returns:
        The results by name: first of the task or group itself, then of the tasks in a group.

    Raises:
        ValueError: lm-eval refuses the task for this model, such as a chat template that is not there.
    """
    from lm_eval import simple_evaluate

    limit = options.limit
    found = simple_evaluate(
        model=model,
        tasks=[*loaded.top],
        num_fewshot=options.num_fewshot,
        use_cache=str(work / "answers"),
        limit=int(limit) if limit is not None and limit >= 1 else limit,
        log_samples=True,
        system_instruction=options.system_instruction or None,
        apply_chat_template=options.apply_chat_template,
        fewshot_as_multiturn=options.fewshot_as_multiturn,
        gen_kwargs=dict(options.gen_kwargs) or None,
        task_manager=_manager(options.include_path),
        random_seed=options.seed,
        numpy_random_seed=options.seed,
        torch_random_seed=options.seed,
        fewshot_random_seed=options.seed,
        confirm_run_unsafe_code=options.confirm_run_unsafe_code,
        bootstrap_iters=1000,
    )
    name = loaded.wanted.name
    alone = name in loaded.tasks
    own = {each: _result(each, task, found, options, alone=alone) for each, task in loaded.tasks.items()}
    if alone:
        return own
    return {name: _of_group(name, found, own), **own}


def _result(name: str, task: Any, found: Mapping[str, Any], options: Options, *, alone: bool) -> Result:
    """The result of one task; with its calibration if it is not part of a group, whose calibration is that of all."""
    metrics = _metrics(found["results"][name], found["higher_is_better"].get(name, {}))
    samples = found["samples"][name]
    rows = [_sample(each, log=options.log_samples) for each in samples]
    for row, sample in zip(rows, samples, strict=True):
        row |= _confidence(task, sample)
    size = found["n-samples"][name]
    told: dict[str, Any] = {
        "num_fewshot": found["n-shot"].get(name),
        "version": found["versions"].get(name),
        "documents": size["original"],
    }
    if alone:
        metrics, told = _with_calibration(metrics, told, rows)
    return Result(size["effective"], metrics, {}, rows, told)


def _with_calibration(
    metrics: dict[str, dict[str, Any]], told: dict[str, Any], rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Metrics and facts with the calibration of the rows, if all of them have a confidence."""
    given = [(row["confidence"], row["right"]) for row in rows if "confidence" in row]
    if not given or len(given) < len(rows):
        return metrics, told
    figures, whole = _calibration(given)
    return metrics | figures, told | {"calibration": whole}


def _of_group(name: str, found: Mapping[str, Any], own: Mapping[str, Result]) -> Result:
    """The result of a group; where lm-eval gives no figure, the mean over all documents of its tasks."""
    size = sum(each.n for each in own.values())
    given = found.get("groups", {}).get(name) or found["results"].get(name, {})
    metrics = _metrics(given, found["higher_is_better"].get(name, {}))
    for metric in sorted({each for result in own.values() for each in result.metrics} - metrics.keys()):
        parts = [(result.n / size, result.metrics[metric]) for result in own.values() if metric in result.metrics]
        if len(parts) == len(own) and all(part["value"] is not None for _, part in parts):
            value = sum(share * part["value"] for share, part in parts)
            metrics[metric] = {**parts[0][1], "value": value, "stderr": None}
    told: dict[str, Any] = {"tasks": [*own], "documents": sum(each.told["documents"] for each in own.values())}
    metrics, told = _with_calibration(metrics, told, [row for each in own.values() for row in each.samples])
    return Result(size, metrics, {}, [], told)


def _metrics(given: Mapping[str, Any], higher: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """lm-eval's "acc,none" and "acc_stderr,none" as one entry each. The options of pass@k are part of its name."""
    metrics: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        metric, comma, kind = name.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        if isinstance(value, Mapping):
            metrics |= {f"{each},{kind}": {"value": one, "stderr": None} for each, one in value.items()}
            continue
        if not isinstance(value, int | float):
            continue
        error = given.get(f"{metric}_stderr,{kind}")
        has_error = isinstance(error, int | float) and isfinite(error)
        metrics[name] = {
            "value": float(value) if isfinite(value) else None,
            "stderr": float(error) if has_error else None,
            "higher_is_better": higher.get(metric),
        }
    return metrics


def _sample(sample: Mapping[str, Any], *, log: bool) -> dict[str, Any]:
    """A document's row: number, digest of its text, metrics as the task's, answers; with `log` prompt and text."""
    row = {"id": f"{sample['doc_id']}/{sample['filter']}", "doc_hash": sample["doc_hash"]}
    row |= {f"{name},{sample['filter']}": _plain(sample[name]) for name in sample["metrics"]}
    row["answers"] = _plain(sample["filtered_resps"])
    if log:
        row |= {name: _plain(sample[name]) for name in ("doc", "target", "arguments", "resps")}
    return row


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if isfinite(value) else str(value)
    return value if isinstance(value, str | int | bool) or value is None else str(value)


def _confidence(task: Any, sample: Mapping[str, Any]) -> dict[str, Any]:
    """{confidence, right} of a document with one right choice, {} of another one.

    The confidence is the probability of the most probable choice among the choices, without regard to length, as in
    the metric acc.
    """
    choices, target = sample["filtered_resps"], sample["target"]
    if task.OUTPUT_TYPE != "multiple_choice" or task.config.process_results is not None or type(target) is not int:
        return {}
    logps = [choice[0] for choice in choices]
    if len(logps) < 2 or len(logps) != len(task.doc_to_choice(sample["doc"])):
        return {}
    best = max(logps)
    return {"confidence": 1 / sum(exp(each - best) for each in logps), "right": logps.index(best) == target}


def _calibration(calibrated: Sequence[tuple[float, bool]]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The calibration of the most probable choices: as metrics, and with bins and intervals."""
    from finepref.synth.calibration import ERRORS, calibration

    confidence, right = zip(*calibrated, strict=True)
    found = calibration(confidence, right)
    metrics = {f"{name},none": {"value": found[name], "stderr": None, "higher_is_better": False} for name in ERRORS}
    metrics["confidence,none"] = {"value": found["confidence"], "stderr": None, "higher_is_better": None}
    return metrics, found
