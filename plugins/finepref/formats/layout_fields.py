"""What reads one field of a record from the columns of a layout, see `finepref.formats.layout.Field`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence

from finepref.formats.layout import ABSENT, Field, Own, Taken, find, is_message, take
from finepref.formats.problems import NOTES
from finepref.formats.released import dialogue, query_id
from finepref.formats.row import ASSISTANTS, CALL_KEYS, ROLES, Message, RowReader, kind_of, shown

_HUMAN_TURN, _ASSISTANT_TURN, _SEPARATOR = "\n\nHuman:", "\n\nAssistant:", "<sep>"
_HEADING = re.compile(r"(?:^|\s*\n)## (Human|Assistant):")
"""A turn of DSP's WebGPT transcripts."""


def reply(reader: RowReader, value: object, place: str) -> object:
    """The text of a response: a text, a message of the assistant, or a list of one such message."""
    if isinstance(value, list | tuple):
        if len(value) != 1:
            reader.note(place, "FP095", f"expected one message of the assistant, got {len(value)}")
            return ABSENT
        value, place = value[0], f"{place}[0]"
    if not isinstance(value, Mapping):
        return Taken(place, value)
    role_key, key = ("from", "value") if {"from", "value"} & value.keys() else ("role", "content")
    role = value.get(role_key, "assistant")
    if type(role) is str and ROLES.get(role, "assistant") not in ASSISTANTS:
        reader.note(place, "FP095", f"expected a message of the assistant, got one of the {ROLES[role]}")
        return ABSENT
    if value.get("train") is False or (type(value.get("weight")) is int and value["weight"] == 0):
        reader.note(place, "FP095", "the message says that nothing of it is trained")
        return ABSENT
    others = {name: member for name, member in value.items() if name not in (key, "train_detail")}
    if role == "function_call" or any(value.get(name) for name in CALL_KEYS):
        before = len(reader.problems)
        turn = reader.message(others | {role_key: role, key: value.get(key)}, place)
        return ABSENT if len(reader.problems) > before else Taken(place, {"function_call": turn.content})
    reader.message(others | {role_key: role, key: "-"}, place)  # notes what is wrong besides the text
    return Taken(f"{place}.{key}", value.get(key, ABSENT))


def turns(reader: RowReader, value: object, place: str) -> object:
    """Messages before the response; a `system` column adds the system turn, if the messages have none.

    As in LLaMA-Factory, the messages' own system turn is the one that counts; another text in the column is noted.
    """
    system = reader.values.get("system")
    if system is None or system == "" or not isinstance(value, list | tuple) or not value:
        return Taken(place, value)
    first = value[0]
    if isinstance(first, Mapping) and first.get("role", first.get("from")) == "system":
        if type(system) is str and system != first.get("content", first.get("value")):
            reader.note(reader.column("system"), "FP121", "the messages have a system turn, which is used instead")
        return Taken(place, value)
    if type(system) is not str:
        reader.note(reader.column("system"), "FP011", f"expected a string, got {kind_of(system)}")
        return ABSENT
    return Taken(place, [{"role": "system", "content": system}, *value])


def system_beside(path: str) -> Field:
    """The `system` column beside a prompt at `path`. Messages there have it already, see `turns`."""

    def read(reader: RowReader, value: object, place: str) -> object:
        return ABSENT if isinstance(find(reader, path).value, list | tuple) else Taken(place, value)

    return Field("system", read)


def prompt_of(path: str) -> dict[str, str | Field]:
    """The prompt at a path, a text or a list of messages: our `prompt` or `messages`."""
    return {
        "prompt": Field(path, text_only),
        "messages": Field(path, messages_only),
    }


def chat_input(reader: RowReader, value: object, place: str) -> object:
    """OpenAI's `input` {messages, tools}: its messages."""
    return Taken(f"{place}.messages", reader.mapping(value, place).get("messages", ABSENT))


def text_only(reader: RowReader, value: object, place: str) -> object:
    """A value that is no list, where the same column may hold messages."""
    return ABSENT if isinstance(value, list | tuple) else Taken(place, value)


def messages_only(reader: RowReader, value: object, place: str) -> object:
    """Messages, where the same column may hold a text."""
    return turns(reader, value, place) if isinstance(value, list | tuple) else ABSENT


