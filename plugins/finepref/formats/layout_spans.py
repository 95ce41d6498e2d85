"""Layouts with spans or steps: errors that people or models have marked, placed on the characters of a response.

What has no place in the record is noted with a code of `problems.NOTES`: the row is good, and the notes are counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from finepref.formats.layout import ABSENT, Own, Taken, find
from finepref.formats.problems import NOTES
from finepref.formats.row import RowReader, shown

_STEP_MARK = "ки"
_FIRST_STEP = re.compile(r"Step 1\s*:")
_SPEAKERS = {"Human": "human", "Assistant": "gpt"}
_SPEAKER = re.compile(r"\[(Human|Assistant)\]:")
_TEXT_MARK = "[Text]"
_EDIT = re.compile(r"<(/?)(mark|delete|entity|relation|contradictory|subjective|unverifiable|invented)>")
_WHOLE_SENTENCE = frozenset({"contradictory", "subjective", "unverifiable", "invented"})
"""FAVA's types of errors whose text is deleted, whether or not it is inside <delete>."""

Marks = list[tuple[int, int]]
"""[start, end) of each mark, in characters."""


def fine_grained(reader: RowReader) -> Sequence[Own]:
    """FineGrainedRLHF: the corrected answer above "prediction 1", whose `errors` are the spans.

    The passages follow the question. Without a correction, `gold` is the better answer (FP103). What the answer lacks
    (`missing-info`) is on no characters (FP100); without any mark on it, all of the answer is the span (FP122).
    """
    found = question_alone(reader)
    place, passages = find(reader, "passages")
    texts: list[str] = []
    for i, passage in enumerate(reader.items(passages, place) if passages not in (ABSENT, None) else ()):
        parts = reader.texts(reader.items(passage, f"{place}[{i}]"), f"{place}[{i}]")
        texts.append("\n".join([*parts[:1], " ".join(parts[1:])]).strip())
    return [{**own, "input": Taken(place, "\n\n".join(texts))} if texts else own for own in found]


def question_alone(reader: RowReader) -> Sequence[Own]:
    """FineGrainedRLHF, the question without its passages. A correction that changes nothing counts as none."""
    errors, lacking = find(reader, "feedback.errors"), find(reader, "feedback.missing-info")
    better, response = find(reader, "feedback.corrected-prediction"), find(reader, "prediction 1")
    text = response.value if type(response.value) is str else ""
    if type(better.value) is str and better.value.strip() in ("", text.strip()):
        if errors.value in (ABSENT, None, [], ()) and lacking.value in (ABSENT, None, [], ()):
            reader.note(better.place, "FP120", "neither an error nor a correction, so there is no pair")
            return []
        better = find(reader, "gold")
        reader.note(better.place, "FP103", "there is no correction; the reference answer is the better one")
    marks = placed(reader, text, errors.value if errors.value is not ABSENT else [], errors.place)
    if isinstance(lacking.value, list | tuple):
        for i in range(len(lacking.value)):
            reader.note(f"{lacking.place}[{i}]", "FP100", "what the response lacks is on none of its characters")
    if text.strip() and not marks:
        reader.note(errors.place, "FP122", "no part of the response is marked, so all of it is the span")
        marks = [(0, len(text))]
    own = {"id": find(reader, "id"), "prompt": find(reader, "question"), "chosen": better, "rejected": response}
    return [own | ({"rejected_spans": Taken(errors.place, spans(marks))} if marks else {})]


