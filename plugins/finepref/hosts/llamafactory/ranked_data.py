"""Data of shape "ranked": scored lists of responses, tokenised one sequence per response, padded to [B, R, T]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from finepref.formats import records
from finepref.formats.problems import Problem
from finepref.hosts import packed
from finepref.hosts.exact import bits
from finepref.hosts.llamafactory.record_processor import RowPerRecordProcessor
from finepref.hosts.llamafactory.tokenized import encoded
from finepref.hosts.llamafactory.verdicts import verdict
from finepref.losses.pooling import tokens_read
from finepref.methods import overlong
from finepref.methods.ranked_rows import response_field, scored


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


@dataclass
class RankedCollator:
    """Pads records to the longest list and the longest sequence. B records, R responses, T tokens.

    The first dimension of every tensor is the record, so that the host's samplers, gathers and truncation of the last
    batch work on records. `present` is 0 for padding responses.

    Attributes:
        counts: whether to add `responses`; see `PairCollator.counts`.
    """

    pad_token_id: int
    pooling: str
    pad_to_multiple_of: int = 8
    counts: bool = True

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """input_ids, attention_mask [B, R, T]; present, position, scores [B, R] int64; is_apo [B]; responses, an int.

        `scores` are float64 as `finepref.hosts.exact.bits`; `responses` is their number without the padding.

        Raises:
            ValueError: the reward is to be read at the end token, but a response has none.
        """
        features = [{**feature, "sequences": sequences_of(feature)} for feature in features]
        responses = max(len(feature["sequences"]) for feature in features)
        longest = max(len(ids) for feature in features for ids in feature["sequences"])
        tokens = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        shape = (len(features), responses)
        batch = {
            "input_ids": torch.full((*shape, tokens), self.pad_token_id),
            "attention_mask": torch.zeros((*shape, tokens), dtype=torch.int64),
            "present": torch.zeros(shape, dtype=torch.int64),
            "position": torch.zeros(shape, dtype=torch.int64),
            "is_apo": torch.tensor([int(feature["is_apo"]) for feature in features]),
        }
        scores = torch.zeros(shape, dtype=torch.float64)  # different scores must not round to the same number
        for b, feature in enumerate(features):
            count = len(feature["sequences"])
            batch["present"][b, :count] = 1
            position = feature["end" if self.pooling == "eos" else "last"]
            if min(position) < 0:  # only in a stream, whose columns are not checked as a whole
                raise ValueError(f"record {feature['example_id']}: there is no end token; use apo_pooling last")
            batch["position"][b, :count] = torch.tensor(position)
            scores[b, :count] = torch.tensor(feature["scores"], dtype=torch.float64)
            for r, ids in enumerate(feature["sequences"]):
                batch["input_ids"][b, r, : len(ids)] = torch.tensor(ids)
                batch["attention_mask"][b, r, : len(ids)] = 1
        counted = {"responses": sum(len(feature["sequences"]) for feature in features)} if self.counts else {}
        return {**batch, "scores": bits(scores), **counted}
