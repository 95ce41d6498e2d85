"""Sub-commands of `finepref`: apo, ADVERSARIAL preference optimization (arXiv 2311.08045) as a game and in steps."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from finepref.commands.engine_options import EngineName, EngineOptions, engine_of, with_engine_options
from finepref.commands.errors import told_errors
from finepref.commands.sepo import Dtype

NEEDS = 'this needs "finepref[model]", vllm and ray their own extras, a template of LLaMA-Factory the host'


class Preset(StrEnum):
    """The paper's ways to sample."""

    paper = "paper"
    paper_test = "paper_test"


class Take(StrEnum):
    """Which samples to pair with a golden answer."""

    all = "all"
    one = "one"


class Target(StrEnum):
    """What selected responses become."""

    sft = "sft"
    pair = "pair"
    ranked = "ranked"


class Pooling(StrEnum):
    """Where a reward model reads its reward."""

    last = "last"
    eos = "eos"
    mean = "mean"
    max = "max"


WorkDir = Annotated[Path | None, typer.Option(help="Where the journal is; default: beside the output.")]
Cut = Annotated[bool, typer.Option("--cut/--no-cut", help='Leave out what follows "\\nHuman:" in a sample.')]


@with_engine_options
def sample(
    source: Annotated[Path, typer.Argument(metavar="QUERIES", help="{query_id, query} or {id?, prompt or messages}.")],
    output: Annotated[Path, typer.Option(help="The JSON Lines file of samples to write.")],
    model: Annotated[str, typer.Option(help="Model folder or name.")],
    engine: Annotated[EngineName, typer.Option(help="A local model or an endpoint.")] = EngineName.hf,
    n: Annotated[int, typer.Option("--n", min=1, help="Answers to a query.")] = 4,
    preset: Annotated[Preset, typer.Option(help="The paper's sampling: to train, or to test.")] = Preset.paper,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="In place of the preset's.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="In place of the preset's.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="In place of the preset's; 0: all tokens.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(min=0.0, help="In place of the preset's.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="In place of the preset's.")] = None,
    golden: Annotated[bool, typer.Option("--golden", help="Write them as golden answers; with --n 1.")] = False,
    *,
    engine_options: EngineOptions,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    work_dir: WorkDir = None,
) -> None:
    """Sample the LLM: rows {query_id, query, sample_0, ...}, the released layout. Killed, it goes on where it was.

    Exit code 1: bad input, or queries that the engine failed on; the same command asks those again.
    """
    from finepref.synth.apo import sample as run

    given = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
        "max_new_tokens": max_new_tokens,
    }
    asked = {name: value for name, value in given.items() if value is not None}
    sampling = replace(run.PRESETS[preset.value], **asked)
    with told_errors(NEEDS):
        answering = engine_of(engine, model, engine_options)
        if answering is None:
            raise ValueError("a rule answers nothing: --engine hf, vllm or openai")
        outcome = run.sample(
            source, output, engine=answering, sampling=sampling, n=n, golden=golden, seed=seed, work_dir=work_dir
        )
    typer.echo(f"{output}: {outcome.written} queries with {n} answers each")
    if outcome.failed:
        place = output.with_suffix(".failed.jsonl")
        typer.echo(f"{outcome.failed} queries failed, see {place}: run again to ask them again", err=True)
        raise typer.Exit(1)


def pair(
    samples: Annotated[Path, typer.Argument(help="{query_id, query, sample_0, ...}, of `apo sample` or released.")],
    golden: Annotated[Path, typer.Option(help="{query_id, query, golden} or {id?, prompt or messages, chosen}.")],
    output: Annotated[Path, typer.Option(help="The JSON Lines file of ranked records to write.")],
    take: Annotated[Take, typer.Option(help="All samples of a query, or one at random.")] = Take.all,
    cut: Cut = True,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Ids in one file only are no error.")] = False,
    seed: Annotated[int, typer.Option(help="Of --take one.")] = 0,
) -> None:
    """Golden answers above samples: `ranked` records of kind apo. A report beside them names all that gave none."""
    from finepref.synth.apo import sample as run

    with told_errors(NEEDS):
        outcome = run.pair(samples, golden, output, take=take.value, cut=cut, allow_missing=allow_missing, seed=seed)
    typer.echo(f"{output}: {outcome.records} records (left out: {_counts(outcome.left_out)})")


