"""Held-out margins: how much likelier a model finds the good answer than the same answer with an error in it.

The margin of a negative is the mean log-probability per token of the chosen answer minus that of the negative, each
after the chat-templated prompt. An answer's tokens are those of its text and the end-of-sequence token. A negative
repeats the chosen answer up to its error, so the model reads on from there and not from the start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from finepref.formats.check import BadData, check_file
from finepref.formats.files import write_json
from finepref.formats.jsonl import read_jsonl
from finepref.formats.records import Negatives, parse

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def margins(data: Path, output: Path, *, model: str, adapter: str | None = None) -> dict[str, Any]:
    """Measure the negatives of a file, write the result as JSON and return it.

    The result has `types` (error type -> n, mean margin, share of margins above 0, mean log-probabilities of chosen
    and negative), `overall` (the same over all negatives) and `records` (id -> error type -> margin).

    Args:
        data: records in the format `negatives`, which the model was not trained on.
        output: the JSON file to write.
        model: folder or hub name.
        adapter: folder or hub name of a peft adapter to put on the model.

    Raises:
        BadData: the file has problems.
        ValueError: the model has no chat template, or a record is longer than its context.
    """
    from tqdm import tqdm

    from finepref.synth.engine_hf import load_model, prompt_ids

    records = read_negatives(data)
    network, tokenizer = load_model(model, adapter=adapter)
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
        means = mean_logps(network, prompt, tokens.pop(""), tokens)
        measured[record.id] = means
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


def mean_logps(
    model: PreTrainedModel, prompt: Sequence[int], chosen: Sequence[int], negatives: Mapping[str, Sequence[int]]
) -> tuple[float, dict[str, float]]:
    """Mean log-probability per token of the chosen answer and of each negative, by fp32 log-softmax.

    The key-value cache of the chosen answer is cut back to what a negative has in common with it, and extended by the
    rest; negatives that share more come first.

    Args:
        prompt, chosen, negatives: token ids; answers end in the end-of-sequence token.
    """
    import torch

    from finepref.losses.ops import token_logps

    def logps(tokens: Sequence[int], known: int, cache: object) -> tuple[list[float], object]:
        """log pi of the R tokens after the first `known` (> 0), with a cache that holds all known but the last."""
        ids = torch.tensor([tokens], device=model.device)  # [1, T]
        start = 0 if cache is None else known - 1
        with torch.inference_mode():
            read = model(
                ids[:, start:], past_key_values=cache, use_cache=True, logits_to_keep=len(tokens) - known + 1
            )  # logits [1, R+1, V]
            return token_logps(read.logits, ids[:, known - 1 :])[0].tolist(), read.past_key_values

    whole = [*prompt, *chosen]
    good, cache = logps(whole, len(prompt), None)
    shared = {name: _common([*prompt, *answer], whole) for name, answer in negatives.items()}
    means: dict[str, float] = {}
    for name in sorted(negatives, key=lambda name: -shared[name]):
        cache.crop(shared[name] - 1)
        rest, cache = logps([*prompt, *negatives[name]], shared[name], cache)
        means[name] = (sum(good[: shared[name] - len(prompt)]) + sum(rest)) / len(negatives[name])
    return fmean(good), means


def summarise(measured: Mapping[str, tuple[float, Mapping[str, float]]]) -> dict[str, Any]:
    """Margins of each record, and their summary per error type and overall, from id -> `mean_logps`."""
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


def read_negatives(path: Path) -> list[Negatives]:
    """The records of a file in the format `negatives`.

    Raises:
        BadData: with the problems of the whole file.
    """
    report = check_file(path, "negatives")
    if report.total_problems:
        raise BadData(report.problems, report.total_problems)
    return [parse(row, "negatives") for _, row in read_jsonl(path, problems=None)]


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _summary(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    differences = [good - bad for good, bad in pairs]
    return {
        "n": len(pairs),
        "mean": fmean(differences),
        "share_above_zero": sum(difference > 0 for difference in differences) / len(pairs),
        "chosen_logp": fmean(good for good, _ in pairs),
        "negative_logp": fmean(bad for _, bad in pairs),
    }
