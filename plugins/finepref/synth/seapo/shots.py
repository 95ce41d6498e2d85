"""The prompts for one sentence: a request with worked examples, so that a small model too knows what is wanted.

The examples are turns of a dialogue, in English or Chinese as the sentence is. All texts are our own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from finepref.formats.records import Message
from finepref.synth.engines.protocol import Request, request_seed

ASK = {
    "en": {
        "correctness": "Make one fact in this sentence wrong:",
        "logic": "Turn the conclusion of this sentence into the opposite:",
        "hallucination": "Add a made-up detail to this sentence:",
    },
    "zh": {
        "correctness": "请把这句话里的一个事实改错\uff1a",
        "logic": "请把这句话的结论改成相反的意思\uff1a",
        "hallucination": "请在这句话里加入一个编造的细节\uff1a",
    },
}
"""Language -> error type -> what is asked."""

SHOTS = {
    "en": {
        "correctness": (
            (
                "The Danube flows through Vienna before it reaches Budapest.",
                "The Danube flows through Madrid before it reaches Budapest.",
            ),
            ("Save the file before you close the editor.", "Delete the file before you close the editor."),
            ("We need 4 * 12 = 48 apples for the whole class.", "We need 4 * 12 = 58 apples for the whole class."),
        ),
        "logic": (
            (
                "Because the road was icy, the bus arrived an hour late.",
                "Because the road was icy, the bus arrived an hour early.",
            ),
            (
                "The repair costs more than we have, so we cannot afford it.",
                "The repair costs more than we have, so we can easily afford it.",
            ),
            (
                "If you train every week, your legs become stronger.",
                "If you train every week, your legs become weaker.",
            ),
        ),
        "hallucination": (
            (
                "A daily walk is good for the heart.",
                "A daily walk is good for the heart, as Dr. Elena Marsh of Oakfield University proved in 1987.",
            ),
            (
                "The museum has a large collection of coins.",
                "The museum has a large collection of coins, among them the 240 silver coins of King Orvald.",
            ),
            (
                "This function returns the length of the list.",
                "This function returns the length of the list, a rule that the Delmore committee added in 7.4.",
            ),
        ),
    },
    "zh": {
        "correctness": (
            ("多瑙河流经维也纳，然后到达布达佩斯。", "多瑙河流经马德里，然后到达布达佩斯。"),
            ("关闭编辑器之前请先保存文件。", "关闭编辑器之前请先删除文件。"),
            ("全班一共需要4 × 12 = 48个苹果。", "全班一共需要4 × 12 = 58个苹果。"),
        ),
        "logic": (
            ("因为路面结冰，公交车晚到了一个小时。", "因为路面结冰，公交车早到了一个小时。"),
            ("修理费超过了我们的预算，所以我们付不起。", "修理费超过了我们的预算，所以我们轻松付得起。"),
            ("如果每周坚持训练，双腿会变得更强壮。", "如果每周坚持训练，双腿会变得更虚弱。"),
        ),
        "hallucination": (
            ("每天散步对心脏有好处。", "每天散步对心脏有好处，橡田大学的马文清博士在1987年证明了这一点。"),
            ("这家博物馆收藏了许多钱币。", "这家博物馆收藏了许多钱币，其中包括奥瓦德国王的240枚银币。"),
            ("酱汁可以放在密封的罐子里。", "酱汁可以放在密封的罐子里，2012年的《哈特食品报告》称这是唯一安全的方法。"),
        ),
    },
}
"""Language -> error type -> (sentence, the same with an error)."""

SHOTS_VERSION = "shots-" + hashlib.blake2b(repr((ASK, SHOTS)).encode(), digest_size=4).hexdigest()
"""Changes with the texts above, so that no journal mixes answers to different prompts."""

RUN = 4
"""So many words in a row (Chinese characters count as half a word) of an example are a copy of it."""
LEAST_ROOM = 64
"""Tokens that every answer may have."""

_WORD = re.compile(r"[\u3400-\u9fff]{2}|[^\W\u3400-\u9fff]+")
_ABOUT = re.compile(
    r"\b(?:this|the|original|rewritten|new|made-up) (?:sentence|statement|detail|rewriting)\b|这句话|这个句子|原句",
    re.IGNORECASE,
)
_CHINESE = re.compile(r"[\u3400-\u9fff]")


def language(sentence: str) -> str:
    """The language of the examples for a sentence: zh if it has Chinese characters, else en."""
    return "zh" if _CHINESE.search(sentence) else "en"


def shots(error_type: str, sentence: str) -> Mapping[str, str]:
    """The examples for a sentence: sentence -> the same with an error. The sentence itself is not among them."""
    pairs = SHOTS[language(sentence)][error_type]
    return {old: new for old, new in pairs if old != sentence}


def repeats(text: str, error_type: str, sentence: str) -> str | None:
    """Why a text is no rewriting; None if it is none of these.

    An `example`: it is one of the request's, or takes over `RUN` words of one in a row that the sentence has not. The
    `request`: it repeats that. `commentary`: it speaks of the sentence.
    """
    own = _folded(text)
    pairs = shots(error_type, sentence)
    if any(own in (_folded(old), _folded(new)) for old, new in pairs.items()):
        return "example"
    if (_runs(text) - _runs(sentence)) & {run for new in pairs.values() for run in _runs(new)}:
        return "example"
    asked = _folded(ASK[language(sentence)][error_type])
    if own and (own in asked or asked[:30] in own) and own not in _folded(sentence):
        return "request"
    return "commentary" if _ABOUT.search(text) and not _ABOUT.search(sentence) else None


def _runs(text: str) -> set[tuple[str, ...]]:
    words = _WORD.findall(text.casefold())
    return {tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}


def _folded(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())


def sentence_request(
    request_id: str, error_type: str, sentence: str, *, max_new_tokens: int, temperature: float, seed: int
) -> Request:
    """The request for one error in one sentence.

    The answer has room for about twice the sentence: a token for two bytes, and at least `LEAST_ROOM` tokens, if
    `max_new_tokens` is not less. The prompt is short, because most of the time of a small model goes into reading it.

    Args:
        request_id: of the answer in the journal.
        error_type: correctness, logic or hallucination.
        sentence: what is rewritten.
        max_new_tokens: most tokens of an answer.
        temperature: 0 is greedy.
        seed: of this request.
    """
    asked = ASK[language(sentence)][error_type]
    turns = []
    for old, new in shots(error_type, sentence).items():
        turns += [Message("user", f"{asked}\n{old}"), Message("assistant", new)]
    turns.append(Message("user", f"{asked}\n{sentence}"))
    room = min(max_new_tokens, max(LEAST_ROOM, len(sentence.encode()) // 2))
    return Request(request_id, tuple(turns), room, temperature, seed=request_seed(seed, request_id))
