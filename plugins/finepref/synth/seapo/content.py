"""What a rewriting put in: numbers, names, a negation or opposite, other words; or nothing but another form.

A cheap test, by lists of words, in English and Chinese. It tells a rewriting that changes no content word from one
that does. It cannot tell a synonym from an error: "large" for "big" counts as another word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

NUMBER, NAME, NEGATION, WORDS = "number", "name", "negation", "words"
"""The kinds of changes: numbers; capitalised words within a sentence; negations and opposites; any content word."""
FACTS = frozenset({NUMBER, NAME, NEGATION})

_DIGITS = re.compile(r"\d+(?:[,.]\d+)*")
_WORD = re.compile(r"[\u3400-\u9fff]|[^\W\d_]+(?:[’'][^\W\d_]+)*")
_NAME = re.compile(r"(?<=[^\W_][ ,;:])[ \"“(‘']*([A-Z][\w’'-]*)|\b([A-Z][A-Z]+)\b")
_SPELLED = """zero one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty sixty
seventy eighty ninety hundred thousand million billion first second third fourth fifth half twice double triple"""
_NEGATIONS = "not no never none nothing nobody neither nor without cannot 不 没 沒 无 無 非 未 莫 勿"
_OPPOSITES = """more/less/fewer most/least before/after above/below increase/decrease increases/decreases
increased/decreased higher/lower high/low larger/smaller large/small big/small longer/shorter long/short older/younger
old/new north/south east/west hot/cold warm/cold early/late earlier/later first/last always/never all/none/some
many/few true/false right/wrong correct/incorrect good/bad better/worse best/worst easy/difficult easier/harder
possible/impossible important/unimportant positive/negative inside/outside up/down left/right open/closed start/end
begin/end buy/sell win/lose rich/poor strong/weak stronger/weaker safe/dangerous add/subtract adding/subtracting
multiply/divide plus/minus rise/fall rises/falls fast/slow faster/slower with/without
大/小 多/少 高/低 长/短 前/后 上/下 东/西 南/北 早/晚 快/慢 新/旧 好/坏 强/弱 增/减 对/错 真/假"""
_FUNCTION = """a an the this that these those it its he she they them their his her we us our you your i me my of in on
at by for from to with as into onto about over than then and or but so if is are was were be been being am do does did
done has have had having can could may might must shall should will would there here which who whom whose what when
where how also just very really quite such too only own same each both either one's itself themselves himself
的 了 着 过 吗 呢 吧 啊 在 和 与 及 或 是 为 这 那 其 它 他 她 们 就 也 都 很 而 且 之 以 于 被 把 个"""

_NOT = ("n't", "n’t")
_SPELLED_WORDS, _NEGATION_WORDS = frozenset(_SPELLED.split()), frozenset(_NEGATIONS.split())
_NO_CONTENT = frozenset(_FUNCTION.split()) | _NEGATION_WORDS
_OPPOSITE_WORDS = [frozenset(group.split("/")) for group in _OPPOSITES.split()]


def numbers(text: str) -> Counter[str]:
    """The numbers of a text in digits (without thousands commas) and the English number words."""
    digits = Counter(match.replace(",", "") for match in _DIGITS.findall(text))
    return digits + Counter(word for word in _words(text) if word in _SPELLED_WORDS)


def names(text: str) -> set[str]:
    """Capitalised words that do not begin a sentence, and words in capitals; not I."""
    found = {first or second for first, second in _NAME.findall(text)}
    return {name for name in found if name != "I" and not name.startswith(("I'", "I’"))}


def changes(old: str, new: str) -> set[str]:
    """The kinds of changes between two texts; empty if nothing but order, form or function words is new.

    What was only taken out is no change, because it seldom makes a text wrong; a negation is, either way.

    The form of a word is what follows its first four letters or more: "increase" and "increased" are one word, and so
    are "begins" and "beginning".
    """
    before, after = _words(old), _words(new)
    found = set()
    if numbers(new) - numbers(old):
        found.add(NUMBER)
    if {name.casefold() for name in names(new)} - {*before}:
        found.add(NAME)
    if _negated(before) != _negated(after) or _opposed(before, after):
        found.add(NEGATION)
    if _new(after, before):
        found.add(WORDS)
    return found


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _negated(words: Iterable[str]) -> int:
    return sum(word in _NEGATION_WORDS or word.endswith(_NOT) for word in words)


def _opposed(before: list[str], after: list[str]) -> bool:
    gone, come = {*before} - {*after}, {*after} - {*before}
    return any(gone & group and come & group for group in _OPPOSITE_WORDS)


def _new(words: list[str], others: list[str]) -> list[str]:
    """Content words without a form of the same word among the others."""
    content = (word for word in words if word not in _NO_CONTENT and not word.endswith(_NOT))
    return [word for word in content if not any(_same_word(word, other) for other in others)]


def _same_word(a: str, b: str) -> bool:
    if a == b:
        return True
    shorter = min(len(a), len(b))
    stem = max(4, shorter - 2)
    return shorter >= 4 and max(len(a), len(b)) - shorter <= 3 and a[:stem] == b[:stem]
