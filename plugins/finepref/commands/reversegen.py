"""`finepref reversegen`: find instructions that a target model fails, and train on them."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finepref.commands.engine_options import (
    EngineName,
    EngineOptions,
    engine_for,
    exit_if_unanswered,
    with_engine_options,
)
from finepref.commands.errors import NOTHING_TRAINED, TARGET_UNTRAINED, user_errors
from finepref.commands.input_files import IN_DATASET_INFO, WHAT, Column, DatasetDir, Format, input_of
from finepref.commands.outputs import check_outputs
from finepref.commands.row_options import (
    AllowEmpty,
    BadRowsPolicy,
    MaxBad,
    Policy,
    bad_rows_of,
    exit_if_empty,
)
from finepref.commands.texts import text_of
from finepref.formats.bad_rows import MAX_BAD, rejected_path
from finepref.synth.data_sources.job_rows import Given

if TYPE_CHECKING:
    from finepref.synth.left_out import Written

NEEDS = 'a local model needs "finepref[model]"; vllm and ray are extras of their own'

Seeds = Annotated[
    str, typer.Argument(metavar="SEEDS", help=f"Instructions to start from, rows of any layout: {WHAT}.")
]
Rows = Annotated[
    str,
    typer.Argument(metavar="INPUT", help=f"Rows {{id, prompt, ...}} or of any layout: {WHAT}."),
]
Output = Annotated[Path, typer.Option(help="The JSON Lines file to write.")]
Shots = Annotated[int, typer.Option(min=1, help="Seeds in each few-shot prompt.")]
Template = Annotated[str, typer.Option(help="Few-shot prompt with {examples} or {questions}; @FILE reads a file.")]
GroupField = Annotated[str, typer.Option("--group", help="Show only seeds together that are equal in this field.")]
Seed = Annotated[int, typer.Option(help="Random seed.")]
EngineChoice = Annotated[EngineName, typer.Option(help="A local model (hf, vllm) or an endpoint (openai).")]
Model = Annotated[str, typer.Option(help="Model folder or name, or the folder of a LoRA adapter.")]
WorkDir = Annotated[Path | None, typer.Option(help="Folder of the journal; default: beside the output.")]
Longest = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 = greedy.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the probability to sample from.")]
Ask = Annotated[
    str,
    typer.Option(help="The question, with {prompt}, or {question}, the prompt without its options; @FILE: a file."),
]
KeepGoing = Annotated[
    bool, typer.Option("--keep-going", help="Exit code 0 even if the engine failed on rows or none is left.")
]


class By(StrEnum):
    """How to decide whether an instruction can be answered."""

    arithmetic = "arithmetic"
    llm = "llm"
    agreement = "agreement"
    choice = "choice"


class AnswerBy(StrEnum):
    """How a model's answer is read."""

    text = "text"
    letters = "letters"
    options = "options"


def warmup(
    source: Seeds,
    output: Output,
    n: Annotated[int, typer.Option("--n", min=0, help="Number of records; with --ready 0 = all.")] = 0,
    ready: Annotated[
        bool,
        typer.Option("--ready", help="SEEDS are warm-up rows (prompt, target or response), taken as they are."),
    ] = False,
    shots: Shots = 5,
    template: Template = "",
    group: GroupField = "",
    seed: Seed = 0,
    layout: Format = "",
    dataset_dir: DatasetDir = IN_DATASET_INFO,
    column: Column = [],  # noqa: B006 (typer copies defaults)
    bad_rows: BadRowsPolicy = Policy.error,
    max_bad: MaxBad = MAX_BAD,
) -> None:
    """Records {prompt, response} for the proposer's warm-up: a few-shot prompt, with one more seed as the response.

    With --ready the rows of a warm-up file such as the release's {prompt, target} are taken as they are.
    """
    from finepref.synth.reversegen.few_shots import TEMPLATE
    from finepref.synth.reversegen.warmup import warmup as run

    seeds = input_of(source, layout, dataset_dir, column, output, rejected_path(output))
    with user_errors(NEEDS), bad_rows_of(output, bad_rows, max_bad) as bad:
        given = text_of(template) or TEMPLATE
        shown = {"shots": shots, "seed": seed, "template": given, "group_field": group}
        count = run(seeds, output, n=n, ready=ready, bad_rows=bad, **shown)
        typer.echo(f"{output}: {count} records")