def marked_steps(reader: RowReader) -> Sequence[Own]:
    """Math-Shepherd: `label` is `input` with + or - for the mark of each step; desirable if all are +."""
    (place, value), (label_place, labels) = find(reader, "input"), find(reader, "label")
    text, marked = reader.text(value, place), reader.text(labels, label_place)
    if not text or not marked:
        return []
    *parts, rest = text.split(_STEP_MARK)
    position, signs = 0, ""
    for part in parts:
        sign = marked[position + len(part) : position + len(part) + 1]
        if not marked.startswith(part, position) or sign not in ("+", "-"):
            break
        signs += sign
        position += len(part) + 1
    first = _FIRST_STEP.search(text)
    if len(signs) < len(parts) or marked[position:].strip() != rest.strip() or not parts or first is None:
        reader.note(label_place, "FP104", f"expected `input` with + or - for each {_STEP_MARK} of its steps")
        return []
    _wrong_steps(reader, label_place, signs.count("-"), len(signs))
    response = "".join(f"{part.rstrip(' ')}" for part in (*parts, rest))[len(text[: first.start()]) :]
    return [
        {
            "prompt": Taken(place, text[: first.start()].strip()),
            "response": Taken(place, response.strip()),
            "label": Taken(label_place, "-" not in signs),
        }
    ]


def first_wrong_step(reader: RowReader) -> Sequence[Own]:
    """ProcessBench: `label` is the number of the first wrong step; desirable if it is -1."""
    (place, value), (label_place, label) = find(reader, "steps"), find(reader, "label")
    steps = reader.texts(reader.items(value, place), place)
    if type(label) is not int or not -1 <= label < len(steps):
        text = f"expected -1, or the number of one of the {len(steps)} steps from 0, got {shown(label)}"
        reader.note(label_place, "FP104", text)
        return []
    _wrong_steps(reader, label_place, int(label >= 0), len(steps))
    return [
        {
            "id": find(reader, "id"),
            "prompt": find(reader, "problem"),
            "response": Taken(place, "\n\n".join(steps)),
            "label": Taken(label_place, label == -1),
        }
    ]


def _wrong_steps(reader: RowReader, place: str, wrong: int, steps: int) -> None:
    if wrong:
        text = f"which of the {steps} steps is wrong has no place in a row of one response; the label is of the whole"
        reader.note(place, "FP101", text)


def step_after(reader: RowReader) -> Sequence[Own]:
    """Math-Step-DPO-10K: the steps before, then a right or a wrong step, which is the span."""
    before_place, before = find(reader, "initial_reason_steps")
    if type(before) is not str:
        before = reader.text(before if before is not ABSENT else None, before_place)
    own = {"prompt": find(reader, "prompt")}
    for side in ("chosen", "rejected"):
        place, value = find(reader, side)
        step = reader.text(value if value is not ABSENT else None, place)
        span = {"start": len(before), "end": len(before) + len(step)}
        own |= {side: Taken(place, before + step), f"{side}_spans": Taken(place, [span])}
    return [own]


def judged(reader: RowReader) -> Sequence[Own]:
    """HaluEval, general: desirable if `hallucination` is no. An ID that is no number, as a few are, is not taken."""
    place, value = find(reader, "hallucination")
    said = value.strip().lower() if type(value) is str else ""
    if said not in ("yes", "no"):
        reader.note(place, "FP096", f"expected yes or no, got {shown(value)}")
        return []
    response = find(reader, "chatgpt_response")
    marks_place, marks = find(reader, "hallucination_spans")
    for i, mark in enumerate(marks if isinstance(marks, list | tuple) and said == "yes" else ()):
        verbatim = type(mark) is str and type(response.value) is str and mark in response.value
        code = "FP101" if verbatim else "FP100"
        text = "a span has no place in a row of one response; the label is of the whole"
        reader.note(f"{marks_place}[{i}]", code, text if verbatim else "the text is not in the response")
    given = find(reader, "ID")
    return [
        {
            "id": given if type(given.value) is not str or given.value.isdecimal() else given._replace(value=ABSENT),
            "prompt": find(reader, "user_query"),
            "response": response,
            "label": Taken(place, said == "no"),
        }
    ]


