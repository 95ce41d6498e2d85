"""`finepref apo`: ADVERSARIAL preference optimization (arXiv 2311.08045), as one run or in steps."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from finepref.commands.engine_options import (
    EngineName,
    EngineOptions,
    engine_for,
    exit_if_unanswered,
    with_engine_options,
)
from finepref.commands.errors import user_errors
from finepref.commands.input_files import IN_DATASET_INFO, WHAT, Column, DatasetDir, Format, input_of
from finepref.commands.outputs import check_outputs
from finepref.commands.row_options import (
    MAX_BAD,
    AllowEmpty,
    BadRowsPolicy,
    MaxBad,
    Policy,
    bad_rows_of,
    exit_if_empty,
    rejected_path,
)
from finepref.commands.sepo import Dtype
from finepref.commands.sequence_options import OWN, TEMPLATE_NEEDS, OverlongPolicy, template_of
from finepref.commands.trained import trained_of

NEEDS = f'a model needs "finepref[model]"; vllm and ray are extras of their own; {TEMPLATE_NEEDS}'


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
TrainedTemplate = Annotated[
    str | None,
    typer.Option(
        help="LLaMA-Factory's template, or tokenizer for the tokenizer's chat template. Default: the receipt's.",
        show_default=False,
    ),
]
TrainedPooling = Annotated[
    Pooling | None, typer.Option(help="As in training. Default: the receipt's, or last.", show_default=False)
]
Cut = Annotated[bool, typer.Option("--cut/--no-cut", help='Remove what follows "\\nHuman:" in a sample.')]


@with_engine_options
def sample(
    source: Annotated[
        str, typer.Argument(metavar="QUERIES", help=f"{{query_id, query}}, or the prompts of any layout: {WHAT}.")
    ],
    output: Annotated[Path, typer.Option(help="The JSON Lines file of samples to write.")],
    model: Annotated[str, typer.Option(help="Model folder or name, or the folder of a LoRA adapter.")],
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
    layout: Format = "",
    dataset_dir: DatasetDir = IN_DATASET_INFO,
    column: Column = [],  # noqa: B006 (typer copies defaults)
    bad_rows: BadRowsPolicy = Policy.error,
    max_bad: MaxBad = MAX_BAD,
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
    beside = (output.with_suffix(".failed.jsonl"), rejected_path(output))
    queries = input_of(source, layout, dataset_dir, column, output, *beside)
    with user_errors(NEEDS), bad_rows_of(output, bad_rows, max_bad) as collected:
        answering = engine_for(engine, model, engine_options)
        outcome = run(
            queries,
            output,
            engine=answering,
            sampling=sampling,
            n=n,
            golden=golden,
            seed=seed,
            bad_rows=collected,
            work_dir=work_dir,
        )
    typer.echo(f"{output}: {outcome.written} queries with {n} answers each")
    if outcome.failed:
        place = output.with_suffix(".failed.jsonl")
        typer.echo(f"{place}: {outcome.failed} queries without answers", err=True)
        exit_if_unanswered(outcome.failed)


def pair(
    samples: Annotated[str, typer.Argument(help="{query_id, query, sample_0, ...}, from `apo sample` or released.")],
    golden: Annotated[
        str, typer.Option(help=f"{{query_id, query, golden}}, or the good answers of any layout: {WHAT}.")
    ],
    output: Annotated[Path, typer.Option(help="The JSON Lines file of ranked records to write.")],
    take: Annotated[Take, typer.Option(help="All samples of a query, or a random one.")] = Take.all,
    cut: Cut = True,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Accept ids that are in one file only.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Random seed of --take one.")] = 0,
    layout: Format = "",
    dataset_dir: DatasetDir = IN_DATASET_INFO,
    column: Column = [],  # noqa: B006 (typer copies defaults)
    bad_rows: BadRowsPolicy = Policy.error,
    max_bad: MaxBad = MAX_BAD,
    allow_empty: AllowEmpty = False,
) -> None:
    """Rank golden answers above samples: `ranked` records of kind apo, and a report with all that is left out."""
    from finepref.synth.apo.pair import pair as run

    outputs = (output, output.with_suffix(".report.json"), rejected_path(output))
    sampled = input_of(samples, "", dataset_dir, [], *outputs)
    answers = input_of(golden, layout, dataset_dir, column, *outputs)
    options = {"take": take.value, "cut": cut, "allow_missing": allow_missing, "seed": seed}
    with user_errors(NEEDS), bad_rows_of(output, bad_rows, max_bad) as collected:
        outcome = run(sampled, answers, output, bad_rows=collected, **options)
    typer.echo(f"{output}: {outcome.rows} records (left out: {outcome.left_out})")
    exit_if_empty(outcome.rows, output, f"left out: {outcome.left_out}", allowed=allow_empty)


def score(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...", help=f"Samples, {{responses}}, or pairs, ranked or feedback of any layout: {WHAT}."
        ),
    ],
    output: Annotated[Path, typer.Option(help="The JSON Lines file to write; for several inputs a folder.")],
    model: Annotated[Path, typer.Option(help="Folder of a reward model from either host, or of its LoRA adapter.")],
    base: Annotated[str, typer.Option(help="The model under an adapter; default: the one it names.")] = "",
    template: TrainedTemplate = None,
    pooling: TrainedPooling = None,
    cutoff_len: Annotated[
        int | None, typer.Option(min=1, help="As in training. Default: the receipt's, or 2048.", show_default=False)
    ] = None,
    overlong: Annotated[OverlongPolicy, typer.Option(help="Rows that are longer.")] = OverlongPolicy.truncate_left,
    cut: Cut = True,
    dtype: Annotated[Dtype, typer.Option(help="Number format of the model; auto = the checkpoint's.")] = Dtype.auto,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Most tokens in a batch.")] = 4096,
    layout: Format = "",
    dataset_dir: DatasetDir = IN_DATASET_INFO,
    column: Column = [],  # noqa: B006 (typer copies defaults)
    bad_rows: BadRowsPolicy = Policy.error,
    max_bad: MaxBad = MAX_BAD,
    allow_empty: AllowEmpty = False,
    work_dir: WorkDir = None,
) -> None:
    """The reward of every response, as in the host's own scoring. An interrupted run resumes.

    Pooling, template and cutoff are those of the receipt beside the model, if it has one. Rows that are too long are
    cut as in training, or go to a file beside the output.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    several = len(sources) > 1
    targets = [output / _output_name(source) if several else output for source in sources]
    suffixes = (".left_out.jsonl", ".report.json")
    beside = [each for file in targets for each in (file, *map(file.with_suffix, suffixes), rejected_path(file))]
    inputs = [input_of(source, layout, dataset_dir, column, *beside) for source in sources]
    with user_errors(NEEDS):
        from finepref.formats.files import write_json
        from finepref.synth.apo.reward_model import RewardModel
        from finepref.synth.apo.score import score as run

        trained = trained_of(model)
        for line in trained.differences(pooling=pooling and pooling.value, template=template, cutoff_len=cutoff_len):
            typer.echo(line, err=True)
        longest = cutoff_len or trained.cutoff_len or 2048
        reward = RewardModel(
            model,
            base=base or None,
            template=template_of((trained.template if template is None else template) or OWN),
            pooling=pooling.value if pooling else trained.pooling or "last",
            cutoff_len=longest,
            overlong=overlong.value,
            dtype=dtype.value,
            batch_tokens=batch_tokens,
        )
        if len({*targets}) < len(targets) and several:
            raise ValueError("two inputs have the same name, so their outputs in the folder would too")
        for source, target in zip(inputs, targets, strict=True):
            folder = work_dir / target.stem if work_dir and several else work_dir
            with bad_rows_of(target, bad_rows, max_bad) as collected:
                outcome = run(source, target, model=reward, cut=cut, bad_rows=collected, work_dir=folder)
            counts = {name: getattr(outcome, name) for name in ("rows", "responses", "empty", "cut")}
            write_json(target.with_suffix(".report.json"), {"job": "apo score", "model": str(model), **counts})
            for part, count in sorted(outcome.cut_counts.items()):
                names = [name for name, cut in outcome.cut_rows.items() if part in cut.split(",")]
                typer.echo(f"{count} rows have a {part} that is cut, such as {', '.join(names[:3])}", err=True)
            if outcome.left_out:
                names = [str(each.row["id"]) for each in outcome.left_out.entries[:3]]
                place = target.with_suffix(".left_out.jsonl")
                typer.echo(f"{place}: {outcome.left_out}, such as {', '.join(names)}", err=True)
            typer.echo(
                f"{target}: {outcome.rows} rows with {outcome.responses} responses "
                f"({outcome.empty} empty, {outcome.cut} longer than {longest} tokens)"
            )
            exit_if_empty(outcome.rows, target, f"left out: {outcome.left_out}", allowed=allow_empty)