def before_last(reader: RowReader, value: object, place: str) -> object:
    """Messages that end in the response: those before it."""
    if isinstance(value, list | tuple) and value and is_message(value[-1]):
        return turns(reader, value[:-1], place)
    return Taken(place, value)


def last(reader: RowReader, value: object, place: str) -> object:
    """Messages that end in the response: its text."""
    if isinstance(value, list | tuple) and value:
        return reply(reader, value[-1], f"{place}[{len(value) - 1}]")
    return ABSENT


def desirable(reader: RowReader, value: object, place: str) -> object:
    """The label of a response that is there to be learned."""
    return Taken(place, True)


def details(reader: RowReader, value: object, place: str) -> object:
    """axolotl's `train_detail`, {begin_offset, end_offset, train} with inclusive offsets: our spans."""
    spans: list[dict[str, object]] = []
    before = len(reader.problems)
    for i, item in enumerate(reader.items(value, place)):
        detail = reader.mapping(item, f"{place}[{i}]")
        begin, end, train = detail.get("begin_offset"), detail.get("end_offset"), detail.get("train")
        known = detail.keys() == {"begin_offset", "end_offset", "train"}
        if not known or type(begin) is not int or type(end) is not int or type(train) is not bool:
            reader.note(f"{place}[{i}]", "FP085", "expected integers begin_offset and end_offset, and a boolean train")
        elif train:
            spans.append({"start": begin, "end": end + 1})
    if not spans and len(reader.problems) == before:
        reader.note(place, "FP042", "no character has train: true")
    return Taken(place, spans)


def better_of(index_path: str, first: str, second: str, *, one_is_first: bool = False) -> dict[str, str | Field]:
    """`chosen` and `rejected` of two columns, by a label that is 0 or 1.

    Args:
        index_path: the column of the label.
        first, second: the two responses.
        one_is_first: whether 1 means that the first is better (else the label is the better one's number).
    """

    def picked(worse: bool) -> Callable[[RowReader, object, str], object]:
        def read(reader: RowReader, value: object, place: str) -> object:
            if type(value) is not int or value not in (0, 1):
                reader.note(place, "FP096", f"expected 0 or 1, got {shown(value)}")
                return ABSENT
            return find(reader, first if ((value == 1) == one_is_first) != worse else second)

        return read

    return {"chosen": Field(index_path, picked(False)), "rejected": Field(index_path, picked(True))}


def each(key: str) -> Callable[[RowReader, object, str], object]:
    """The members of a list's objects at `key`."""

    def read(reader: RowReader, value: object, place: str) -> object:
        found = []
        for i, item in enumerate(reader.items(value, place)):
            members = reader.mapping(item, f"{place}[{i}]")
            if key not in members:
                reader.note(f"{place}[{i}].{key}", "FP010", "the field is missing")
            found.append(members.get(key))
        return Taken(place, found)

    return read


# ---- layouts of the papers' code


def regions(reader: RowReader) -> Sequence[Own]:
    """The span-mask fork of TDPO: `masked_region` [start, end, flag], or a list of them in `masked_regions`.

    Flag 1: the span is in the correct response, -1: in the incorrect one; offsets are those of a Python slice. If all
    flags of a row are 1, or all -1, the record has the one-sided `side` of the released loss. Flag 0 masks both
    responses, so nothing of the pair is trained: the row is refused.
    """
    own = {
        "id": find(reader, "id"),
        "prompt": find(reader, "prompt"),
        "chosen": find(reader, "correct_response|correct"),
        "rejected": find(reader, "incorrect_response|incorrect"),
    }
    place, value = find(reader, "masked_regions|masked_region")
    several = value is not ABSENT and place == reader.column("masked_regions")
    place = place if several else reader.column("masked_region")
    before = len(reader.problems)
    if value is ABSENT:
        reader.missing("masked_region")
        return [own]
    items = reader.items(value, place) if several else [value]
    spans: dict[int, list[object]] = {1: [], -1: []}
    for i, item in enumerate(items):
        where = f"{place}[{i}]" if several else place
        if not isinstance(item, list | tuple) or len(item) != 3 or any(type(number) is not int for number in item):
            reader.note(where, "FP080", "expected [start, end, flag], three integers")
        elif item[2] == 0:
            reader.note(where, "FP087", "flag 0 masks both responses, so nothing of the row can be trained")
        elif item[2] not in spans:
            reader.note(where, "FP080", f"the flag is {shown(item[2])}, not 1, -1 or 0")
        else:
            spans[item[2]].append([*item[:2]])
    if len(reader.problems) > before:
        return [own]
    own |= {
        name: Taken(place, spans[flag]) for name, flag in (("chosen_spans", 1), ("rejected_spans", -1)) if spans[flag]
    }
    if not items:
        reader.note(place, "FP080", "there is no [start, end, flag]")
    sides = [flag for flag in (1, -1) if spans[flag]]
    return [own | {"side": Taken(place, sides[0])} if len(sides) == 1 else own]