def spoken(reader: RowReader) -> Sequence[Own]:
    """HaluEval, dialogues: the turns in `dialogue_history`, with the knowledge before the first of them."""
    place, history = find(reader, "dialogue_history")
    text = reader.text(history if history is not ABSENT else None, place)
    start, *parts = _SPEAKER.split(text)
    if text and (start.strip() or not parts):
        reader.note(place, "FP108", "expected turns that begin with [Human]: or [Assistant]:")
    turns = [
        {"from": _SPEAKERS[who], "value": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    knowledge = find(reader, "knowledge")
    if turns and knowledge.value not in (ABSENT, None, ""):
        turns[0]["value"] = f"{reader.text(knowledge.value, knowledge.place)}\n{turns[0]['value']}"
    own = {"messages": Taken(place, turns)} if turns else {}
    return [own | {"chosen": find(reader, "right_response"), "rejected": find(reader, "hallucinated_response")}]


def edits(reader: RowReader) -> Sequence[Own]:
    """FAVA: `completion` with <mark> for what is put in and <delete> for what is taken out.

    The better response has the first without the second, the worse one the second without the first; these are their
    spans. The prompt is what `prompt` has before [Text], without the line that asks for the edits.
    """
    (prompt_place, prompt), (place, value) = find(reader, "prompt"), find(reader, "completion")
    asked, completion = reader.text(prompt, prompt_place), reader.text(value, place)
    if not asked or not completion:
        return []
    context, mark, told = asked.rpartition(_TEXT_MARK)
    lines = context.rstrip().split("\n")
    context = "\n".join(lines[:-1] if len(lines) > 1 and "identify all the errors" in lines[-1] else lines).strip()
    good, bad, problem = _edited(completion)
    if problem:
        reader.note(place, "FP105", problem)
    elif not good[1] and not bad[1]:
        reader.note(place, "FP120", "the text has no edit, so there is no pair")
    elif mark and " ".join(told.partition("[Edited]")[0].split()) != " ".join(bad[0].split()):
        reader.note(place, "FP105", f"without its edits it is not the text after {_TEXT_MARK} in the prompt")
    if not mark:
        reader.note(prompt_place, "FP105", f"there is no {_TEXT_MARK} in the prompt")
    if any(each.code not in NOTES for each in reader.problems):
        return []
    own = {"prompt": Taken(prompt_place, context), "chosen": Taken(place, good[0]), "rejected": Taken(place, bad[0])}
    for side, (_, marks) in (("chosen", good), ("rejected", bad)):
        if marks:
            own[f"{side}_spans"] = Taken(place, spans(marks))
    return [own]


def _edited(completion: str) -> tuple[tuple[str, Marks], tuple[str, Marks], str]:
    """(text, marks) of the text after the edits, the same before them, and what is wrong, or ""."""
    texts, marks = ["", ""], ([], [])  # type: tuple[list[str], tuple[Marks, Marks]]
    position, open_tags = 0, []  # type: tuple[int, list[str]]

    def add(piece: str) -> None:
        inner = next((tag for tag in reversed(open_tags) if tag in ("mark", "delete")), "")
        deleted = inner == "delete" or (not inner and bool(_WHOLE_SENTENCE & {*open_tags}))
        for side, only_here in ((0, inner == "mark"), (1, deleted)):
            if not piece or (side == 0 and deleted) or (side == 1 and inner == "mark"):
                continue
            if only_here and piece.strip():
                marks[side].append((len(texts[side]), len(texts[side]) + len(piece)))
            texts[side] += piece

    for tag in _EDIT.finditer(completion):
        add(completion[position : tag.start()])
        position = tag.end()
        closing, name = tag.groups()
        if not closing:
            open_tags.append(name)
        elif name in open_tags:
            del open_tags[len(open_tags) - 1 - open_tags[::-1].index(name)]
        else:
            return ("", []), ("", []), f"</{name}> closes nothing"
    if open_tags:
        return ("", []), ("", []), f"<{open_tags[-1]}> is not closed"
    add(completion[position:])
    return (texts[0], marks[0]), (texts[1], marks[1]), ""


def sentences(reader: RowReader) -> Sequence[Own]:
    """ANAH, Mask-DPO (2503.02846): `chosen` without its hallucinated sentences, `rejected` without the right ones."""
    own: dict[str, Taken] = {}
    place, prompt = find(reader, "prompt")
    own["messages" if isinstance(prompt, list | tuple) else "prompt"] = Taken(place, prompt)
    own["id"] = find(reader, "id")
    for side, dropped in (("chosen", "hallucination"), ("rejected", "no_hallucination")):
        place, value = find(reader, side)
        if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], Mapping):
            place, value = f"{place}[0].content", value[0].get("content", ABSENT)
        own[side] = Taken(place, value)
        item = reader.mapping(reader.values.get(f"{side}_item", ABSENT), reader.column(f"{side}_item"))
        item_place = reader.column(f"{side}_item")
        parts, types = (reader.items(item.get(key, ()), f"{item_place}.{key}") for key in ("sents", "type"))
        if len(parts) != len(types):
            reader.note(item_place, "FP106", f"{len(parts)} sentences, {len(types)} types")
            continue
        if type(value) is not str:
            continue
        position, out = 0, []  # type: tuple[int, Marks]
        for i, (part, kind) in enumerate(zip(parts, types, strict=True)):
            start = value.find(part, position) if type(part) is str and part else -1
            if start < 0:
                reader.note(f"{item_place}.sents[{i}]", "FP106", "the sentence is not in the response, after the last")
                break
            position = start + len(str(part))
            if kind == dropped:
                out.append((start, position))
        kept = _others(value, out)
        if out and kept:
            own[f"{side}_spans"] = Taken(item_place, spans(kept))
        elif out:
            reader.note(item_place, "FP107", f"every sentence of {side} is {dropped}, so nothing of it is trained")
    return [own]


