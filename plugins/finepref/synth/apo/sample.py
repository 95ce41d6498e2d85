"""APO (arXiv 2311.08045), the steps without a reward model: sample the LLM, pair with golden answers, select.

Adversarial, not Anchored, Preference Optimization. What a reward model says of the samples is in `synth/reward.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from finepref.formats.apo_samples import ApoItem, cut_at_next_turn, golden_above_sample, read_items
from finepref.formats.check import digest
from finepref.formats.files import write_json
from finepref.formats.identified import read_identified
from finepref.formats.jsonl import write_aside, write_jsonl
from finepref.formats.problems import BadData, Problem
from finepref.formats.records import Message, Pair, Prompt, Ranked, to_row
from finepref.formats.row import RowReader
from finepref.synth.engines.protocol import Engine, Request, ask_all, request_seed
from finepref.synth.journal import Journal


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the LLM is sampled; see `engines.Request`."""

    temperature: float
    top_p: float
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_new_tokens: int


PRESETS = {
    "paper": Sampling(temperature=1.2, top_p=1.0, max_new_tokens=256),
    "paper_test": Sampling(temperature=0.3, top_p=0.85, top_k=5, repetition_penalty=1.05, max_new_tokens=512),
}
"""The paper's: of samples to train on, and of answers to test."""


class Sampled(NamedTuple):
    """queries = written + failed; the failed ones are in `<stem>.failed.jsonl`."""

    written: int
    failed: int


def sample(
    path: Path,
    output: Path,
    *,
    engine: Engine,
    sampling: Sampling,
    n: int = 4,
    golden: bool = False,
    seed: int = 0,
    work_dir: Path | None = None,
) -> Sampled:
    """Answer every query n times: rows {query_id, query, sample_0, ...} in the order of the queries.

    Args:
        path: rows {query_id, query}, or {id?, prompt or messages}, see `formats.apo_samples`.
        output: the JSON Lines file to write.
        engine: the LLM.
        sampling: the same for all answers.
        n: answers to a query.
        golden: write them as golden answers, {query_id, query, golden}; n is 1.
        seed: each answer is drawn with its own, made of this one and its id.
        work_dir: where the journal is; by default `<stem>.work` beside the output.

    Raises:
        BadData: the input has problems.
        ValueError: several answers that would all be the same, or several golden ones.
        JournalBusy, JournalChanged, JournalDamaged: see `Journal`.
    """
    if n > 1 and sampling.temperature == 0:
        raise ValueError("several samples need a temperature above 0, or they are all the same")
    if golden and n != 1:
        raise ValueError("a query has one golden answer: give n = 1")
    names = ["golden"] if golden else [f"sample_{i}" for i in range(n)]
    items = _items(path, "query")
    requests = []
    for key, item in items.items():
        for name in names:
            made = f"{key}/{name}"
            requests.append(Request(made, item.prompt, seed=request_seed(seed, made), **asdict(sampling)))
    with Journal(
        work_dir or output.with_suffix(".work"),
        job="apo sample",
        model=engine.model,
        prompt_version="query",
        sampling=asdict(sampling) | {"names": names},
        seed=seed,
        input_digest=digest(path),
    ) as journal:
        found = ask_all(requests, engine=engine, journal=journal)
    written, failed = [], []
    for key, item in items.items():
        row: dict[str, object] = {"query_id": key, "query": item.query}
        own = {name: found[f"{key}/{name}"] for name in names}
        errors = {name: answer.error for name, answer in own.items() if answer.error is not None}
        if errors:
            failed.append(row | {"errors": errors})
        else:
            written.append(row | {name: answer.text for name, answer in own.items()})
    write_jsonl(output, written)
    write_aside(output.with_suffix(".failed.jsonl"), failed)
    return Sampled(len(written), len(failed))


class Paired(NamedTuple):
    """Records that were written, and why how many samples and ids gave none."""

    records: int
    left_out: Counter[str]


