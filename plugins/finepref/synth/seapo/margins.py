"""Held-out margins: how much more probable a good answer is to a model than the same answer with an error.

The margin of a negative is the mean log-probability per token of the chosen answer minus that of the negative, each
after the prompt in the chat template. The tokens of an answer include the end-of-sequence token. A negative repeats
the chosen answer up to its error, so the model reads that part only once (`scorers.hf`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from finepref.formats.bad_rows import BadRows
from finepref.formats.check import read_records
from finepref.formats.files import write_json
from finepref.formats.jsonl import RawRow
from finepref.formats.negatives import LACKING, join_feedback
from finepref.formats.problems import CODES, Problem
from finepref.formats.records import Feedback, FunctionCall, Negatives, Record, to_row
from finepref.synth.data_sources.job_rows import Placed, Row, Rows, Wants, rows_of


def _joined(placed: Sequence[Placed], told: Counter[str]) -> Iterator[tuple[str, RawRow]]:
    """Records of negatives, of feedback that is joined by prompt; prompts that give none are counted by code."""
    raws = {(each.file, each.raw.line): each.raw for each in placed}
    rows = [(each.file, each.raw.line, each.record) for each in placed if isinstance(each.record, Feedback)]
    joined, problems = join_feedback(rows)
    for problem in problems:
        if problem.code in LACKING:
            told[f"{problem.code}, {CODES[problem.code]}"] += 1
        else:
            yield problem.file, raws[problem.file, problem.line]._replace(value=None, problems=[problem])
    for each in joined:
        yield each.file, raws[each.file, each.line]._replace(value=to_row(each.record), problems=[])


WANTS = Wants(
    "seapo margins",
    "negatives, or feedback",
    lambda row: "negatives" in row,
    ("negatives",),
    ("negatives", "feedback"),
    lambda record, told: Row({name: value for name, value in to_row(record).items() if name != "id"}),
    {"feedback": _joined},
)


def margins(
    data: Rows,
    output: Path,
    *,
    model: str,
    adapter: str | None = None,
    merge_system: bool = False,
    bad_rows: BadRows | None = None,
) -> dict[str, Any]:
    """Measure the negatives of a file, write the result as JSON and return it.

    The result has `types` (error type -> n, mean margin, share of margins above 0, mean log-probabilities of chosen
    and negative), `overall` (the same over all negatives) and `records` (id -> error type -> margin).

    Args:
        data: records in the format `negatives` that the model was not trained on, or feedback, joined by prompt.
        output: the JSON file to write.
        model: folder or hub name.
        adapter: folder or hub name of a peft adapter to put on the model.
        merge_system: see `checkpoint.rendered`.
        bad_rows: see `read_records`; rows that the chat template refuses or the model has no room for are bad too.

    Raises:
        BadData: see `read_records`.
        ValueError: the model has no chat template.
    """
    from tqdm import tqdm

    from finepref.synth.engines.checkpoint import (
        context_of,
        load_network,
        load_tokenizer,
        prompt_ids,
        template_problems,
    )
    from finepref.synth.scorers.hf import Reader
    from finepref.synth.scorers.protocol import Item

    loaded = cache(lambda: (load_tokenizer(model), context_of(model)))  # only if there is a good record

    def item(record: Negatives) -> Item:
        tokenizer, _ = loaded()
        texts = {"": record.chosen, **record.negatives}
        tokens = {
            name: [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            for name, text in texts.items()
        }
        return Item(record.id, prompt_ids(tokenizer, record.prompt, merge_system=merge_system), tokens)

    def problems(record: Record, line: int) -> list[Problem]:
        assert isinstance(record, Negatives)
        tokenizer, room = loaded()
        if found := template_problems(tokenizer, record.prompt, file="", line=line, merge_system=merge_system):
            return found
        calls = [
            name
            for name, text in {"chosen": record.chosen, **record.negatives}.items()
            if isinstance(text, FunctionCall)
        ]
        if calls:
            told = "the margins are those of texts, and the response calls functions"
            return [Problem("", line, calls[0], "FP242", told)]
        whole = item(record)
        longest = len(whole.prompt) + max(map(len, whole.responses.values()))
        told = f"prompt and longest answer have {longest} tokens, and the model has room for {room}"
        return [Problem("", line, "", "FP241", told)] if longest > room else []

    found = read_records(rows_of(data, WANTS), "negatives", bad_rows=bad_rows, check=problems)
    records = [record for record in found if isinstance(record, Negatives)]
    reader = Reader(load_network(model, adapter=adapter))
    measured: dict[str, tuple[float, dict[str, float]]] = {}
    for record in tqdm(records, desc="seapo margins", unit="record", disable=None):
        (logps,) = reader.logps([item(record)])
        means = {name: logps[name].double().mean().item() for name in logps}
        measured[record.id] = means.pop(""), means
    result = {
        "model": model,
        "adapter": adapter,
        "data": str(data) if isinstance(data, Path) else data.name,
        "measure": "mean log-probability per response token, end-of-sequence token included; chosen minus negative",
        **summarise(measured),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, result)
    return result


def summarise(measured: Mapping[str, tuple[float, Mapping[str, float]]]) -> dict[str, Any]:
    """The margins of each record, and summaries per error type and overall.

    `measured`: record id -> mean log-probability of the chosen answer, and of each negative by name.
    """
    by_type: dict[str, list[tuple[float, float]]] = {}
    for good, means in measured.values():
        for name, bad in means.items():
            by_type.setdefault(name, []).append((good, bad))
    return {
        "types": {name: _summary(by_type[name]) for name in sorted(by_type)},
        "overall": _summary([pair for pairs in by_type.values() for pair in pairs]),
        "records": {
            record_id: {name: good - means[name] for name in sorted(means)}
            for record_id, (good, means) in measured.items()
        },
    }


def _summary(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    differences = [good - bad for good, bad in pairs]
    return {
        "n": len(pairs),
        "mean": fmean(differences),
        "share_above_zero": sum(difference > 0 for difference in differences) / len(pairs),
        "chosen_logp": fmean(good for good, _ in pairs),
        "negative_logp": fmean(bad for _, bad in pairs),
    }
