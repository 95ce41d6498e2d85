"""`finepref apo select`: rejection sampling, the responses with the best rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from finepref.formats.bad_rows import BadRows
from finepref.formats.files import write_json
from finepref.formats.jsonl import write_jsonl
from finepref.formats.records import Pair, Ranked, as_turn, split_tools, to_row
from finepref.synth.apo.scored import Scored, read_scored
from finepref.synth.left_out import Ledger, Written


def select(path: Path, output: Path, *, target: str, bad_rows: BadRows | None = None) -> Written:
    """Rejection sampling: the response of each row with the highest reward, in the form of `target`.

        sft     {id, messages}: the dialogue with the best response, which may be the only one
        pair    {id, prompt or messages, chosen, rejected, margin}: the best above the worst; difference of rewards
        ranked  {id, prompt or messages, responses, scores}: all responses, best first, with rewards as scores (RRHF)

    The first response wins a tie. Empty responses are ignored, and of equal texts all but the first. Rows without a
    result are left out and listed in `<stem>.report.json` with a reason: "empty" (no response), and for pair and
    ranked also "single" (one response) and "equal" (all rewards are equal). Rows with a problem go to `bad_rows`.

    Raises:
        BadData: there are bad rows that `bad_rows` does not accept.
        ValueError: another target.
    """
    if target not in {"sft", "pair", "ranked"}:
        raise ValueError(f"selected responses become sft, pair or ranked, not {target}")
    rows: list[Mapping[str, object]] = []
    left_out = Ledger()
    best_rewards, all_rewards = [], []
    for scored in read_scored(path, bad_rows=bad_rows):
        ranking = _best_first(scored)
        reason = "" if ranking else "empty"
        if target != "sft" and ranking:
            reason = "single" if len(ranking) == 1 else "equal" if ranking[0][1] == ranking[-1][1] else ""
        if reason:
            left_out.add({"id": scored.id}, reason)
            continue
        rows.append(_selected(scored, ranking, target))
        best_rewards.append(ranking[0][1])
        all_rewards += [reward for reward in scored.rewards if reward is not None]
    report = {
        "job": "apo select",
        "to": target,
        "rows": len(rows),
        "mean_reward_selected": sum(best_rewards) / len(rows) if rows else None,
        "mean_reward_of_all": sum(all_rewards) / len(all_rewards) if rows else None,
        "left_out": dict(left_out.counts),
        "left_out_rows": left_out.rows,
    }
    write_json(output.with_suffix(".report.json"), report)
    write_jsonl(output, rows)
    return Written(len(rows), left_out)


def _best_first(scored: Scored) -> list[tuple[str, float]]:
    """The different non-empty responses with their rewards, best first; ties are in the order of the row."""
    first: dict[str, tuple[str, float]] = {}
    for text, reward in zip(scored.responses, scored.rewards, strict=True):
        if text.strip() and reward is not None:
            first.setdefault(text.strip(), (text, reward))
    return sorted(first.values(), key=lambda each: -each[1])


def _selected(scored: Scored, ranking: Sequence[tuple[str, float]], target: str) -> Mapping[str, object]:
    texts, rewards = zip(*ranking, strict=True)
    if target == "sft":
        tools, turns = split_tools(scored.prompt)
        own = {"tools": tools} if tools else {}
        return {"id": scored.id, "messages": [turn._asdict() for turn in (*turns, as_turn(texts[0]))], **own}
    if target == "pair":
        lowest = rewards.index(rewards[-1])  # the first of the lowest
        return to_row(Pair(scored.id, scored.prompt, texts[0], texts[lowest], rewards[0] - rewards[-1]))
    return to_row(Ranked(scored.id, scored.prompt, texts, rewards))
