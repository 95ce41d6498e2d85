"""Scored lists of responses, of reward models and of policies: a sequence per response, padded to [B, R, T]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finepref.formats import records
from finepref.formats.problems import BadData, Problem
from finepref.hosts import packed, reward_metrics
from finepref.hosts.batching import RowTokens, padded
from finepref.hosts.exact import bits
from finepref.hosts.llamafactory.batches import list_lengths, list_maxima, list_sums
from finepref.hosts.llamafactory.record_processor import RowPerRecordProcessor
from finepref.hosts.llamafactory.tokenized import encoded
from finepref.hosts.llamafactory.verdicts import distinct, verdict
from finepref.losses.pooling import tokens_read
from finepref.methods import overlong
from finepref.methods.options import Options
from finepref.methods.ranked_rows import response_field, scored
from finepref.methods.stage import Stage


@dataclass
class RankedProcessor(RowPerRecordProcessor):
    """One row per record, with one sequence per response."""

    schema: str = "apo-rm-3"

    def row(self, record: records.Record, place: str, count: int) -> dict[str, Any]:
        """Tokenise a record. `last`, `end`: positions of each response's last text token and end token (-1: none)."""
        responses, scores, kind = scored(record)
        texts = {response_field(record, index): response for index, response in enumerate(responses)}
        refused: list[Problem] = []
        prompt_ids, found = encoded(self, record, texts, refused)
        kept, problems = self.fit(record, prompt_ids, found)
        problems = refused or problems
        left = [ids[: kept.response] for ids in found.values()]
        skipped = kept.skipped or ("" if problems else overlong.same(scores, [*found.values()], left))
        prompt = prompt_ids[kept.start : kept.stop]
        last, end = [], []
        for whole in found.values():
            to_last, to_end = (tokens_read(whole, self.tokenizer.eos_token_id, how) for how in ("last", "eos"))
            last.append(len(prompt) + min(to_last, kept.response) - 1)
            end.append(-1 if to_end is None or to_end > kept.response else len(prompt) + to_end - 1)
        flat, lengths = packed.joined(left)
        return {
            "example_id": record.id,
            "prompt": packed.ids(prompt),
            "responses": flat,
            "lengths": lengths,
            "last": packed.ids(last),
            "end": packed.ids(end),
            "scores": [float(score) for score in scores],
            "is_apo": kind == "apo",
            "rows": count,
            "place": place,
            "cut": kept.cut,
        } | verdict(record.id, place, count, cut=kept.cut, skipped=skipped, problems=problems)

    def print_data_example(self, example: dict[str, Any]) -> None:
        """Print the first row, as the host does for its own data."""
        for score, ids in zip(example["scores"], sequences_of(example), strict=True):
            print(f"score {score:g}:\n{self.tokenizer.decode(ids, skip_special_tokens=False)}")


def sequences_of(row: dict[str, Any]) -> list[list[int]]:
    """Prompt and response of each response of a tokenised row."""
    prompt = packed.plain(row["prompt"])
    return [prompt + ids for ids in packed.parted(row["responses"], row["lengths"])]


def row_tokens(dataset: Any) -> RowTokens:
    """All responses of a record are sequences of one batch, as long as its longest."""
    prompt, count = list_lengths(dataset, "prompt"), list_lengths(dataset, "lengths")
    longest = padded(prompt + list_maxima(dataset, "lengths"))
    return RowTokens((count * longest)[:, None], count * prompt + list_sums(dataset, "lengths"))


def check_kinds(stage: Stage, dataset: Any, options: Options) -> None:
    """The stage's own check of the kinds of records in its training data. Raises BadData."""
    kinds = {reward_metrics.KINDS[is_apo] for is_apo in distinct(dataset, "is_apo")}
    if stage.check_data and (problems := stage.check_data(kinds, options)):
        raise BadData(problems)


def padded_lists(
    sequences: Sequence[Sequence[Sequence[int]]], scores: Sequence[Sequence[float]], pad: int, multiple: int = 8
) -> dict[str, Tensor]:
    """Records padded to the longest list and the longest sequence. B records, R responses, T tokens.

    The first dimension of every tensor is the record, so that the host's samplers, gathers and truncation of the last
    batch work on records.

    Args:
        sequences: token ids of each response of each record, with its prompt.
        scores: of each response of each record.
        pad: token id of the padding, which is on the right.
        multiple: of which T is one.

    Returns:
        input_ids, attention_mask [B, R, T]; present [B, R], 0 for padding responses; all int64. `scores` [B, R], which
        are float64 as `finepref.hosts.exact.bits`: different scores must not round to the same number.
    """
    longest = max(len(ids) for record in sequences for ids in record)
    shape = (len(sequences), max(map(len, sequences)))
    tokens = -(-longest // multiple) * multiple
    batch = {
        "input_ids": torch.full((*shape, tokens), pad),
        "attention_mask": torch.zeros((*shape, tokens), dtype=torch.int64),
        "present": torch.zeros(shape, dtype=torch.int64),
    }
    values = torch.zeros(shape, dtype=torch.float64)
    for b, record in enumerate(sequences):
        batch["present"][b, : len(record)] = 1
        values[b, : len(record)] = torch.tensor(scores[b], dtype=torch.float64)
        for r, ids in enumerate(record):
            batch["input_ids"][b, r, : len(ids)] = torch.tensor(ids)
            batch["attention_mask"][b, r, : len(ids)] = 1
    return {**batch, "scores": bits(values)}


@dataclass
class RankedCollator:
    """Pads records for a reward model, see `padded_lists`.

    Attributes:
        counts: whether to add `responses`; see `PairCollator.counts`.
    """

    pad_token_id: int
    pooling: str
    pad_to_multiple_of: int = 8
    counts: bool = True

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """What `padded_lists` returns; position [B, R] and is_apo [B], int64; responses, an int.

        `responses` is their number without the padding.

        Raises:
            ValueError: the reward is to be read at the end token, but a response has none.
        """
        sequences = [*map(sequences_of, features)]
        scores = [feature["scores"] for feature in features]
        batch = padded_lists(sequences, scores, self.pad_token_id, self.pad_to_multiple_of)
        places = torch.zeros_like(batch["present"])
        for b, feature in enumerate(features):
            position = feature["end" if self.pooling == "eos" else "last"]
            if min(position) < 0:  # only in a stream, whose columns are not checked as a whole
                raise ValueError(f"record {feature['example_id']}: there is no end token; use apo_pooling last")
            places[b, : len(position)] = torch.tensor(position)
        is_apo = torch.tensor([int(feature["is_apo"]) for feature in features])
        counted = {"responses": sum(map(len, sequences))} if self.counts else {}
        return {**batch, "position": places, "is_apo": is_apo, **counted}
