"""APO (arXiv 2311.08045), ADVERSARIAL preference optimization, as a game of rounds; `finepref apo run` calls it.

A round: sample the LLM, put golden answers above its samples, train a reward model on these and on human preferences,
score the samples, select the best, train the LLM on them. What the reward models and LLMs are worth is measured on
held-out queries and human preferences, and by a testing reward model that has seen other preferences.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from finepref.formats.files import write_json
from finepref.pipelines import apo_report, settings
from finepref.pipelines.apo_hosts import Asked, Host, LlamaFactory, OpenRLHF
from finepref.pipelines.steps import Pipeline, folders

SHAREGPT = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
}
"""The host's name for what `finepref apo select --to sft` writes."""


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
    merge: dict[str, object] = {},  # noqa: B006 (nobody changes it)
    launcher: str = "",
    reward_model: str = "",
    policy_queries: str = "",
    pair: dict[str, object] = {},  # noqa: B006
    update: Literal["sft", "dpo"] = "sft",
    apo_data: bool = True,
    sequential: bool = False,
    make: dict[str, str] = {},  # noqa: B006
) -> None:
    """Play the game, as far as it has not been played in the folder, and write `report.md`.

    Args:
        pipeline: the run's folder, one folder in it per round and step.
        model: the LLM at the start, a folder or a hub name.
        queries: to sample at, rows {query_id, query} or {id?, prompt or messages}.
        golden: their golden answers; default: `queries` has them (`chosen`). A section asks a model for them instead:
            the options of `finepref apo sample --golden`, such as engine, base_url and model.
        human: preferences to train the reward models on, in `human_format`.
        test_queries, test_golden, test_human: the same for tests.
        testing_human: preferences to train the testing reward model on.
        human_format: of the three files of preferences; apo_rm is the released one.
        learning_rates: of the LLM, one per round, so that there are as many rounds.
        reward, policy: how the host trains reward models and LLM: LLaMA-Factory's recipe (key `recipe`) and keys on
            top of it, or OpenRLHF's flags, as `train: {batch_size: 64}`.
        sample, answer: options of `finepref apo sample` to train on and to test.
        host: what trains; it must be in the environment that this runs in.
        template: LLaMA-Factory's, for all trainings and scores. On OpenRLHF each model's tokenizer must have a chat
            template, which all texts are written in.
        merge: as `policy`, for the host's command that merges a LoRA adapter, used where the policy is trained so.
        launcher: the words that start OpenRLHF's trainings, up to the name of the module: `deepspeed --module` (the
            default), `deepspeed --num_gpus 4 --module`, `python -m`; where there is no flash-attn or no GPU,
            `python -m finepref.hosts.openrlhf.anywhere`.
        reward_model: what each reward model starts from; default: `model`.
        policy_queries: to sample at for the LLM's training, where they are not `queries`; no golden answers to them.
        pair: options of `finepref apo pair`.
        update: train the LLM on the best samples (sft), or on the best above the worst (dpo).
        apo_data: without it, the reward model of all rounds is the one of human preferences only (ablation).
        sequential: a round's reward model starts from that of the round before, not from `reward_model` (ablation).
        make: path in {made}, the run's folder made/ -> the `finepref` command that makes it, run first; any other
            setting may name {made} too.

    Raises:
        ValueError: a setting that cannot be.
        StepChanged, StepFailed: see `Pipeline`.
    """
    if not learning_rates:
        raise ValueError("learning_rates has no entry: there would be no round")
    made = str(pipeline.folder / "made")
    model, queries, policy_queries, human, test_queries, test_human, testing_human, reward_model = (
        text.replace("{made}", made)
        for text in (
            *(model, queries, policy_queries, human),
            *(test_queries, test_human, testing_human, reward_model or model),
        )
    )
    asked = Asked(reward_model, reward, policy, merge, template, launcher)
    trainer: Host = OpenRLHF(pipeline, asked, update) if host == "openrlhf" else LlamaFactory(pipeline, asked)
    _make(pipeline, {name: words.replace("{made}", made) for name, words in make.items()})
    preferences = {"human": human, "test_human": test_human, "testing_human": testing_human}
    data = {name: _imported(pipeline, name, Path(path), human_format) for name, path in preferences.items()}
    answers = [
        _golden(pipeline, name, Path(questions), given if isinstance(given, dict) else given.replace("{made}", made))
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
        golden_pairs = _pair(pipeline, f"{here}/golden_pairs", current, answers[1], {})
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
    """The rewards of the files' responses, each in a file of the same name."""
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


def _imported(run: Pipeline, name: str, source: Path, formatting: str) -> Path:
    """A file of preferences, checked, as ranked records in the run's folder, which is the host's dataset_dir."""
    target = run.path(f"data/{name}", f"{name}.jsonl")
    words = ["finepref", "convert", "--from", formatting, "--to", "ranked", source, target]
    run.run(f"data/{name}", words, inputs=[source], outputs=[target])
    return target


def _golden(run: Pipeline, name: str, asked: Path, given: str | Mapping[str, object]) -> Path:
    """The golden answers: of a file, of the queries' own, or of the model that is asked for them."""
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
    """The host's table of the data sets of all steps, also of those to come."""
    table: dict[str, object] = {
        name: {"file_name": str(path.relative_to(folder)), "formatting": "ranked"} for name, path in data.items()
    }
    own = {"formatting": "pair"} if update == "dpo" else SHAREGPT
    for number in rounds:
        table[f"apo_{number}"] = {"file_name": f"round_{number}/pairs/pairs.jsonl", "formatting": "ranked"}
        table[f"selected_{number}"] = {"file_name": f"round_{number}/selected/selected.jsonl", **own}
    write_json(folder / "dataset_info.json", table)