def translation(reader: RowReader) -> Sequence[Own]:
    """xCOMET: the reference `ref` above the translation `mt`, whose `error_spans` are the spans.

    `comet-score --to_json` names them `errors`, and leaves them out of a row without any.
    """
    place, errors = find(reader, "error_spans|errors")
    mt = find(reader, "mt")
    marks = placed(reader, mt.value if type(mt.value) is str else "", errors if errors is not ABSENT else [], place)
    if errors in (ABSENT, None, [], ()):
        reader.note(place, "FP120", "the translation has no error, so there is no pair")
        return []
    own = {"id": find(reader, "id"), "prompt": find(reader, "src"), "chosen": find(reader, "ref"), "rejected": mt}
    return [own | ({"rejected_spans": Taken(place, spans(marks))} if marks else {})]


def placed(reader: RowReader, text: str, items: object, place: str) -> Marks:
    """The marks {start, end, text} that are on a text: at their offsets, else where their text is once.

    All others are noted (FP100), without a word if there is no text to place them on.

    Args:
        reader: of the row.
        text: the response.
        items: the list of marks.
        place: of the list.
    """
    marks: Marks = []
    for i, item in enumerate(reader.items(items, place)):
        members = reader.mapping(item, f"{place}[{i}]")
        start, end, said = members.get("start"), members.get("end"), members.get("text")
        wanted = said.strip() if type(said) is str else ""
        if (
            type(start) is int
            and type(end) is int
            and 0 <= start < end <= len(text)
            and text[start:end].strip()
            and (not wanted or text[start:end].strip() == wanted)
        ):
            marks.append((start, end))
        elif wanted and text.count(wanted) == 1:
            start = text.index(wanted)
            marks.append((start, start + len(wanted)))
        elif text:
            reader.note(f"{place}[{i}]", "FP100", f"the mark is on none of the {len(text)} characters of the response")
    return marks


def spans(marks: Iterable[tuple[int, int]]) -> list[dict[str, int]]:
    """Marks as spans, in order; those that overlap are one."""
    joined: list[dict[str, int]] = []
    for start, end in sorted(marks):
        if joined and start < joined[-1]["end"]:
            joined[-1]["end"] = max(end, joined[-1]["end"])
        else:
            joined.append({"start": start, "end": end})
    return joined


def _others(text: str, marks: Marks) -> Marks:
    """The parts of a text that are in no mark, without those of white space alone."""
    edges = [0, *(edge for mark in marks for edge in mark), len(text)]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if text[start:end].strip()]