def _output_name(source: str) -> str:
    """The name of the output for one of several inputs."""
    name = Path(source).name.removesuffix(".gz").removesuffix(".zst")
    return name if name.endswith((".json", ".jsonl")) else f"{Path(name).stem}.jsonl"


def select(
    source: Annotated[Path, typer.Argument(metavar="SCORED", help="A file from `apo score`.")],
    output: Annotated[Path, typer.Option(help="The JSON Lines file to write.")],
    target: Annotated[Target, typer.Option("--to", help="The best; best and worst; or all, best first.")] = Target.sft,
    bad_rows: BadRowsPolicy = Policy.error,
    max_bad: MaxBad = MAX_BAD,
    allow_empty: AllowEmpty = False,
) -> None:
    """Best of n: the response with the highest reward. A report beside the output lists the rows left out."""
    from finepref.synth.apo.select import select as run

    check_outputs(output, output.with_suffix(".report.json"), rejected_path(output), inputs=[source])
    with user_errors(NEEDS), bad_rows_of(output, bad_rows, max_bad) as collected:
        outcome = run(source, output, target=target.value, bad_rows=collected)
    typer.echo(f"{output}: {outcome.rows} rows of {target.value} (left out: {outcome.left_out})")
    exit_if_empty(outcome.rows, output, f"left out: {outcome.left_out}", allowed=allow_empty)


