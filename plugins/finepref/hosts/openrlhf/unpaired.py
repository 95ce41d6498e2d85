"""Shape "unpaired" on OpenRLHF, with the host's DPO trainer: each of its pairs is an answer and a bad alternative.

So a record gives one desirable and one undesirable response. Their mismatched responses for the KL are in the fifth
item of the host's batch. `finepref.methods.draws` draws the alternative and the mismatched responses of an epoch.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from openrlhf.trainer.dpo_trainer import DPOTrainer
from torch import Tensor

from finepref.formats import negatives, records
from finepref.formats.problems import BadData, Problem
from finepref.hosts.openrlhf import data, forward, pairs, training
from finepref.hosts.openrlhf.command_line import Request
from finepref.losses import ops
from finepref.methods.batches import Unpaired
from finepref.methods.draws import digest_text, draw_digest, draw_index, partners, prompt_key, sum_digests


class UnpairedRow(NamedTuple):
    """A record's prompt and responses, int32 [L] each, and the responses of another prompt, by error type."""

    record_id: str
    prompt: Tensor
    chosen: Tensor
    negatives: dict[str, Tensor]
    other_chosen: Tensor
    other_negatives: dict[str, Tensor]


class Drawn(NamedTuple):
    """The draw of a record in an epoch.

    Attributes:
        chosen, rejected: prompt and response, int32 [L].
        kl_chosen, kl_rejected: the same prompt with responses of another one.
        start: index of the first response token.
        kind: the drawn error type.
        digest: sum of the hashes of the record's two draws, see `finepref.methods.draws.draw_digest`.
    """

    chosen: Tensor
    rejected: Tensor
    kl_chosen: Tensor
    kl_rejected: Tensor
    start: int
    kind: str
    digest: int


def tokenise(found: list[data.Sourced], encoder: data.Encoder, name: str) -> tuple[training.Rows, list[Problem]]:
    """Tokenise records, each with the responses of another prompt. Returns the rows and all problems.

    Raises:
        BadData: all records have the same prompt.
    """
    problems: list[Problem] = []
    prompts: list[list[int]] = []
    responses: list[dict[str, list[int]]] = []
    for source in data.watched(found, name):
        record, wrong = source.record, []
        before, ids = encoder.prompt(record, wrong)
        prompts.append(ids)
        texts = {"chosen": record.chosen, **record.negatives}
        encoded = {kind: encoder.response(record, kind, text, before, wrong) for kind, text in texts.items()}
        responses.append({kind: response for kind, (response, *_) in encoded.items()})
        problems += source.places(wrong)
    if problems:
        return training.Rows(), problems
    rows = training.Rows()
    ring = partners([(prompt_key(source.record), source.record.id) for source in found], name=name)
    for source, prompt, mine, other in zip(found, prompts, responses, ring, strict=True):
        rows.append(UnpairedRow(source.record.id, _ids(prompt), *_sides(mine), *_sides(responses[other])))
    return rows, problems


def grouped(found: list[data.Sourced]) -> list[data.Sourced]:
    """Group rows of single responses by prompt into records; other records stay unchanged.

    Raises:
        BadData: rows of one prompt contradict each other.
    """
    single = [source[:3] for source in found if isinstance(source.record, records.Feedback)]
    joined, problems = negatives.group_feedback(single)
    if problems:
        raise BadData(problems)
    places = {record.prompt: (file, line) for file, line, record in reversed(single)}
    whole = [source for source in found if not isinstance(source.record, records.Feedback)]
    sizes = Counter(record.prompt for _, _, record in single)
    return whole + [data.Sourced(*places[record.prompt], record, sizes[record.prompt]) for record in joined]


