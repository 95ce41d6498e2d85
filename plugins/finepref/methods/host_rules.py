"""How the hosts themselves cut a sequence that is too long, for use without a host: see `methods.overlong.HostRule`.

Inside a run the host's own function decides. Tests compare the two.
"""

from __future__ import annotations

from collections.abc import Sequence


def llamafactory(prompt: int, response: int, longest: int) -> tuple[int, int]:
    """Tokens that LLaMA-Factory 0.9.5 keeps of prompt and response (`infer_seqlen` in data/processor/processor_utils).

    If only one of them is longer than half of the sequence, that one is cut; otherwise both, in proportion.

    Args:
        prompt, response: numbers of tokens.
        longest: its cutoff_len.
    """
    if 2 * response < longest:
        room = longest
    elif 2 * prompt < longest:
        room = longest - prompt
    else:
        room = int(longest * (response / (prompt + response)))
    kept = min(room, response)
    return min(max(longest - kept, 0), prompt), kept


def kept_with_end(response: Sequence[int], most: int, end: int) -> list[int]:
    """What our stages on OpenRLHF keep of a response, as the host does: its beginning and its last end token.

    Args:
        response: token ids.
        most: most tokens to keep.
        end: id of the end token.

    Returns:
        The indices of the tokens that are kept.
    """
    if len(response) <= most:
        return [*range(len(response))]
    last = len(response) - 1 - response[::-1].index(end) if end in response else -1
    return [*range(most - 1), last] if last >= most else [*range(most)]