@with_engine_options
def propose(
    source: Seeds,
    output: Output,
    model: Model,
    prompts: Annotated[int, typer.Option(min=0, help="Number of few-shot prompts; with --ready 0 = all.")] = 0,
    ready: Annotated[
        bool,
        typer.Option("--ready", help="SEEDS are few-shot prompts (attacker_prompt or prompt), sent as they are."),
    ] = False,
    n: Annotated[int, typer.Option("--n", min=1, help="Proposals for each few-shot prompt.")] = 8,
    shots: Shots = 5,
    template: Template = "",
    group: GroupField = "",
    engine: EngineChoice = EngineName.hf,
    *,
    engine_options: EngineOptions,
    max_new_tokens: Longest = 512,
    temperature: Temperature = 1.0,
    top_p: TopP = 0.98,
    seed: Seed = 0,
    work_dir: WorkDir = None,
    keep_going: KeepGoing = False,
    layout: Format = "",
    dataset_dir: DatasetDir = IN_DATASET_INFO,
    column: Column = [],  # noqa: B006 (typer copies defaults)
    bad_rows: BadRowsPolicy = Policy.error,
    max_bad: MaxBad = MAX_BAD,
    allow_empty: AllowEmpty = False,
) -> None:
    """Instructions that the proposer writes after few-shot prompts. An interrupted run resumes.

    Empty and truncated texts and copies of an example go to `<stem>.left_out.jsonl`.
    """
    from finepref.synth.reversegen.few_shots import TEMPLATE
    from finepref.synth.reversegen.propose import propose as run

    rows = _input(source, layout, dataset_dir, column, output)
    with user_errors(NEEDS), bad_rows_of(output, bad_rows, max_bad) as bad:
        outcome = run(
            rows,
            output,
            prompts=prompts,
            n=n,
            shots=shots,
            seed=seed,
            engine=engine_for(engine, model, engine_options),
            template=text_of(template) or TEMPLATE,
            group_field=group,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            work_dir=work_dir,
            ready=ready,
            bad_rows=bad,
        )
    _report(output, outcome, keep_going, allow_empty)