def _ids(ids: list[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.int32)


def _sides(responses: dict[str, list[int]]) -> tuple[Tensor, dict[str, Tensor]]:
    return _ids(responses["chosen"]), {kind: _ids(ids) for kind, ids in responses.items() if kind != "chosen"}


class UnpairedDataset(pairs.PairDataset):
    """Draws by the epoch that the sampler sets. The evaluation's sampler sets none, so it always draws as in epoch 0.

    Args:
        rows: the tokenised records.
        tokenizer, max_length, strategy: as the host passes them.
        types: the error types to draw from, None for all.
        resampled: whether to draw again in each epoch.
    """

    def __init__(
        self,
        rows: training.Rows,
        tokenizer: Any,
        max_length: int,
        strategy: Any,
        *,
        types: tuple[str, ...] | None,
        resampled: bool,
        **options: Any,
    ) -> None:
        super().__init__(rows, tokenizer, **options)
        self.longest, self.seed = max_length, strategy.args.train.seed
        self.types, self.resampled = types, resampled

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        drawn = self.draw(self.rows[index], int(self.epoch) if self.resampled else 0)
        return *pairs.masked(drawn.chosen), *pairs.masked(drawn.rejected), drawn

    def draw(self, row: UnpairedRow, epoch: int) -> Drawn:
        """The sequences of a record in an epoch, cut at --data.max_len from the right."""

        def pick(alternatives: dict[str, Tensor]) -> str:
            names = sorted(alternatives)
            return names[draw_index(names, row.record_id, seed=self.seed, epoch=epoch, types=self.types)]

        kind = pick(row.negatives)
        texts = (row.chosen, row.negatives[kind], row.other_chosen, row.other_negatives[pick(row.other_negatives)])
        sequences = (torch.cat((row.prompt, text))[: self.longest] for text in texts)
        digest = draw_digest(epoch, row.record_id, "chosen") + draw_digest(epoch, row.record_id, kind)
        return Drawn(*sequences, len(row.prompt), kind, digest)


class UnpairedTrainer(training.Accounted, DPOTrainer):
    """The host's DPO trainer with the loss of an unpaired stage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.loss_fn = self.unpaired_loss
        self.draws = 0  # of this process, see `draws.sum_digests`

    def concatenated_forward(
        self, model: Any, chosen_ids: Tensor, c_mask: Tensor, reject_ids: Tensor, r_mask: Tensor, drawn: list[Drawn]
    ) -> tuple[Any, Any, Any, int]:
        """((log pi of the 2B responses, log pi of their 2B mismatched responses), the draws, balancing loss, 0)."""
        ids, mask, _ = self.concatenated_inputs(chosen_ids, c_mask, reject_ids, r_mask, [])
        starts = torch.tensor([row.start for row in drawn] * 2, device=ids.device)
        sequences = [row.kl_chosen for row in drawn] + [row.kl_rejected for row in drawn]
        kl_ids = torch.nn.utils.rnn.pad_sequence(
            sequences, batch_first=True, padding_value=self.tokenizer.pad_token_id
        )
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        kl_mask = (torch.arange(kl_ids.shape[1]) < lengths[:, None]).long().to(ids.device)
        with torch.no_grad():
            kl_logps, _ = self.response_logps(model, kl_ids.long().to(ids.device), kl_mask, starts)
        logps, output = self.response_logps(model, ids, mask, starts)
        return (logps, kl_logps), drawn, output.get("aux_loss", 0), 0

    def response_logps(self, model: Any, ids: Tensor, mask: Tensor, starts: Tensor) -> tuple[Tensor, Any]:
        """log pi [2B] of each response, including the end token, and the model's output."""
        places = torch.arange(1, ids.shape[1], device=ids.device)
        needed = mask[:, 1:].bool() & (places >= starts[:, None])
        ring, full = self.strategy.ring_attn_group, self.run.options.full_logits
        logits, output = forward.run(model, ids, mask, needed, ring=ring, full=full)
        return logits.logps().sum(-1), output

    def unpaired_loss(self, policy: Any, drawn: list[Drawn], reference: Any, _: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The mean loss over all processes, and the rewards [B] of the desirable and of the undesirable responses."""
        count = len(drawn)
        log_ratio, kl_log_ratio = (mine - theirs for mine, theirs in zip(policy, reference, strict=True))
        desirable = torch.arange(2 * count, device=log_ratio.device) < count
        batch = Unpaired(log_ratio, kl_log_ratio, desirable)
        out, metrics = self.run.stage.losses(batch, self.run.options)
        if torch.is_grad_enabled():  # evaluation has none
            kinds = [row.kind for row in drawn]
            self.count(**{f"drawn/{kind}": kinds.count(kind) for kind in set(kinds)})
            self.draws = sum_digests([self.draws, *(row.digest for row in drawn)])
            logps = policy[0]
            each = {name: value.expand(count) for name, value in metrics.items()}
            each |= {"logps/chosen": logps[:count], "logps/rejected": logps[count:]}
            self.meter.add_values("train", each, out.valid[:count])
        return ops.reduce(out), out.chosen_reward[:count], out.rejected_reward[count:]

    def rank_report(self) -> dict[str, Any]:
        return {"drawn_sum": self.draws}

    def run_report(self, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        """The run's part of the receipt. Equal digests mean equal draws in every epoch, on either host."""
        return {"draws": {"digest": digest_text(sum_digests(rank["drawn_sum"] for rank in ranks))}}


def prepare(request: Request) -> Callable[[], None]:
    """Check data and options. Returns the function that trains. Raises as `training.prepare`."""
    stage, options = request.stage, request.options

    def arrange(found: list[data.Sourced]) -> list[data.Sourced]:
        joined = grouped(found)
        types = {name for source in joined for name in source.record.negatives}
        if stage.check_data and (problems := stage.check_data(types, options)):
            raise BadData(problems)
        return joined

    if options.advice:
        print(f"finepref: warning: {options.advice}", file=sys.stderr)
    run, splits = training.prepare(request, padding_side="right", arrange=arrange, tokenise=tokenise)
    dataset = partial(UnpairedDataset, types=options.error_types, resampled=options.resampled)
    metrics = (*stage.metrics, "logps/chosen", "logps/rejected")
    trainer = partial(UnpairedTrainer, **training.trainer_options(run, request, metrics))
    train = training.host_train(stage.of_shape.openrlhf_module, splits, dataset, DPOTrainer=trainer)
    return partial(train, request.host)