def pair(
    samples: Path,
    golden: Path,
    output: Path,
    *,
    take: str = "all",
    cut: bool = True,
    allow_missing: bool = False,
    seed: int = 0,
) -> Paired:
    """Golden answers above samples: `ranked` records of kind apo, and `<stem>.report.json` with all that gave none.

    A sample that is empty, or the golden answer itself, ranks nothing and is left out.

    Args:
        samples: rows {query_id, query, sample_0, ...}.
        golden: rows {query_id, query, golden} or {id?, prompt or messages, chosen}.
        output: the JSON Lines file to write.
        take: "all" samples, or "one" of each query's at random (the same one for the same seed and query).
        cut: leave out what follows "\\nHuman:" in a response.
        allow_missing: go on without the ids that only one of the files has; the report names them.
        seed: of `take="one"`.

    Raises:
        BadData: with all problems of both files, FP067 for ids that only one of them has.
    """
    answers, sampled = _items(golden, "golden"), _items(samples, "sample")
    problems: list[Problem] = []
    records: list[Ranked] = []
    left_out: list[dict[str, str]] = []
    for key, item in sampled.items():
        if (answer := answers.get(key)) is None:
            left_out.append({"query_id": key, "reason": "no golden answer"})
        elif answer.query != item.query:
            message = f"the query differs from that of the golden answer in line {answer.line}"
            problems.append(Problem(str(samples), item.line, "query", "FP067", message))
        else:
            usable = _usable(key, item, answer, cut, left_out)
            if take == "one" and usable:
                usable = [usable[request_seed(seed, key) % len(usable)]]
            for name in usable:
                made = golden_above_sample(key, item, answer, name, file=str(samples), cut=cut)
                if isinstance(made, Ranked):
                    records.append(made)
                else:
                    problems += made
    left_out += [{"query_id": key, "reason": "no samples"} for key in answers if key not in sampled]
    if not allow_missing:
        of_golden = {"no samples": (golden, answers), "no golden answer": (samples, sampled)}
        for each in left_out:
            if (reason := each["reason"]) in of_golden:
                file, items = of_golden[reason]
                text = f"{each['query_id']!a} has {reason}"
                problems.append(Problem(str(file), items[each["query_id"]].line, "query_id", "FP067", text))
    if problems:
        raise BadData(problems)
    counts = Counter(each["reason"] for each in left_out)
    report = {"job": "apo pair", "take": take, "cut": cut, "seed": seed, "records": len(records)}
    write_json(output.with_suffix(".report.json"), report | {"left_out": dict(counts), "left_out_samples": left_out})
    write_jsonl(output, map(to_row, records))
    return Paired(len(records), counts)


def _usable(key: str, item: ApoItem, answer: ApoItem, cut: bool, left_out: list[dict[str, str]]) -> list[str]:
    """The names of the samples that can stand below the golden answer; the others are noted."""
    usable = []
    for name, text in item.texts.items():
        kept = (cut_at_next_turn(text) if cut else text).strip()
        reason = "empty" if not kept else "equals golden" if kept == answer.texts["golden"].strip() else ""
        if reason:
            left_out.append({"query_id": key, "sample": name, "reason": reason})
        else:
            usable.append(name)
    return usable


class Scored(NamedTuple):
    """Responses to one prompt with the rewards that a model gave them.

    Attributes:
        rewards: one per response, None for an empty response.
        scores: what people or the file say of the responses, if anything.
        kind: "human" or "apo".
    """

    id: str
    prompt: Prompt
    responses: tuple[str, ...]
    rewards: tuple[float | None, ...]
    scores: tuple[float, ...] = ()
    kind: Literal["human", "apo"] = "human"

    @property
    def row(self) -> dict[str, object]:
        """JSON-ready: {id, prompt or messages, responses, rewards} and scores and kind where there are scores."""
        row = to_row(Ranked(self.id, self.prompt, self.responses, self.scores, self.kind))
        if not self.scores:
            del row["scores"]
        return row | {"rewards": [*self.rewards]}


def read_scored(path: Path) -> list[Scored]:
    """What `finepref apo score` wrote.

    Raises:
        BadData: with all problems of the file.
    """
    return read_identified(path, _scored)


def _scored(reader: RowReader) -> Scored:
    given, prompt = reader.id(), reader.prompt()
    if given is None:
        reader.missing("id")
    texts = texts_of(reader)
    rewards = _list(reader, "rewards")
    numbers = [None if value is None else reader.number(value, f"rewards[{i}]") for i, value in enumerate(rewards)]
    scores = reader.numbers(_list(reader, "scores"), "scores") if "scores" in reader.values else ()
    if not reader.problems and len(rewards) != len(texts):
        reader.note("rewards", "FP051", f"{len(texts)} responses, {len(rewards)} rewards")
    if not reader.problems and scores and len(scores) != len(texts):
        reader.note("scores", "FP051", f"{len(texts)} responses, {len(scores)} scores")
    kind: Literal["human", "apo"] = "apo" if reader.row.get("kind") == "apo" else "human"
    return Scored(str(given), prompt, texts, tuple(numbers), tuple(scores), kind)


def texts_of(reader: RowReader) -> tuple[str, ...]:
    """The field `responses` as a list of any length, in which a text may be empty."""
    found = []
    for i, value in enumerate(_list(reader, "responses")):
        blank = type(value) is str and not value.strip()
        found.append(str(value) if blank else reader.text(value, f"responses[{i}]"))
    return tuple(found)


