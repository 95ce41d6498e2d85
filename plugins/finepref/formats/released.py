"""Transcripts of Anthropic's HH, as APO's code writes them, and the turns of our records."""

from __future__ import annotations

import re
from collections.abc import Sequence

from finepref.formats.row import Message

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_TURN = re.compile(f"({HUMAN}|{ASSISTANT})")


def dialogue(query: str, responses: Sequence[str]) -> tuple[tuple[Message, ...], list[str]]:
    """Prompt and responses of a query in the HH layout, "\\n\\nHuman: ...\\n\\nAssistant:".

    If the query is such a transcript, with alternating, non-empty turns, its turns become messages. The turns
    and responses are then stripped, since their white space belongs to the layout. Any other query becomes one user
    turn; it and the responses stay unchanged.
    """
    parts = _TURN.split(query)
    turns = [part.strip() for part in parts[2:-1:2]]
    marks = parts[1::2]
    in_order = all(mark == (HUMAN, ASSISTANT)[i % 2] for i, mark in enumerate(marks))
    if parts[0].strip() or parts[-1].strip() or not in_order or len(marks) % 2 or not marks or not all(turns):
        return (Message("user", query),), list(responses)
    roles = ("user", "assistant")
    prompt = tuple(Message(roles[i % 2], turn) for i, turn in enumerate(turns))
    return prompt, [response.strip() for response in responses]


def transcript(prompt: Sequence[Message]) -> str | None:
    """The query that `dialogue` turns into this prompt; None if there is none."""
    text = "".join(f"{HUMAN if turn.role == 'user' else ASSISTANT} {turn.content}" for turn in prompt)
    for query in (prompt[0].content, f"{text}{ASSISTANT}"):
        if dialogue(query, [])[0] == tuple(prompt):
            return query
    return None


def query_id(value: object) -> object:
    """APO's query_id as our id; the released files have strings and integers."""
    return str(value) if type(value) is int else value
