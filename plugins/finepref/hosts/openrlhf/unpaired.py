"""Shape "unpaired" on OpenRLHF, with the host's DPO trainer: each of its pairs is an answer and a bad alternative.

So a record gives one desirable and one undesirable response. Their mismatched responses for the KL are in the fifth
item of the host's batch. `finepref.methods.draws` draws the alternative and the mismatched responses of an epoch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from openrlhf.trainer.dpo_trainer import DPOTrainer
from torch import Tensor

from finepref.formats import negatives, records
from finepref.formats.problems import BadData, Problem
from finepref.hosts import packed, trees
from finepref.hosts.openrlhf import cached_reference, data, forward, pairs, training
from finepref.hosts.openrlhf.cached_reference import CachedReference
from finepref.hosts.openrlhf.command_line import Request
from finepref.hosts.openrlhf.notes import Notes
from finepref.hosts.openrlhf.stored_rows import IDS, NAMES, TokenisedRows, Values
from finepref.hosts.reading import Sourced, join_feedback
from finepref.hosts.reference_cache import Digest, Texts, lists, ranges
from finepref.hosts.row_cache import CachedRecords
from finepref.losses import ops
from finepref.methods.batches import Unpaired
from finepref.methods.draws import digest_text, draw_digest, draw_index, partners, prompt_key, sum_digests
from finepref.methods.host_rules import kept_with_end
from finepref.methods.options import UnpairedOptions
from finepref.methods.overlong import same

MISMATCHED_CUT = "mismatched_response"  # what is cut, see `finepref.hosts.rows.Rows.cut`


class UnpairedRow(NamedTuple):
    """A record's prompt and responses, int32 [L] each, and the responses of another prompt, by error type.

    `reference` has log pi_ref of each response's tokens, if it is kept.
    """

    record_id: str
    prompt: Tensor
    chosen: Tensor
    negatives: dict[str, Tensor]
    other_chosen: Tensor
    other_negatives: dict[str, Tensor]
    reference: Sequence[np.ndarray] | None = None

    @property
    def responses(self) -> list[Tensor]:
        """All responses, in the order of `reference`."""
        own = (self.chosen, *self.negatives.values())
        return [*own, self.other_chosen, *self.other_negatives.values()]


class Drawn(NamedTuple):
    """The draw of a record in an epoch.

    Attributes:
        chosen, rejected: prompt and response, int32 [L].
        kl_chosen, kl_rejected: the same prompt with responses of another one.
        start: index of the first response token.
        kind: the drawn error type.
        digest: sum of the hashes of the record's two draws, see `finepref.methods.draws.draw_digest`.
        reference: log pi_ref of the tokens of the four responses, if it is kept.
    """

    chosen: Tensor
    rejected: Tensor
    kl_chosen: Tensor
    kl_rejected: Tensor
    start: int
    kind: str
    digest: int
    reference: Sequence[np.ndarray] | None = None


SCHEMA = pa.schema(
    {"record_id": pa.string(), "prompt": IDS, "kinds": NAMES, "ids": IDS, "lengths": IDS}
    | {"drawn": pa.list_(pa.bool_()), "most": pa.int32(), "room": pa.int32(), "end": pa.int32()}
)
"""Columns of stored records: the tokens of the prompt that are kept; the kind and all tokens (see `packed.joined`) of
each response, "chosen" first, and whether it is drawn; how many tokens of a response, and of a mismatched one, are
kept; and the id of the end token."""
PARTNER = "partner"
"""Array beside the columns: index of the record with the mismatched responses."""


class _Kept(NamedTuple):
    """What is needed of a record that is kept until all are tokenised; `longest` of its responses, uncut."""

    key: str
    texts: set[bytes]
    source: Sourced
    cut: str
    room: int
    longest: int


def record_of(values: Values, rows: TokenisedRows) -> UnpairedRow:
    """The record of these columns, with the responses of its partner."""
    end, other = values["end"], rows.values(int(values[PARTNER]))
    drawn = dict(zip(values["kinds"], values["drawn"], strict=True))
    own = {kind: ids for kind, ids in _responses(values, values["most"], end).items() if drawn[kind]}
    theirs = _responses(other, values["room"], end)
    prompt = torch.from_numpy(np.array(values["prompt"]))
    kept = values.get(cached_reference.NAME)
    return UnpairedRow(values["record_id"], prompt, *_sides(own), *_sides(theirs), kept)


def texts_of(rows: TokenisedRows) -> Texts:
    """The texts of stored records: what may be drawn of each, and the responses of its partner."""
    hashed, tables = Digest(), [pa.Table.from_batches([batch]) for batch in rows.batches]
    for table in tables:
        for name in ("prompt", "ids", "lengths", "drawn"):
            hashed.add(name, *lists(table, name))
        for name in ("most", "room", "end"):
            hashed.add(name, table.column(name).to_numpy())
    partner = np.asarray(rows.more[PARTNER], dtype=np.int64)
    hashed.add(PARTNER, partner)
    prompts = np.concatenate([lists(table, "prompt")[0] for table in tables])
    counts, lengths = map(np.concatenate, zip(*(lists(table, "lengths") for table in tables), strict=True))
    drawn = np.concatenate([lists(table, "drawn")[1] for table in tables]).astype(bool)
    most, room = (np.concatenate([table.column(name).to_numpy() for table in tables]) for name in ("most", "room"))
    every = np.arange(len(counts))
    rows_of_own, theirs = np.repeat(every, counts)[drawn], counts[partner]
    own = np.minimum(lengths, np.repeat(most, counts))[drawn]
    others = lengths[ranges((np.cumsum(counts) - counts)[partner], theirs)]
    others = np.minimum(others, np.repeat(room, theirs))
    owners = np.concatenate([rows_of_own, np.repeat(every, theirs)])
    responses = np.concatenate([own, others])[np.argsort(owners, kind="stable")].astype(np.int64)
    first = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=len(counts)))]).astype(np.int64)

    def row(index: int) -> tuple[Any, list[Any]]:
        record = record_of(rows.values(index), rows)
        return record.prompt.numpy(), [response.numpy() for response in record.responses]

    return Texts(hashed.text, prompts, first, responses, row)


def _responses(values: Values, most: int, end: int) -> dict[str, Tensor]:
    """The first tokens of each response of a record, by kind."""
    parts = zip(values["kinds"], np.split(values["ids"], np.cumsum(values["lengths"])[:-1]), strict=True)
    return {
        kind: torch.from_numpy(np.array(ids if len(ids) <= most else ids[kept_with_end(ids.tolist(), most, end)]))
        for kind, ids in parts
    }


def tokenise(
    found: Iterable[Sourced],
    encoder: data.Encoder,
    name: str,
    notes: Notes,
    path: Path | None = None,
    *,
    types: tuple[str, ...] | None,
) -> TokenisedRows:
    """Tokenise records, each with the responses of another prompt.

    All responses of a record, also the mismatched ones, have the same tokens of the prompt. A negative of which the
    template or the cut makes the desirable response is not drawn.

    Args:
        found: the records.
        encoder: tokenises prompts and responses.
        name: name of the data, for the progress bar and for messages.
        notes: where it is noted what becomes of each record.
        path: file of the rows; None for memory.
        types: the error types to draw from, None for all.
    """
    kept: list[_Kept] = []
    columns = _columns(data.watched(found, name), encoder, notes, types, kept)
    rows = TokenisedRows.of(columns, SCHEMA, record_of, path)
    if not kept:
        return rows
    try:
        keyed = [(each.key, each.source.record.id) for each in kept]
        ring = partners(keyed, [each.texts for each in kept], name=name)
    except BadData as error:
        notes.bad_rows.problems += error.problems
        return rows.select(range(0))
    for each, other in zip(kept, ring, strict=True):
        is_cut = kept[other].longest > each.room
        notes.keep(each.source, ",".join(filter(None, (each.cut, MISMATCHED_CUT if is_cut else ""))))
    rows.more[PARTNER] = np.asarray(ring, dtype=np.int32)
    if path is not None:
        np.save(path.with_suffix(f".{PARTNER}.npy"), rows.more[PARTNER])
    return rows


def _columns(
    found: Iterable[Sourced],
    encoder: data.Encoder,
    notes: Notes,
    types: tuple[str, ...] | None,
    kept: list[_Kept],
) -> Iterator[dict[str, Any]]:
    for source in found:
        if (made := _tokenised(source, encoder, notes, types)) is not None:
            columns, each = made
            kept.append(each)
            yield columns


def _tokenised(
    source: Sourced, encoder: data.Encoder, notes: Notes, types: tuple[str, ...] | None
) -> tuple[dict[str, Any], _Kept] | None:
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
    room = encoder.longest - (fit.stop - fit.start)
    ids, lengths = packed.joined(whole.values())
    columns = {
        "record_id": record.id,
        "prompt": packed.ids(prompt[fit.start : fit.stop]),
        "kinds": [*whole],
        "ids": ids,
        "lengths": lengths,
        "drawn": [kind not in equal for kind in whole],
        "most": fit.response,
        "room": room,
        "end": encoder.tokenizer.eos_token_id,
    }
    digests = {blake2b(text.encode(), digest_size=8).digest() for text in (record.chosen, *own.values())}
    few = source._replace(record=SimpleNamespace(id=record.id))
    return columns, _Kept(prompt_key(record), digests, few, fit.cut, room, max(map(len, whole.values())))


def _negatives(record: records.Negatives, types: tuple[str, ...] | None) -> dict[str, str]:
    """The negatives that may be drawn, by error type."""
    return {kind: text for kind, text in record.negatives.items() if not types or kind in types}


def grouped(found: Sequence[Sourced], notes: Notes, options: UnpairedOptions) -> Sequence[Sourced]:
    """Group rows of single responses by prompt into records; other records stay unchanged.

    Rows of a prompt that contradict each other are rejected, and rows that cannot be paired with one of the other
    label: the host's trainer takes pairs.
    """
    if isinstance(found, CachedRecords) and "feedback" not in found.formats:
        return found
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


def _sides(responses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    return responses["chosen"], {kind: ids for kind, ids in responses.items() if kind != "chosen"}


class Batch(NamedTuple):
    """The draws of a micro-batch, and their mismatched responses, 2B with the desirable half first.

    Attributes:
        kl_ids, kl_mask: [2B, L], padded on the right.
        starts: [2B], index of the first response token.
        needed, kl_needed: number of response tokens, and of the mismatched responses' tokens.
        kinds: the drawn error type of each record.
        digest: sum of the digests of the draws.
        reference, kl_reference: [2B, T], log pi_ref of both kinds of responses, if kept.
        trees: of the responses (""), of the mismatched ones ("kl_"), and of both ("both", the latter behind the
            former), see `trees.make`; None if there are none.
    """

    kl_ids: Tensor
    kl_mask: Tensor
    starts: Tensor
    needed: int
    kl_needed: int
    kinds: tuple[str, ...]
    digest: int
    trees: dict[str, Any] | None = None
    reference: Tensor | None = None
    kl_reference: Tensor | None = None


def batch_of(drawn: list[Drawn], pad: int, *, shares: bool = False) -> Batch:
    """The fifth item of the host's batch."""
    mismatched = [row.kl_chosen for row in drawn] + [row.kl_rejected for row in drawn]
    kl_ids = torch.nn.utils.rnn.pad_sequence(mismatched, batch_first=True, padding_value=pad).long()
    lengths = torch.tensor([len(sequence) for sequence in mismatched])
    kl_mask = (torch.arange(kl_ids.shape[1]) < lengths[:, None]).long()
    prompts = 2 * sum(row.start for row in drawn)
    kept: list[Tensor | None] = [None, None]
    if drawn[0].reference is not None:
        own = [row.chosen for row in drawn] + [row.rejected for row in drawn]
        for place, sequences in enumerate((own, mismatched)):
            values = [row.reference[2 * place + half] for half in range(2) for row in drawn]
            kept[place] = cached_reference.placed(values, [*map(len, sequences)])
    return Batch(
        kl_ids,
        kl_mask,
        torch.tensor([row.start for row in drawn] * 2),
        sum(len(row.chosen) + len(row.rejected) for row in drawn) - prompts,
        sum(map(len, mismatched)) - prompts,
        tuple(row.kind for row in drawn),
        sum_digests(row.digest for row in drawn),
        _trees(drawn) if shares else None,
        *kept,
    )