def _list(reader: RowReader, name: str) -> Sequence[object]:
    if name not in reader.values:
        reader.missing(name)
        return ()
    return reader.items(reader.values[name], name)


class Selected(NamedTuple):
    """Rows that were written, and why how many rows gave none."""

    rows: int
    left_out: Counter[str]


def select(path: Path, output: Path, *, target: str) -> Selected:
    """Rejection sampling: of each row's responses the one with the highest reward, in the form of `target`.

        sft     {id, messages}: the dialogue with the best response; a single one is the best
        pair    {id, prompt or messages, chosen, rejected, margin}: the best above the worst, margin of their rewards
        ranked  {id, prompt or messages, responses, scores}: all of them, best first, their rewards as scores (RRHF)

    Equal rewards go to the first response. Empty responses never take part, and of equal texts only the first does.
    Rows that give nothing are left out and named in `<stem>.report.json`: "empty" without any response, and for pair
    and ranked "single" with one, "equal" where all rewards are.

    Raises:
        BadData: the input has problems.
        ValueError: another target.
    """
    if target not in {"sft", "pair", "ranked"}:
        raise ValueError(f"selected responses become sft, pair or ranked, not {target}")
    rows: list[Mapping[str, object]] = []
    left_out: list[dict[str, str]] = []
    best_rewards, all_rewards = [], []
    for scored in read_scored(path):
        ranking = _best_first(scored)
        reason = "" if ranking else "empty"
        if target != "sft" and ranking:
            reason = "single" if len(ranking) == 1 else "equal" if ranking[0][1] == ranking[-1][1] else ""
        if reason:
            left_out.append({"id": scored.id, "reason": reason})
            continue
        rows.append(_selected(scored, ranking, target))
        best_rewards.append(ranking[0][1])
        all_rewards += [reward for reward in scored.rewards if reward is not None]
    counts = Counter(each["reason"] for each in left_out)
    report = {
        "job": "apo select",
        "to": target,
        "rows": len(rows),
        "mean_reward_selected": sum(best_rewards) / len(rows) if rows else None,
        "mean_reward_of_all": sum(all_rewards) / len(all_rewards) if rows else None,
        "left_out": dict(counts),
        "left_out_rows": left_out,
    }
    write_json(output.with_suffix(".report.json"), report)
    write_jsonl(output, rows)
    return Selected(len(rows), counts)


def _best_first(scored: Scored) -> list[tuple[str, float]]:
    """Different responses that are not empty with their rewards; equal rewards in the order of the row."""
    first: dict[str, tuple[str, float]] = {}
    for text, reward in zip(scored.responses, scored.rewards, strict=True):
        if text.strip() and reward is not None:
            first.setdefault(text.strip(), (text, reward))
    return sorted(first.values(), key=lambda each: -each[1])


def _selected(scored: Scored, ranking: Sequence[tuple[str, float]], target: str) -> Mapping[str, object]:
    texts, rewards = zip(*ranking, strict=True)
    if target == "sft":
        turns = [*scored.prompt, Message("assistant", texts[0])]
        return {"id": scored.id, "messages": [turn._asdict() for turn in turns]}
    if target == "pair":
        lowest = rewards.index(rewards[-1])  # of equally low ones the first
        return to_row(Pair(scored.id, scored.prompt, texts[0], texts[lowest], rewards[0] - rewards[-1]))
    return to_row(Ranked(scored.id, scored.prompt, texts, rewards))


def _items(path: Path, kind: str) -> dict[str, ApoItem]:
    items, problems = read_items(path, kind)
    if problems:
        raise BadData(problems)
    return items


def win_rate(ours: Sequence[Scored], theirs: Sequence[Scored]) -> float:
    """How often our response to a prompt has the higher reward, over all pairs of responses; a tie is half a win.

    An empty response loses to any other.

    Raises:
        ValueError: the two do not answer the same prompts, or one does not answer a prompt at all.
    """
    others = {scored.id: scored for scored in theirs}
    if others.keys() != {scored.id for scored in ours}:
        differing = sorted(others.keys() ^ {scored.id for scored in ours})
        raise ValueError(f"{len(differing)} ids are in one of the files only, such as {differing[0]}")
    return sum(_wins(scored, others[scored.id]) for scored in ours) / len(ours)


def _wins(one: Scored, other: Scored) -> float:
    duels = [(a, b) for a in _numbers(one) for b in _numbers(other)]
    if not duels:
        raise ValueError(f"{one.id} has no response to compare")
    return sum((a > b) + (a == b) / 2 for a, b in duels) / len(duels)


def _numbers(scored: Scored) -> Iterator[float]:
    return (float("-inf") if reward is None else reward for reward in scored.rewards)
