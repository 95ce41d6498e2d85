"""`finepref eval`: every task on every model, finished ones left alone."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from finepref.evals import lm_tasks
from finepref.evals.local_tasks import Local
from finepref.evals.model_folder import ModelFolder, Result, Target
from finepref.evals.suites import Wanted


class Job(NamedTuple):
    """What is asked for.

    Attributes:
        tasks: in order.
        targets: the models.
        output: folder of the models' folders.
        options: for tasks of lm-eval.
        local: makes the settings of our own tasks on a model.
        overwrite: replace results with other settings.
    """

    tasks: Sequence[Wanted]
    targets: Sequence[Target]
    output: Path
    options: lm_tasks.Options
    local: Callable[[Target], Local]
    overwrite: bool = False


def evaluate(job: Job, say: Callable[[str], None] = lambda line: None) -> dict[str, dict[str, Any]]:
    """Run what is not finished, and return results.json of each model by its name.

    All tasks are looked up, and their data read, before the first model is loaded.

    Args:
        job: what is asked for.
        say: takes a line for each step.

    Raises:
        BadData: see `lm_tasks.load`, `Local.run` and `ModelFolder`.
        ValueError, OSError, ModuleNotFoundError: see `lm_tasks.backend`.
        JournalBusy: another process works on one of the folders.
    """
    loaded: dict[str, lm_tasks.Loaded] = {}
    found: dict[str, dict[str, Any]] = {}
    for number, target in enumerate(job.targets, start=1):
        with ModelFolder(job.output, target, overwrite=job.overwrite) as folder:
            local = job.local(target)
            settings = {
                each.name: local.settings(each.name) if each.local else job.options.settings(each)
                for each in job.tasks
            }
            waiting = [each for each in job.tasks if folder.finished(each.name, settings[each.name]) is None]
            if done := len(job.tasks) - len(waiting):
                say(f"{target.name}: {done} of {len(job.tasks)} tasks are finished")
            if missing := [each for each in waiting if not each.local and each.name not in loaded]:
                loaded |= {each.wanted.name: each for each in lm_tasks.load(missing, job.options)}
            for each in waiting:
                for part in loaded[each.name].tasks if each.name in loaded else ():
                    folder.finished(part, settings[each.name])  # raises before any work, if another result is there
            template = _template(target, job.options) if waiting else {}
            start, ran, model = monotonic(), list[str](), None
            for place, each in enumerate(waiting, start=1):
                say(
                    f"model {number} of {len(job.targets)}, {target.name}: task {place} of {len(waiting)}, {each.name}"
                )
                work = folder.work(each.name, settings[each.name])
                if each.local:
                    results: Mapping[str, Result] = {each.name: local.run(each.name, work, folder.rejected(each.name))}
                else:
                    model = model or lm_tasks.backend(target, job.options)
                    results = lm_tasks.run(loaded[each.name], model, job.options, work)
                for name, result in reversed(results.items()):  # a group last: it is there if all of its tasks are
                    folder.keep(name, settings[each.name], result)
                shutil.rmtree(work)
                with suppress(OSError):  # others are unfinished
                    work.parent.rmdir()
                ran.append(each.name)
                folder.ran(ran, monotonic() - start, template)
            found[target.name] = folder.summarise()
    return found


def _template(target: Target, options: lm_tasks.Options) -> dict[str, Any]:
    """The digest of the chat template that a model's tokenizer has; None if it has none."""
    from transformers import AutoTokenizer

    text = AutoTokenizer.from_pretrained(target.tokenizer).chat_template
    digest = hashlib.sha256(str(text).encode()).hexdigest() if text else None
    return {"chat_template_sha256": digest, "batch_size": options.batch_size}
