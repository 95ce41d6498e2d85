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
from finepref.pipelines import apo_report, llamafactory, settings
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
    template: str,
    learning_rates: list[float],
    reward: dict[str, object],
    policy: dict[str, object],
    merge: dict[str, object],
    sample: dict[str, object],
    answer: dict[str, object],
    reward_model: str = "",
    policy_queries: str = "",
    pair: dict[str, object] = {},  # noqa: B006 (nobody changes it)
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
        template: the host's, for all trainings and scores.
        learning_rates: of the LLM, one per round, so that there are as many rounds.
        reward, policy: the host's recipe (key `recipe`) for reward models and LLM, and keys on top of it.
        merge: the same for `llamafactory-cli export`, used where the policy is trained with LoRA.
        sample, answer: options of `finepref apo sample` to train on and to test.
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
    _make(pipeline, {name: words.replace("{made}", made) for name, words in make.items()})
    preferences = {"human": human, "test_human": test_human, "testing_human": testing_human}
    data = {name: _imported(pipeline, name, Path(path), human_format) for name, path in preferences.items()}
    answers = [
        _golden(pipeline, name, Path(asked), given if isinstance(given, dict) else given.replace("{made}", made))
        for name, asked, given in (("golden", queries, golden), ("test_golden", test_queries, test_golden))
    ]
    rounds = range(1, len(learning_rates) + 1)
    _write_dataset_info(pipeline.folder, data, rounds, update)
    rewards = _Rewards(pipeline, reward, template, reward_model)

    base = rewards.train("base/reward", ["human"], [data["human"]])
    testing = rewards.train("testing/reward", ["testing_human"], [data["testing_human"]])
    base_human = rewards.score("base/scored", base, [data["test_human"]])[0]
    llm, current = model, _sample(pipeline, "round_0/answers", Path(test_queries), model, answer)
    first = rewards.score("round_0/answers_scored", testing, [current])[0]
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
            own = rewards.train(f"{here}/reward", names, [data["human"], pairs], start=start)
        if policy_queries:
            samples = _sample(pipeline, f"{here}/policy_samples", Path(policy_queries), llm, sample)
        golden_pairs = _pair(pipeline, f"{here}/golden_pairs", current, answers[1], {})
        scored, human_scored, golden_scored = rewards.score(
            f"{here}/scored", own, [samples, data["test_human"], golden_pairs]
        )
        selected = _select(pipeline, f"{here}/selected", scored, update)
        llm = _train_policy(pipeline, here, policy, merge, template, llm, selected, rate)
        current = _sample(pipeline, f"{here}/answers", Path(test_queries), llm, answer)
        tests = {
            "human": human_scored,
            "golden": golden_scored,
            "golden_base": rewards.score(f"{here}/scored_by_base", base, [golden_pairs])[0],
            "answers": rewards.score(f"{here}/answers_scored", testing, [current])[0],
        }
        _evaluate(pipeline, f"{here}/eval", tests, against=first)
    apo_report.write(pipeline, learning_rates)


class _Rewards:
    """Reward models of one recipe: training, and scoring in the way they were trained."""

    def __init__(self, run: Pipeline, section: Mapping[str, object], template: str, start: str) -> None:
        self.run, self.section, self.template, self.start = run, section, template, start
        self.recipe = llamafactory.with_recipe(section)
        self.lora = llamafactory.uses_lora(section)

    def train(self, step: str, names: Sequence[str], files: Sequence[Path], *, start: Path | None = None) -> Path:
        """Train on data sets of the run; from `start`, another reward model, or else from the base model."""
        keys: dict[str, object] = {"model_name_or_path": self.start}
        if start is not None:
            keys["adapter_name_or_path" if self.lora else "model_name_or_path"] = start
        keys |= {"dataset_dir": self.run.folder, "dataset": ",".join(names), "template": self.template}
        if self.recipe.get("apo_loss", "ranking") != "ranking" and not any(name.startswith("apo_") for name in names):
            keys["apo_loss"] = "ranking"  # the other loss is for pairs of golden answers and samples
        inputs = [*files, *([] if start is None else [start])]
        return llamafactory.train(self.run, step, self.section, keys, inputs=inputs)

    def score(self, step: str, model: Path, sources: Sequence[Path]) -> list[Path]:
        """The rewards of the files' responses, each in a file of the same name."""
        targets = [self.run.path(step, source.name) for source in sources]
        options = {
            "model": model,
            "base": self.start if self.lora else None,
            "template": self.template,
            "pooling": self.recipe.get("apo_pooling"),
            "cutoff_len": self.recipe.get("cutoff_len"),
            "output": targets[0] if len(targets) == 1 else self.run.path(step),
        }
        words = ["finepref", "apo", "score", *sources, *settings.options(options)]
        self.run.run(step, words, inputs=[*sources, model], outputs=targets)
        return targets


def _train_policy(
    run: Pipeline,
    here: str,
    section: Mapping[str, object],
    merge: Mapping[str, object],
    template: str,
    start: str,
    selected: Path,
    rate: float,
) -> str:
    """The LLM after the round."""
    name = f"selected_{here.removeprefix('round_')}"
    keys: dict[str, object] = {"model_name_or_path": start, "template": template, "learning_rate": rate}
    keys |= {"dataset_dir": run.folder, "dataset": name}
    return llamafactory.train_merged(
        run, (f"{here}/policy", f"{here}/merged"), section, merge, keys, inputs=[selected]
    )


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
