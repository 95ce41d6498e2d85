"""APO (arXiv 2311.08045), ADVERSARIAL preference optimization, in rounds; called by `finepref apo run`.

A round: sample the LLM, rank golden answers above its samples, train a reward model on these and on human
preferences, score the samples, select the best, train the LLM on them. Reward models and LLMs are evaluated on
held-out queries and human preferences, and with a testing reward model trained on other preferences.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from finepref.formats.bad_rows import MAX_BAD
from finepref.formats.files import write_json
from finepref.pipelines import apo_report, settings
from finepref.pipelines.apo_hosts import Host, LlamaFactory, OpenRLHF, TrainingSettings
from finepref.pipelines.steps import Pipeline, folders

SHAREGPT = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
}
"""The dataset entry of the host for the output of `finepref apo select --to sft`."""


def apo(
    *,
    pipeline: Pipeline,
    model: str,
    queries: str,
    golden: str | dict[str, object] = "",
    human: str,
    test_queries: str,
    test_golden: str | dict[str, object] = "",
    test_human: str,
    testing_human: str,
    human_format: Literal["ranked", "pair", "negatives", "apo_rm"] = "ranked",
    learning_rates: list[float],
    reward: dict[str, object],
    policy: dict[str, object],
    sample: dict[str, object],
    answer: dict[str, object],
    host: Literal["llamafactory", "openrlhf"] = "llamafactory",
    template: str = "",
    merge: dict[str, object] = {},  # noqa: B006 (never changed)
    launcher: str = "",
    reward_model: str = "",
    policy_queries: str = "",
    pair: dict[str, object] = {},  # noqa: B006
    update: Literal["sft", "dpo"] = "sft",
    apo_data: bool = True,
    sequential: bool = False,
    make: dict[str, str] = {},  # noqa: B006
    bad_rows: Literal["error", "skip"] = "error",
    max_bad: str | float = MAX_BAD,
) -> None:
    """Run all steps that are not done yet in the folder, and write `report.md`.

    Args:
        pipeline: the run's folder, with a folder for each round and step.
        model: the initial LLM, a folder or a hub name.
        queries: queries to sample answers to, rows {query_id, query} or {id?, prompt or messages}.
        golden: their golden answers; default: the field `chosen` of `queries`. A section asks a model for them:
            its keys are options of `finepref apo sample --golden`, such as engine, base_url and model.
        human: preferences for training the reward models, in `human_format`.
        test_queries, test_golden, test_human: the same for tests.
        testing_human: preferences for training the testing reward model.
        human_format: format of the three files of preferences; apo_rm is the released one.
        learning_rates: of the LLM, one per round; their number is the number of rounds.
        reward, policy: settings of the host for training reward models and the LLM: LLaMA-Factory's recipe (key
            `recipe`) and keys on top of it, or OpenRLHF's flags, such as `train: {batch_size: 64}`.
        sample, answer: options of `finepref apo sample` for training and for tests.
        host: the host that trains; it must be installed in the current environment.
        template: LLaMA-Factory's template, for all trainings and scores. On OpenRLHF the chat template of each model's
            tokenizer is used instead.
        merge: like `policy`, for the host's command that merges a LoRA adapter; used if the policy trains one.
        launcher: the command that starts OpenRLHF's trainings, up to the name of the module: `deepspeed --module` (the
            default), `deepspeed --num_gpus 4 --module`, `python -m`; without flash-attn or a GPU,
            `python -m finepref.hosts.openrlhf.host_cli`.
        reward_model: the model that each reward model is trained from; default: `model`.
        policy_queries: queries for training the LLM, if they are not `queries`; they need no golden answers.
        pair: options of `finepref apo pair`.
        update: train the LLM on the best samples (sft), or on the best above the worst (dpo).
        apo_data: if false, all rounds use the reward model of human preferences only (ablation).
        sequential: train each round's reward model from that of the previous round, not `reward_model` (ablation).
        make: a path in {made} (the folder made/ of the run) -> the `finepref` command that writes it. These run first,
            and all other settings may use {made} too.
        bad_rows, max_bad: --bad-rows and --max-bad of the steps that read your files.

    Raises:
        ValueError: a setting is not possible.
        StepChanged, StepFailed: see `Pipeline`.
    """
    if not learning_rates:
        raise ValueError("learning_rates has no entry: there would be no round")
    own_rows = settings.bad_row_options(bad_rows, str(max_bad))
    sample, answer, pair = ({**section, **own_rows} for section in (sample, answer, pair))
    made = str(pipeline.folder / "made")
    model, queries, policy_queries, human, test_queries, test_human, testing_human, reward_model = (
        text.replace("{made}", made)
        for text in (
            *(model, queries, policy_queries, human),
            *(test_queries, test_human, testing_human, reward_model or model),
        )
    )
    trainings = TrainingSettings(reward_model, reward, policy, merge, template, launcher)
    trainer: Host = OpenRLHF(pipeline, trainings, update) if host == "openrlhf" else LlamaFactory(pipeline, trainings)
    _make(pipeline, {name: words.replace("{made}", made) for name, words in make.items()})
    preferences = {"human": human, "test_human": test_human, "testing_human": testing_human}
    data = {name: _imported(pipeline, name, Path(path), human_format, own_rows) for name, path in preferences.items()}
    answers = [
        _golden(
            pipeline,
            name,
            Path(questions),
            {**given, **own_rows} if isinstance(given, dict) else given.replace("{made}", made),
        )
        for name, questions, given in (("golden", queries, golden), ("test_golden", test_queries, test_golden))
    ]
    rounds = range(1, len(learning_rates) + 1)
    _write_dataset_info(pipeline.folder, data, rounds, update)

    base = trainer.train_reward("base/reward", ["human"], [data["human"]])
    testing = trainer.train_reward("testing/reward", ["testing_human"], [data["testing_human"]])
    base_human = _score(pipeline, "base/scored", trainer, base, [data["test_human"]])[0]
    llm, current = model, _sample(pipeline, "round_0/answers", Path(test_queries), model, answer)
    first = _score(pipeline, "round_0/answers_scored", trainer, testing, [current])[0]
    _evaluate(pipeline, "round_0/eval", {"human": base_human, "answers": first}, against=first)

    own = base
    for number, rate in zip(rounds, learning_rates, strict=True):
        here = f"round_{number}"
        if apo_data or not policy_queries:
            samples = _sample(pipeline, f"{here}/samples", Path(queries), llm, sample)
        if apo_data:
            pairs = _pair(pipeline, f"{here}/pairs", samples, answers[0], pair)
            names = ["human", f"apo_{number}"]
            start = own if sequential else None
            own = trainer.train_reward(f"{here}/reward", names, [data["human"], pairs], start=start)
        if policy_queries:
            samples = _sample(pipeline, f"{here}/policy_samples", Path(policy_queries), llm, sample)
        golden_pairs = _pair(pipeline, f"{here}/golden_pairs", current, answers[1], own_rows)
        scored, human_scored, golden_scored = _score(
            pipeline, f"{here}/scored", trainer, own, [samples, data["test_human"], golden_pairs]
        )
        selected = _select(pipeline, f"{here}/selected", scored, update)
        llm = trainer.train_policy(here, llm, selected, rate)
        current = _sample(pipeline, f"{here}/answers", Path(test_queries), llm, answer)
        tests = {
            "human": human_scored,
            "golden": golden_scored,
            "golden_base": _score(pipeline, f"{here}/scored_by_base", trainer, base, [golden_pairs])[0],
            "answers": _score(pipeline, f"{here}/answers_scored", trainer, testing, [current])[0],
        }
        _evaluate(pipeline, f"{here}/eval", tests, against=first)
    apo_report.write(pipeline, learning_rates)


def _score(run: Pipeline, step: str, host: Host, model: Path, sources: Sequence[Path]) -> list[Path]:
    """Score the responses of several files; returns files of the same names.

    Args:
        run: the pipeline.
        step: name of the step.
        host: gives the options for reading rewards.
        model: the reward model.
        sources: samples, records or responses.
    """
    targets = [run.path(step, source.name) for source in sources]
    output = targets[0] if len(targets) == 1 else run.path(step)
    options = {"model": model, **host.scoring(), "output": output}
    words = ["finepref", "apo", "score", *sources, *settings.options(options)]
    run.run(step, words, inputs=[*sources, model], outputs=targets)
    return targets


def _make(run: Pipeline, commands: Mapping[str, str]) -> None:
    earlier: list[Path] = []
    for name, text in commands.items():
        words = shlex.split(text)
        if words[:1] != ["finepref"]:
            raise ValueError(f"make: {name}: {text!r} is not a finepref command")
        target = run.folder / "made" / name
        used = [path for path in earlier if str(path) in words]
        run.run(f"make/{name}", words, inputs=used, outputs=[target])
        earlier.append(target)


def _imported(run: Pipeline, name: str, source: Path, formatting: str, own_rows: Mapping[str, object]) -> Path:
    """Check a file of preferences, and write it as ranked records to the run's folder, the host's dataset_dir.

    Args:
        run: the pipeline.
        name: of the data set.
        source: the file.
        formatting: its format.
        own_rows: options for bad rows.
    """
    target = run.path(f"data/{name}", f"{name}.jsonl")
    accepted = {"max_bad": own_rows.get("max_bad")}  # `convert` leaves bad rows out if it accepts a share of them
    words = ["finepref", "convert", "--from", formatting, "--to", "ranked", *settings.options(accepted)]
    words += [str(source), str(target)]
    run.run(f"data/{name}", words, inputs=[source], outputs=[target])
    return target


def _golden(run: Pipeline, name: str, asked: Path, given: str | Mapping[str, object]) -> Path:
    """The file of golden answers: a given one, that of the queries, or the answers of a model."""
    if isinstance(given, str):
        return Path(given or asked)
    target = run.path(f"data/{name}", f"{name}.jsonl")
    options = {"n": 1, "preset": "paper_test", "golden": True} | dict(given) | {"output": target}
    run.run(
        f"data/{name}",
        ["finepref", "apo", "sample", asked, *settings.options(options)],
        inputs=[asked],
        outputs=[target],
    )
    return target


def _sample(run: Pipeline, step: str, queries: Path, model: str, section: Mapping[str, object]) -> Path:
    """Sample a model's answers to queries.

    Args:
        run: the pipeline.
        step: name of the step.
        queries: file of queries.
        model: folder or name of the LLM.
        section: options of `finepref apo sample`.
    """
    target = run.path(step, "samples.jsonl")
    words = [
        "finepref",
        "apo",
        "sample",
        queries,
        *settings.options({"model": model} | dict(section) | {"output": target}),
    ]
    inputs = [queries, *folders(model)]
    run.run(step, words, inputs=inputs, outputs=[target])
    return target


def _pair(run: Pipeline, step: str, samples: Path, golden: Path, section: Mapping[str, object]) -> Path:
    """Rank golden answers above samples.

    Args:
        run: the pipeline.
        step: name of the step.
        samples: file of samples.
        golden: file of golden answers.
        section: options of `finepref apo pair`.
    """
    target = run.path(step, f"{step.rpartition('/')[2]}.jsonl")
    words = ["finepref", "apo", "pair", samples, *settings.options({"golden": golden, **section, "output": target})]
    run.run(step, words, inputs=[samples, golden], outputs=[target])
    return target


def _select(run: Pipeline, step: str, scored: Path, update: str) -> Path:
    target = run.path(step, "selected.jsonl")
    options = {"to": "pair" if update == "dpo" else "sft", "output": target}
    words = ["finepref", "apo", "select", scored, *settings.options(options)]
    run.run(step, words, inputs=[scored], outputs=[target, target.with_suffix(".report.json")])
    return target


def _evaluate(run: Pipeline, step: str, files: Mapping[str, Path], *, against: Path) -> None:
    target = run.path(step, "eval.json")
    words = ["finepref", "apo", "eval", *(f"{name}={file}" for name, file in files.items())]
    words += settings.options({"against": against, "diagram": True, "output": target})
    run.run(step, words, inputs=[*files.values(), against], outputs=[target])


def _write_dataset_info(folder: Path, data: Mapping[str, Path], rounds: range, update: str) -> None:
    """Write the host's table of data sets, for all steps of the run."""
    table: dict[str, object] = {
        name: {"file_name": str(path.relative_to(folder)), "formatting": "ranked"} for name, path in data.items()
    }
    own = {"formatting": "pair"} if update == "dpo" else SHAREGPT
    for number in rounds:
        table[f"apo_{number}"] = {"file_name": f"round_{number}/pairs/pairs.jsonl", "formatting": "ranked"}
        table[f"selected_{number}"] = {"file_name": f"round_{number}/selected/selected.jsonl", **own}
    write_json(folder / "dataset_info.json", table)
