"""Shape "lists" on OpenRLHF: a policy on lists of scored responses, with the trainer of pairs.

The host's training loop expects pairs. So a record's best response is "chosen", and the others, best first, are
"rejected". B records, R responses of the longest list, N responses in all, L tokens, T = L - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from finepref.hosts import trees
from finepref.hosts.openrlhf import cached_reference, pairs, ranked_data, training
from finepref.hosts.openrlhf.command_line import Request
from finepref.hosts.openrlhf.ranked_data import RankedRow
from finepref.hosts.token_values import TokenValues
from finepref.methods.batches import Lists


class Batch(NamedTuple):
    """What the host's batch does not say. The N responses are the best of each record, then the others.

    Attributes:
        weight: bool [N, T] in label space, the tokens of the responses.
        places: [N], where each response stands in the flat [B, R].
        scores: [B, R], ranks; 0 for a missing response.
        present: bool [B, R].
        tokens: the number of responses and of their tokens.
        reference: [N, T], log pi_ref of all response tokens, if it is kept.
        trees: see `trees.make`; None if there are none.
    """

    weight: Tensor
    places: Tensor
    scores: Tensor
    present: Tensor
    tokens: dict[str, int]
    reference: Tensor | None = None
    trees: dict[str, Any] | None = None

    @property
    def needed(self) -> int:
        """How many tokens are read."""
        return self.tokens["tokens"]

    @property
    def rejected_from(self) -> int:
        """0, as no KL is read."""
        return 0


def order_of(rows: Sequence[RankedRow]) -> list[tuple[int, int]]:
    """(record, response) of the N responses in their order."""
    others = [(b, r) for b, row in enumerate(rows) for r in range(1, len(row.sequences))]
    return [*((b, 0) for b in range(len(rows))), *others]


def batch_of(rows: list[RankedRow], *, shares: bool = False) -> Batch:
    """The `Batch` of records whose responses are padded on the right, with trees if they are wanted."""
    width, order = max(len(row.sequences) for row in rows), order_of(rows)
    sequences = [rows[b].sequences[r] for b, r in order]
    length = max(map(len, sequences))
    lengths, starts = torch.tensor([*map(len, sequences)]), torch.tensor([rows[b].prompt for b, _ in order])
    columns = torch.arange(length)
    weight = (columns >= starts.clamp(min=1)[:, None]) & (columns < lengths[:, None])  # nothing predicts column 0
    scores, present = torch.zeros(len(rows), width), torch.zeros(len(rows), width, dtype=torch.bool)
    for b, row in enumerate(rows):
        scores[b, : len(row.ranks)], present[b, : len(row.ranks)] = torch.tensor(row.ranks).float(), True
    reference = made = None
    if rows[0].reference is not None:
        reference = cached_reference.placed([rows[b].reference[r] for b, r in order], lengths.tolist())
    if shares:
        read = [trees.Row(ids.numpy(), weight[i, : len(ids)].numpy()) for i, ids in enumerate(sequences)]
        made = trees.make(read, trees.together(b for b, _ in order), length)
    needed = weight[:, 1:].contiguous()
    tokens = {"responses": len(order), "tokens": int(needed.sum())}
    places = torch.tensor([b * width + r for b, r in order])
    return Batch(needed, places, scores, present, tokens, reference, made)


class ListDataset(ranked_data.Dataset):
    """Data set of `RankedRow` for the host's loader."""

    def collate_fn(self, rows: list[RankedRow]) -> tuple[Any, ...]:
        """chosen [B, 1, L] and rejected [N - B, 1, L], padded on the right, with masks, and the `Batch`."""
        sequences = [rows[b].sequences[r].long() for b, r in order_of(rows)]
        ids = pad_sequence(sequences, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        mask = (torch.arange(ids.shape[1]) < torch.tensor([*map(len, sequences)])[:, None]).long()
        count = len(rows)
        inputs = (part for half in (slice(count), slice(count, None)) for part in (ids[half], mask[half]))
        return *(part.unsqueeze(1) for part in inputs), batch_of(rows, shares=self.shares)


class ListTrainer(pairs.PairTrainer):
    """The host's DPO trainer on scored lists. Its metric `acc` compares a record's best and worst response."""

    def inputs(self, values: TokenValues, batch: Batch) -> Lists:
        return Lists.of_tokens(values.logps, values.reference, batch.places, batch.scores, batch.present)


def prepare(request: Request) -> Callable[[], None]:
    """Check data and options. Returns the function that trains.

    Raises:
        BadData, ValueError: as in `training.prepare`, or the stage refuses the data as a whole.
    """
    run, splits = training.prepare(
        request, padding_side="right", tokenise=ranked_data.tokenise, make=ranked_data.record_of
    )
    ranked_data.check_kinds(request, splits[0])
    return pairs.host_train(request, run, splits, ranked_data.texts_of, dataset=ListDataset, trainer=ListTrainer)
