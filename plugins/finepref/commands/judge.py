"""Sub-command of `finepref`: judge, which labels responses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finepref.commands.engine_options import EngineName, EngineOptions, engine_of, with_engine_options
from finepref.commands.errors import told_errors

if TYPE_CHECKING:
    from finepref.synth.judges.by_rule import Asked, Rule

NEEDS = 'judges need "finepref[synth]", models "finepref[model]", vllm or ray its own extra'


@with_engine_options
def judge(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Rows with response (entropy: responses).")],
    output: Annotated[Path, typer.Option(help="The JSON Lines file of judged rows to write.")],
    name: Annotated[
        str,
        typer.Option("--judge", help="math, number, gym, contains, regex, entropy, guard, llm or a plugin."),
    ],
    pattern: Annotated[str, typer.Option(help="contains, regex: what the response must have.")] = "",
    absent: Annotated[bool, typer.Option("--absent", help="contains, regex: what it must not have.")] = False,
    same: Annotated[str, typer.Option(help="entropy: answers are equal as text or as math.")] = "text",
    threshold: Annotated[float, typer.Option(min=0.0, help="entropy: nats from which a row fails.")] = 1.193,
    rubric: Annotated[str, typer.Option(help="llm: what makes an answer pass; @FILE reads it from a file.")] = "",
    engine: Annotated[EngineName, typer.Option(help="guard, llm: a local model or an endpoint.")] = EngineName.hf,
    model: Annotated[str, typer.Option(help="guard, llm: model folder or name.")] = "",
    *,
    engine_options: EngineOptions,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest verdict.")] = 256,
    work_dir: Annotated[Path | None, typer.Option(help="Where the journal is; default: beside the output.")] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Exit code 0 also where the engine failed.")
    ] = False,
) -> None:
    """Label each row: true where the response passes, false where it does not; the rest goes to a file of its own.

    Exit code 1: bad input, or rows without a verdict because the engine failed; the same command asks those again.
    """
    from finepref.synth.judges.by_rule import Asked
    from finepref.synth.judges.label_rows import judge as run

    with told_errors(NEEDS):
        chosen = _judge(name, pattern=pattern, absent=absent, same=same, threshold=threshold, rubric=rubric)
        asks = isinstance(chosen, Asked)
        if asks and (not model or engine is EngineName.rules):
            raise ValueError(f"--judge {name} needs a model: --engine hf, vllm or openai, and --model")
        answering = engine_of(engine, model, engine_options)
        outcome = run(
            source,
            output,
            judge=chosen,
            name=name,
            engine=answering if asks else None,
            work_dir=work_dir,
            max_new_tokens=max_new_tokens,
        )
    typer.echo(f"{output}: {outcome.passed} passed, {outcome.failed} failed, {outcome.unjudged} without a verdict")
    if outcome.unanswered and not keep_going:
        typer.echo(f"{outcome.unanswered} requests failed at the engine: run again to ask them again", err=True)
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add this file's command to `app`."""
    app.command()(judge)


def _judge(name: str, *, pattern: str, absent: bool, same: str, threshold: float, rubric: str) -> Rule | Asked:
    from finepref.synth.judges import by_rule as judges

    match name:
        case "math":
            return judges.math_answer
        case "number":
            return judges.number_answer
        case "contains" | "regex":
            if not pattern:
                raise ValueError(f"--judge {name} needs --pattern")
            return judges.contains(pattern, regex=name == "regex", absent=absent)
        case "entropy":
            if same not in {"text", "math"}:
                raise ValueError(f"--same is text or math, not {same}")
            return judges.entropy(judges.as_text if same == "text" else judges.as_math, threshold=threshold)
        case "gym":
            from finepref.synth.judges.reasoning_gym import gym

            return gym
        case "guard":
            return judges.guard()
        case "llm":
            if not rubric:
                raise ValueError("--judge llm needs --rubric")
            return judges.llm(Path(rubric[1:]).read_text(encoding="utf-8") if rubric.startswith("@") else rubric)
        case _:
            return judges.plugin(name)
