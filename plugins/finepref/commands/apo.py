"""`finepref apo`: ADVERSARIAL preference optimization (arXiv 2311.08045), as one run or in steps."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from finepref.commands.engine_options import (
    EngineName,
    EngineOptions,
    engine_for,
    exit_if_unanswered,
    with_engine_options,
)
from finepref.commands.errors import user_errors
from finepref.commands.sepo import Dtype

NEEDS = 'a model needs "finepref[model]"; vllm and ray are extras of their own; --template needs LLaMA-Factory'


class Preset(StrEnum):
    """The paper's sampling settings."""

    paper = "paper"
    paper_test = "paper_test"


class Take(StrEnum):
    """Which samples to pair with a golden answer."""

    all = "all"
    one = "one"


class Target(StrEnum):
    """The form of the selected responses."""

    sft = "sft"
    pair = "pair"
    ranked = "ranked"


class Pooling(StrEnum):
    """Where a reward model reads its reward."""

    last = "last"
    eos = "eos"
    mean = "mean"
    max = "max"


WorkDir = Annotated[Path | None, typer.Option(help="Folder of the journal; default: beside the output.")]
Cut = Annotated[bool, typer.Option("--cut/--no-cut", help='Remove what follows "\\nHuman:" in a sample.')]


@with_engine_options
def sample(
    source: Annotated[Path, typer.Argument(metavar="QUERIES", help="{query_id, query} or {id?, prompt or messages}.")],
    output: Annotated[Path, typer.Option(help="The JSON Lines file of samples to write.")],
    model: Annotated[str, typer.Option(help="Model folder or name.")],
    engine: Annotated[EngineName, typer.Option(help="A local model or an endpoint.")] = EngineName.hf,
    n: Annotated[int, typer.Option("--n", min=1, help="Answers to each query.")] = 4,
    preset: Annotated[Preset, typer.Option(help="The paper's sampling: to train, or to test.")] = Preset.paper,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="Overrides the preset.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Overrides the preset.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="Overrides the preset; 0 = all tokens.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(min=0.0, help="Overrides the preset.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Overrides the preset.")] = None,
    golden: Annotated[bool, typer.Option("--golden", help="Write them as golden answers; needs --n 1.")] = False,
    *,
    engine_options: EngineOptions,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    work_dir: WorkDir = None,
) -> None:
    """Sample the LLM: rows {query_id, query, sample_0, ...}, the released layout. An interrupted run resumes.

    Exit code 1: bad input, or queries that the engine failed on; the same command repeats those.
    """
    from finepref.synth.apo.sample import PRESETS
    from finepref.synth.apo.sample import sample as run

    given = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
        "max_new_tokens": max_new_tokens,
    }
    asked = {name: value for name, value in given.items() if value is not None}
    sampling = replace(PRESETS[preset.value], **asked)
    with user_errors(NEEDS):
        answering = engine_for(engine, model, engine_options)
        outcome = run(
            source, output, engine=answering, sampling=sampling, n=n, golden=golden, seed=seed, work_dir=work_dir
        )
    typer.echo(f"{output}: {outcome.written} queries with {n} answers each")
    if outcome.failed:
        place = output.with_suffix(".failed.jsonl")
        typer.echo(f"{place}: {outcome.failed} queries without answers", err=True)
        exit_if_unanswered(outcome.failed)


def pair(
    samples: Annotated[Path, typer.Argument(help="{query_id, query, sample_0, ...}, from `apo sample` or released.")],
    golden: Annotated[Path, typer.Option(help="{query_id, query, golden} or {id?, prompt or messages, chosen}.")],
    output: Annotated[Path, typer.Option(help="The JSON Lines file of ranked records to write.")],
    take: Annotated[Take, typer.Option(help="All samples of a query, or a random one.")] = Take.all,
    cut: Cut = True,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Accept ids that are in one file only.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Random seed of --take one.")] = 0,
) -> None:
    """Rank golden answers above samples: `ranked` records of kind apo, and a report with all that is left out."""
    from finepref.synth.apo.pair import pair as run

    with user_errors(NEEDS):
        outcome = run(samples, golden, output, take=take.value, cut=cut, allow_missing=allow_missing, seed=seed)
    typer.echo(f"{output}: {outcome.rows} records (left out: {outcome.left_out})")


