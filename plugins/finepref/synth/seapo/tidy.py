"""A model's answer to a request for one sentence, without what models write around it. All of it is counted."""

from __future__ import annotations

import re
from typing import NamedTuple

from finepref.synth.seapo.sentences import count, first

_ABOUT = "(?:sentence|answer|version|statement|response|rewrite|rewriting|output|error|句子|答案|改写|版本|回答)"
_COLON, _NO_COLON = r"[:\uff1a]", r"[^:\uff1a\n]"
_SURE = r"(?:(?:sure|certainly|of course|okay|ok|absolutely|好的|当然)\s*[!.,\uff01\uff0c。]+\s*)"
_HERE = rf"(?:(?:here|below|this|以下|这){_NO_COLON}{{0,60}}{_ABOUT}{_NO_COLON}{{0,40}}{_COLON}[*\s]*)"
_CHATTER = re.compile(rf"[*#>\s]*(?:{_SURE}{_HERE}?|{_HERE})", re.IGNORECASE)
_KIND = "(?:re-?written|revised|modified|changed|edited|new|wrong|incorrect|false|改写后的?|修改后的?|错误的?)"
_LABEL = re.compile(
    rf"[-*•>]\s+|[*#_ ]*(?:(?:the|a|your|my)\s+)?(?:{_KIND}\s*)?{_ABOUT}[*_ ]*{_COLON}[*_ ]*", re.IGNORECASE
)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "「": "」", "`": "`", "*": "*"}
_APOSTROPHE = re.compile(r"(?<=\w)['’](?=\w)")
_ENDS = re.compile(r"[.!?…。\uff01\uff1f][\"'”’」』)\uff09*_]*$")


class Tidied(NamedTuple):
    """A sentence, and what was taken off around it: "chatter", "label", "quotes" or "rest"."""

    text: str
    taken_off: tuple[str, ...]


def tidy(answer: str, sentence: str, *, more: int = 0) -> Tidied:
    """The rewritten sentence in a model's answer.

    Taken off are words to the user at the beginning ("Sure, here is the sentence:"), a label ("Rewritten sentence:"),
    quotation marks around all of it, and, as "rest", further lines and sentences. What the sentence itself has stays.
    A mark at its end that the answer lacks is added.

    Args:
        answer: the text of the answer, without white space around.
        sentence: what was to be rewritten.
        more: how many sentences more than the original has may stay.
    """
    taken_off: list[str] = []
    text = answer
    for name, pattern in (("chatter", _CHATTER), ("label", _LABEL)):
        if (found := pattern.match(text)) and text[found.end() :].strip() and not pattern.match(sentence):
            text = text[found.end() :].strip()
            taken_off.append(name)
    line, _, rest = text.partition("\n")
    if rest.strip():
        taken_off.append("rest")
    text = line.strip()
    close = _QUOTES.get(text[:1])
    if close and len(text) > 2 and text.endswith(close) and not (sentence[:1] == text[0] and sentence.endswith(close)):
        inside = text[1:-1].strip()
        if not {text[0], close} & {*_APOSTROPHE.sub("", inside)}:
            text = inside
            taken_off.append("quotes")
    most = max(1, count(sentence)) + more
    if text and count(text) > most:
        text = first(text, most)
        if "rest" not in taken_off:
            taken_off.append("rest")
    if text and (mark := _ENDS.search(sentence)) and not _ENDS.search(text) and text[-1:].isalnum():
        text += mark[0]
    return Tidied(text, tuple(taken_off))
