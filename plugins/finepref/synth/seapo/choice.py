"""Which sentence of an answer gets the error: a rule for each error type, in English and Chinese.

    correctness    sentences with a number, a name or a verb that states a fact
    logic          sentences with a connective ("because", "therefore", "if"), and the last that states something, as
                   the conclusion
    hallucination  every sentence

The only sentence of an answer is good for all.
Questions, and sentences of fewer than `FEW` words, come last; so do those that speak to the reader ("Let me know if
..."), which state nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from finepref.formats.negatives import pick
from finepref.synth.seapo.content import names, numbers
from finepref.synth.seapo.sentences import Sentence

FEW = 4
"""A sentence of fewer words (Chinese characters count as words) is chosen only if there is no other."""
MANY = 45
"""A sentence of more words is chosen after shorter ones: rewriting it well is harder."""

_FACT = re.compile(
    r"\b(?:is|are|was|were|has|have|had|can|cannot|will|became|contains?|consists?|means?|equals?|includes?|requires?"
    r"|causes?|uses?|makes?|takes?|gives?|lies|lives?|produces?|provides?|allows?|helps?|shows?)\b|[是为有位属等含]",
    re.IGNORECASE,
)
_CONNECTIVE = re.compile(
    r"\b(?:because|so|therefore|thus|hence|since|consequently|as a result|if|then|but|however|although|though|while"
    r"|whereas|unless|instead|which means|means that|due to|in order to|overall|in conclusion|in summary|finally"
    r"|leads? to|rather than|by \w+ing)\b|因为|所以|因此|由于|如果|但是|然而|虽然|从而|总之|综上|因而|于是|那么"
    r"|只有|除非",
    re.IGNORECASE,
)
_ADDRESS = re.compile(
    r"\W*(?:i\b|i[’']|let me\b|let[’']s\b|sure\b|certainly\b|of course\b|thank|hello\b|hi\b|dear\b|please\b|sorry\b"
    r"|feel free|good luck|here (?:is|are)\b|here[’']s\b|would you|do you|hope\b"
    r"|我(?:希望|可以)|请|谢谢|您好|你好|抱歉|当然)",
    re.IGNORECASE,
)
_WORD = re.compile(r"[\u3400-\u9fff]|\w+")


def candidates(error_type: str, found: Sequence[Sentence], *, seed: int, record_id: str) -> list[Sentence]:
    """The sentences of an answer that can have an error of the type, the best first; none if no sentence can.

    Equally good ones are in an order that depends on the seed, the record and the error type only.

    Args:
        error_type: correctness, logic or hallucination.
        found: all sentences of the answer, see `sentences`.
        seed: of the order.
        record_id: orders differ between records.
    """
    conclusion = next((each for each in reversed(found) if not _weak(each.text)), found[-1] if found else None)
    scores = {each: _score(error_type, each, each == conclusion, len(found) == 1) for each in found}
    order = [each for each in found if scores[each] is not None]
    drawn = {
        each: pick(1 << 32, seed=seed, epoch=0, record_id=f"{record_id}/{error_type}/{each.start}") for each in order
    }
    return sorted(order, key=lambda each: (-(scores[each] or 0), drawn[each]))


def _score(error_type: str, sentence: Sentence, conclusion: bool, only: bool) -> int | None:
    """How good a sentence is for an error type; None if its rule excludes it.

    Args:
        error_type: correctness, logic or hallucination.
        sentence: of an answer.
        conclusion: it is the last one that states something.
        only: the answer has no other sentence.
    """
    text = sentence.text
    if error_type == "correctness":
        fits = 2 * bool(numbers(text) or names(text)) + bool(_FACT.search(text))
    elif error_type == "logic":
        fits = 2 * bool(_CONNECTIVE.search(text)) + conclusion
    else:
        fits = 1
    if not fits and not only:
        return None
    long = len(_WORD.findall(text)) > MANY
    return 2 * fits + 2 * sentence.ended - 10 * _weak(text) - long


def _weak(text: str) -> int:
    """How many of these a sentence is: a question, a scrap, a word to the reader."""
    question = text.rstrip("\"'”’*_)").endswith(("?", "\uff1f"))
    return question + (len(_WORD.findall(text)) < FEW) + bool(_ADDRESS.match(text))
