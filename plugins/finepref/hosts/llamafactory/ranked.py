"""Shape "ranked" on LLaMA-Factory: a reward model on scored lists of responses, by the host's value-head model.

If the stage's loss is a mean over the optimizer step, the records of the step are counted on all ranks. So neither
gradient accumulation nor the number of processes changes the loss.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from llamafactory.train.callbacks import FixValueHeadModelCallback
from llamafactory.train.rm.trainer import PairwiseTrainer
from transformers import Trainer
from transformers.integrations import is_deepspeed_zero3_enabled

from finepref.formats.check import BadData, Problem
from finepref.hosts import reward_metrics
from finepref.hosts.batching import RowTokens, padded
from finepref.hosts.exact import floats
from finepref.hosts.llamafactory import value_head
from finepref.hosts.llamafactory.adapter import Adapter, keeps_batches
from finepref.hosts.llamafactory.batches import Batched, list_lengths, list_maxima, list_sums
from finepref.hosts.llamafactory.ranked_data import RankedCollator, RankedProcessor
from finepref.hosts.llamafactory.tokenized import TokenizedCheck
from finepref.hosts.llamafactory.verdicts import distinct
from finepref.hosts.meter import Meter, Tally
from finepref.hosts.run import Run
from finepref.losses.ops import reduce
from finepref.losses.positions import marked_positions, place_at
from finepref.losses.ranks import alone, sum_over_ranks
from finepref.methods import overlong
from finepref.methods.batches import Ranked
from finepref.methods.options import RankedOptions
from finepref.methods.ranked_rows import without_end

SCORES_FILE = "finepref_scores.jsonl"


class RankedTrainer(Batched, PairwiseTrainer):
    """The host's reward-model trainer with score lists, the stage's loss, and checkpoints that can be resumed."""

    def __init__(self, *, run: Run, **kwargs: Any) -> None:
        self.run = run
        self.trained = Tally()
        self.meter = Meter((*reward_metrics.NAMES, *run.stage.metrics))
        super().__init__(**kwargs)
        if self.is_fsdp_enabled:
            value_head.name_by_modules(self.model)
        self.remove_callback(FixValueHeadModelCallback)  # `_save` writes the file that it would make

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, None]:
        """The micro-batches of one optimizer step. Counts the step's records of each kind on all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        apo = torch.zeros((), dtype=torch.int64, device=device)
        for batch in batches:
            apo = apo + batch["is_apo"].sum()
        both = torch.full_like(apo, sum(len(batch["is_apo"]) for batch in batches))
        self.step_counts = tuple(sum_over_ranks(torch.stack([both - apo, apo])))
        return batches, None

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any):
        """The loss of a micro-batch, scaled so that the mean over a step's micro-batches is the loss of the step."""
        rewards = self.rewards(model, inputs)
        counts = self.step_counts if self.run.options.over_step else None
        present, is_apo = inputs["present"].bool(), inputs["is_apo"].bool()
        scores = floats(inputs["scores"])
        out, metrics = self.run.stage.losses(Ranked(rewards, scores, present, is_apo, counts), self.run.options)
        if counts is None and self.batch_tokens is None:
            loss = reduce(out)
        else:  # a part of a sum; the host divides by the number of parts
            loss = reduce(out, count=sum(self.step_counts)) * self.current_gradient_accumulation_steps
        self.run.count(len(is_apo))
        self.meter.add("train", reward_metrics.totals(rewards.detach(), scores, present, is_apo))
        if metrics:
            self.meter.add_values("train", metrics, out.valid)
        self.trained.add(human=(~is_apo).sum(), apo=is_apo.sum())
        return (loss, rewards) if return_outputs else loss

    def rewards(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        """One reward per response, [B, R] float32. Padding responses are not computed and have reward 0."""
        present = batch["present"].bool()  # [B, R]
        places = marked_positions(present, batch.get("responses"))  # [N]
        ids, attended, position = (
            batch[key].flatten(0, 1)[places] for key in ("input_ids", "attention_mask", "position")
        )
        wrapper = self.accelerator.unwrap_model(self.model)
        _, pooling = self.run.options.pooling
        with value_head.pooled(wrapper, attended, position, pooling):
            _, _, values = model(input_ids=ids, attention_mask=attended, return_dict=True, use_cache=False)  # [N, 1]
        if values.shape != (len(ids), 1):
            raise ValueError(f"{len(ids)} responses gave values of shape {[*values.shape]}")
        return place_at(values.squeeze(1).float(), places, present)

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None):
        """The rewards, without a loss: `evaluation_loop` computes it over the whole data set."""
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
        """Loss and metrics of the whole data set, independent of batch size and number of ranks."""
        output = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
        rewards, bits_of_scores, present, is_apo = (
            torch.as_tensor(a) for a in (output.predictions, *output.label_ids)
        )
        present = present == 1  # the host pads with -100
        scores = floats(bits_of_scores).masked_fill(bits_of_scores == -100, -100.0)
        output = output._replace(label_ids=tuple(a.numpy() for a in (scores, present.long(), is_apo)))
        found = reward_metrics.metrics(rewards, scores, present, is_apo)
        with alone():  # the results of all ranks are here, on the CPU
            out, _ = self.run.stage.losses(Ranked(rewards, scores, present, is_apo), self.run.options)
            found["loss"] = reduce(out).item()
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        if self.is_world_process_zero():
            file = Path(self.args.output_dir, f"{metric_key_prefix.replace('/', '_')}_reliability.png")
            own = reward_metrics.calibration_of(reward_metrics.pairs_of(rewards, scores, present))
            title = f"{Path(self.args.output_dir).name}, step {self.state.global_step}"
            reward_metrics.draw_reliability(own, file, title=title)
        return output

    def write_scores(self, datasets: Any) -> None:
        """For `do_predict`: write the rewards of every record to a file, one line each, in the order of the data."""
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
            logs.update(self.meter.means("train", self.accelerator.device))
        super().log(logs, *args, **kwargs)

    def rank_report(self) -> dict[str, Any]:
        """This rank's part of the receipt."""
        return {"records": dict.fromkeys(reward_metrics.KINDS, 0) | self.trained.read()}

    def run_report(self, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        """The run's part of the receipt: records trained on by kind."""
        return {"records": {kind: sum(rank["records"][kind] for rank in ranks) for kind in reward_metrics.KINDS}}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Save decoder or adapter with its own save_pretrained, which handles tied weights, and the head beside it."""
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

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Upload a checkpoint; of its files, transformers takes only those of the decoder into the output folder."""
        if self.is_world_process_zero():
            value_head.copy_head(checkpoint_folder, self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load what `_save` wrote; the host itself cannot resume a reward model."""
        if self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        super()._load_from_checkpoint(resume_from_checkpoint, self.model.pretrained_model)
        value_head.load_head(self.model, resume_from_checkpoint)


class RankedCheck(TokenizedCheck):
    """Finds records whose reward is to be read at an end token that is not there."""

    def row(self, row: dict[str, Any]) -> tuple[str, Sequence[Problem]]:
        if min(row["end"]) >= 0:
            return "", ()
        return self.of_cut(row, [without_end(row["example_id"], self.options)], "FP222", overlong.END_CUT)


class RankedAdapter(Adapter):
    """Data and training of the stages on scored lists."""

    schema = RankedProcessor.schema
    adds_value_head = True
    predicts = True

    def processor(self, options: RankedOptions) -> Any:
        return partial(RankedProcessor, overlong=options.overlong)

    def check(self, options: RankedOptions) -> RankedCheck | None:
        return RankedCheck(self.stage.name, options) if options.pooling[1] == "eos" else None

    def row_tokens(self, dataset: Any) -> RowTokens:
        """All responses of a record are sequences of one batch, as long as its longest."""
        prompt, count = list_lengths(dataset, "prompt"), list_lengths(dataset, "lengths")
        longest = padded(prompt + list_maxima(dataset, "lengths"))
        return RowTokens((count * longest)[:, None], count * prompt + list_sums(dataset, "lengths"))

    def check_training(self, dataset: Any, options: RankedOptions) -> None:
        """The stage's own check of the kinds of records in its training data."""
        kinds = {reward_metrics.KINDS[is_apo] for is_apo in distinct(dataset, "is_apo")}
        if self.stage.check_data and (problems := self.stage.check_data(kinds, options)):
            raise BadData(problems)

    def build_trainer(self, parts: Any, **common: Any) -> RankedTrainer:
        training_args = parts.args.training
        value_head.settle(parts.model, new=training_args.do_train and not value_head.has_head(parts.args.model))
        if is_deepspeed_zero3_enabled():
            value_head.match_dtype(parts.model)
        if training_args.ddp_find_unused_parameters is None:
            # `settle` left none unused. Searching for them breaks reentrant gradient checkpointing, the default.
            training_args.ddp_find_unused_parameters = False
        training_args.batch_eval_metrics = False  # metrics need the whole data set; rewards need little memory
        training_args.eval_do_concat_batches = True
        tokenizer = parts.tokenizer_module["tokenizer"]
        return RankedTrainer(
            data_collator=RankedCollator(
                pad_token_id=tokenizer.pad_token_id,
                pooling=parts.run.options.pooling[1],
                counts=keeps_batches(parts.args),
            ),
            **common,
            **parts.trainer_arguments(),
        )

    def plot_keys(self, options: RankedOptions) -> list[str]:
        names = ("accuracies", "margins", "chosen", "rejected", "mean")
        return [*(f"rewards/{name}" for name in names), "calibration/ece"]
