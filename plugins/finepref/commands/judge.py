"""`finepref judge`: a label for every response."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finepref.commands.engine_options import (
    EngineName,
    EngineOptions,
    check_models,
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
    from finepref.synth.judges.verdict import Judge

NEEDS = 'judges need "finepref[synth]", and models "finepref[model]"; vllm and ray are extras of their own'


class GuardName(StrEnum):
    """The forms of guard models, see `guards`."""

    auto = "auto"
    llama_guard = "llama-guard"
    shieldgemma = "shieldgemma"
    granite_guardian = "granite-guardian"
    qwen3guard = "qwen3guard"


class Controversial(StrEnum):
    """What becomes of a response that Qwen3Guard calls controversial."""

    unjudged = "unjudged"
    safe = "safe"
    unsafe = "unsafe"


class ReadsName(StrEnum):
    """What a classifier reads of a row."""

    response = "response"
    dialogue = "dialogue"


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
        typer.Option(
            "--judge",
            help="math, number, letter, gym, contains, regex, entropy, refusal, classifier, guard, llm or a plugin.",
        ),
    ],
    pattern: Annotated[str, typer.Option(help="contains, regex: the text that the response must contain.")] = "",
    absent: Annotated[
        bool, typer.Option("--absent", help="contains, regex: it must not contain it; refusal: it must not refuse.")
    ] = False,
    same: Annotated[str, typer.Option(help="entropy: compare answers as text, as math or as letters.")] = "text",
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Fails at this or more: entropy's nats (1.193), classifier's probability (0.5), plugin's score.",
            show_default=False,
        ),
    ] = None,
    unsafe_label: Annotated[
        list[str], typer.Option(help="classifier: label that means unsafe; several times, or with commas.")
    ] = [],  # noqa: B006 (typer copies defaults)
    reads: Annotated[
        ReadsName, typer.Option(help="classifier: the response alone, or prompt and response.")
    ] = ReadsName.response,
    guard: Annotated[
        GuardName, typer.Option(help="guard: the form of its answers; auto: by the model's name or chat template.")
    ] = GuardName.auto,
    policy: Annotated[
        str,
        typer.Option(
            help="shieldgemma: the guideline; granite-guardian: a risk or its definition; @FILE reads a file."
        ),
    ] = "",
    controversial: Annotated[
        Controversial, typer.Option(help="qwen3guard: what its middle class counts as.")
    ] = Controversial.unjudged,
    rubric: Annotated[str, typer.Option(help="llm: what makes an answer pass; @FILE reads a file.")] = "",
    engine: Annotated[
        EngineName, typer.Option(help="guard, llm: a local model or an endpoint; classifier: hf.")
    ] = EngineName.hf,
    model: Annotated[str, typer.Option(help="classifier, guard, llm: model folder or name.")] = "",
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
        _check_own(name, "classifier", unsafe_label=bool(unsafe_label), reads=reads is not ReadsName.response)
        told = {"guard": guard is not GuardName.auto, "policy": bool(policy)}
        _check_own(name, "guard", **told, controversial=controversial is not Controversial.unjudged)
        if name == "classifier":
            chosen: Judge = _classifier(model, engine, engine_options, unsafe_label, threshold, reads)
        elif name == "guard":
            chosen = _guard(model, engine, guard, text_of(policy), controversial)
        else:
            chosen = _judge(name, pattern=pattern, absent=absent, same=same, threshold=threshold, rubric=rubric)
        asks = isinstance(chosen, ModelJudge)
        if asks:
            _need_model(name, model, engine)
        elif name != "classifier" and (model or engine_options != type(engine_options)()):
            raise ValueError(f"--judge {name} is a rule and asks no model: leave --model and the engine's options out")
        variables = chosen.variables if isinstance(chosen, ModelJudge) else None
        outcome = run(
            rows,
            output,
            judge=chosen,
            name=name,
            engine=engine_of(engine, model, engine_options, variables=variables) if asks else None,
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


def _check_own(name: str, owner: str, **given: bool) -> None:
    """Check that options of one judge are not given to another; `given` says which are.

    Raises:
        ValueError: one is.
    """
    if name != owner and (foreign := next((each for each, is_given in given.items() if is_given), "")):
        raise ValueError(f"--{foreign.replace('_', '-')} is for --judge {owner}, not for {name}")


def _need_model(name: str, model: str, engine: EngineName) -> None:
    """Check that a judge that asks a model has one.

    Raises:
        ValueError: it has none.
    """
    if not model or engine is EngineName.rules:
        raise ValueError(f"--judge {name} needs a model: --engine hf, vllm or openai, and --model")


def _classifier(
    model: str,
    engine: EngineName,
    options: EngineOptions,
    unsafe: list[str],
    threshold: float | None,
    reads: ReadsName,
) -> Judge:
    """The judge classifier.

    Args:
        model: as given.
        engine: must be hf.
        options: of the engine, of which it has the batch size only.
        unsafe: its labels that mean unsafe.
        threshold: a probability; None = 0.5.
        reads: what it reads.

    Raises:
        ValueError: an option is missing or does not fit.
    """
    from finepref.synth.judges.classifier import classifier

    if not model or engine is not EngineName.hf or options != EngineOptions(batch_size=options.batch_size):
        raise ValueError("--judge classifier needs --model, and has --batch-size of the engines' options only")
    limit = 0.5 if threshold is None else threshold
    if not 0 < limit <= 1:
        raise ValueError(f"--threshold of a classifier is a probability above 0, not {limit:g}")
    check_models(model)
    return classifier(model, unsafe, threshold=limit, reads=reads.value, batch_size=options.batch_size)


def _guard(model: str, engine: EngineName, given: GuardName, policy: str, controversial: Controversial) -> Judge:
    """The judge guard.

    Args:
        model, engine: as given; an endpoint's chat template is not known.
        given: --guard.
        policy: --policy.
        controversial: --controversial.

    Raises:
        ValueError: the kind of the model is not clear, or an option does not fit it.
    """
    from finepref.synth.engines.checkpoint import chat_template_of
    from finepref.synth.judges import by_model, guards

    _need_model("guard", model, engine)
    template = None
    reads_policy = given in {GuardName.shieldgemma, GuardName.granite_guardian}
    if engine is not EngineName.openai and (given is GuardName.auto or reads_policy):
        check_models(model)
        template = chat_template_of(model)
    kind = guards.guard_of(model, template) if given is GuardName.auto else given.value
    if kind is None:
        raise ValueError(f"it is not clear which guard {model} is: name --guard {', '.join(guards.GUARDS)}")
    guards.check_template(kind, template)
    passes = {Controversial.unjudged: None, Controversial.safe: True, Controversial.unsafe: False}[controversial]
    if passes is not None and kind != "qwen3guard":
        raise ValueError(f"--controversial is for qwen3guard, not for {kind}")
    return by_model.guard(kind, policy=policy, controversial=passes)


def _judge(name: str, *, pattern: str, absent: bool, same: str, threshold: float | None, rubric: str) -> Judge:
    """The judge with a name, other than classifier and guard.

    Args:
        name: as on the command line; one that is not known is a plugin.
        pattern, absent: of contains and regex; the latter also of refusal.
        same: of entropy.
        threshold: of entropy, or of a plugin that judges batches and gives scores.
        rubric: of llm.

    Raises:
        ValueError: an option is missing or invalid.
    """
    from finepref.synth.judges import by_model, by_rule, refusals, verdict

    if threshold is not None and name in {"math", "number", "letter", "contains", "regex", "gym", "refusal", "llm"}:
        raise ValueError(f"--threshold is for entropy, classifier and plugins, not for {name}")
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
            nats = by_rule.THRESHOLD if threshold is None else threshold
            if same not in {"text", "math", "letters"}:
                raise ValueError(f"--same is text, math or letters, not {same}")
            if same == "letters":
                return by_rule.letter_entropy(threshold=nats)
            return by_rule.entropy(by_rule.as_text if same == "text" else by_rule.as_math, threshold=nats)
        case "gym":
            from finepref.synth.judges.reasoning_gym import gym

            return gym
        case "refusal":
            return refusals.refusal(absent=absent)
        case "llm":
            if not rubric:
                raise ValueError("--judge llm needs --rubric")
            return by_model.llm(text_of(rubric))
        case _:
            found = verdict.plugin(name)
            if threshold is None:
                return found
            if not isinstance(found, verdict.BatchJudge):
                raise ValueError(f"--threshold is for judges of batches; {name} is a function of a row")
            return found._replace(threshold=threshold)
