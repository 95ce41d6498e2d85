"""Sub-commands of `finepref`: reversegen, the steps that find where a target model fails and train on it."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finepref.commands.engine_options import EngineName, EngineOptions, engine_of, with_engine_options
from finepref.commands.errors import told_errors

if TYPE_CHECKING:
    from finepref.synth.ask import Outcome
    from finepref.synth.engines.protocol import Engine

NEEDS = 'a local model needs "finepref[model]", vllm and ray their own extras'

Seeds = Annotated[Path, typer.Argument(metavar="SEEDS", help="Instructions to start from: rows {prompt, ...}.")]
Rows = Annotated[Path, typer.Argument(metavar="INPUT", help="Rows {id, prompt, ...}, such as proposals.")]
Output = Annotated[Path, typer.Option(help="The JSON Lines file to write.")]
Shots = Annotated[int, typer.Option(min=1, help="Seeds in each few-shot prompt.")]
Template = Annotated[str, typer.Option(help="Few-shot prompt with {examples}, {count}, {group}; @FILE reads one.")]
GroupField = Annotated[str, typer.Option("--group", help="Show seeds together that are equal in this field.")]
Seed = Annotated[int, typer.Option(help="Of everything drawn by chance.")]
EngineChoice = Annotated[EngineName, typer.Option(help="A local model (hf, vllm) or an endpoint (openai).")]
Model = Annotated[str, typer.Option(help="Model folder or name.")]
WorkDir = Annotated[Path | None, typer.Option(help="Where the journal is; default: beside the output.")]
Longest = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 is greedy.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Sample from so much of the probability.")]
Ask = Annotated[str, typer.Option(help="What is asked, with {prompt}; @FILE reads it from a file.")]
KeepGoing = Annotated[bool, typer.Option("--keep-going", help="Exit code 0 also where the engine failed.")]


class By(StrEnum):
    """How it is found out whether an instruction can be answered."""

    arithmetic = "arithmetic"
    llm = "llm"
    agreement = "agreement"


def warmup(
    source: Seeds,
    output: Output,
    n: Annotated[int, typer.Option("--n", min=1, help="How many records.")],
    shots: Shots = 5,
    template: Template = "",
    group: GroupField = "",
    seed: Seed = 0,
) -> None:
    """Records {prompt, response} for the proposer's warm-up: a few-shot prompt, and one more seed as the response."""
    from finepref.synth.reversegen import propose as proposing
    from finepref.synth.reversegen.few_shots import TEMPLATE

    with told_errors(NEEDS):
        given = _text(template) or TEMPLATE
        count = proposing.warmup(source, output, n=n, shots=shots, seed=seed, template=given, group_field=group)
        typer.echo(f"{output}: {count} records")


@with_engine_options
def propose(
    source: Seeds,
    output: Output,
    prompts: Annotated[int, typer.Option(min=1, help="How many few-shot prompts.")],
    model: Model,
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
) -> None:
    """Instructions that the proposer writes after few-shot prompts; a run that was cut off is taken up where it was.

    Empty and cut texts and copies of an example go to `<stem>.left_out.jsonl`.
    """
    from finepref.synth.reversegen import propose as proposing
    from finepref.synth.reversegen.few_shots import TEMPLATE

    with told_errors(NEEDS):
        outcome = proposing.propose(
            source,
            output,
            prompts=prompts,
            n=n,
            shots=shots,
            seed=seed,
            engine=_engine(engine, model, engine_options),
            template=_text(template) or TEMPLATE,
            group_field=group,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            work_dir=work_dir,
        )
        _tell(output, outcome, keep_going)


@with_engine_options
def validate(
    source: Rows,
    output: Output,
    by: Annotated[By, typer.Option(help="An exact parser, a model's verdict, or a teacher's answers that agree.")],
    max_numbers: Annotated[int, typer.Option(min=2, help="arithmetic: most numbers in an exercise.")] = 3,
    max_digits: Annotated[int, typer.Option(min=1, help="arithmetic: most digits of a number.")] = 4,
    rubric: Annotated[str, typer.Option(help="llm: what makes it answerable; @FILE reads it from a file.")] = "",
    n: Annotated[int, typer.Option("--n", min=1, help="agreement: answers to each.")] = 5,
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help="agreement: share that must agree.")] = 0.6,
    same: Annotated[str, typer.Option(help="agreement: answers are equal as text or as math.")] = "math",
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
) -> None:
    """Hand on the instructions that can be answered; arithmetic and agreement also give the right answer.

    The others go to `<stem>.left_out.jsonl`: invalid, or unjudged where the judge says nothing that can be read.
    """
    from finepref.synth.judges import by_rule as judges
    from finepref.synth.reversegen import answer as answering

    with told_errors(NEEDS):
        if by is By.arithmetic:
            outcome = answering.validate_arithmetic(source, output, max_numbers=max_numbers, max_digits=max_digits)
            _tell(output, outcome, keep_going)
            return
        if not model:
            raise ValueError(f"--by {by.value} needs --model")
        asked = {
            "engine": _engine(engine, model, engine_options),
            "max_new_tokens": max_new_tokens,
            "seed": seed,
            "work_dir": work_dir,
        }
        if by is By.llm:
            outcome = answering.validate_llm(source, output, rubric=_text(rubric) or answering.RUBRIC, **asked)
        else:
            if same not in {"text", "math"}:
                raise ValueError(f"--same is text or math, not {same}")
            equal = judges.as_math if same == "math" else judges.as_text
            sampling = {"n": n, "share": share, "temperature": temperature, "ask": _text(ask)}
            outcome = answering.validate_agreement(source, output, same=equal, **sampling, **asked)
        _tell(output, outcome, keep_going)