def query_and_responses(reader: RowReader) -> Sequence[Own]:
    """APO's `text` ["query<sep>response", ...] with `scores`, or DSP's ["transcript", ...] with `score`.

    Without `<sep>`, a text is a transcript of HH whose last Assistant turn is the response; DSP's WebGPT sets have
    "## Human:" and "## Assistant:" for "Human:" and "Assistant:".
    """
    place, value = find(reader, "text")
    if value is ABSENT:
        reader.missing("text")
        return []
    queries, responses = [], []
    for i, text in enumerate(reader.items(value, place)):
        good = reader.text(text, f"{place}[{i}]")
        parts = good.split(_SEPARATOR)
        if len(parts) == 1 and good.startswith("## Human:"):
            good = _HEADING.sub(r"\n\n\1:", good)
            parts = [good]
        if len(parts) == 1 and good.lstrip().startswith(_HUMAN_TURN.strip()) and _ASSISTANT_TURN in good:
            query, _, response = good.rpartition(_ASSISTANT_TURN)
            parts = [query + _ASSISTANT_TURN, response]
        if len(parts) == 2:
            queries.append(parts[0])
            responses.append(parts[1])
        elif good:
            reader.note(f"{place}[{i}]", "FP081", f"expected one {_SEPARATOR}, got {len(parts) - 1}")
    for i, query in enumerate(queries):
        if query != queries[0]:
            reader.note(f"{place}[{i}]", "FP082", f"the query differs from that of {place}[0]")
        elif not query.strip():
            reader.note(f"{place}[{i}]", "FP012", "the query is empty")
    if not queries and not reader.problems:
        reader.note(place, "FP050", "a ranking needs two responses or more, got 0")
    if reader.problems:
        return []
    prompt, cleaned = dialogue(queries[0], responses)
    own = {
        "messages": Taken(place, _as_objects(prompt)),
        "responses": Taken(place, cleaned),
        "scores": find(reader, "scores|score"),
        "kind": find(reader, "type"),
        "id": find(reader, "query_id"),
    }
    return [own | {"id": own["id"]._replace(value=query_id(own["id"].value))}]


# ---- layouts of hubs and hosts


_GIVEN: dict[str, str | Field] = {"id": "id", "system": system_beside("prompt"), **prompt_of("prompt")}


def given_prompt(reader: RowReader) -> Sequence[Own]:
    """A prompt of messages, and two responses: texts, messages of the assistant, or dialogues that begin with it."""
    sides = [find(reader, "chosen"), find(reader, "rejected")]
    if any(isinstance(value, list | tuple) and len(value) > 1 for _, value in sides):
        return common_prompt(reader)
    responses = {"chosen": Field("chosen", reply), "rejected": Field("rejected", reply)}
    return [take(reader, {**_GIVEN, **responses})]


