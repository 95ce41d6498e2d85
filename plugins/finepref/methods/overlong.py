"""What happens to a record that is longer than the longest sequence of the run: the option `finepref_overlong`.

All responses of a record keep the same tokens of the prompt. Otherwise a response would be preferred for what it
answers, not for how. No file of a host is read here: a host's own rule is a function, `HostRule`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

Overlong = Literal["host", "keep_prompt", "truncate_left", "skip", "error"]

HostRule = Callable[[int, int, int], tuple[int, int] | None]
"""(tokens of the prompt, of the longest response, of the longest sequence) -> tokens to keep of both, from their
beginnings, or None if the host leaves the record out."""

# Reasons for which a record is left out
OVERLONG = "overlong"  # by `skip`, or because the host leaves such records out
NO_ROOM = "no_room_for_response"  # the prompt fills the whole sequence
NOTHING_SELECTED = "selected_tokens_cut"  # the cut leaves no selected token of a response
EQUAL_AFTER_CUT = "equal_after_cut"  # what is left of the responses is the same
EQUAL_AFTER_TEMPLATE = "equal_after_template"  # the chat template makes the responses the same
END_CUT = "end_token_cut"  # the reward is read at the end token, which is cut off

# What was cut of a record that is kept
PROMPT_CUT = "prompt"
RESPONSE_CUT = "response"


class Fit(NamedTuple):
    """How much of a record is kept.

    Attributes:
        start, stop: the range of the prompt's tokens that is kept, the same for all responses.
        response: most tokens that are kept of a response, from its beginning.
        cut: what is cut: "", "prompt", "response" or "prompt,response".
        skipped: the reason for which the record is left out, "" if it is kept.
        refused: whether the record is an error (policy `error`).
    """

    start: int
    stop: int
    response: int
    cut: str = ""
    skipped: str = ""
    refused: bool = False


def fit(prompt: int, responses: Sequence[int], longest: int, *, policy: Overlong, host_rule: HostRule) -> Fit:
    """Decide what is kept of a record.

    Args:
        prompt: number of the prompt's tokens.
        responses: number of tokens of each response, with what ends it.
        longest: most tokens of prompt and response together.
        policy: `host` cuts as the host does; `keep_prompt` cuts responses only; `truncate_left` drops the beginning of
            the prompt and then the end of the response; `skip` and `error` cut nothing.
        host_rule: the host's way to cut.
    """
    most = max(responses)
    if policy == "host":
        kept = host_rule(prompt, most, longest)
        if kept is None:
            return _left_out(OVERLONG)
        if kept[1] < 1:
            return _left_out(NO_ROOM)
        return _kept(0, kept[0], kept[1], prompt, most)
    if prompt + most <= longest:
        return Fit(0, prompt, most)
    if policy == "skip":
        return _left_out(OVERLONG)
    if policy == "error":
        return Fit(0, prompt, most, refused=True)
    if policy == "keep_prompt":
        return _left_out(NO_ROOM) if prompt >= longest else _kept(0, prompt, longest - prompt, prompt, most)
    response = min(most, longest - 1)
    if response < 1:
        return _left_out(NO_ROOM)
    return _kept(max(0, prompt - (longest - response)), prompt, response, prompt, most)


def _kept(start: int, stop: int, response: int, prompt: int, most: int) -> Fit:
    cut = (PROMPT_CUT, stop - start < prompt), (RESPONSE_CUT, response < most)
    return Fit(start, stop, response, ",".join(name for name, is_cut in cut if is_cut))


def _left_out(reason: str) -> Fit:
    return Fit(0, 0, 0, skipped=reason)


def told(prompt: int, responses: Sequence[int], longest: int, limit: str) -> str:
    """The text of FP203, for policy `error`; `limit` is the option of the longest sequence as the user writes it."""
    most = max(responses)
    return f"the prompt has {prompt} tokens and its longest response {most}, together above {limit} {longest}"


def only_the_cut(cut: str, codes: Iterable[str], code: str) -> bool:
    """Whether only the cut of its responses can be to blame for a record's problems.

    Args:
        cut: what is cut, see `Fit`.
        codes: of the problems.
        code: the one that such a cut can cause.
    """
    return RESPONSE_CUT in cut.split(",") and {*codes} == {code}


def equal(responses: Sequence[Sequence[int]], keep: int) -> str:
    """The reason for which responses cannot be compared, "" if all of them differ in what is kept.

    Args:
        responses: the token ids of each response.
        keep: most tokens that are kept of each.
    """
    return same(range(len(responses)), responses, [ids[:keep] for ids in responses])


def same(scores: Sequence[float], whole: Sequence[Sequence[int]], kept: Sequence[Sequence[int]]) -> str:
    """The reason for which a record has nothing to compare, "" if it has.

    Two responses of different scores, such as chosen and rejected, must not be the same tokens.

    Args:
        scores: the score of each response.
        whole: the token ids of each response.
        kept: what the cut leaves of each.
    """

    def contradict(responses: Sequence[Sequence[int]]) -> bool:
        found: dict[tuple[int, ...], float] = {}
        return any(found.setdefault(tuple(ids), score) != score for ids, score in zip(responses, scores, strict=True))

    if not contradict(kept):
        return ""
    return EQUAL_AFTER_TEMPLATE if contradict(whole) else EQUAL_AFTER_CUT