@with_engine_options
def answer(
    source: Rows,
    output: Output,
    model: Model,
    n: Annotated[int, typer.Option("--n", min=1, help="Answers to each; above 1 needs a temperature.")] = 1,
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
) -> None:
    """What a model answers to each row: `response`, or with --n above 1 `responses`. `finepref judge` goes on from it.

    Rows without an answer go to `<stem>.left_out.jsonl`; the same command asks again those that the engine failed on.
    """
    from finepref.synth.reversegen import answer as answering

    with told_errors(NEEDS):
        outcome = answering.answer(
            source,
            output,
            engine=_engine(engine, model, engine_options),
            n=n,
            ask=_text(ask),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            work_dir=work_dir,
            failing=failing,
        )
        _tell(output, outcome, keep_going)


def pair(
    source: Annotated[Path, typer.Argument(metavar="JUDGED", help="Proposals with label.")],
    output: Output,
    proposed: Annotated[Path, typer.Option(help="The file that `propose` wrote, for prompts without a verdict.")],
    per_prompt: Annotated[int, typer.Option(min=1, help="Most pairs of one few-shot prompt.")] = 4,
    seed: Seed = 0,
) -> None:
    """Pairs for the proposer: of one few-shot prompt, an instruction the target failed at above one it solved."""
    from finepref.synth.reversegen import improve as improving

    with told_errors(NEEDS):
        made = improving.pair(source, output, proposed=proposed, per_prompt=per_prompt, seed=seed)
        told = ", ".join(f"{count} {kind}" for kind, count in made.prompts.items())
        typer.echo(f"{output}: {len(made.pairs)} pairs (few-shot prompts with: {told})")
        if made.contradictory:
            typer.echo(f"{made.contradictory} proposals are in no pair: the same text was judged both ways")


def improve(
    sources: Annotated[list[Path], typer.Argument(metavar="JUDGED...", help="Proposals with label, of all rounds.")],
    output: Output,
    answers: Annotated[list[Path], typer.Option(help="Judged rows of a better model; those that passed.")] = [],  # noqa: B006
    exclude: Annotated[Path | None, typer.Option(help="Rows whose prompts must not be trained on.")] = None,
    ask: Ask = "{prompt}",
    template: Annotated[str, typer.Option(help="The response, with {answer} or {majority}.")] = "{answer}",
    solved_template: Annotated[str, typer.Option(help="Also solved instructions, with this response.")] = "",
) -> None:
    """Records {prompt, response} for the target: the instructions it failed at with good answers.

    A good answer is one of --answers that passed its judge, else the row's own `chosen`. The report beside the output
    counts what gives no record, by reason.
    """
    from finepref.synth.reversegen import improve as improving

    with told_errors(NEEDS):
        made = improving.improve(
            sources,
            output,
            answers=answers,
            exclude=exclude,
            ask=_text(ask),
            template=_text(template),
            solved_template=_text(solved_template),
        )
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(made.left_out.items())) or "none"
        typer.echo(f"{output}: {made.written} records (left out: {told})")


def evaluate(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Outputs of the steps in order: proposals to judged rows.")
    ],
    output: Annotated[Path, typer.Option(help="The JSON file to write.")],
    sample: Annotated[int, typer.Option(min=0, help="Self-BLEU of so many texts by chance; 0 takes all.")] = 0,
    seed: Seed = 0,
) -> None:
    """Failure rate, accuracy, self-BLEU and entropy, and what became of every row: each ends in exactly one class."""
    from finepref.formats.files import write_json
    from finepref.synth.reversegen.evaluate import measure

    with told_errors(NEEDS):
        found = measure(files, sample=sample, seed=seed)
        write_json(output, found)
        typer.echo(json.dumps({name: found[name] for name in ("classes", "failure_rate", "accuracy", "self_bleu")}))


def run(
    file: Annotated[Path, typer.Argument(help="The loop's YAML, as examples/pipelines/reversegen_math_demo.yaml.")],
    output: Annotated[Path, typer.Option(help="Folder of the run; one that was begun is gone on with.")],
    overrides: Annotated[list[str], typer.Argument(metavar="[KEY=VALUE]...", help="In place of the file's.")] = [],  # noqa: B006
) -> None:
    """The whole loop: warm-up, rounds of {propose, judge, train the proposer}, improve the target, then a report.

    Killed at any point, the same command goes on where it was.
    """
    from finepref.pipelines import settings
    from finepref.pipelines.reversegen import reversegen
    from finepref.pipelines.steps import Pipeline

    with told_errors():
        given = settings.load(file, overrides)
        with Pipeline(output) as pipeline:
            settings.call(reversegen, given, file=file, pipeline=pipeline)
    typer.echo(f"report: {output / 'report.md'}")


def register(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    group = typer.Typer(no_args_is_help=True, help="ReverseGen: find where a model fails, and train on it.")
    for command in (warmup, propose, validate, answer, pair, improve):
        group.command()(command)
    group.command("eval")(evaluate)
    group.command("run")(run)
    app.add_typer(group, name="reversegen")


def _engine(name: EngineName, model: str, options: EngineOptions) -> Engine:
    made = engine_of(name, model, options)
    if made is None:
        raise ValueError("the engine is hf, vllm or openai")
    return made


def _text(given: str) -> str:
    return Path(given[1:]).read_text(encoding="utf-8") if given.startswith("@") else given


def _tell(output: Path, outcome: Outcome, keep_going: bool) -> None:
    told = ", ".join(f"{count} {kind}: {reason}" for (kind, reason), count in sorted(outcome.left_out.items()))
    typer.echo(f"{output}: {outcome.written} rows (left out: {told or 'none'})")
    if outcome.unanswered and not keep_going:
        typer.echo(f"{outcome.unanswered} requests failed at the engine: run again to ask them again", err=True)
        raise typer.Exit(1)