def common_prompt(reader: RowReader, better: str = "chosen", worse: str = "rejected") -> Sequence[Own]:
    """Two whole dialogues: their common turns are the prompt, the last turns the responses.

    A `prompt` beside them must be one of the common user turns, or their beginning if it is a list of messages; if
    there are no common turns, it is the prompt. Scores beside them are not read: a margin is given as such.

    Args:
        reader: of the row.
        better, worse: the columns of the dialogues.
    """
    (place, chosen), (other_place, rejected) = find(reader, better), find(reader, worse)
    left, right = reader.items(chosen, place), reader.items(rejected, other_place)
    before = _bad(reader)
    common = 0
    while common < min(len(left), len(right)) - 1 and _same_turn(left[common], right[common]):
        common += 1
    given = find(reader, "prompt")
    prompt: dict[str, Taken] = {}
    if common:
        whole = turns(reader, [*left[:common]], place)
        prompt["messages"] = whole if isinstance(whole, Taken) else Taken(place, ABSENT)
        texts = [item.get("content", item.get("value")) for item in left[:common] if isinstance(item, Mapping)]
        if type(given.value) is str and given.value.strip() not in [t.strip() for t in texts if type(t) is str]:
            reader.note(given.place, "FP094", f"the prompt is not among the first {common} turns of {place}")
        if isinstance(given.value, list | tuple):
            same = len(given.value) <= common and all(map(_same_turn, given.value, left))
            if not same:
                reader.note(given.place, "FP094", f"{place} and {other_place} do not begin with the prompt")
    elif len(left) > 1 or len(right) > 1:
        reader.note(place, "FP094", "chosen and rejected do not begin with the same turn")
    else:
        prompt |= take(reader, {"system": system_beside("prompt"), **prompt_of("prompt")})
    if _bad(reader) == before:
        for where, items in ((place, left), (other_place, right)):
            if len(items) - common != 1:
                text = f"the last turn alone may differ from the other response, not the last {len(items) - common}"
                reader.note(where, "FP095", text)
    if _bad(reader) > before:
        return []
    own: dict[str, Taken] = {"id": find(reader, "id"), **prompt}
    for name, where, items in (("chosen", place, left), ("rejected", other_place, right)):
        taken = reply(reader, items[-1], f"{where}[{len(items) - 1}]")
        if isinstance(taken, Taken):
            own[name] = taken
    return [own]


def _bad(reader: RowReader) -> int:
    """Number of problems that are no notes."""
    return sum(problem.code not in NOTES for problem in reader.problems)


def dialogues_of_parts(reader: RowReader) -> Sequence[Own]:
    """LLaMA-Factory's v1 sets: two dialogues whose contents are lists of parts {type, value}."""
    for name in ("chosen_messages", "rejected_messages"):
        place, value = find(reader, name)
        items = [_whole(reader, item, f"{place}[{i}]") for i, item in enumerate(reader.items(value, place))]
        reader.values = {**reader.values, name: items}
    return common_prompt(reader, "chosen_messages", "rejected_messages")


def _whole(reader: RowReader, item: object, place: str) -> object:
    """A message of parts as one with a text; `loss_weight` 0 or 1 becomes `weight`."""
    if not isinstance(item, Mapping) or not isinstance(item.get("content"), list | tuple):
        return item
    texts: list[str] = []
    for i, part in enumerate(item["content"]):
        members = reader.mapping(part, f"{place}.content[{i}]")
        kind, text = members.get("type"), members.get("value")
        if kind != "text":
            code = "FP088" if kind in ("image", "video", "audio") else "FP089"
            reader.note(f"{place}.content[{i}].type", code, f"parts of type {shown(kind)} are not supported")
        elif type(text) is not str:
            reader.note(f"{place}.content[{i}].value", "FP011", f"expected a string, got {kind_of(text)}")
        else:
            texts.append(text)
    weight = item.get("loss_weight")
    rest = {name: member for name, member in item.items() if name != "content"}
    if weight in (0, 1):
        rest = {name: member for name, member in rest.items() if name != "loss_weight"} | {"weight": int(weight)}
    return rest | {"content": "".join(texts)}


def common_beginning(reader: RowReader) -> Sequence[Own]:
    """TRL's implicit prompt as texts: the words with which both texts begin are the prompt."""
    texts = [(place, reader.text(value, place)) for place, value in (find(reader, "chosen"), find(reader, "rejected"))]
    if reader.problems:
        return []
    left, right = (text for _, text in texts)
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))
    end = max((i for i, (letter, _) in enumerate(same) if letter.isspace()), default=0)
    if not left[:end].strip():
        reader.note(texts[0][0], "FP094", "chosen and rejected do not begin with the same words, which are the prompt")
        return []
    own = {"id": find(reader, "id"), "prompt": Taken(texts[0][0], left[:end])}
    sides = zip(("chosen", "rejected"), texts, strict=True)
    return [own | {name: Taken(place, text[end:]) for name, (place, text) in sides}]