def evaluate(
    sources: Annotated[list[str], typer.Argument(metavar="[NAME=]SCORED...", help="A file from `apo score`.")],
    output: Annotated[Path, typer.Option(help="The JSON file to write.")],
    against: Annotated[
        Path | None, typer.Option(help="For files without scores: the answers to compare with for a win rate.")
    ] = None,
    diagram: Annotated[
        bool, typer.Option("--diagram", help="Also draw a reliability diagram for each file with scores.")
    ] = False,
    bad_rows: BadRowsPolicy = Policy.error,
    max_bad: MaxBad = MAX_BAD,
) -> None:
    """Compare rewards with scores: accuracy and calibration. For samples without scores: mean reward and win rate.

    Each pair of differently scored responses counts once, with confidence sigmoid of the difference of the rewards.
    They and the rewards of answers are in OUTPUT.pairs.jsonl, by which `finepref report` compares models record by
    record.
    """
    from finepref.formats.files import write_json
    from finepref.formats.jsonl import write_jsonl
    from finepref.hosts import reward_metrics
    from finepref.synth.apo.scored import read_scored, scored_by, win_rate
    from finepref.synth.calibration import described

    found: dict[str, dict[str, Any]] = {}
    told: list[str] = []
    values: list[dict[str, object]] = []
    pair_file = output.with_suffix(".pairs.jsonl")
    files = [Path(source.partition("=")[2] or source) for source in sources]
    check_outputs(output, pair_file, rejected_path(output), inputs=[*files, against])
    with user_errors(NEEDS), bad_rows_of(output, bad_rows, max_bad) as collected:
        for source in sources:
            name, given, after = source.partition("=")
            path = Path(after if given else source)
            name = name if given else path.stem
            if name in found:
                raise ValueError(f"two files have the name {name}: give NAME=FILE")
            rows = read_scored(path, ids=against is not None, bad_rows=collected)
            rewards = [[reward for reward in row.rewards if reward is not None] for row in rows]
            empty = sum(map(len, (row.rewards for row in rows))) - sum(map(len, rewards))
            model = scored_by(path)
            figures = found[name] = {"model": model} if model else {}
            figures |= {"records": len(rows), "responses": sum(map(len, rewards)), "empty": empty}
            if all(row.scores for row in rows):
                tensors = reward_metrics.padded(rewards, [row.scores for row in rows], [row.kind for row in rows])
                figures |= reward_metrics.metrics(*tensors)
                pairs = reward_metrics.pairs_of(*tensors[:3])
                own = reward_metrics.calibration_of(pairs)
                values += (
                    {"name": name, "id": rows[record].id, "right": float(margin > 0), "margin": margin}
                    for record, margin in zip(pairs.record.tolist(), pairs.margin.tolist(), strict=True)
                )
                figures["calibration"] = own
                told += [f"{name}: {line}" for line in described(own)]
                if diagram:
                    title = f"{model}, on {name}" if model else name
                    file = output.with_name(f"{name}_reliability.png")
                    reward_metrics.draw_reliability(own, file, title=title)
            elif figures["responses"]:
                figures["rewards/mean"] = sum(map(sum, rewards)) / figures["responses"]
                by_row = ((row.id, reward) for row, own in zip(rows, rewards, strict=True) for reward in own)
                values += ({"name": name, "id": record, "reward": reward} for record, reward in by_row)
            if against is not None and not any(row.scores for row in rows):
                figures["win_rate"] = win_rate(rows, read_scored(against, bad_rows=collected))
        write_json(output, found)
        if values:
            write_jsonl(pair_file, values)
    flat = {name: {key: value for key, value in own.items() if key != "calibration"} for name, own in found.items()}
    typer.echo(json.dumps(flat, indent=2))
    for line in told:
        typer.echo(line)