def _trees(drawn: list[Drawn]) -> dict[str, Any]:
    """The trees of a micro-batch, see `Batch`. All ranks run as many passes, so there always are three."""
    count = len(drawn)
    own, mismatched = (
        [
            trees.Row(ids.numpy(), np.arange(len(ids)) >= row.start)
            for ids, row in zip(responses, drawn * 2, strict=True)
        ]
        for responses in (
            [row.chosen for row in drawn] + [row.rejected for row in drawn],
            [row.kl_chosen for row in drawn] + [row.kl_rejected for row in drawn],
        )
    )
    parts = {"": own, "kl_": mismatched, "both": own + mismatched}
    return {
        kind: trees.make(
            rows, [[*range(i, len(rows), count)] for i in range(count)], max(len(row.ids) for row in rows), always=True
        )
        for kind, rows in parts.items()
    }


class UnpairedDataset(pairs.PairDataset):
    """Draws by the epoch that the sampler sets. The evaluation's sampler sets none, so it always draws as in epoch 0.

    Args:
        rows: the tokenised records.
        tokenizer, max_length, strategy: as the host passes them.
        resampled: whether to draw again in each epoch.
        options: as of `pairs.PairDataset`.
    """

    def __init__(
        self,
        rows: TokenisedRows,
        tokenizer: Any,
        max_length: int,
        strategy: Any,
        *,
        resampled: bool,
        **options: Any,
    ) -> None:
        super().__init__(rows, tokenizer, **options)
        self.seed, self.resampled = strategy.args.train.seed, resampled

    def lengths(self) -> np.ndarray:
        """Tokens of the longest sequence that may be drawn of each record, [N]; mismatched responses do not count."""
        return self.rows.list_lengths("prompt") + self.rows.list_maxima("lengths")

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        drawn = self.draw(self.rows[index], int(self.epoch) if self.resampled else 0)
        return *pairs.masked(drawn.chosen), *pairs.masked(drawn.rejected), drawn

    def batch_of(self, rows: list[Drawn]) -> Batch:
        return batch_of(rows, self.tokenizer.pad_token_id, shares=self.shares)

    def draw(self, row: UnpairedRow, epoch: int) -> Drawn:
        """The sequences of a record in an epoch."""

        def pick(alternatives: dict[str, Tensor]) -> str:
            names = sorted(alternatives)
            return names[draw_index(names, row.record_id, seed=self.seed, epoch=epoch)]

        kind, other = pick(row.negatives), pick(row.other_negatives)
        texts = (row.chosen, row.negatives[kind], row.other_chosen, row.other_negatives[other])
        sequences = (torch.cat((row.prompt, text)) for text in texts)
        digest = draw_digest(epoch, row.record_id, "chosen") + draw_digest(epoch, row.record_id, kind)
        kept = None
        if row.reference is not None:
            theirs = 1 + len(row.negatives)  # the place of the first mismatched response
            places = (0, 1 + [*row.negatives].index(kind), theirs, theirs + 1 + [*row.other_negatives].index(other))
            kept = [row.reference[place] for place in places]
        return Drawn(*sequences, len(row.prompt), kind, digest, kept)


