"""`finepref judge`: a label for every response."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finepref.commands.engine_options import (
    EngineName,
    EngineOptions,
    engine_of,
    exit_if_unanswered,
    with_engine_options,
)
from finepref.commands.errors import user_errors
from finepref.commands.input_files import IN_DATASET_INFO, WHAT, Column, DatasetDir, Format, input_of
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

if TYPE_CHECKING:
    from finepref.synth.judges.verdict import ModelJudge, Rule

NEEDS = 'judges need "finepref[synth]", and models "finepref[model]"; vllm and ray are extras of their own'


@with_engine_options
def judge(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT", help=f"Rows with response (entropy: responses or letters), or answers: {WHAT}."
        ),
    ],
    output: Annotated[Path, typer.Option(help="The JSON Lines file of judged rows to write.")],
    name: Annotated[
        str,
        typer.Option("--judge", help="math, number, letter, gym, contains, regex, entropy, guard, llm or a plugin."),
    ],
    pattern: Annotated[str, typer.Option(help="contains, regex: the text that the response must contain.")] = "",
    absent: Annotated[bool, typer.Option("--absent", help="contains, regex: it must not contain it.")] = False,
    same: Annotated[str, typer.Option(help="entropy: compare answers as text, as math or as letters.")] = "text",
    threshold: Annotated[float, typer.Option(min=0.0, help="entropy: a row fails at this many nats or more.")] = 1.193,
    rubric: Annotated[str, typer.Option(help="llm: what makes an answer pass; @FILE reads a file.")] = "",
    engine: Annotated[EngineName, typer.Option(help="guard, llm: a local model or an endpoint.")] = EngineName.hf,
    model: Annotated[str, typer.Option(help="guard, llm: model folder or name.")] = "",
    *,
    engine_options: EngineOptions,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest verdict.")] = 256,
    work_dir: Annotated[Path | None, typer.Option(help="Folder of the journal; default: beside the output.")] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Exit code 0 even if the engine failed on rows or none is left.")
    ] = False,
    layout: Format = "",
    dataset_dir: DatasetDir = IN_DATASET_INFO,
    column: Column = [],  # noqa: B006 (typer copies defaults)
    bad_rows: BadRowsPolicy = Policy.error,
    max_bad: MaxBad = MAX_BAD,
    allow_empty: AllowEmpty = False,
) -> None:
    """Label each row: true if the response passes, false if not. Rows without a verdict go to a separate file.

    Exit code 1: bad input, or rows that the engine failed on; the same command asks for those again.
    """
    from finepref.synth.judges.label_rows import judge as run
    from finepref.synth.judges.verdict import ModelJudge
    from finepref.synth.left_out import UNJUDGED

    rows = input_of(source, layout, dataset_dir, column, output, UNJUDGED.path(output), rejected_path(output))
    with user_errors(NEEDS), bad_rows_of(output, bad_rows, max_bad) as bad:
        chosen = _judge(name, pattern=pattern, absent=absent, same=same, threshold=threshold, rubric=rubric)
        asks = isinstance(chosen, ModelJudge)
        if asks and (not model or engine is EngineName.rules):
            raise ValueError(f"--judge {name} needs a model: --engine hf, vllm or openai, and --model")
        if not asks and (model or engine_options != type(engine_options)()):
            raise ValueError(f"--judge {name} is a rule and asks no model: leave --model and the engine's options out")
        outcome = run(
            rows,
            output,
            judge=chosen,
            name=name,
            engine=engine_of(engine, model, engine_options) if asks else None,
            work_dir=work_dir,
            max_new_tokens=max_new_tokens,
            bad_rows=bad,
        )
    typer.echo(f"{output}: {outcome.passed} passed, {outcome.failed} failed, {outcome.unjudged} without a verdict")
    exit_if_unanswered(outcome.unanswered, keep_going=keep_going)
    judged = outcome.passed + outcome.failed
    exit_if_empty(judged, output, f"{outcome.unjudged} without a verdict", allowed=allow_empty or keep_going)


def register(app: typer.Typer) -> None:
    """Add this file's command to `app`."""
    app.command()(judge)


def _judge(name: str, *, pattern: str, absent: bool, same: str, threshold: float, rubric: str) -> Rule | ModelJudge:
    """The judge with a name.

    Args:
        name: as on the command line; one that is not known is a plugin.
        pattern, absent: of contains and regex.
        same, threshold: of entropy.
        rubric: of llm.

    Raises:
        ValueError: an option is missing or invalid.
    """
    from finepref.synth.judges import by_model, by_rule, verdict

    match name:
        case "math":
            return by_rule.math_answer
        case "number":
            return by_rule.number_answer
        case "letter":
            return by_rule.letter_answer
        case "contains" | "regex":
            if not pattern:
                raise ValueError(f"--judge {name} needs --pattern")
            return by_rule.contains(pattern, regex=name == "regex", absent=absent)
        case "entropy":
            if same not in {"text", "math", "letters"}:
                raise ValueError(f"--same is text, math or letters, not {same}")
            if same == "letters":
                return by_rule.letter_entropy(threshold=threshold)
            return by_rule.entropy(by_rule.as_text if same == "text" else by_rule.as_math, threshold=threshold)
        case "gym":
            from finepref.synth.judges.reasoning_gym import gym

            return gym
        case "guard":
            return by_model.guard()
        case "llm":
            if not rubric:
                raise ValueError("--judge llm needs --rubric")
            return by_model.llm(text_of(rubric))
        case _:
            return verdict.plugin(name)
