"""Held-out margins: how much more probable a good answer is to a model than the same answer with an error.

The margin of a negative is the mean log-probability per token of the chosen answer minus that of the negative, each
after the prompt in the chat template. The tokens of an answer include the end-of-sequence token. A negative repeats
the chosen answer up to its error, so the model reads that part only once (`scorers.hf`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from finepref.formats.check import read_records
from finepref.formats.files import write_json


def margins(data: Path, output: Path, *, model: str, adapter: str | None = None) -> dict[str, Any]:
    """Measure the negatives of a file, write the result as JSON and return it.

    The result has `types` (error type -> n, mean margin, share of margins above 0, mean log-probabilities of chosen
    and negative), `overall` (the same over all negatives) and `records` (id -> error type -> margin).

    Args:
        data: records in the format `negatives` that the model was not trained on.
        output: the JSON file to write.
        model: folder or hub name.
        adapter: folder or hub name of a peft adapter to put on the model.

    Raises:
        BadData: the file has problems.
        ValueError: the model has no chat template, or a record is longer than its context.
    """
    from tqdm import tqdm

    from finepref.synth.engines.checkpoint import load_model, prompt_ids
    from finepref.synth.scorers.hf import Reader
    from finepref.synth.scorers.protocol import Item

    records = read_records(data, "negatives")
    network, tokenizer = load_model(model, adapter=adapter)
    reader = Reader(network)
    room = getattr(network.config, "max_position_embeddings", None) or 2**31
    measured: dict[str, tuple[float, dict[str, float]]] = {}
    for record in tqdm(records, desc="seapo margins", unit="record", disable=None):
        prompt = prompt_ids(tokenizer, record.prompt)
        texts = {"": record.chosen, **record.negatives}
        tokens = {
            name: [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            for name, text in texts.items()
        }
        longest = len(prompt) + max(map(len, tokens.values()))
        if longest > room:
            raise ValueError(f"record {record.id} has {longest} tokens and the model room for {room}")
        (logps,) = reader.logps([Item(record.id, prompt, tokens)])
        means = {name: logps[name].double().mean().item() for name in texts}
        measured[record.id] = means.pop(""), means
    result = {
        "model": model,
        "adapter": adapter,
        "data": str(data),
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
