"""A multiple-choice question in a text: the question, its options in the usual spellings, and an answer line.

    What is 2 + 3?            Which is a fruit? A) apple B) table
    A. 4                      Which is a fruit?
    B. 5                      (a) apple
    Answer: B                 (b) table

Options are in a line each, or all in the same line, and are lettered from A without a gap. What cannot be told apart
is no question: a text is never read as a question with other options than its own.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from finepref.formats.choices import LETTERS, normal

_STYLES = {
    "(A)": r"\({0}\)[.:]?",
    "[A]": r"\[{0}\][.:]?",
    "A)": r"(?<![(\w]){0}\)",
    "A.": r"(?<![(\w.]){0}\.(?!\w)",
    "A:": r"(?<![(\w]){0}:",
    "**A.**": r"\*\*\(?{0}[.):]\)?\*\*|\*\*\(?{0}\)?\*\*[.):]?",
}
"""How a letter is marked as that of an option, with {0} for it."""
_IN_LINES = r"(?m)^[ \t]*(?:[-*•][ \t]+)?(?:{0})[ \t]*"
_INLINE = r"(?:(?<=\s)|^)(?:{0})[ \t]+"
_ANSWER = re.compile(
    r"[\s;]*(?:^|\n|(?<=[.\s;]))\**(?:the[ \t]+)?(?:correct[ \t]+|right[ \t]+)?(?:answer|答案)(?:[ \t]+is)?"
    r"[ \t]*[:：][ \t]*\**[ \t]*"
    r"\(?(?P<letter>[A-Za-z])(?:[).:]+(?P<rest>[^\n]*))?\**\s*\Z",
    re.IGNORECASE,
)
"""The answer that a writer of questions gives at the end, as in "Answer:B."."""
_NUMBERED = re.compile(r"\A\s*(?:Q(?:uestion)?[ \t]*\d*[.:)]|\d+[.)])[ \t]*", re.IGNORECASE)


class Asked(NamedTuple):
    """A question, its options in order, and the letter that the text itself names as the answer, or ""."""

    question: str
    options: tuple[str, ...]
    answer: str = ""


def parse_choice(text: str) -> Asked | str:
    """The multiple-choice question in a text, or why it is none."""
    body, answer = text.strip(), ""
    if match := _ANSWER.search(body):
        body, answer = body[: match.start()].rstrip(), match["letter"].upper()
    reason = "no options"
    for where in (_IN_LINES, _INLINE):
        for style in _STYLES.values():
            found = _marked(body, where, style)
            if isinstance(found, Asked):
                return _checked(found, answer)
            reason = found or reason
    return reason


def _marked(body: str, where: str, style: str) -> Asked | str:
    """The question by marks of one style; "" if there are none, or why they mark no options."""
    in_order = reason = ""
    for cases in ("A-Z", "a-z"):
        made = re.compile(where.format(style.replace("{0}", f"([{cases}])")))
        marks = [(next(filter(None, match.groups())), match) for match in made.finditer(body)]
        letters = "".join(letter for letter, _ in marks).upper()
        if len(letters) > 1 and letters == LETTERS[: len(letters)]:
            in_order = letters
            break
        if letters:
            reason = reason or f"the options are not A, B, C, ... in order: {', '.join(letters[:8])}"
    if not in_order:
        return reason
    ends = [match.start() for _, match in marks[1:]] + [len(body)]
    options = [
        body[match.end() : end].strip().strip(";,").strip() for (_, match), end in zip(marks, ends, strict=True)
    ]
    return Asked(_NUMBERED.sub("", body[: marks[0][1].start()]).strip(), tuple(options))


def _checked(found: Asked, answer: str) -> Asked | str:
    """The question, or what is wrong with it."""
    if not any(map(str.isalnum, found.question)):
        return "no question before the options"
    if not all(found.options):
        return "an option is empty"
    if any("\n" in option for option in found.options):
        return "text after an option, in another line"
    if len({*map(normal, found.options)}) < len(found.options):
        return "two options are equal"
    if answer and answer not in LETTERS[: len(found.options)]:
        return f"the answer line names {answer}, which is no option"
    return found._replace(answer=answer)
