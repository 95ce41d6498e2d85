"""The gates that reject a rewritten text which is not a usable negative. The released code keeps every answer."""

from __future__ import annotations

import difflib
import re
from typing import Literal, NamedTuple

from finepref.synth.seapo.content import FACTS, changes

_REFUSAL = re.compile(
    r"\W*(i[’']?m (?:sorry|unable|not able)|i am (?:sorry|unable|not able)|sorry\b|i apologi[sz]e|i can(?:not|[’']t)\b"
    r"|i won[’']t\b|i must decline|as an ai\b|抱歉|很抱歉|对不起|我不能|我无法|作为(?:一个|一名)?(?:AI|人工智能))",
    re.IGNORECASE,
)
_COMMENTARY = re.compile(
    r"^\W*(here (?:is|are)\b|here[’']s\b|sure\b|certainly\b|of course\b|below is\b|#* ?(?:rewritten|revised|modified"
    r"|incorrect|good) (?:answer|response|version)|note:|explanation:|error:|the (?:error|mistake|change) (?:is|was)\b"
    r"|i(?: have|[’']ve)? (?:changed|introduced|altered|modified|inserted|replaced|made)\b|以下是|修改后|改写后"
    r"|注[:：]|说明[:：]|错误[:：])"
    r"|^#+ *(?:question|good answer|explanation|note|error)\b"
    r"|\b(?:deliberate(?:ly)?|intentional(?:ly)?) (?:error|mistake|wrong|incorrect|introduced)\b"
    r"|[(（](?:incorrect|wrong|错误)[)）]",
    re.IGNORECASE | re.MULTILINE,
)
_WORD = re.compile(r"\w+|[^\w\s]")

FEW_WORDS = 8
"""Good answers of at most so many words have no greatest share of changed words: one error may change them all."""


Change = Literal["any", "words", "facts"]
"""What a rewriting must change, see `fault`."""


class Fault(NamedTuple):
    """The gate that a text fails, and the measured value beside its bound, such as "edit 1.00 > --max-edit 0.7"."""

    gate: str
    measured: str = ""


def fault(
    chosen: str,
    text: str,
    *,
    min_edit: float = 0.001,
    max_edit: float = 0.7,
    min_length_ratio: float = 0.5,
    max_length_ratio: float = 2.0,
    change: Change = "words",
    few_words: int = FEW_WORDS,
) -> Fault | None:
    """The first gate that a rewritten text fails, None if it passes all.

    The gates: empty; unchanged (except white space); refusal; commentary (text about the answer); edit_small and
    edit_large (the share of words that differ, 1 - 2 M / (a + b), with a and b words in the two texts and M words in
    common runs; edit_large is not for chosen texts of few words); short and long (its number of characters, divided by
    that of the chosen text); paraphrase (what was changed is not what `change` asks for, see `content.changes`).

    Args:
        chosen: the good answer, or a sentence of it.
        text: what it became.
        min_edit, max_edit: bounds of the share of words that differ.
        min_length_ratio, max_length_ratio: bounds of the length ratio.
        change: what must be changed: any character; a content word; or a fact, which is a number, name or negation.
        few_words: a chosen text of at most so many words has no `max_edit`.
    """
    if not text:
        return Fault("empty")
    if text.split() == chosen.split():
        return Fault("unchanged")
    if _REFUSAL.match(text) and not _REFUSAL.match(chosen):
        return Fault("refusal")
    if (found := _COMMENTARY.search(text)) and not _COMMENTARY.search(chosen):
        return Fault("commentary", ascii(found[0].strip()[:40]))
    words, own = _WORD.findall(chosen), _WORD.findall(text)
    edit = 1 - difflib.SequenceMatcher(None, words, own, autojunk=False).ratio()
    if edit < min_edit:
        return Fault("edit_small", f"edit {edit:.2g} < --min-edit {min_edit:g}")
    if edit > max_edit and len(words) > few_words:
        return Fault("edit_large", f"edit {edit:.2f} > --max-edit {max_edit:g}")
    ratio = len(text) / len(chosen)
    if ratio < min_length_ratio:
        return Fault("short", f"length ratio {ratio:.2f} < --min-length-ratio {min_length_ratio:g}")
    if ratio > max_length_ratio:
        return Fault("long", f"length ratio {ratio:.2f} > --max-length-ratio {max_length_ratio:g}")
    changed = set() if change == "any" else changes(chosen, text)
    if (change == "words" and not changed) or (change == "facts" and not changed & FACTS):
        told = ", ".join(sorted(changed)) or "form only"
        return Fault("paraphrase", f"changed: {told}; --change {change}")
    return None