@with_engine_options
def validate(
    source: Rows,
    output: Output,
    by: Annotated[
        By,
        typer.Option(
            help="A parser (arithmetic, choice), a model's verdict (llm), or agreement of a teacher's answers; choice "
            "asks a teacher for the right option if --model is given."
        ),
    ],
    max_numbers: Annotated[int, typer.Option(min=2, help="arithmetic: most numbers in an exercise.")] = 3,
    max_digits: Annotated[int, typer.Option(min=1, help="arithmetic: most digits of a number.")] = 4,
    rubric: Annotated[str, typer.Option(help="llm: what makes an instruction answerable; @FILE reads a file.")] = "",
    options: Annotated[int, typer.Option(min=0, help="choice: options that a question must have; 0 = 2 or more.")] = 0,
    computed: Annotated[
        bool, typer.Option("--computed", help="choice: the question is an exercise, and one option has its value.")
    ] = False,
    read: Annotated[
        AnswerBy, typer.Option(help="choice: sample a teacher's answers, or read the probabilities of the options.")
    ] = AnswerBy.text,
    n: Annotated[int, typer.Option("--n", min=1, help="agreement, choice: answers to each row.")] = 5,
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help="agreement, choice: share that must agree.")] = 0.6,
    same: Annotated[str, typer.Option(help="agreement: compare answers as text or as math.")] = "math",
    ask: Ask = "{prompt}",
    engine: EngineChoice = EngineName.hf,
    model: Model = "",
    *,
    engine_options: EngineOptions,
    max_new_tokens: Longest = 1024,
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    work_dir: WorkDir = None,
    keep_going: KeepGoing = False,
    layout: Format = "",
    dataset_dir: DatasetDir = IN_DATASET_INFO,
    column: Column = [],  # noqa: B006 (typer copies defaults)
    bad_rows: BadRowsPolicy = Policy.error,
    max_bad: MaxBad = MAX_BAD,
    allow_empty: AllowEmpty = False,
) -> None:
    """Pass on the instructions that can be answered; arithmetic, agreement and choice also give the right answer.

    The others go to `<stem>.left_out.jsonl`: invalid, or unjudged if there is no clear verdict.
    """
    from finepref.synth.engines.letters import letters_of
    from finepref.synth.judges import by_rule
    from finepref.synth.reversegen import validate as steps
    from finepref.synth.reversegen.choice_questions import validate_choice

    rows = _input(source, layout, dataset_dir, column, output)
    with user_errors(NEEDS), bad_rows_of(output, bad_rows, max_bad) as bad:
        if by in (By.llm, By.agreement) and not model:
            raise ValueError(f"--by {by.value} needs --model")
        if by is not By.choice and (options or computed):
            raise ValueError("--options and --computed are for --by choice")
        if computed and model:
            raise ValueError("with --computed no teacher is asked: leave --model out")
        asked = {"max_new_tokens": max_new_tokens, "seed": seed, "work_dir": work_dir, "bad_rows": bad}
        if by is By.arithmetic:
            limits = {"max_numbers": max_numbers, "max_digits": max_digits}
            outcome = steps.validate_arithmetic(rows, output, bad_rows=bad, **limits)
        elif by is By.choice:
            teacher = engine_for(engine, model, engine_options) if model else None
            if teacher is not None and read is not AnswerBy.text:
                teacher = letters_of(
                    teacher, f"--engine {engine.value}", f"--read {read.value} needs --engine hf or vllm"
                )
            own = {
                "read": read.value,
                "n": n,
                "share": share,
                "temperature": temperature,
                "ask": text_of(ask),
                "computed": computed,
            }
            outcome = validate_choice(rows, output, engine=teacher, options=options, **own, **asked)
        elif by is By.llm:
            answering = engine_for(engine, model, engine_options)
            given = text_of(rubric) or steps.RUBRIC
            outcome = steps.validate_llm(rows, output, engine=answering, rubric=given, **asked)
        else:
            if same not in {"text", "math"}:
                raise ValueError(f"--same is text or math, not {same}")
            equal = by_rule.as_math if same == "math" else by_rule.as_text
            answering = engine_for(engine, model, engine_options)
            sampling = {"n": n, "share": share, "temperature": temperature, "ask": text_of(ask)}
            outcome = steps.validate_agreement(rows, output, engine=answering, same=equal, **sampling, **asked)
    _report(output, outcome, keep_going, allow_empty)


@with_engine_options
def answer(
    source: Rows,
    output: Output,
    model: Model,
    by: Annotated[
        AnswerBy,
        typer.Option(help="letters, options: the probabilities of the options, by their letter or text, not sampled."),
    ] = AnswerBy.text,
    n: Annotated[int, typer.Option("--n", min=1, help="Answers to each row; above 1 needs a temperature.")] = 1,
    ask: Ask = "{prompt}",
    engine: EngineChoice = EngineName.hf,
    *,
    engine_options: EngineOptions,
    max_new_tokens: Longest = 1024,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    work_dir: WorkDir = None,
    keep_going: KeepGoing = False,
    failing: Annotated[bool, typer.Option("--failing", help="Only rows whose label is false.")] = False,
    layout: Format = "",
    dataset_dir: DatasetDir = IN_DATASET_INFO,
    column: Column = [],  # noqa: B006 (typer copies defaults)
    bad_rows: BadRowsPolicy = Policy.error,
    max_bad: MaxBad = MAX_BAD,
    allow_empty: AllowEmpty = False,
) -> None:
    """A model's answer to each row: `response`, or `responses` with --n above 1. Continue with `finepref judge`.

    --by letters and --by options read multiple-choice questions: `letters` {"A": 0.4, ...}, with --engine hf or vllm.

    Rows without an answer go to `<stem>.left_out.jsonl`; the same command repeats those that the engine failed on.
    """
    from finepref.synth.engines.letters import letters_of
    from finepref.synth.reversegen import answer as steps

    rows = _input(source, layout, dataset_dir, column, output)
    with user_errors(NEEDS), bad_rows_of(output, bad_rows, max_bad) as bad:
        own = {"ask": text_of(ask), "work_dir": work_dir, "failing": failing, "bad_rows": bad}
        if by is not AnswerBy.text:
            if n > 1 or temperature or top_p < 1:
                raise ValueError(f"--by {by.value} samples nothing: leave --n, --temperature and --top-p out")
            needs = f"--by {by.value} needs --engine hf or vllm, or sample (--n 10) and judge with --same letters"
            answering = letters_of(engine_for(engine, model, engine_options), f"--engine {engine.value}", needs)
            outcome, outside = steps.answer_by_letters(rows, output, engine=answering, by=by.value, **own)
            if outside is not None:
                typer.echo(f"probability of all other answers: {outside:.3f} (mean)")
        else:
            outcome = steps.answer(
                rows,
                output,
                engine=engine_for(engine, model, engine_options),
                n=n,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                **own,
            )
    _report(output, outcome, keep_going, allow_empty)