def export(
    model: Annotated[Path, typer.Argument(help="Folder of a reward model from either host, or of its LoRA adapter.")],
    output: Annotated[Path, typer.Argument(help="Folder to make.")],
    base: Annotated[str, typer.Option(help="The model under an adapter; default: the one it names.")] = "",
    template: TrainedTemplate = None,
    pooling: TrainedPooling = None,
    dtype: Annotated[Dtype, typer.Option(help="Number format of the model; auto = the checkpoint's.")] = Dtype.auto,
    drop_bias: Annotated[
        bool, typer.Option("--drop-bias", help="Leave out the value head's bias, which lowers all rewards by it.")
    ] = False,
) -> None:
    """Write a reward model as a SequenceClassification checkpoint, for transformers, vLLM and TEI.

    Its logit is the reward of `apo score`. An adapter is merged into its base.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with user_errors(NEEDS):
        from finepref.hosts.llamafactory.export import carry
        from finepref.synth.apo.classifier import write
        from finepref.synth.apo.reward_model import RewardModel

        trained = trained_of(model)
        for line in trained.differences(pooling=pooling and pooling.value, template=template):
            typer.echo(line, err=True)
        reward = RewardModel(
            model,
            base=base or None,
            template=template_of((trained.template if template is None else template) or OWN),
            pooling=pooling.value if pooling else trained.pooling or "last",
            dtype=dtype.value,
        )
        written = write(reward, output, drop_bias=drop_bias)
        carry([*([reward.base] if reward.base else []), str(model)], output)
    for note in written.notes:
        typer.echo(note, err=True)
    typer.echo(f"{output}: {written.architecture}, reward at {reward.pooling}, padding token {written.pad_token}")


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
        ("export", export),
        ("run", run),
    ):
        group.command(name)(command)
    app.add_typer(group, name="apo")