def score(
    sources: Annotated[list[Path], typer.Argument(metavar="INPUT...", help="Samples, ranked, pair, or {responses}.")],
    output: Annotated[Path, typer.Option(help="The JSON Lines file to write; of several inputs a folder for them.")],
    model: Annotated[Path, typer.Option(help="Folder of a reward model of either host, or of its LoRA adapter.")],
    base: Annotated[str, typer.Option(help="The model under an adapter; default: the one that it names.")] = "",
    template: Annotated[
        str, typer.Option(help="LLaMA-Factory's template of the training; default: the tokenizer's chat template.")
    ] = "",
    pooling: Annotated[Pooling, typer.Option(help="apo_pooling of the training.")] = Pooling.last,
    cutoff_len: Annotated[
        int, typer.Option(min=1, help="That of the training: longer texts lose their start.")
    ] = 2048,
    cut: Cut = True,
    dtype: Annotated[Dtype, typer.Option(help="Number format of the model; auto: the checkpoint's.")] = Dtype.auto,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Most tokens in a batch.")] = 4096,
    work_dir: WorkDir = None,
) -> None:
    """The reward of every response, as the host's own scoring gives it. Killed, it goes on where it was."""

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with told_errors(NEEDS):
        from finepref.synth.apo.reward_model import RewardModel
        from finepref.synth.apo.reward_model import score as run

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
            raise ValueError("two inputs have one name, and the outputs in the folder would too")
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
    source: Annotated[Path, typer.Argument(metavar="SCORED", help="What `apo score` wrote.")],
    output: Annotated[Path, typer.Option(help="The JSON Lines file to write.")],
    target: Annotated[Target, typer.Option("--to", help="The best; best and worst; or all in order.")] = Target.sft,
) -> None:
    """Best of n: the response with the highest reward. A report beside the output names the rows that gave none."""
    from finepref.synth.apo import sample as run

    with told_errors(NEEDS):
        outcome = run.select(source, output, target=target.value)
    typer.echo(f"{output}: {outcome.rows} rows of {target.value} (left out: {_counts(outcome.left_out)})")


def evaluate(
    sources: Annotated[list[str], typer.Argument(metavar="[NAME=]SCORED...", help="What `apo score` wrote.")],
    output: Annotated[Path, typer.Option(help="The JSON file to write.")],
    against: Annotated[
        Path | None, typer.Option(help="Win rate over these answers, of the files without scores.")
    ] = None,
    diagram: Annotated[
        bool, typer.Option("--diagram", help="Also a reliability diagram per file with scores.")
    ] = False,
) -> None:
    """Rewards against scores: accuracy, ECE, ACE, MCE. Of samples, which have no scores: mean reward and win rate."""
    from finepref.formats.files import write_json
    from finepref.hosts import reward_metrics
    from finepref.synth.apo.sample import read_scored, win_rate

    found: dict[str, dict[str, float]] = {}
    with told_errors(NEEDS):
        for source in sources:
            name, given, file = source.partition("=")
            path = Path(file if given else source)
            name = name if given else path.stem
            if name in found:
                raise ValueError(f"two files are called {name}: give NAME=FILE")
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
    file: Annotated[Path, typer.Argument(help="The game's YAML, such as examples/pipelines/apo.yaml.")],
    output: Annotated[Path, typer.Option(help="Folder of the run; one that was begun is gone on with.")],
    overrides: Annotated[list[str], typer.Argument(metavar="[KEY=VALUE]...", help="In place of the file's.")] = [],  # noqa: B006
) -> None:
    """The whole game: rounds of sample, pair, reward model, score, select and train, then a report.

    Killed at any point, the same command goes on where it was.
    """
    from finepref.pipelines import settings
    from finepref.pipelines.apo import apo
    from finepref.pipelines.steps import Pipeline

    with told_errors(NEEDS):
        given = settings.load(file, overrides)
        with Pipeline(output) as pipeline:
            settings.call(apo, given, file=file, pipeline=pipeline)
    typer.echo(f"report: {output / 'report.md'}")


def register(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    group = typer.Typer(no_args_is_help=True, help="APO: the LLM against its reward model, in steps or as one run.")
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


def _counts(left_out: Any) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items())) or "none"