class UnpairedTrainer(training.Sharer, training.Accounted, DPOTrainer):
    """The host's DPO trainer with the loss of an unpaired stage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.loss_fn = self.unpaired_loss
        self.draws = 0  # of this process, see `draws.sum_digests`
        self.share()

    def concatenated_forward(
        self, model: Any, chosen_ids: Tensor, c_mask: Tensor, reject_ids: Tensor, r_mask: Tensor, batch: Batch
    ) -> tuple[Any, Any, Any, int]:
        """((log pi of the 2B responses, log pi of their 2B mismatched responses), the batch, balancing loss, 0)."""
        ids, mask, _ = self.concatenated_inputs(chosen_ids, c_mask, reject_ids, r_mask, [])
        batch = training.moved(batch, ids.device)
        if model is self.ref_model and batch.reference is not None:
            return (batch.reference.sum(-1), batch.kl_reference.sum(-1)), batch, 0, 0
        if self.shares() and batch.trees is not None:
            return (*self._of_trees(model, batch), 0)
        with torch.no_grad():
            kl_logps, _ = self.response_logps(model, batch.kl_ids, batch.kl_mask, batch.starts, batch.kl_needed)
        logps, output = self.response_logps(model, ids, mask, batch.starts, batch.needed)
        return (logps, kl_logps), batch, output.get("aux_loss", 0), 0

    def _of_trees(self, model: Any, batch: Batch) -> tuple[Any, Any, Any]:
        """The same of trees; the reference reads all responses in one pass."""

        def logps(kind: str) -> tuple[Tensor, Any]:
            values, output = forward.values(model, trees.Trees.of(batch.trees[kind], self.sharing.mask))
            return values.logps.sum(-1), output

        if model is self.ref_model:
            both, output = logps("both")
            return both.chunk(2), batch, 0
        with torch.no_grad():
            kl_logps, _ = logps("kl_")
        own, output = logps("")
        return (own, kl_logps), batch, output.get("aux_loss", 0)

    def response_logps(self, model: Any, ids: Tensor, mask: Tensor, starts: Tensor, count: int) -> tuple[Tensor, Any]:
        """log pi [2B] of each response, including the end token, and the model's output.

        Args:
            model: the host's Actor.
            ids, mask: [2B, L], padded on the right.
            starts: [2B], index of the first response token.
            count: number of response tokens.
        """
        places = torch.arange(1, ids.shape[1], device=ids.device)
        needed = mask[:, 1:].bool() & (places >= starts[:, None])
        options = {"ring": self.strategy.ring_attn_group, "full": self.run.options.full_logits}
        values, output = forward.values(model, forward.Rows(ids, mask, needed, count, **options))
        return values.logps.sum(-1), output

    def unpaired_loss(self, policy: Any, drawn: Batch, reference: Any, _: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The mean loss over all processes, and the rewards [B] of the desirable and of the undesirable responses."""
        count = len(drawn.kinds)
        log_ratio, kl_log_ratio = (mine - theirs for mine, theirs in zip(policy, reference, strict=True))
        desirable = torch.arange(2 * count, device=log_ratio.device) < count
        batch = Unpaired(log_ratio, kl_log_ratio, desirable)
        out, metrics = self.run.stage.losses(batch, self.run.options)
        if torch.is_grad_enabled():  # evaluation has none
            self.count(**{f"drawn/{kind}": drawn.kinds.count(kind) for kind in set(drawn.kinds)})
            self.draws = sum_digests([self.draws, drawn.digest])
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

    def arrange(found: Sequence[Sourced], notes: Notes) -> Sequence[Sourced]:
        joined = grouped(found, notes, options)
        types = {name for source in joined for name in source.record.negatives}
        if stage.check_data and (problems := stage.check_data(types, options)):
            raise BadData(problems)
        return joined

    if options.advice:
        print(f"finepref: warning: {options.advice}", file=sys.stderr)
    tokenising = partial(tokenise, types=options.error_types)
    run, splits = training.prepare(request, padding_side="right", arrange=arrange, tokenise=tokenising, make=record_of)
    dataset = partial(UnpairedDataset, resampled=options.resampled, grouped=options.finepref_group_by_length)
    metrics = (*stage.metrics, "logps/chosen", "logps/rejected")
    cached = CachedReference(run, request, splits, texts_of) if options.caches_reference else None
    trainer = partial(UnpairedTrainer, cached=cached, **training.trainer_options(run, request, metrics))
    names = cached.actors() if cached else training.sharing(request)
    train = training.host_train(stage.of_shape.openrlhf_module, splits, dataset, DPOTrainer=trainer, **names)
    return partial(train, request.host)