def pair(
    source: Annotated[Path, typer.Argument(metavar="JUDGED", help="Proposals with label.")],
    output: Output,
    proposed: Annotated[Path, typer.Option(help="The file from `propose`, for few-shot prompts without a verdict.")],
    checked: Annotated[
        Path | None, typer.Option(help="The file from `validate`, beside which the invalid proposals are.")
    ] = None,
    above_invalid: Annotated[
        bool, typer.Option("--above-invalid", help="Also pair proposals that the target failed above invalid ones.")
    ] = False,
    per_prompt: Annotated[int, typer.Option(min=1, help="Most pairs of one few-shot prompt, of each kind.")] = 4,
    seed: Seed = 0,
    bad_rows: BadRowsPolicy = Policy.error,
    max_bad: MaxBad = MAX_BAD,
    allow_empty: AllowEmpty = False,
) -> None:
    """Pairs for the proposer: two instructions of a few-shot prompt, one the target failed above one it solved.

    A proposal that --proposed or --checked left out as invalid is never the better one.
    """
    from finepref.synth.reversegen.pair import pair as run

    inputs = [source, proposed, *([] if checked is None else [checked])]
    check_outputs(output, output.with_suffix(".report.json"), rejected_path(output), inputs=inputs)
    with user_errors(NEEDS), bad_rows_of(output, bad_rows, max_bad) as bad:
        made = run(
            source,
            output,
            proposed=proposed,
            checked=checked,
            above_invalid=above_invalid,
            per_prompt=per_prompt,
            seed=seed,
            bad_rows=bad,
        )
    counts = ", ".join(f"{count} {kind}" for kind, count in made.prompts.items())
    typer.echo(f"{output}: {len(made.pairs)} pairs (few-shot prompts with: {counts})")
    if above_invalid:
        typer.echo(f"{made.above_invalid} of the pairs are above an invalid proposal")
    if made.contradictory:
        typer.echo(f"{made.contradictory} proposals are in no pair: the same text ended in two ways")
    exit_if_empty(len(made.pairs), output, f"few-shot prompts with: {counts}", allowed=allow_empty)


def improve(
    sources: Annotated[list[Path], typer.Argument(metavar="JUDGED...", help="Proposals with label, of all rounds.")],
    output: Output,
    answers: Annotated[list[Path], typer.Option(help="Judged rows of a better model.")] = [],  # noqa: B006
    exclude: Annotated[
        str, typer.Option(help=f"Rows of any layout, whose prompts must not be in the records: {WHAT}.")
    ] = "",
    ask: Ask = "{prompt}",
    template: Annotated[
        str, typer.Option(help="The response, with {answer}, {letter}, {option}, {majority}.")
    ] = "{answer}",
    solved_template: Annotated[str, typer.Option(help="Also use solved instructions, with this response.")] = "",
    count: Annotated[
        int, typer.Option(min=0, help="Draw so many records, if need be several times each; 0 = all.")
    ] = 0,
    seed: Seed = 0,
    layout: Format = "",
    dataset_dir: DatasetDir = IN_DATASET_INFO,
    column: Column = [],  # noqa: B006 (typer copies defaults)
    bad_rows: BadRowsPolicy = Policy.error,
    max_bad: MaxBad = MAX_BAD,
    allow_empty: AllowEmpty = False,
) -> None:
    """Records {prompt, response} for the target: the instructions that it failed, with good answers.

    A good answer is one of --answers that passed its judge, or else the row's own `chosen`. The report beside the
    output counts the rows left out, by reason.
    """
    from finepref.synth.reversegen.improve import improve as run

    outputs = (output, output.with_suffix(".report.json"), rejected_path(output))
    check_outputs(*outputs, inputs=[*sources, *answers])
    held_out = input_of(exclude, layout, dataset_dir, column, *outputs) if exclude else None
    with user_errors(NEEDS), bad_rows_of(output, bad_rows, max_bad) as bad:
        made = run(
            sources,
            output,
            answers=answers,
            exclude=held_out,
            ask=text_of(ask),
            template=text_of(template),
            solved_template=text_of(solved_template),
            count=count,
            seed=seed,
            bad_rows=bad,
        )
    typer.echo(f"{output}: {made.rows} records (left out: {made.left_out})")
    exit_if_empty(made.rows, output, f"left out: {made.left_out}", allowed=allow_empty)