def transcripts(reader: RowReader) -> Sequence[Own]:
    """Anthropic's HH: two transcripts that are equal up to the last "\\n\\nAssistant:"."""
    texts = [(place, reader.text(value, place)) for place, value in (find(reader, "chosen"), find(reader, "rejected"))]
    if reader.problems:
        return []
    (query, _, chosen), (other, _, rejected) = (text.rpartition(_ASSISTANT_TURN) for _, text in texts)
    if query != other:
        reader.note(texts[1][0], "FP094", "chosen and rejected differ before their last Assistant turn")
        return []
    prompt, responses = dialogue(query + _ASSISTANT_TURN, [chosen, rejected])
    if _HUMAN_TURN in prompt[0].content or _ASSISTANT_TURN in prompt[0].content:
        reader.note(texts[0][0], "FP021", "the turns of Human and Assistant do not alternate")
        return []
    own = {"messages": Taken(texts[0][0], _as_objects(prompt)), "id": find(reader, "id")}
    return [
        own
        | {
            name: Taken(place, text)
            for name, (place, _), text in zip(("chosen", "rejected"), texts, responses, strict=True)
        }
    ]


def steps(reader: RowReader) -> Sequence[Own]:
    """PRM800K: a pair for each step that has a right completion (rating 1) and a wrong one (rating -1).

    The response is the steps before, then the step, one a line; the span is the step. The steps before are the chosen
    completions, the person's own where they wrote one, else the right one.
    """
    prompt, (place, value) = find(reader, "question.problem"), find(reader, "label.steps")
    found: list[Own] = []
    path: list[str] = []
    for i, item in enumerate(reader.items(value, place)):
        where = f"{place}[{i}]"
        step = reader.mapping(item, where)
        completions = [
            reader.mapping(each, f"{where}.completions[{j}]")
            for j, each in enumerate(reader.items(step.get("completions") or (), f"{where}.completions"))
        ]
        right = _chosen_step(step, completions)
        for j, wrong in enumerate(completions):
            if wrong.get("rating") != -1:
                continue
            one = f"{where}.completions[{j}]"
            if right is not None and right.get("text") != wrong.get("text"):
                found.append(_step_pair(reader, prompt, path, right.get("text"), wrong.get("text"), one))
            else:
                reader.note(one, "FP102", "the step has no right completion that differs, so this one gives no pair")
        if right is None or type(right.get("text")) is not str:
            break
        path.append(str(right["text"]))
    if not found and all(each.code in NOTES for each in reader.problems):
        reader.note(place, "FP120", "no step has a right and a wrong completion, so there is no pair")
    return found


def _chosen_step(
    step: Mapping[str, object], completions: Sequence[Mapping[str, object]]
) -> Mapping[str, object] | None:
    """The completion with which the solution goes on: the chosen one, a person's, or the first right one.

    A chosen one that people did not rate as wrong may be neutral (rating 0), as in phase 2.
    """
    number = step.get("chosen_completion")
    if type(number) is int and 0 <= number < len(completions) and completions[number].get("rating") != -1:
        return completions[number]
    human = step.get("human_completion")
    if isinstance(human, Mapping):
        return human
    if type(human) is str and human.strip():
        return {"text": human}
    return next((each for each in completions if each.get("rating") == 1), None)


def _step_pair(reader: RowReader, prompt: Taken, path: Sequence[str], right: object, wrong: object, place: str) -> Own:
    """The pair of a right and a wrong step after `path`."""
    before = "".join(f"{text}\n" for text in path)
    own: dict[str, Taken] = {"prompt": prompt}
    for side, text in (("chosen", right), ("rejected", wrong)):
        good = reader.text(text, f"{place}.text")
        span = {"start": len(before), "end": len(before) + len(good)}
        own |= {side: Taken(f"{place}.text", before + good), f"{side}_spans": Taken(f"{place}.text", [span])}
    return own


def _same_turn(left: object, right: object) -> bool:
    """Whether two messages have the same role and text, and call the same functions."""
    if not isinstance(left, Mapping) or not isinstance(right, Mapping):
        return False
    said = [(each.get("role", each.get("from")), each.get("content", each.get("value"))) for each in (left, right)]
    calls = [[each.get(key) or None for key in CALL_KEYS] for each in (left, right)]
    return said[0] == said[1] and calls[0] == calls[1]


def _as_objects(prompt: Sequence[Message]) -> list[dict[str, str]]:
    return [turn._asdict() for turn in prompt]
