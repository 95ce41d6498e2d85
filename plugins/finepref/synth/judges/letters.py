"""The letter of an option in the text of an answer: the answer's own letter, or none, but never another one.

"(B)"   "B."   "The answer is B"   "**B**"   "答案是B"   "b"   "Paris" (the text of option B)       B
"A cat is an animal."   "A or B"   "B. Lyon" (which is option A)   "not B"   "I do not know."      none
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from finepref.formats.choices import LETTERS

ANY = LETTERS[:5]
"""The letters that an answer may have where the options are not known."""

SEVERAL = "the answer names more than one option"
DENIED = "the answer says of an option that it is not the right one"
OTHERS_TEXT = "the answer has the letter of one option and the text of another"
NONE = "the answer names no option"

_MARKUP = re.compile(r"\\(?:boxed|text|textbf|mathrm|mathbf)\b|[*_`{}$\"“”]+")
_LETTER = re.compile(r"(?<![A-Za-z0-9'_])(?<![A-Za-z0-9]\.)[A-Za-z](?![A-Za-z0-9'_])(?!\.[A-Za-z0-9])")
_STATED = re.compile(
    r"(?:\b(?:answer|choice|option|letter)|\b(?:choose|chose|pick|select)|答案|选项|选择|选|正确的?)"
    r"(?:\s+(?:is|was|should\s+be|would\s+be|must\s+be|will\s+be)|应该是|应该为|应为|应该?选|是|为|选)?\s*[:：=]?\s*"
    r"(?:the\s+)?(?:(?:correct|right|option|choice|letter|answer)\s*[:：]?\s*){0,2}[(\[]?\s*$",
    re.IGNORECASE,
)
"""What stands before a letter that is said to be the answer, such as "The correct answer is: option ("."""
_LED_TO = re.compile(
    r"(?:^|\n|[(\[]|\b(?:is|it's|be|say|think|with|for|so|therefore|thus|hence|maybe|probably|perhaps|guess|to|but)\b,?|是|:)"
    r"\s*[(\[]?\s*$",
    re.IGNORECASE,
)
"""What stands before a letter that is given without naming it the answer, such as "I think it's "."""
_END_OF_LETTER = re.compile(r"\s*[)\].:,;!?。，；：！]|\s*$|\s*\n|\s+[-–—]|[^\x00-\x7f]")
_GOES_ON = re.compile(r"\s+(?:because|since|as|is|was|for|and|or|but|not|seems|would|rather|appears)\b", re.IGNORECASE)
"""What may follow the letter A (or I) where it is no article (or pronoun)."""
_NEGATION = re.compile(
    r"(?:\b(?:not|never|neither|nor|except|cannot\s+be|rather\s+than|instead\s+of|unlike)\b|n't\b|不是|不选|不应选|并非|排除)"
    r"\s*(?:(?:the\s+)?(?:option|choice|answer|letter)\s*|选项)?[(\[]?\s*$",
    re.IGNORECASE,
)
_REFUTED = re.compile(
    r"\s*[)\].:,]?\s*(?:(?:is|are|was|seems|looks|must\s+be)\s+(?:\w+\s+)?(?:not|wrong|incorrect|false|excluded)\b"
    r"|(?:is|are|was)n't\b|不对|错|是错|不正确|不是)",
    re.IGNORECASE,
)
_JOINED = re.compile(
    r"[)\].]?\s*(?:,|/|&|\+|或者?|和|与|、|,?\s*\b(?:or|and|nor)\b)\s*(?:option\s*)?[(\[]?", re.IGNORECASE
)
_LEAD_IN = re.compile(
    r"\A(?:(?:so|well|i\s+(?:think|believe|guess|say))\W+)*(?:the\s+)?(?:correct\s+|right\s+)?(?:answer|result|it|that|this)?"
    r"\s*(?:is|'s|[:：=]|答案是|答案[:：])?\s*[:：]?\s*(?:答案是|答案[:：])?\s*",
    re.IGNORECASE,
)
_NO_IDEA = re.compile(
    r"\b(?:not|never|none|neither|all\s+of|both|unsure|unknown)\b|n't\b|\?|不|无法|以上|没有", re.IGNORECASE
)
_TOKEN = re.compile(r"[-−]?\d+(?:[.,/]\d+)*|[^\W\d_]+")


class Found(NamedTuple):
    """The letter of an answer, or "" and why there is none."""

    letter: str
    reason: str = ""


class _Mention(NamedTuple):
    """A letter in an answer, with the texts before and after it.

    Attributes:
        rank: 2 = it is said to be the answer, or begins the answer; 1 = the sentence leads to it; 0 = neither.
        denied: the answer says that it is not the right one.
    """

    letter: str
    start: int
    end: int
    rank: int
    denied: bool


def letter_of(text: str, options: Mapping[str, str] | None = None) -> Found:
    """The letter that an answer gives.

    It is said to be the answer, begins it, or is the one that a sentence leads to; without a letter, the answer is the
    text of one option. An answer with two such letters, a denied one, or a letter beside the text of another option
    gives none.

    Args:
        text: the answer.
        options: letter -> option; None = the letters `ANY`, of which no text is known.
    """
    known = options or dict.fromkeys(ANY, "")
    plain = _MARKUP.sub(" ", unicodedata.normalize("NFKC", text).replace("’", "'").replace("‘", "'"))
    plain = re.sub(r"[ \t]+", " ", plain).strip()
    mentions = _mentions(plain, known)
    rank = max((each.rank for each in mentions if not each.denied), default=0)
    best = [each for each in mentions if each.rank == rank and not each.denied] if rank else []
    letters = {each.letter for each in best}
    denied = {each.letter for each in mentions if each.denied}
    if len(letters) > 1 or any(_beside_another(plain, each, mentions) for each in best):
        return Found("", SEVERAL)
    if letters & denied or (denied and not letters):
        return Found("", DENIED)
    if letters:
        if any(_of_another(plain[each.end :], each.letter, known) for each in best):
            return Found("", OTHERS_TEXT)
        return Found(best[0].letter)
    return _quoted(plain, known)


def _mentions(plain: str, known: Mapping[str, str]) -> list[_Mention]:
    """The letters of options in a text, without those that are words of it."""
    found = []
    for match in _LETTER.finditer(plain):
        given, letter = match[0], match[0].upper()
        before, after = plain[: match.start()], plain[match.end() :]
        if letter not in known:
            continue
        in_brackets = before.endswith(("(", "[")) and after.startswith((")", "]"))
        ends = in_brackets or bool(_END_OF_LETTER.match(after))
        said = bool(_STATED.search(before)) or not before.strip("([ ")
        if given.islower() and not (in_brackets or (said and ends)):
            continue
        if given in "AI" and not ends and not _GOES_ON.match(after) and not _begins(after, known[letter]):
            continue
        if not before.strip("([ ") and not ends and not _GOES_ON.match(after) and not _begins(after, known[letter]):
            said = False
        rank = 2 if said else 1 if in_brackets or _LED_TO.search(before) else 0
        denied = bool(_NEGATION.search(before) or _REFUTED.match(after))
        found.append(_Mention(letter, match.start(), match.end(), rank, denied))
    return found


def _beside_another(plain: str, best: _Mention, mentions: Sequence[_Mention]) -> bool:
    """Whether another letter is joined to this one ("B or C"), or stands as a label of its own ("A: no. B: yes")."""
    for other in mentions:
        if other.letter == best.letter or other.denied:
            continue
        first, second = sorted((best, other), key=lambda each: each.start)
        if _JOINED.fullmatch(plain[first.end : second.start]):
            return True
        if re.match(r"\s*[).:\]]", plain[other.end :]):
            return True
    return False


def _of_another(after: str, letter: str, known: Mapping[str, str]) -> bool:
    """Whether what follows a letter is the text of another option, and not of its own."""
    if _begins(after, known[letter]):
        return False
    return any(_begins(after, option) for other, option in known.items() if other != letter and option)


def _begins(after: str, option: str) -> bool:
    """Whether a text begins with an option, after marks."""
    wanted = _tokens(option)
    return bool(wanted) and _tokens(after)[: len(wanted)] == wanted


def _quoted(plain: str, known: Mapping[str, str]) -> Found:
    """The letter of the option whose text the answer is, or the only one that it has."""
    whole = _tokens(_LEAD_IN.sub("", plain, count=1))
    if equal := [letter for letter, option in known.items() if _tokens(option) == whole and whole]:
        return Found(equal[0]) if len(equal) == 1 else Found("", SEVERAL)
    if _NO_IDEA.search(plain):
        return Found("", NONE)
    answer = _tokens(plain)
    inside = {letter: spans for letter, option in known.items() if (spans := _spans(answer, _tokens(option)))}
    there = {
        letter
        for letter, spans in inside.items()
        if any(not any(_covers(more, one) for other in inside.values() for more in other) for one in spans)
    }
    if len(there) != 1:
        return Found("", SEVERAL if there else NONE)
    (letter,) = there
    words = _tokens(known[letter])
    is_telling = len(words) > 1 or len(words[0]) > 3 or (words[0].isdecimal() and len(words[0]) > 1)
    return Found(letter) if is_telling else Found("", NONE)


def _spans(answer: Sequence[str], wanted: Sequence[str]) -> list[tuple[int, int]]:
    """The places of an option in an answer."""
    size = len(wanted)
    return [(i, i + size) for i in range(len(answer) - size + 1) if size and [*answer[i : i + size]] == [*wanted]]


def _covers(more: tuple[int, int], one: tuple[int, int]) -> bool:
    return more != one and more[0] <= one[0] and one[1] <= more[1]


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text.casefold())