def evaluate(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Outputs of the steps in order: proposals to judged rows.")
    ],
    output: Annotated[Path, typer.Option(help="The JSON file to write.")],
    sample: Annotated[int, typer.Option(min=0, help="Size of a random sample for self-BLEU; 0 = all texts.")] = 0,
    seed: Seed = 0,
    bad_rows: BadRowsPolicy = Policy.error,
    max_bad: MaxBad = MAX_BAD,
) -> None:
    """Failure rate (of safety: attack success rate), accuracy, refusals, self-BLEU, entropy and calibration.

    Also the class in which every row ends.

    A reliability diagram goes to `<stem>_reliability.png` if the judge was entropy and answers are known.
    """
    from finepref.formats.files import write_json
    from finepref.synth.reversegen.evaluate import draw_calibration, measure

    diagram = output.with_name(f"{output.stem}_reliability.png")
    check_outputs(output, diagram, rejected_path(output), inputs=files)
    with user_errors(NEEDS), bad_rows_of(output, bad_rows, max_bad) as bad:
        found = measure(files, sample=sample, seed=seed, bad_rows=bad)
        write_json(output, found)
        try:
            draw_calibration(found, diagram)
        except ModuleNotFoundError as error:
            typer.echo(f"no reliability diagram, because {error.name} is not installed", err=True)
        told = ("classes", "failure_rate", "failure_rate_interval", "failure_rate_judged", "accuracy", "refusal_rate")
        typer.echo(json.dumps({name: found[name] for name in (*told, "self_bleu")}))


def run(
    file: Annotated[Path, typer.Argument(help="Settings, such as examples/pipelines/reversegen_math_demo.yaml.")],
    output: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run is resumed.")],
    overrides: Annotated[list[str], typer.Argument(metavar="[KEY=VALUE]...", help="Override the file.")] = [],  # noqa: B006
) -> None:
    """Run ReverseGen: warm-up, rounds of {propose, judge, train the proposer}, improve the target, then a report.

    If it is interrupted, the same command resumes it. The exit code is 3 if nothing was trained after the warm-up, and
    4 if the target was not trained; the report is there then too.
    """
    from finepref.pipelines import settings
    from finepref.pipelines.reversegen import LearntNothing, reversegen
    from finepref.pipelines.steps import Pipeline

    code = 0
    with user_errors():
        given = settings.load(file, overrides)
        with Pipeline(output) as pipeline:
            try:
                settings.call(reversegen, given, file=file, pipeline=pipeline)
            except LearntNothing as nothing:
                typer.echo(str(nothing), err=True)
                code = TARGET_UNTRAINED if nothing.proposer else NOTHING_TRAINED
    typer.echo(f"report: {output / 'report.md'}")
    raise typer.Exit(code)


def register(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    group = typer.Typer(no_args_is_help=True, help="ReverseGen: find where a model fails, and train on it.")
    for command in (warmup, propose, validate, answer, pair, improve):
        group.command()(command)
    group.command("eval")(evaluate)
    group.command("run")(run)
    app.add_typer(group, name="reversegen")


def _input(source: str, layout: str, dataset_dir: Path, column: list[str], output: Path) -> Given:
    from finepref.synth.left_out import LEFT_OUT

    return input_of(source, layout, dataset_dir, column, output, LEFT_OUT.path(output), rejected_path(output))


def _report(output: Path, written: Written, keep_going: bool, allow_empty: bool) -> None:
    typer.echo(f"{output}: {written.rows} rows (left out: {written.left_out})")
    exit_if_unanswered(written.left_out.unanswered, keep_going=keep_going)
    exit_if_empty(written.rows, output, f"{len(written.left_out)} left out", allowed=allow_empty or keep_going)
