"""The two hosts that can train in an APO run, behind one protocol of three methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from finepref.pipelines import llamafactory, openrlhf
from finepref.pipelines.steps import Pipeline

Section = Mapping[str, object]


class TrainingSettings(NamedTuple):
    """The settings of a run for its trainings, see `finepref.pipelines.apo.apo`."""

    reward_model: str
    reward: Section
    policy: Section
    merge: Section
    template: str
    launcher: str


class Host(Protocol):
    """A host with the recipes of one run. The data sets are in dataset_info.json in the run's folder."""

    def train_reward(
        self, step: str, names: Sequence[str], files: Sequence[Path], *, start: Path | None = None
    ) -> Path:
        """Train a reward model on data sets of the run, starting from `start` or else from the base model."""

    def scoring(self) -> Section:
        """Options of `finepref apo score` that read rewards as in training."""

    def train_policy(self, here: str, llm: str, selected: Path, rate: float) -> str:
        """Train `llm` on the selected responses; returns the LLM after the round in the folder `here`."""


class LlamaFactory:
    """LLaMA-Factory: sections with a recipe, its template for all texts, with LoRA or without.

    Raises:
        ValueError: a setting is missing, or one is given that it does not use.
    """

    def __init__(self, run: Pipeline, settings: TrainingSettings) -> None:
        self.run, self.settings = run, settings
        for name, value in {"template": settings.template, "merge": settings.merge}.items():
            if not value:
                raise ValueError(f"{name} is missing: LLaMA-Factory needs it")
        if settings.launcher:
            raise ValueError("launcher is OpenRLHF's: llamafactory-cli starts torchrun itself, by FORCE_TORCHRUN=1")
        self.recipe, self.lora = llamafactory.with_recipe(settings.reward), llamafactory.uses_lora(settings.reward)

    def train_reward(
        self, step: str, names: Sequence[str], files: Sequence[Path], *, start: Path | None = None
    ) -> Path:
        """See `Host`."""
        keys: dict[str, object] = {"model_name_or_path": self.settings.reward_model}
        if start is not None:
            keys["adapter_name_or_path" if self.lora else "model_name_or_path"] = start
        keys |= {"dataset_dir": self.run.folder, "dataset": ",".join(names), "template": self.settings.template}
        if _must_rank(self.recipe.get("apo_loss"), names):
            keys["apo_loss"] = "ranking"
        inputs = [*files, *([] if start is None else [start])]
        return llamafactory.train(self.run, step, self.settings.reward, keys, inputs=inputs)

    def scoring(self) -> Section:
        """See `Host`."""
        return {
            "base": self.settings.reward_model if self.lora else None,
            "template": self.settings.template,
            "pooling": self.recipe.get("apo_pooling"),
            "cutoff_len": self.recipe.get("cutoff_len"),
        }

    def train_policy(self, here: str, llm: str, selected: Path, rate: float) -> str:
        """See `Host`."""
        keys: dict[str, object] = {
            "model_name_or_path": llm,
            "template": self.settings.template,
            "learning_rate": rate,
        }
        keys |= {"dataset_dir": self.run.folder, "dataset": f"selected_{here.removeprefix('round_')}"}
        return llamafactory.train_merged(
            self.run,
            (f"{here}/policy", f"{here}/merged"),
            self.settings.policy,
            self.settings.merge,
            keys,
            inputs=[selected],
        )


class OpenRLHF:
    """OpenRLHF: sections of its flags, the tokenizers' chat template for all texts, LoRA for the LLM only.

    The LLM is trained by the host's own train_sft, or by our train_tdpo with --tdpo.variant dpo, which reads our pairs
    and resumes correctly.

    Raises:
        ValueError: a setting is not possible here, or is set by the run itself.
    """

    def __init__(self, run: Pipeline, settings: TrainingSettings, update: Literal["sft", "dpo"]) -> None:
        self.run, self.settings, self.update = run, settings, update
        self.launcher = openrlhf.launcher(settings.launcher)
        defaults = {"apo.pooling": "eos", "data.max_len": 512}  # the host's own
        self.reward = defaults | openrlhf.flat(settings.reward)
        self.policy = (openrlhf.PLAIN_DPO if update == "dpo" else {}) | openrlhf.flat(settings.policy)
        if settings.template:
            raise ValueError("template is LLaMA-Factory's: on OpenRLHF the tokenizer's chat template is used")
        openrlhf.check(run, {"reward": self.reward, "policy": self.policy})
        if openrlhf.uses_lora(self.reward):
            raise ValueError(
                "reward.ds.lora.rank: OpenRLHF saves no value head beside a LoRA adapter, so leave it out"
            )
        if "adam.lr" in self.policy:
            raise ValueError("policy.adam.lr: the LLM's learning rates are learning_rates, one per round")

    def train_reward(
        self, step: str, names: Sequence[str], files: Sequence[Path], *, start: Path | None = None
    ) -> Path:
        """See `Host`."""
        keys: dict[str, object] = {
            "model.model_name_or_path": start or self.settings.reward_model,
            "apo.keep_value_head": start is not None,
            "data.dataset_dir": self.run.folder,
            "data.dataset": ",".join(names),
            "data.apply_chat_template": True,
        }
        if _must_rank(self.reward.get("apo.loss"), names):
            keys["apo.loss"] = "ranking"
        program = [*self.launcher, "openrlhf.cli.train_apo_rm"]
        return openrlhf.train(self.run, step, program, self.reward, keys, inputs=files)

    def scoring(self) -> Section:
        """See `Host`."""
        return {"pooling": self.reward["apo.pooling"], "cutoff_len": self.reward["data.max_len"]}

    def train_policy(self, here: str, llm: str, selected: Path, rate: float) -> str:
        """See `Host`."""
        keys: dict[str, object] = {"model.model_name_or_path": llm, "adam.lr": rate, "data.apply_chat_template": True}
        if self.update == "sft":
            program = [*self.launcher, "openrlhf.cli.train_sft"]
            keys |= {"data.dataset": selected, "data.input_key": "messages"}
        else:
            program = [*self.launcher, "openrlhf.cli.train_tdpo"]
            keys |= {"data.dataset": f"selected_{here.removeprefix('round_')}", "data.dataset_dir": self.run.folder}
        steps = (f"{here}/policy", f"{here}/merged")
        return openrlhf.train_merged(
            self.run, steps, program, self.policy, self.settings.merge, keys, inputs=[selected]
        )


def _must_rank(loss: object, names: Sequence[str]) -> bool:
    """Whether the loss must be `ranking`: the given loss needs golden answers and samples, and there are none."""
    return loss not in (None, "ranking") and not any(name.startswith("apo_") for name in names)
