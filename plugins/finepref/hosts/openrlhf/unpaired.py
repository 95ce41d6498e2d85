"""Shape "unpaired" on OpenRLHF, with the host's DPO trainer: each of its pairs is an answer and a bad alternative.

So a record gives one desirable and one undesirable response. Their mismatched responses for the KL are in the fifth
item of the host's batch. `finepref.methods.draws` draws the alternative and the mismatched responses of an epoch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from openrlhf.trainer.dpo_trainer import DPOTrainer
from torch import Tensor

from finepref.formats import negatives, records
from finepref.formats.problems import BadData, Problem
from finepref.hosts.openrlhf import data, forward, pairs, training
from finepref.hosts.openrlhf.command_line import Request
from finepref.hosts.openrlhf.notes import Notes
from finepref.hosts.reading import Sourced, join_feedback
from finepref.losses import ops
from finepref.methods.batches import Unpaired
from finepref.methods.draws import digest_text, draw_digest, draw_index, partners, prompt_key, sum_digests
from finepref.methods.options import UnpairedOptions
from finepref.methods.overlong import same

MISMATCHED_CUT = "mismatched_response"  # what is cut, see `finepref.hosts.rows.Rows.cut`


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


class _Kept(NamedTuple):
    """A record that is trained on: the tokens of its prompt that are kept, its responses as they are and as they are
    kept, by kind, and what is cut of them."""

    source: Sourced
    prompt: list[int]
    whole: dict[str, list[int]]
    kept: dict[str, list[int]]
    cut: str


def tokenise(
    found: list[Sourced], encoder: data.Encoder, name: str, notes: Notes, *, types: tuple[str, ...] | None
) -> data.TokenisedRows:
    """Tokenise records, each with the responses of another prompt.

    All responses of a record, also the mismatched ones, have the same tokens of the prompt. A negative of which the
    template or the cut makes the desirable response is not drawn.

    Args:
        found: the records.
        encoder: tokenises prompts and responses.
        name: name of the data, for the progress bar and for messages.
        notes: where it is noted what becomes of each record.
        types: the error types to draw from, None for all.
    """
    kept = [each for source in data.watched(found, name) if (each := _kept(source, encoder, notes, types))]
    if not kept:
        return data.TokenisedRows()
    records_kept = [each.source.record for each in kept]
    keyed = [(prompt_key(record), record.id) for record in records_kept]
    texts = [{record.chosen, *_negatives(record, types).values()} for record in records_kept]
    try:
        ring = partners(keyed, texts, name=name)
    except BadData as error:
        notes.bad_rows.problems += error.problems
        return data.TokenisedRows()
    rows = data.TokenisedRows()
    for each, other in zip(kept, ring, strict=True):
        room = encoder.longest - len(each.prompt)
        theirs = kept[other].whole
        is_cut = any(len(ids) > room for ids in theirs.values())
        notes.keep(each.source, ",".join(filter(None, (each.cut, MISMATCHED_CUT if is_cut else ""))))
        mismatched = {kind: encoder.cut(ids, room) for kind, ids in theirs.items()}
        rows.append(UnpairedRow(each.source.record.id, _ids(each.prompt), *_sides(each.kept), *_sides(mismatched)))
    return rows


def _kept(source: Sourced, encoder: data.Encoder, notes: Notes, types: tuple[str, ...] | None) -> _Kept | None:
    """Tokenise a record alone; None if it is left out, which is noted."""
    record, problems = source.record, []
    own = _negatives(record, types)
    texts = {"chosen": record.chosen} | {f"negatives.{kind}": text for kind, text in own.items()}
    prompt, encoded = encoder.encode(record, texts, problems)
    if problems:
        notes.reject(source, problems)
        return None
    whole = {kind: response.ids for kind, response in zip(("chosen", *own), encoded, strict=True)}
    fit = encoder.fit(source, prompt, [*whole.values()], notes)
    if fit is None:
        return None
    kept = {kind: encoder.cut(ids, fit.response) for kind, ids in whole.items()}
    equal = {
        kind: reason
        for kind in kept
        if kind != "chosen" and (reason := same((1, 0), (whole["chosen"], whole[kind]), (kept["chosen"], kept[kind])))
    }
    if len(equal) == len(kept) - 1:
        notes.skip(source, next(iter(equal.values())))
        return None
    for kind, reason in equal.items():
        notes.skip_response(source, kind, reason)
        del kept[kind]
    return _Kept(source, prompt[fit.start : fit.stop], whole, kept, fit.cut)


def _negatives(record: records.Negatives, types: tuple[str, ...] | None) -> dict[str, str]:
    """The negatives that may be drawn, by error type."""
    return {kind: text for kind, text in record.negatives.items() if not types or kind in types}


def grouped(found: list[Sourced], notes: Notes, options: UnpairedOptions) -> list[Sourced]:
    """Group rows of single responses by prompt into records; other records stay unchanged.

    Rows of a prompt that contradict each other are rejected, and rows that cannot be paired with one of the other
    label: the host's trainer takes pairs.
    """
    rows = (source for source in found if isinstance(source.record, records.Feedback))
    joined = join_feedback(rows, singles=False)
    notes.members |= joined.members
    for prompt, problems in joined.wrong.items():
        first, *_ = group = joined.groups[prompt]
        notes.members[first.file, first.line] = [(source.file, source.line) for source in group]
        notes.reject(first, _told(problems, options))
    return [source for source in found if not isinstance(source.record, records.Feedback)] + joined.records


def _told(problems: list[Problem], options: UnpairedOptions) -> list[Problem]:
    """The problems of a prompt. If its rows could be trained on one by one, only the first, with what to do."""
    first = min(problems, key=lambda problem: problem.code)
    if first.code not in negatives.LACKING:
        return problems
    way = "`finepref convert --to negatives --error-type TYPE` names one"
    if first.code != "FP066":
        way = f"{options.key('finepref_bad_rows', 'skip')} leaves such rows out"
    told = f"{first.message}; OpenRLHF trains good and bad in pairs, LLaMA-Factory single rows too; {way}"
    return [replace(first, message=told)]


def _ids(ids: list[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.int32)


def _sides(responses: dict[str, list[int]]) -> tuple[Tensor, dict[str, Tensor]]:
    return _ids(responses["chosen"]), {kind: _ids(ids) for kind, ids in responses.items() if kind != "chosen"}


class UnpairedDataset(pairs.PairDataset):
    """Draws by the epoch that the sampler sets. The evaluation's sampler sets none, so it always draws as in epoch 0.

    Args:
        rows: the tokenised records.
        tokenizer, max_length, strategy: as the host passes them.
        resampled: whether to draw again in each epoch.
    """

    def __init__(
        self,
        rows: data.TokenisedRows,
        tokenizer: Any,
        max_length: int,
        strategy: Any,
        *,
        resampled: bool,
        **options: Any,
    ) -> None:
        super().__init__(rows, tokenizer, **options)
        self.seed, self.resampled = strategy.args.train.seed, resampled

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        drawn = self.draw(self.rows[index], int(self.epoch) if self.resampled else 0)
        return *pairs.masked(drawn.chosen), *pairs.masked(drawn.rejected), drawn

    def draw(self, row: UnpairedRow, epoch: int) -> Drawn:
        """The sequences of a record in an epoch."""

        def pick(alternatives: dict[str, Tensor]) -> str:
            names = sorted(alternatives)
            return names[draw_index(names, row.record_id, seed=self.seed, epoch=epoch)]

        kind = pick(row.negatives)
        texts = (row.chosen, row.negatives[kind], row.other_chosen, row.other_negatives[pick(row.other_negatives)])
        sequences = (torch.cat((row.prompt, text)) for text in texts)
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

    def arrange(found: list[Sourced], notes: Notes) -> list[Sourced]:
        joined = grouped(found, notes, options)
        types = {name for source in joined for name in source.record.negatives}
        if stage.check_data and (problems := stage.check_data(types, options)):
            raise BadData(problems)
        return joined

    if options.advice:
        print(f"finepref: warning: {options.advice}", file=sys.stderr)
    tokenising = partial(tokenise, types=options.error_types)
    run, splits = training.prepare(request, padding_side="right", arrange=arrange, tokenise=tokenising)
    dataset = partial(UnpairedDataset, resampled=options.resampled)
    metrics = (*stage.metrics, "logps/chosen", "logps/rejected")
    trainer = partial(UnpairedTrainer, **training.trainer_options(run, request, metrics))
    names = training.sharing(request)
    train = training.host_train(stage.of_shape.openrlhf_module, splits, dataset, DPOTrainer=trainer, **names)
    return partial(train, request.host)
