"""Questions from reasoning-gym's data sets (Apache-2.0), made by rule; the judge `gym` uses their verifiers."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Mapping
from typing import Any

from finepref.formats import choices
from finepref.formats.records import Message, content_id


def questions(
    name: str, n: int, *, seed: int, skip: int = 0, options: Mapping[str, object] | None = None
) -> list[dict[str, Any]]:
    """`n` different questions from a seed's endless list, after its first `skip`; two slices share no question.

    Args:
        name: of the data set, such as basic_arithmetic.
        n: the number of questions.
        seed: of the list.
        skip: questions to leave out at the beginning.
        options: of the data set.

    Returns:
        Rows {id, prompt, chosen, answer, metadata}; the judge `gym` needs the metadata.

    Raises:
        ModuleNotFoundError: reasoning-gym is not installed.
        ValueError: there is no such data set or option, or too few different questions.
    """
    make = factory().create_dataset
    rows: dict[str, dict[str, Any]] = {}
    size = 4 * (n + skip) + 256
    try:
        dataset = make(name, seed=list_seed(name, seed), size=size, **(options or {}))
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"reasoning-gym's {name}: {error}") from None
    for i in range(size):
        item = dataset[i]
        row_id = content_id((Message("user", item["question"]),))
        try:
            json.dumps(item["metadata"], allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError(
                f"reasoning-gym's {name}: the metadata for its verifier cannot be written as JSON"
            ) from None
        answer = str(item["answer"])
        told = {"chosen": answer, "answer": answer, "metadata": item["metadata"]}
        rows.setdefault(row_id, {"id": row_id, "prompt": item["question"], **told})
        if len(rows) == n + skip:
            return [*rows.values()][skip:]
    raise ValueError(f"reasoning-gym's {name} has {len(rows)} different questions among {size}: not {n + skip}")


def with_choices(rows: Iterable[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    """Questions with a whole number for an answer as multiple-choice questions.

    The other options are numbers near the answer, of the same sign; numbers and places are drawn by the question's id.

    Args:
        rows: of `questions`.
        count: options of each.

    Returns:
        Rows {id, prompt, options, answer, chosen}; the prompt has the options, the answer is a letter.

    Raises:
        ValueError: an answer is no whole number, or there are more options than letters.
    """
    if not choices.FEWEST <= count <= len(choices.LETTERS):
        raise ValueError(f"a question has {choices.FEWEST} to {len(choices.LETTERS)} options, not {count}")
    made = []
    for row in rows:
        try:
            right = int(row["answer"])
        except ValueError:
            raise ValueError(f"choices need whole numbers for answers, not {row['answer']!r:.80}") from None
        chance = random.Random(row["id"])
        near = [right + step for step in range(-2 * count, 2 * count + 1) if step]
        numbers = [right, *chance.sample([each for each in near if (each < 0) == (right < 0)], count - 1)]
        chance.shuffle(numbers)
        options = choices.lettered([str(each) for each in numbers])
        letter = choices.LETTERS[numbers.index(right)]
        asked = {"id": row["id"], "prompt": choices.text(row["prompt"], [*options.values()]), "options": options}
        made.append(asked | {"answer": letter, "chosen": f"{letter}. {right}"})
    return made


def list_seed(name: str, seed: int) -> int:
    """The start of a seed's list. Item i is made from start + i, so starts must be far apart."""
    return int.from_bytes(hashlib.blake2b(f"{name}:{seed}".encode(), digest_size=6).digest(), "big")


def factory() -> Any:
    """reasoning-gym's module that creates data sets.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        from reasoning_gym import factory as found
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "reasoning_gym":
            raise
        raise ModuleNotFoundError(
            'the questions come from reasoning-gym: pip install "finepref[data]"', name="reasoning_gym"
        ) from None
    return found
