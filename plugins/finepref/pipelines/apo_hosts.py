"""The two hosts that can train in a game of APO, behind the three things that the game asks of one."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from finepref.pipelines import llamafactory, openrlhf
from finepref.pipelines.steps import Pipeline

Section = Mapping[str, object]


class Asked(NamedTuple):
    """What the settings of a game say of its trainings, see `finepref.pipelines.apo.apo`."""

    reward_model: str
    reward: Section
    policy: Section
    merge: Section
    template: str
    launcher: str


class Host(Protocol):
    """A host with the recipes of one game. The data sets of the run are in its folder's dataset_info.json."""

    def train_reward(
        self, step: str, names: Sequence[str], files: Sequence[Path], *, start: Path | None = None
    ) -> Path:
        """Train a reward model on data sets of the run; from `start`, another one, or else from the base model."""

    def scoring(self) -> Section:
        """The options of `finepref apo score` by which a reward is read as it was trained."""

    def train_policy(self, here: str, llm: str, selected: Path, rate: float) -> str:
        """The LLM after the round whose folder is `here`: `llm`, trained on what was selected."""


class LlamaFactory:
    """LLaMA-Factory: sections with a recipe, its template for all texts, LoRA or not.

    Raises:
        ValueError: a setting that it needs is missing, or one that it has no use for is there.
    """

    def __init__(self, run: Pipeline, asked: Asked) -> None:
        self.run, self.asked = run, asked
        for name, value in {"template": asked.template, "merge": asked.merge}.items():
            if not value:
                raise ValueError(f"{name} is missing: LLaMA-Factory needs it")
        if asked.launcher:
            raise ValueError("launcher is OpenRLHF's: llamafactory-cli starts torchrun itself, by FORCE_TORCHRUN=1")
        self.recipe, self.lora = llamafactory.with_recipe(asked.reward), llamafactory.uses_lora(asked.reward)

    def train_reward(
        self, step: str, names: Sequence[str], files: Sequence[Path], *, start: Path | None = None
    ) -> Path:
        """See `Host`."""
        keys: dict[str, object] = {"model_name_or_path": self.asked.reward_model}
        if start is not None:
            keys["adapter_name_or_path" if self.lora else "model_name_or_path"] = start
        keys |= {"dataset_dir": self.run.folder, "dataset": ",".join(names), "template": self.asked.template}
        if _must_rank(self.recipe.get("apo_loss"), names):
            keys["apo_loss"] = "ranking"
        inputs = [*files, *([] if start is None else [start])]
        return llamafactory.train(self.run, step, self.asked.reward, keys, inputs=inputs)

    def scoring(self) -> Section:
        """See `Host`."""
        return {
            "base": self.asked.reward_model if self.lora else None,
            "template": self.asked.template,
            "pooling": self.recipe.get("apo_pooling"),
            "cutoff_len": self.recipe.get("cutoff_len"),
        }

    def train_policy(self, here: str, llm: str, selected: Path, rate: float) -> str:
        """See `Host`."""
        keys: dict[str, object] = {"model_name_or_path": llm, "template": self.asked.template, "learning_rate": rate}
        keys |= {"dataset_dir": self.run.folder, "dataset": f"selected_{here.removeprefix('round_')}"}
        return llamafactory.train_merged(
            self.run,
            (f"{here}/policy", f"{here}/merged"),
            self.asked.policy,
            self.asked.merge,
            keys,
            inputs=[selected],
        )


class OpenRLHF:
    """OpenRLHF: sections of its flags, the tokenizers' chat template for all texts, LoRA for the LLM only.

    The LLM is trained by the host's own train_sft or, as this reads our pairs and resumes rightly, by our train_tdpo
    with --tdpo.variant dpo.

    Raises:
        ValueError: a setting that cannot be, or that the game sets itself.
    """

    FREE_OF_DATA = ("data.max_len", "data.max_samples", "data.dataloader_num_workers", "data.disable_fast_tokenizer")
    SET_HERE = ("ckpt.output_dir", "ckpt.path", "ckpt.load_enable", "model.model_name_or_path", "apo.keep_value_head")

    def __init__(self, run: Pipeline, asked: Asked, update: Literal["sft", "dpo"]) -> None:
        self.run, self.asked, self.update = run, asked, update
        self.launcher = shlex.split(asked.launcher or "deepspeed --module")
        self.reward = {"apo.pooling": "eos", "data.max_len": 512} | openrlhf.flat(asked.reward)  # the host's defaults
        plain_dpo = {"tdpo.variant": "dpo", "tdpo.masks": "none"} if update == "dpo" else {}
        self.policy = plain_dpo | openrlhf.flat(asked.policy)
        if asked.template:
            raise ValueError("template is LLaMA-Factory's: on OpenRLHF the tokenizer's chat template is used")
        if set(",@") & set(str(run.folder)):
            raise ValueError(f"{run.folder}: OpenRLHF reads a comma or @ in the path of a data set as its own sign")
        for name, flags in (("reward", self.reward), ("policy", self.policy)):
            for flag in flags:
                if flag == "recipe":
                    raise ValueError(
                        f"{name}.recipe is LLaMA-Factory's: on OpenRLHF a section has the flags themselves"
                    )
                if flag in self.SET_HERE or (flag.startswith("data.") and flag not in self.FREE_OF_DATA):
                    raise ValueError(f"{name}.{flag}: the game sets that itself")
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
            "model.model_name_or_path": start or self.asked.reward_model,
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
        trained = openrlhf.train(self.run, f"{here}/policy", program, self.policy, keys, inputs=[selected])
        if not openrlhf.uses_lora(self.policy):
            return str(trained)
        return str(openrlhf.merge(self.run, f"{here}/merged", self.asked.merge, model=llm, adapter=trained))


def _must_rank(loss: object, names: Sequence[str]) -> bool:
    """Whether another loss is asked for that only golden answers and samples can have, and the data sets have none."""
    return loss not in (None, "ranking") and not any(name.startswith("apo_") for name in names)