def score(
    sources: Annotated[list[Path], typer.Argument(metavar="INPUT...", help="Samples, ranked, pair, or {responses}.")],
    output: Annotated[Path, typer.Option(help="The JSON Lines file to write; for several inputs a folder.")],
    model: Annotated[Path, typer.Option(help="Folder of a reward model from either host, or of its LoRA adapter.")],
    base: Annotated[str, typer.Option(help="The model under an adapter; default: the one it names.")] = "",
    template: Annotated[
        str, typer.Option(help="LLaMA-Factory's template that it was trained with; default: the chat template.")
    ] = "",
    pooling: Annotated[Pooling, typer.Option(help="apo_pooling that it was trained with.")] = Pooling.last,
    cutoff_len: Annotated[
        int, typer.Option(min=1, help="As in training: longer texts are cut off at the start.")
    ] = 2048,
    cut: Cut = True,
    dtype: Annotated[Dtype, typer.Option(help="Number format of the model; auto = the checkpoint's.")] = Dtype.auto,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Most tokens in a batch.")] = 4096,
    work_dir: WorkDir = None,
) -> None:
    """The reward of every response, as in the host's own scoring. An interrupted run resumes."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with user_errors(NEEDS):
        from finepref.synth.apo.reward_model import RewardModel
        from finepref.synth.apo.score import score as run

        encoder = None
        if template:
            from finepref.hosts.llamafactory.template_tokens import encoder as of_host

            encoder = of_host(template)
        reward = RewardModel(
            model,
            base=base or None,
            encoder=encoder,
            template=template,
            pooling=pooling.value,
            cutoff_len=cutoff_len,
            dtype=dtype.value,
            batch_tokens=batch_tokens,
        )
        if len({source.name for source in sources}) < len(sources):
            raise ValueError("two inputs have the same name, so their outputs in the folder would too")
        for source in sources:
            several = len(sources) > 1
            target = output / source.name if several else output
            folder = work_dir / source.stem if work_dir and several else work_dir
            outcome = run(source, target, model=reward, cut=cut, work_dir=folder)
            typer.echo(
                f"{target}: {outcome.rows} rows with {outcome.responses} responses "
                f"({outcome.empty} empty, {outcome.cut} longer than {cutoff_len} tokens)"
            )


def select(
    source: Annotated[Path, typer.Argument(metavar="SCORED", help="A file from `apo score`.")],
    output: Annotated[Path, typer.Option(help="The JSON Lines file to write.")],
    target: Annotated[Target, typer.Option("--to", help="The best; best and worst; or all, best first.")] = Target.sft,
) -> None:
    """Best of n: the response with the highest reward. A report beside the output lists the rows left out."""
    from finepref.synth.apo.select import select as run

    with user_errors(NEEDS):
        outcome = run(source, output, target=target.value)
    typer.echo(f"{output}: {outcome.rows} rows of {target.value} (left out: {outcome.left_out})")


def evaluate(
    sources: Annotated[list[str], typer.Argument(metavar="[NAME=]SCORED...", help="A file from `apo score`.")],
    output: Annotated[Path, typer.Option(help="The JSON file to write.")],
    against: Annotated[
        Path | None, typer.Option(help="For files without scores: the answers to compare with for a win rate.")
    ] = None,
    diagram: Annotated[
        bool, typer.Option("--diagram", help="Also draw a reliability diagram for each file with scores.")
    ] = False,
) -> None:
    """Compare rewards with scores: accuracy, ECE, ACE, MCE. For samples without scores: mean reward and win rate."""
    from finepref.formats.files import write_json
    from finepref.hosts import reward_metrics
    from finepref.synth.apo.scored import read_scored, win_rate

    found: dict[str, dict[str, float]] = {}
    with user_errors(NEEDS):
        for source in sources:
            name, given, file = source.partition("=")
            path = Path(file if given else source)
            name = name if given else path.stem
            if name in found:
                raise ValueError(f"two files have the name {name}: give NAME=FILE")
            rows = read_scored(path)
            rewards = [[reward for reward in row.rewards if reward is not None] for row in rows]
            empty = sum(map(len, (row.rewards for row in rows))) - sum(map(len, rewards))
            figures = found[name] = {"records": len(rows), "responses": sum(map(len, rewards)), "empty": empty}
            if all(row.scores for row in rows):
                tensors = reward_metrics.padded(rewards, [row.scores for row in rows], [row.kind for row in rows])
                figures |= reward_metrics.metrics(*tensors)
                if diagram:
                    pairs = reward_metrics.pairs_of(*tensors[:3])
                    reward_metrics.draw_reliability(pairs, output.with_name(f"{name}_reliability.png"))
            elif figures["responses"]:
                figures["rewards/mean"] = sum(map(sum, rewards)) / figures["responses"]
            if against is not None and not any(row.scores for row in rows):
                figures["win_rate"] = win_rate(rows, read_scored(against))
        write_json(output, found)
    typer.echo(json.dumps(found, indent=2))


def run(
    file: Annotated[Path, typer.Argument(help="Settings in YAML, such as examples/pipelines/apo.yaml.")],
    output: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run is resumed.")],
    overrides: Annotated[list[str], typer.Argument(metavar="[KEY=VALUE]...", help="Override the file.")] = [],  # noqa: B006
) -> None:
    """Run APO: rounds of sample, pair, reward model, score, select and train, then a report.

    If it is interrupted, the same command resumes it.
    """
    from finepref.pipelines import settings
    from finepref.pipelines.apo import apo
    from finepref.pipelines.steps import Pipeline

    with user_errors(NEEDS):
        given = settings.load(file, overrides)
        with Pipeline(output) as pipeline:
            settings.call(apo, given, file=file, pipeline=pipeline)
    typer.echo(f"report: {output / 'report.md'}")


def register(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    group = typer.Typer(no_args_is_help=True, help="APO: train an LLM against its reward model, in one run or steps.")
    for name, command in (
        ("sample", sample),
        ("pair", pair),
        ("score", score),
        ("select", select),
        ("eval", evaluate),
        ("run", run),
    ):
        group.command(name)(command)
    app.add_typer(group, name="apo")
