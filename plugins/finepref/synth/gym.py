"""Questions of reasoning-gym's data sets (Apache-2.0), which are made by rule and checked by their own verifiers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from finepref.formats.records import Message, content_id
from finepref.formats.row import is_text
from finepref.synth.judges import Verdict


def questions(
    name: str, n: int, *, seed: int, skip: int = 0, options: Mapping[str, object] | None = None
) -> list[dict[str, Any]]:
    """`n` different questions of a seed's endless list, after its first `skip`; so two slices never share one.

    Args:
        name: of the data set, such as basic_arithmetic.
        n: how many.
        seed: of the list.
        skip: how many to leave out.
        options: of the data set.

    Returns:
        Rows {id, prompt, chosen, answer, gym, metadata}; the last two are for `verify`.

    Raises:
        ModuleNotFoundError: reasoning-gym is not installed.
        ValueError: there is no such data set or option, or too few different questions.
    """
    make = _factory().create_dataset
    spread = int.from_bytes(hashlib.blake2b(f"{name}:{seed}".encode(), digest_size=6).digest(), "big")
    rows: dict[str, dict[str, Any]] = {}
    size = 4 * (n + skip) + 256
    try:
        dataset = make(name, seed=spread, size=size, **(options or {}))
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"reasoning-gym's {name}: {error}") from None
    for i in range(size):
        item = dataset[i]
        row_id = content_id((Message("user", item["question"]),))
        try:
            json.dumps(item["metadata"], allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError(f"reasoning-gym's {name}: what its verifier needs cannot be written as JSON") from None
        answer = str(item["answer"])
        told = {"gym": name, "metadata": item["metadata"]}
        rows.setdefault(row_id, {"id": row_id, "prompt": item["question"], "chosen": answer, "answer": answer, **told})
        if len(rows) == n + skip:
            return [*rows.values()][skip:]
    raise ValueError(f"reasoning-gym's {name} has {len(rows)} different questions among {size}: not {n + skip}")


def verify(row: Mapping[str, object]) -> Verdict:
    """What the data set's own verifier says of the response to a row of `questions`: 1 passes, the rest fails.

    It is given what stands in the response's last <answer> tags, or else the whole response.

    Raises:
        ModuleNotFoundError: reasoning-gym is not installed.
    """
    name, response, gold = row.get("gym"), row.get("response"), row.get("answer")
    if not (is_text(name) and is_text(response) and is_text(gold) and isinstance(row.get("metadata"), dict)):
        return Verdict(None, "the row needs gym, metadata, answer and response")
    tagged = re.findall(r"<answer>(.*?)</answer>", response, re.DOTALL)
    entry = {"question": row.get("prompt"), "answer": gold, "metadata": row["metadata"]}
    try:
        check = _factory().get_score_answer_fn(name)
    except ValueError as error:
        return Verdict(None, str(error))
    score = float(check((tagged[-1] if tagged else response).strip(), entry))
    return Verdict(score == 1, score=score)


def _factory() -> Any:
    try:
        from reasoning_gym import factory
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "reasoning_gym":
            raise
        raise ModuleNotFoundError(
            'the questions come from reasoning-gym: pip install "finepref[data]"', name="reasoning_gym"
        ) from None
    return factory
