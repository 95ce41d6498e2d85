"""The two hosts that can train in a ReverseGen run, behind one protocol."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from finepref.pipelines import llamafactory, openrlhf
from finepref.pipelines.steps import Pipeline

Section = Mapping[str, object]

SFT = {"columns": {"prompt": "prompt", "response": "response"}}
PAIRS = {"ranking": True, "columns": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}}
"""The dataset entries of our rows for LLaMA-Factory's own stages sft and dpo."""


class Host(Protocol):
    """A host with the export section of one run."""

    def sft(self, name: str, model: str, records: Path, section: Section) -> str:
        """Train on records {prompt, response} in the part `name` of the run; returns the whole model's folder."""

    def dpo(self, name: str, model: str, pairs: Path, section: Section) -> str:
        """The same on pairs; the reference is the model at the start."""

    def makes_steps(self, records: int, section: Section) -> bool:
        """Whether a training on so many records makes a step."""

    def with_seed(self, section: Section, more: int) -> Section:
        """The section with its seed, or the host's, raised."""


class LlamaFactory:
    """LLaMA-Factory's own stages sft and dpo, by sections with a recipe.

    Raises:
        ValueError: a setting is missing, or one is given that it does not use.
    """

    def __init__(
        self, run: Pipeline, sections: Mapping[str, Section], export: Section, launcher: str, *, private: bool
    ):
        self.run, self.export, self.private = run, export, private
        if launcher:
            raise ValueError("launcher is OpenRLHF's: llamafactory-cli starts torchrun itself, by FORCE_TORCHRUN=1")
        for name, section in {**sections, "export": export}.items():
            if "recipe" not in section:
                raise ValueError(f"{name}.recipe is missing: LLaMA-Factory needs it")

    def sft(self, name: str, model: str, records: Path, section: Section) -> str:
        """See `Host`."""
        return self._train(name, model, records, SFT, section)

    def dpo(self, name: str, model: str, pairs: Path, section: Section) -> str:
        """See `Host`."""
        return self._train(name, model, pairs, PAIRS, section)

    def makes_steps(self, records: int, section: Section) -> bool:
        """See `Host`; the last batch may be a small one."""
        return records > 0

    def with_seed(self, section: Section, more: int) -> Section:
        """See `Host`; the host's own seed is 42."""
        given = llamafactory.with_recipe(section).get("seed", 42)
        return {**section, "seed": int(given) + more} if more else section

    def _train(self, name: str, model: str, data: Path, entry: Section, section: Section) -> str:
        folder = llamafactory.dataset(data.parent, data.stem, {"file_name": data.name, **entry})
        keys = {"model_name_or_path": model, "dataset_dir": folder, "dataset": data.stem}
        steps = (f"{name}/train", f"{name}/export")
        return llamafactory.train_merged(
            self.run, steps, section, self.export, keys, inputs=[data], private=self.private
        )


class OpenRLHF:
    """OpenRLHF: sections of its flags, and the tokenizers' chat template for all texts.

    Its own train_sft, and for pairs our train_tdpo as plain DPO, which has the flags of train_dpo, reads our pairs and
    loses none of them in a resume.

    Raises:
        ValueError: a setting is not possible here, or is set by the run itself.
    """

    BATCH = 128
    """The host's default for train.batch_size; it drops a batch that is not full."""

    def __init__(
        self, run: Pipeline, sections: Mapping[str, Section], export: Section, launcher: str, *, private: bool
    ):
        self.run, self.export, self.private = run, export, private
        self.launcher = openrlhf.launcher(launcher)
        openrlhf.check(run, {**sections, "export": export})

    def sft(self, name: str, model: str, records: Path, section: Section) -> str:
        """See `Host`."""
        keys = {"data.dataset": records, "data.input_key": "prompt", "data.output_key": "response"}
        return self._train(name, "openrlhf.cli.train_sft", model, records, section, keys)

    def dpo(self, name: str, model: str, pairs: Path, section: Section) -> str:
        """See `Host`."""
        llamafactory.dataset(pairs.parent, pairs.stem, {"file_name": pairs.name, "formatting": "pair"})
        keys = {"data.dataset": pairs.stem, "data.dataset_dir": pairs.parent}
        section = {**openrlhf.PLAIN_DPO, **openrlhf.flat(section)}
        return self._train(name, "openrlhf.cli.train_tdpo", model, pairs, section, keys)

    def makes_steps(self, records: int, section: Section) -> bool:
        """See `Host`."""
        return records >= int(str(openrlhf.flat(section).get("train.batch_size", self.BATCH)))

    def with_seed(self, section: Section, more: int) -> Section:
        """See `Host`; the host's own seed is 42."""
        flags = openrlhf.flat(section)
        return {**flags, "train.seed": int(str(flags.get("train.seed", 42))) + more} if more else section

    def _train(self, name: str, module: str, model: str, data: Path, section: Section, keys: Section) -> str:
        """Train with a module of the host, and merge an adapter.

        Args:
            name: of the part of the run.
            module: of the host.
            model: to train.
            data: the file that it reads.
            section: flags.
            keys: flags on top of them.
        """
        return openrlhf.train_merged(
            self.run,
            (f"{name}/train", f"{name}/export"),
            [*self.launcher, module],
            section,
            self.export,
            {"model.model_name_or_path": model, "data.apply_chat_template": True, **keys},
            inputs=[data],
            private=self.private,
        )
