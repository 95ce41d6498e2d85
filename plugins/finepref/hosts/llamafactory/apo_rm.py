"""Stage `apo_rm` (APO, ADVERSARIAL preference optimization, arXiv 2311.08045): the reward model's step.

Records are scored lists of responses, of human preference or of golden answers above the LLM's own samples ("apo").
The maths is in `finepref.losses.apo_rm`; the means go over the whole optimizer step on all ranks, so that neither
accumulation nor the number of processes changes a step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from llamafactory.train.callbacks import FixValueHeadModelCallback
from llamafactory.train.rm.trainer import PairwiseTrainer
from transformers import Trainer

from finepref.formats.check import BadData, Problem
from finepref.hosts import reward_metrics
from finepref.hosts.llamafactory import data, value_head
from finepref.hosts.llamafactory.adapter import Adapter
from finepref.hosts.llamafactory.apo_rm_data import ApoCollator, ApoProcessor
from finepref.hosts.located import record_mark
from finepref.losses.apo_rm import apo_rm_loss
from finepref.losses.ops import reduce, sum_over_ranks

SCORES_FILE = "finepref_scores.jsonl"


class ApoTrainer(PairwiseTrainer):
    """The host's reward-model trainer with score lists, our loss, and checkpoints that can be resumed."""

    def __init__(self, *, record: Any, **kwargs: Any) -> None:
        self.record = record
        self.trained = dict.fromkeys(reward_metrics.KINDS, 0)
        self.sums: torch.Tensor | None = None
        super().__init__(**kwargs)
        self.remove_callback(FixValueHeadModelCallback)  # `_save` writes what it would make
        arguments = self.finetuning_args
        self.loss_options = {
            "kl_coeff": arguments.apo_kl_coeff,
            "apo_coeff": arguments.apo_coeff,
            "samples": arguments.apo_sample_num,
            "kind": arguments.apo_loss,
            "normalization": arguments.apo_normalization,
        }

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, None]:
        """The micro-batches of one optimizer step; counts its records of each kind on all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        apo = sum(int(batch["is_apo"].sum()) for batch in batches)
        both = sum(len(batch["is_apo"]) for batch in batches)
        self.step_counts = tuple(sum_over_ranks(torch.tensor([both - apo, apo], device=device)).tolist())
        return batches, None

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **kwargs: Any):
        """L of one micro-batch, such that the micro-batches of a step have the mean L that the host takes."""
        rewards = self.rewards(model, inputs)
        counts = None if self.loss_options["normalization"] == "released" else self.step_counts
        scores, present, is_apo = inputs["scores"], inputs["present"].bool(), inputs["is_apo"].bool()
        out = apo_rm_loss(rewards, scores, is_apo, mask=present, counts=counts, **self.loss_options)
        if counts is None:
            loss = reduce(out)
        else:  # a part of a sum, which the host will divide by the number of parts
            loss = reduce(out, count=sum(counts)) * self.current_gradient_accumulation_steps
        self.record.loss_calls += 1
        mine = reward_metrics.sums(rewards.detach(), scores, present, is_apo)
        self.sums = mine if self.sums is None else self.sums + mine
        apo = int(is_apo.sum())
        self.trained["human"] += len(is_apo) - apo
        self.trained["apo"] += apo
        return (loss, rewards) if return_outputs else loss

    def rewards(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """One reward per response, [B, R] float32; absent responses are not run and have 0."""
        present = batch["present"].bool()  # [B, R]
        ids, attended, position = (batch[key][present] for key in ("input_ids", "attention_mask", "position"))
        wrapper = self.accelerator.unwrap_model(self.model)
        with value_head.pooled(wrapper, attended, position, self.finetuning_args.apo_pooling):
            _, _, values = model(input_ids=ids, attention_mask=attended, return_dict=True, use_cache=False)  # [N, 1]
        if values.shape != (len(ids), 1):
            raise ValueError(f"{len(ids)} responses gave values of shape {[*values.shape]}")
        return values.new_zeros(present.shape, dtype=torch.float32).masked_scatter(present, values.float())

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None):
        """No loss, which is a mean over the whole set: see `evaluation_loop`."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            rewards = self.rewards(model, inputs)
        return None, rewards, (inputs["scores"], inputs["present"], inputs["is_apo"])

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Metrics of the whole set, which depend neither on the batch size nor on the number of ranks."""
        output = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
        rewards, scores, present, is_apo = (torch.as_tensor(a) for a in (output.predictions, *output.label_ids))
        present = present == 1  # the host pads with -100
        found = reward_metrics.metrics(rewards, scores, present, is_apo)
        found["loss"] = reduce(apo_rm_loss(rewards, scores, is_apo, mask=present, **self.loss_options)).item()
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        if self.is_world_process_zero():
            file = Path(self.args.output_dir, f"{metric_key_prefix.replace('/', '_')}_reliability.png")
            reward_metrics.draw_reliability(reward_metrics.pairs_of(rewards, scores, present), file)
        return output

    def write_scores(self, datasets: Any) -> None:
        """`do_predict`: the rewards of every record, in the order of the data, one line each."""
        lines = []
        for name, dataset in datasets.items() if isinstance(datasets, dict) else [("", datasets)]:
            prefix = f"predict_{name}" if name else "predict"
            found = self.predict(dataset, metric_key_prefix=prefix)
            self.log_metrics(prefix, found.metrics)
            self.save_metrics(prefix, found.metrics)
            rows = zip((row["example_id"] for row in dataset), found.predictions, *found.label_ids, strict=True)
            for record_id, rewards, scores, present, is_apo in rows:
                kept = present == 1
                line = {"dataset": name} if name else {}
                line |= {"id": record_id, "kind": reward_metrics.KINDS[int(is_apo)]}
                lines.append(line | {"rewards": rewards[kept].tolist(), "scores": scores[kept].tolist()})
        if self.is_world_process_zero():
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            Path(self.args.output_dir, SCORES_FILE).write_text(text, encoding="utf-8")

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the metrics since the last entry, over all ranks, to a training entry."""
        if "loss" in logs:
            logs.update(reward_metrics.means(self.accelerator.reduce(self.sums, "sum")))
            self.sums = None
        super().log(logs, *args, **kwargs)

    def rank_report(self) -> dict[str, Any]:
        """This rank's part of the receipt."""
        return {"records": dict(self.trained)}

    def run_report(self, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        """The run's part of the receipt: records that went into a loss, and responses that cutoff_len shortened."""
        records = {kind: sum(rank["records"][kind] for rank in ranks) for kind in reward_metrics.KINDS}
        return {"records": records, "responses_cut": self.record.extra.get("responses_cut")}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Decoder or adapter by its own save_pretrained, which knows about tied weights, and the head beside it."""
        wrapper = self.model
        folder = output_dir or self.args.output_dir
        inner = self.accelerator.unwrap_model(wrapper)
        decoder, head = value_head.split(inner.state_dict() if state_dict is None else state_dict)
        self.model = inner.pretrained_model
        try:
            Trainer._save(self, folder, decoder or None)
        finally:
            self.model = wrapper
        value_head.save_head(head, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """What `_save` wrote; the host cannot resume a reward model."""
        if self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        super()._load_from_checkpoint(resume_from_checkpoint, self.model.pretrained_model)
        value_head.load_head(self.model, resume_from_checkpoint)


class ApoRM(Adapter):
    """The stage's row names this class."""

    schema = ApoProcessor.schema
    adds_value_head = True
    predicts = True

    def needs_reference(self, arguments: Any) -> bool:
        return False

    def processor(self) -> type:
        return ApoProcessor

    def check_tokenized(self, dataset: Any, arguments: Any) -> None:
        """Where the reward is read at the end token, every response needs one."""
        cut = sum(dataset["cut"])
        data.CURRENT.extra["responses_cut"] = data.CURRENT.extra.get("responses_cut", 0) + cut
        if arguments.apo_pooling == "eos":
            text = "the template ends no response with the tokenizer's end token; use apo_pooling: last"
            without = [row for row, ends in zip(dataset["example_id"], dataset["end"], strict=True) if min(ends) < 0]
            if without:
                problems = [Problem(record_mark(name), 0, "apo_pooling", "FP222", text) for name in without]
                raise BadData(data.pinpoint(problems))

    def check_training(self, dataset: Any, arguments: Any) -> None:
        """Some record needs a coefficient above 0, and `apo_loss: wgan` a record that it is for."""
        coefficients = {"human": arguments.apo_kl_coeff, "apo": arguments.apo_coeff}
        kinds = {reward_metrics.KINDS[is_apo] for is_apo in dataset["is_apo"]}
        if not any(coefficients[kind] > 0 for kind in kinds):
            text = f"all training records are {' and '.join(sorted(kinds))}, and the coefficient of these is 0"
            raise BadData([Problem("dataset", 0, "kind", "FP223", text)])
        if arguments.apo_loss == "wgan" and "apo" not in kinds:
            text = "apo_loss: wgan is for records of kind apo, and there is none to train on"
            raise BadData([Problem("dataset", 0, "kind", "FP224", text)])

    def build_trainer(self, parts: Any, **common: Any) -> ApoTrainer:
        arguments, training_args = parts.finetuning_args, parts.training_args
        value_head.settle(parts.model)
        if training_args.ddp_find_unused_parameters is None:
            # `settle` left none unused. Searching for them breaks reentrant gradient checkpointing, the default.
            training_args.ddp_find_unused_parameters = False
        training_args.batch_eval_metrics = False  # metrics are of the whole set; rewards are small
        training_args.eval_do_concat_batches = True
        tokenizer = parts.tokenizer_module["tokenizer"]
        return ApoTrainer(
            data_collator=ApoCollator(pad_token_id=tokenizer.pad_token_id, pooling=arguments.apo_pooling),
            **common,
            **parts.trainer_arguments(),
        )

    def plot_keys(self, arguments: Any) -> list[str]:
        names = ("accuracies", "margins", "chosen", "rejected", "mean")
        return [*(f"rewards/{name}" for name in names), "calibration/ece"]

    def settings(self, arguments: Any) -> dict[str, Any]:
        """The options that define the run."""
        keys = ("kl_coeff", "coeff", "sample_num", "loss", "normalization", "pooling")
        return {f"apo_{key}": getattr(arguments, f"apo_{key}") for key in keys} | {
            "finetuning_type": arguments.finetuning_type
        }
