"""Ask an engine with a journal: a job that was killed resumes, and no answer is asked for twice."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from finepref.formats.check import digest
from finepref.formats.records import Prompt
from finepref.synth.data_sources.job_rows import JobRows
from finepref.synth.engines.protocol import Completion, Engine, Request, Sampling, request_seed
from finepref.synth.engines.thoughts import without_thought
from finepref.synth.journal import Journal

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One job that asks an engine.

    Attributes:
        name: of the step, such as "seapo inject"; shown in the progress bar.
        source: the input; the answers are valid only for its present contents.
        folder: where the journal is.
        prompt_version: changes when the text of the prompts changes.
        settings: all other settings that the answers depend on, JSON-ready.
        seed: seed of everything random in the job.
    """

    name: str
    source: JobRows | Path
    folder: Path
    prompt_version: str
    settings: Mapping[str, object]
    seed: int = 0

    def journal(self, model: str) -> Journal:
        """The journal for a model, not opened yet."""
        return Journal(
            self.folder,
            job=self.name,
            model=model,
            prompt_version=self.prompt_version,
            sampling=self.settings,
            seed=self.seed,
            input_digest=digest(self.source) if isinstance(self.source, Path) else self.source.digest(),
        )


def work_folder(output: Path, given: Path | None) -> Path:
    """Where a job keeps its journal: the folder that the user names, or `<stem>.work` beside the output."""
    return given or output.with_suffix(".work")


def ask(requests: Sequence[Request], *, engine: Engine, job: Job) -> dict[str, Completion]:
    """Every request's completion by id, with a progress bar; answers found in the job's journal are not asked again.

    Requests that failed give completions with `error` and are not journalled, so the next run asks them again.

    Raises:
        JournalBusy, JournalChanged, JournalDamaged: see `Journal`.
    """
    with job.journal(engine.model) as journal:
        found = ask_stream(requests, engine=engine, journal=journal)
        shown = tqdm(found, total=len(requests), desc=job.name, unit="answer", disable=None, smoothing=0.05)
        answers = {each.id: each for each in shown}
    if thoughts := sum(bool(each.thought) for each in answers.values()):
        log.warning("%s: a thought was taken off the beginning of %d of %d answers", job.name, thoughts, len(answers))
    if cut := sum(each.stop_reason == "length" and each.error is None for each in answers.values()):
        log.warning("%s: %d of %d answers were cut off at their most tokens", job.name, cut, len(answers))
    return answers


def ask_each(
    prompts: Mapping[str, Prompt], names: Sequence[str], *, engine: Engine, sampling: Sampling, job: Job
) -> dict[str, dict[str, Completion]]:
    """Several answers to each prompt: prompt id -> name of the answer -> completion.

    Each answer is drawn with a seed of its own, which depends on the job's seed, the prompt's id and the name only.

    Args:
        prompts: prompt id -> dialogue.
        names: of the answers to each prompt, such as sample_0 and sample_1.
        engine: the model that answers.
        sampling: used for every answer.
        job: see `Job`.

    Raises:
        ValueError: several answers to one prompt at temperature 0.
        JournalBusy, JournalChanged, JournalDamaged: see `Journal`.
    """
    if len(names) > 1 and sampling.temperature == 0:
        raise ValueError("several answers to one prompt need a temperature above 0, or they are all the same")
    requests = []
    for key, prompt in prompts.items():
        for name in names:
            request_id = f"{key}/{name}"
            seed = request_seed(job.seed, request_id)
            requests.append(Request(request_id, prompt, seed=seed, **asdict(sampling)))
    found = ask(requests, engine=engine, job=job)
    return {key: {name: found[f"{key}/{name}"] for name in names} for key in prompts}


def ask_stream(requests: Iterable[Request], *, engine: Engine, journal: Journal) -> Iterator[Completion]:
    """Every request's completion as soon as it is known: first those in the journal, then the engine's answers.

    An answer is on the disk before it is yielded. Failures are not journalled, so the next run asks them again. The
    journal holds answers as the engine gave them; a thought at their beginning is taken off what is yielded.
    """
    missing: list[Request] = []
    for request in requests:
        if request.id in journal.done:
            yield without_thought(Completion(**journal.done[request.id]))  # type: ignore[arg-type]
        else:
            missing.append(request)
    if missing:
        for together in engine.generate(missing):
            answers = [without_thought(completion) for completion in together]
            whole = (raw for raw, answer in zip(together, answers, strict=True) if answer.error is None)
            journal.append(asdict(completion) for completion in whole)
            yield from answers
