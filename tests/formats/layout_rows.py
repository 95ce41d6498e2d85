"""Random records, and the rows of each layout that hold them: the writers that the readers of the table are held to.

`ROWS` has a strategy for each layout whose rows are read one by one. It draws (row, records): a row, and the records
that it must give as rows of our own format, without an id where the layout has none. `FILES` has one for each layout
whose rows need another file. It draws (write, records), where write(folder) gives the rows that the reader gives.
"""

from __future__ import annotations

import csv
import json
import re
from itertools import pairwise

from finepref.formats.apo_samples import read_apo_samples
from finepref.formats.jsonl import write_jsonl
from finepref.formats.r_tuning import read_r_tuning
from finepref.formats.ragtruth import read_ragtruth
from finepref.formats.sepo_csv import read_sepo_csv
from hypothesis import strategies as st

# ---- parts

WORD = st.text(st.sampled_from("abXé𝔘数字’.,?!0\u0301<>[]{}\\"), min_size=1, max_size=5)
LINE = st.lists(WORD, min_size=1, max_size=5).map(" ".join)
"""One line, with nothing but texts at its ends."""
TEXT = st.builds(
    lambda before, lines, after: before + "\n".join(lines) + after,
    st.sampled_from(["", " ", "\n"]),
    st.lists(LINE, min_size=1, max_size=3),
    st.sampled_from(["", "  ", "\n\n"]),
)
"""Any text, with white space at its ends."""
ID = st.one_of(st.text(st.sampled_from("abé-:7"), min_size=1, max_size=6), st.integers(-5, 99).map(str))
SCORES = st.lists(st.integers(-9, 9).map(lambda n: n / 2), min_size=2, max_size=4, unique=True)
ROLES = ("user", "assistant")


def different(text, size=2):
    """Texts that differ in more than white space."""
    return st.lists(text, min_size=size, max_size=size, unique_by=str.strip)


def dialogue(text=TEXT, *, system=True, longest=5):
    """Turns as messages: an optional system turn, then user and assistant by turns, the user's last."""
    told = st.none() | text if system else st.none()

    def turns(first, texts):
        made = [{"role": ROLES[i % 2], "content": each} for i, each in enumerate(texts)]
        return [{"role": "system", "content": first}, *made] if first is not None else made

    sizes = st.sampled_from(range(1, longest + 1, 2))
    return st.builds(turns, told, sizes.flatmap(lambda n: st.lists(text, min_size=n, max_size=n)))


def answer(text):
    return {"role": "assistant", "content": text}


def sharegpt(messages):
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[turn["role"]], "value": turn["content"]} for turn in messages]


@st.composite
def places(draw, text, *, fewest=0, gaps=False, own=True):
    """[start, end) of spans in a text, in order, each with a character that is not white space.

    Args:
        draw: of hypothesis.
        text: the text.
        fewest: spans at least.
        gaps: leave characters before, between or after the spans, and never let two touch.
        own: whether white space at the edges of a span is allowed.
    """
    edges = sorted(draw(st.sets(st.integers(0, len(text)), min_size=2, max_size=6))) if len(text) > 1 else [0, 1]
    found = [(start, end) for start, end in pairwise(edges) if text[start:end].strip()]
    found = [place for place in found if own or text[slice(*place)] == text[slice(*place)].strip()]
    found = found[::2] if gaps else [place for place in found if draw(st.booleans())]
    if gaps and found == [(0, len(text))]:
        found = []
    if len(found) < fewest:
        start = len(text) - len(text.lstrip())
        found = [(start, start + 1)]
    return found


def spans(found):
    return [{"start": start, "end": end} for start, end in found]


def given_spans(**sides):
    """The fields of spans that are there."""
    return {name: spans(found) for name, found in sides.items() if found}


# ---- arrangements of columns


def pairs(write, *, prompt=None, text=TEXT):
    """Pairs: `write(messages, chosen, rejected)` gives the row."""
    drawn = dialogue(text) if prompt is None else prompt

    def made(messages, both):
        chosen, rejected = both
        return write(messages, chosen, rejected), [{"messages": messages, "chosen": chosen, "rejected": rejected}]

    return st.builds(made, drawn, different(text))


def with_id(strategy, column="id", value=ID, to_row=lambda text: text):
    """The same rows, each with an id."""

    def made(drawn, given):
        row, (record,) = drawn
        return row | {column: to_row(given)}, [record | {"id": given}]

    return st.builds(made, strategy, value)


def feedback(write, *, prompt=None, text=TEXT):
    """Single responses: `write(messages, response, label)` gives the row."""

    def made(messages, response, label):
        row = write(messages, response, label)
        return row, [{"messages": messages, "response": response, "label": label}]

    return st.builds(made, dialogue(text) if prompt is None else prompt, text, st.booleans())


def rankings(write, *, prompt=None, text=TEXT):
    """Scored responses: `write(messages, responses, scores)` gives the row."""

    def made(messages, responses, scores):
        row = write(messages, responses, scores)
        return row, [{"messages": messages, "responses": responses, "scores": scores}]

    drawn = SCORES.flatmap(lambda scores: st.tuples(different(text, len(scores)), st.just(scores)))
    return st.builds(lambda messages, both: made(messages, *both), prompt or ONE_TURN, drawn)


ONE_TURN = dialogue(system=False, longest=1)
SAID = dialogue(longest=1)
STRIPPED = LINE.filter(lambda text: text == text.strip())


def said(messages):
    """The text of the user's last turn."""
    return messages[-1]["content"]


def told(messages):
    """The system text, "" if there is none."""
    return messages[0]["content"] if messages[0]["role"] == "system" else ""


def two(chosen, rejected):
    return {"chosen": chosen, "rejected": rejected}


def picked(prompt, first, second, label, *, one_is_first=False):
    """Rows of two responses and a label, which says that the first, or the second, is better."""

    def write(messages, chosen, rejected):
        number = len(chosen) % 2
        better = number == (1 if one_is_first else 0)
        both = (chosen, rejected) if better else (rejected, chosen)
        return {prompt: said(messages), first: both[0], second: both[1], label: number}

    return pairs(write, prompt=ONE_TURN)


def joined(write, record):
    """A prompt that two columns are joined to: `write(first, second)` gives them."""

    def made(first, second, rest):
        return write(first, second) | rest[0], [{"prompt": f"{first}\n{second}"} | rest[1]]

    return st.builds(made, TEXT, TEXT, record)


@st.composite
def alpaca(draw, rest):
    """The prompt of alpaca: system, history, instruction and input; `rest` has the other columns and fields."""
    messages = draw(dialogue())
    system, turns = told(messages), [turn["content"] for turn in messages if turn["role"] != "system"]
    row = {"instruction": turns[-1]} | ({"system": system} if system else {})
    if len(turns) > 1 or draw(st.booleans()):
        row["history"] = [list(pair) for pair in zip(turns[:-1:2], turns[1::2], strict=True)]
    own = {"messages": messages}
    if draw(st.booleans()):
        row["input"] = draw(TEXT)
        own = {"messages": [*messages[:-1], {"role": "user", "content": f"{turns[-1]}\n{row['input']}"}]}
    columns, fields = draw(rest)
    return row | columns, [own | fields]


def own_format(*fields):
    """Rows of our own formats, which are read as they are."""

    def made(given, messages, drawn):
        row = {"id": given, "messages": messages}
        for each in drawn:
            row |= each
        return row, [row]

    return st.builds(made, ID, dialogue(), st.tuples(*fields))


CHOSEN_REJECTED = different(TEXT).map(lambda both: two(*both))
MARGIN = st.just({}) | st.integers(1, 9).map(lambda n: {"margin": n / 4})


@st.composite
def own_spans(draw):
    row = {"id": draw(ID), "messages": draw(dialogue())} | draw(CHOSEN_REJECTED)
    sides = [side for side in ("chosen", "rejected") if draw(st.booleans())]
    for side in sides:
        found = spans(draw(places(row[side])))
        weights = draw(st.lists(st.sampled_from([None, 0.5, 2.0]), min_size=len(found), max_size=len(found)))
        row[f"{side}_spans"] = [
            span | ({"weight": weight} if weight else {}) for span, weight in zip(found, weights, strict=True)
        ]
    return row, [row]


SCORED = st.builds(
    lambda chosen, rejected: {
        "tokenizer": "5d1f6d2c9b0e4a37",
        "chosen_scores": chosen,
        "rejected_scores": rejected,
        "template": "qwen",
    },
    *[st.lists(st.integers(-9, 9).map(lambda n: n / 8), min_size=1, max_size=4)] * 2,
)
INJECTED = st.builds(
    lambda texts, kept: (
        {
            "chosen": texts[0],
            "negatives": {"logic": texts[1], "correctness": texts[2]},
            "spans": {"logic": [{"start": 0, "end": len(texts[1])}]},
        }
        | ({"rejected": texts[0]} if kept else {})
    ),
    different(TEXT, 3),
    st.booleans(),
)
RATED = st.builds(
    lambda rated, kind: {"responses": rated[0], "scores": rated[1]} | ({"kind": "apo"} if kind else {}),
    SCORES.flatmap(lambda scores: st.tuples(different(TEXT, len(scores)), st.just(scores))),
    st.booleans(),
)
LABELLED = st.builds(
    lambda response, label: {"response": response, "label": label} | ({} if label else {"error_type": "logic"}),
    TEXT,
    st.booleans(),
)


# ---- spans and steps


@st.composite
def granular(draw):
    prompt, (chosen, rejected) = draw(TEXT), draw(different(TEXT))
    side = draw(st.sampled_from([1, -1, 0]))
    good = draw(places(chosen, fewest=1)) if side >= 0 else []
    bad = draw(places(rejected, fewest=1)) if side <= 0 else []
    regions = [[*place, 1] for place in good] + [[*place, -1] for place in bad]
    names = draw(st.sampled_from([("correct_response", "incorrect_response"), ("correct", "incorrect")]))
    row = {"prompt": prompt, names[0]: chosen, names[1]: rejected}
    row |= {"masked_region": regions[0]} if len(regions) == 1 else {"masked_regions": regions}
    record = {"prompt": prompt} | two(chosen, rejected) | given_spans(chosen_spans=good, rejected_spans=bad)
    return row, [record | ({"side": side} if side else {})]


@st.composite
def fine_grained(draw, *, passages):
    question, (chosen, rejected) = draw(TEXT), draw(different(TEXT))
    found = draw(places(rejected))
    errors = [{"error type": "Wrong-Grounding", "explanation": "", "start": a, "end": b} for a, b in found]
    told = draw(st.lists(st.lists(STRIPPED, min_size=2, max_size=3), max_size=2))
    row = {"question": question, "passages": told, "gold": "Gold.", "prediction 1": rejected, "prediction 2": "No."}
    row["feedback"] = {
        "errors": draw(st.permutations(errors)),
        "missing-info": [],
        "corrected-prediction": chosen,
    }
    context = "\n\n".join(f"{title}\n{' '.join(sentences)}" for title, *sentences in told)
    prompt = f"{question}\n{context}" if passages and told else question
    whole = [(0, len(rejected))]  # nothing is marked, so all of it is
    return row, [{"prompt": prompt} | two(chosen, rejected) | given_spans(rejected_spans=found or whole)]


@st.composite
def anah(draw):
    messages, (chosen, rejected) = draw(dialogue()), draw(different(TEXT))
    row, record = {"prompt": messages}, {"messages": messages} | two(chosen, rejected)
    for side, text, dropped in (("chosen", chosen, "hallucination"), ("rejected", rejected, "no_hallucination")):
        kept = draw(places(text, gaps=True))
        edges = sorted({0, len(text), *(edge for place in kept for edge in place)})
        parts = [*pairwise(edges)]
        kinds = [dropped if kept and part not in kept else "no_fact" for part in parts]
        row[side] = [answer(text)]
        row[f"{side}_item"] = {"sents": [text[start:end] for start, end in parts], "type": kinds}
        record |= given_spans(**{f"{side}_spans": kept})
    return row, [record]


@st.composite
def step_dpo(draw):
    prompt, before, (good, bad) = draw(TEXT), draw(TEXT), draw(different(TEXT))
    row = {"prompt": prompt, "initial_reason_steps": before} | two(good, bad)
    both = {side: [(len(before), len(before + text))] for side, text in (("chosen", good), ("rejected", bad))}
    record = {"prompt": prompt} | two(before + good, before + bad)
    return row, [record | given_spans(chosen_spans=both["chosen"], rejected_spans=both["rejected"])]


UNTAGGED = LINE.filter(lambda text: not {"<", "["} & {*text})


@st.composite
def fava(draw):
    context, parts = draw(UNTAGGED), draw(st.lists(st.tuples(st.sampled_from("kid"), UNTAGGED), max_size=5))
    texts, found, completion = {"i": "", "d": ""}, {"i": [], "d": []}, ""
    for kind, text in [("k", "So "), *parts, ("i", "new"), ("k", " end")]:
        for side in "id":
            if kind in (side, "k"):
                if kind == side:
                    found[side].append((len(texts[side]), len(texts[side] + text)))
                texts[side] += text
        tag = {"i": "mark", "d": "delete"}.get(kind)
        completion += f"<entity><{tag}>{text}</{tag}></entity>" if tag else text
    asked = "Please identify all the errors in the following text and suggest edits:"
    row = {"prompt": f"{context}\n{asked}\n[Text] {texts['d']}\n[Edited] ", "completion": completion}
    record = {"prompt": context} | two(texts["i"], texts["d"])
    return row, [record | given_spans(chosen_spans=found["i"], rejected_spans=found["d"])]


@st.composite
def xcomet(draw):
    source, (chosen, rejected) = draw(TEXT), draw(different(TEXT))
    found = draw(places(rejected, fewest=1))
    errors = [{"text": rejected[a:b], "start": a, "end": b, "severity": "major", "confidence": 0.5} for a, b in found]
    row = {"src": source, "mt": rejected, "ref": chosen, draw(st.sampled_from(["error_spans", "errors"])): errors}
    return row, [{"prompt": source} | two(chosen, rejected) | given_spans(rejected_spans=found)]


@st.composite
def shepherd(draw):
    prompt, steps = draw(STRIPPED), draw(st.lists(st.tuples(STRIPPED, st.booleans()), min_size=1, max_size=4))
    lines = [f"Step {i}: {text}" for i, (text, _) in enumerate(steps, 1)]
    signs = ["-+"[good] for _, good in steps]
    row = {"task": "MATH", "input": f"{prompt} " + "\n".join(f"{line} ки" for line in lines)}
    row["label"] = f"{prompt} " + "\n".join(f"{line} {sign}" for line, sign in zip(lines, signs, strict=True))
    return row, [{"prompt": prompt, "response": "\n".join(lines), "label": "-" not in signs}]


@st.composite
def process_bench(draw):
    prompt, steps = draw(TEXT), draw(st.lists(TEXT, min_size=1, max_size=4))
    label = draw(st.integers(-1, len(steps) - 1))
    row = {"problem": prompt, "steps": steps, "label": label, "final_answer_correct": label < 0}
    return row, [{"prompt": prompt, "response": "\n\n".join(steps), "label": label < 0}]


@st.composite
def prm800k(draw):
    """A solution: each step has a completion with which it goes on, and wrong ones beside some of them."""
    problem, steps, records, before = draw(TEXT), [], [], ""
    for number in range(draw(st.integers(1, 3))):
        right, *wrong = draw(different(TEXT, draw(st.integers(2 if number == 0 else 1, 3))))
        rated = [{"text": text, "rating": -1, "flagged": False} for text in wrong]
        place = draw(st.integers(0, len(rated)))
        human = draw(st.booleans())
        if not human:
            rated.insert(place, {"text": right, "rating": draw(st.sampled_from([0, 1])), "flagged": False})
        said = {"text": right, "rating": None} if human else None
        steps.append({"completions": rated, "human_completion": said, "chosen_completion": None if human else place})
        for text in wrong:
            ends = {side: len(before + each) for side, each in (("chosen", right), ("rejected", text))}
            sides = {f"{side}_spans": [(len(before), end)] for side, end in ends.items()}
            records.append({"prompt": problem} | two(before + right, before + text) | given_spans(**sides))
        before += f"{right}\n"
    row = {"question": {"problem": problem, "ground_truth_answer": "4"}, "label": {"steps": steps}}
    return row, records


@st.composite
def train_detail(draw):
    messages, (chosen, rejected) = draw(dialogue()), draw(different(TEXT))
    row, record = {"conversations": sharegpt(messages)}, {"messages": messages} | two(chosen, rejected)
    sides = draw(st.sampled_from([("chosen",), ("rejected",), ("chosen", "rejected")]))
    for side, text in (("chosen", chosen), ("rejected", rejected)):
        row[side] = {"from": "gpt", "value": text}
        if side in sides:
            found = draw(places(text, fewest=1))
            row[side]["train_detail"] = [{"begin_offset": a, "end_offset": b - 1, "train": True} for a, b in found]
            record |= given_spans(**{f"{side}_spans": found})
    return row, [record]


def hh_query(messages):
    """Turns as a transcript of HH, up to the response."""
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in messages) + "\n\nAssistant:"


TURNS = dialogue(STRIPPED, system=False)
SPEECH = STRIPPED.filter(lambda text: "[" not in text)


@st.composite
def spoken(draw):
    messages = draw(dialogue(SPEECH, system=False))
    names = {"user": "[Human]", "assistant": "[Assistant]"}
    history = " ".join(f"{names[turn['role']]}: {turn['content']}" for turn in messages)
    knowledge, (chosen, rejected) = draw(st.just("") | TEXT), draw(different(TEXT))
    row = {"knowledge": knowledge, "dialogue_history": history, "right_response": chosen}
    first = f"{knowledge}\n{said(messages[:1])}" if knowledge else said(messages[:1])
    turns = [{"role": "user", "content": first}, *messages[1:]]
    return row | {"hallucinated_response": rejected}, [{"messages": turns} | two(chosen, rejected)]


@st.composite
def apo_rm(draw):
    """APO's texts with <sep>, of any query; or DSP's transcripts, in either spelling of their turns."""
    kind = draw(st.sampled_from(["sep", "transcript", "headings"]))
    scores = draw(SCORES)
    messages, responses = draw(TURNS), draw(different(STRIPPED, len(scores)))
    query = hh_query(messages)
    if kind == "headings":
        query = query.replace("\n\nHuman:", "\n\n## Human:").replace("\n\nAssistant:", "\n\n## Assistant:").lstrip()
    texts = [f"{query}{'<sep>' if kind == 'sep' else ''} {response}" for response in responses]
    row = {"text": texts, "scores" if kind == "sep" else "score": scores}
    return row, [{"messages": messages, "responses": responses, "scores": scores}]


@st.composite
def implicit_texts(draw):
    prompt, both = draw(TEXT.filter(lambda text: text == text.rstrip())), draw(different(LINE))
    chosen, rejected = (f" {letter}{text}" for letter, text in zip("xy", both, strict=True))
    row = two(prompt + chosen, prompt + rejected)
    return row, [{"prompt": prompt} | two(chosen, rejected)]


def parts_of(messages):
    """Messages as LLaMA-Factory's v1 sets have them: the contents in parts, the answers with a weight."""
    return [
        {
            "role": turn["role"],
            "content": [
                {"type": "text", "value": text} for text in (turn["content"][:3], turn["content"][3:]) if text
            ],
            "loss_weight": float(turn["role"] == "assistant"),
        }
        for turn in messages
    ]


def whole(messages, text):
    return [*messages, answer(text)]


def reply(text):
    """A response as a text, a message or a list of one, by its length."""
    return (text, answer(text), [answer(text)])[len(text) % 3]


@st.composite
def choice(draw, written):
    """A question with different options; `written` makes a row of it, with the place of the answer or None."""
    question, subject = draw(LINE), draw(st.none() | LINE)
    words = st.text("abé数", min_size=1, max_size=4).map(lambda word: f"o{word}")
    options = draw(st.lists(words, min_size=2, max_size=6, unique_by=lambda text: text.casefold()))
    answer = draw(st.none() | st.integers(0, len(options) - 1))
    own = {"question": question, "options": options}
    own |= {"answer": "ABCDEF"[answer]} if answer is not None else {}
    own |= {"subject": subject} if subject else {}
    row = written(question, options, answer)
    return (row | {"subject": subject} if subject else row), [own]


def labelled_options(question, options, answer):
    labels = [str(i + 1) for i in range(len(options))] if len(question) % 2 else [*"ABCDEF"[: len(options)]]
    return labels, "" if answer is None else labels[answer]


def arc(question, options, answer):
    labels, key = labelled_options(question, options, answer)
    return {"question": question, "choices": {"text": options, "label": labels}, "answerKey": key}


def arc_stem(question, options, answer):
    labels, key = labelled_options(question, options, answer)
    items = [{"text": text, "label": label} for text, label in zip(options, labels, strict=True)]
    return {"question": {"stem": question, "choices": items}, "answerKey": key}


def in_columns(question, options, answer):
    key = "" if answer is None else "ABCDEF"[answer]
    return {"question": question, **dict(zip("ABCDEF", options, strict=False)), "answer": key}


def own_choice(question, options, answer):
    given = dict(zip("ABCDEF", options, strict=False)) if len(question) % 2 else options
    return {"question": question, "options": given} | ({} if answer is None else {"answer": "ABCDEF"[answer]})


def mmlu(question, options, answer):
    key = "" if answer is None else answer if len(question) % 2 else "ABCDEF"[answer]
    return {"question": question, "choices": options, "answer": key}


@st.composite
def r_tuning(draw):
    """R-Tuning's lists by subject, or in place of a list the text of ReverseGen's release."""
    drawn = draw(st.lists(choice(own_choice), min_size=1, max_size=4, unique_by=lambda each: str(each[1])))
    content, rows = {}, []
    for _, (own,) in drawn:
        subject = own.get("subject", "law")
        key = own.get("answer", "")
        item = [own["question"], *own["options"], key]
        if key and own["question"][:1].isalpha() and draw(st.booleans()):
            shown = [f"{letter}. {text}" for letter, text in zip("ABCDEF", own["options"], strict=False)]
            item = "\n".join([f"{own['question']} x?", *shown, f"Answer:{key}."])
            own = own | {"question": f"{own['question']} x?"}
        content.setdefault(subject, []).append(item)
        rows.append(own | {"subject": subject})
    rows.sort(key=lambda row: [*content].index(row["subject"]))

    def write(folder):
        (folder / "questions.json").write_text(json.dumps(content, indent=draw_indent), encoding="utf-8")
        return read_r_tuning(folder / "questions.json")

    draw_indent = draw(st.none() | st.just(2))
    return write, rows


HALUEVAL_PAIR = different(TEXT).map(
    lambda both: ({"right_answer": both[0], "hallucinated_answer": both[1]}, two(*both))
)
KTO = st.tuples(TEXT, st.booleans()).map(
    lambda drawn: ({"output": drawn[0], "kto_tag": drawn[1]}, {"response": drawn[0], "label": drawn[1]})
)

ROWS = {
    "scored_pair": own_format(CHOSEN_REJECTED, SCORED),
    "span_pair": own_spans(),
    "negatives": own_format(INJECTED),
    "ranked": own_format(RATED),
    "feedback": own_format(LABELLED),
    "pair": own_format(CHOSEN_REJECTED, MARGIN),
    "choice": with_id(choice(own_choice)),
    "mmlu": with_id(choice(mmlu)),
    "mmlu_columns": with_id(choice(in_columns)),
    "arc": with_id(choice(arc)),
    "arc_stem": with_id(choice(arc_stem)),
    "granular": with_id(granular()),
    "finegrained_rlhf": with_id(fine_grained(passages=True)),
    "finegrained_rlhf_question": with_id(fine_grained(passages=False)),
    "anah": with_id(anah()),
    "math_step_dpo": step_dpo(),
    "fava": fava(),
    "xcomet": with_id(xcomet()),
    "math_shepherd": shepherd(),
    "processbench": with_id(process_bench()),
    "halueval": with_id(
        feedback(
            lambda messages, response, label: {
                "user_query": said(messages),
                "chatgpt_response": response,
                "hallucination": "no" if label else "yes",
                "hallucination_spans": [] if label else [response.strip(), "not in it"],
            },
            prompt=ONE_TURN,
        ),
        "ID",
        st.integers(1, 99).map(str),
    ),
    "halueval_qa": joined(lambda first, second: {"knowledge": first, "question": second}, HALUEVAL_PAIR),
    "halueval_dialogue": spoken(),
    "halueval_summarization": pairs(
        lambda messages, chosen, rejected: {
            "document": said(messages),
            "right_summary": chosen,
            "hallucinated_summary": rejected,
        },
        prompt=ONE_TURN,
    ),
    "openai_preference": with_id(
        pairs(
            lambda messages, chosen, rejected: {
                "input": {"messages": messages, "tools": [], "parallel_tool_calls": True},
                "preferred_output": [answer(chosen)],
                "non_preferred_output": [answer(rejected)],
            }
        )
    ),
    "openrlhf_context": with_id(
        pairs(lambda messages, good, bad: {"context_messages": messages} | two(reply(good), reply(bad)))
    ),
    "ms_swift": with_id(
        pairs(lambda messages, good, bad: {"messages": whole(messages, good), "rejected_response": bad})
    ),
    "ms_swift_dialogues": with_id(
        pairs(
            lambda messages, good, bad: {
                "messages": whole(messages, good),
                "rejected_messages": whole(messages, bad),
            }
        )
    ),
    "llamafactory_v1": with_id(
        pairs(
            lambda messages, good, bad: {
                "chosen_messages": parts_of(whole(messages, good)),
                "rejected_messages": parts_of(whole(messages, bad)),
            }
        )
    ),
    "train_detail": with_id(train_detail()),
    "sharegpt": with_id(
        pairs(
            lambda messages, good, bad: (
                {"conversations": sharegpt([*messages])} | two(*(sharegpt([answer(text)])[0] for text in (good, bad)))
            )
        )
    ),
    "sharegpt_texts": with_id(
        pairs(lambda messages, good, bad: {"conversations": sharegpt(messages)} | two(good, bad))
    ),
    "trl_explicit": with_id(
        pairs(lambda messages, good, bad: {"prompt": messages} | two(reply(good), reply(bad)))
        | pairs(lambda messages, good, bad: {"prompt": messages} | two(whole(messages, good), whole(messages, bad)))
    ),
    "trl_implicit": with_id(
        pairs(
            lambda messages, good, bad: (
                two(whole(messages, good), whole(messages, bad))
                | {"prompt": said(messages), "score_chosen": 8.0, "score_rejected": 8.0}
            )
        )
    ),
    "rewardbench": with_id(
        pairs(
            lambda messages, good, bad: (
                {"prompt": said(messages), "chosen_model": "a", "rejected_model": "b"} | two(good, bad)
            ),
            prompt=ONE_TURN,
        ),
        value=st.integers(0, 9999).map(str),
        to_row=int,
    ),
    "alpaca": with_id(alpaca(different(TEXT).map(lambda both: (two(*both), two(*both))))),
    "orca": with_id(
        pairs(
            lambda messages, good, bad: {"system": told(messages), "question": said(messages)} | two(good, bad),
            prompt=SAID,
        )
    ),
    "hh": with_id(
        pairs(
            lambda messages, good, bad: two(*(f"{hh_query(messages)} {text}" for text in (good, bad))),
            prompt=TURNS,
            text=STRIPPED,
        )
    ),
    "shp": picked("history", "human_ref_A", "human_ref_B", "labels", one_is_first=True),
    "stack_exchange_paired": pairs(
        lambda messages, good, bad: {"qid": 7, "question": said(messages), "response_j": good, "response_k": bad},
        prompt=ONE_TURN,
    ),
    "stack_exchange": rankings(
        lambda messages, responses, scores: {
            "question": said(messages),
            "answers": [{"text": a, "pm_score": b, "author": "x"} for a, b in zip(responses, scores, strict=True)],
        }
    ),
    "saferlhf": picked("prompt", "response_0", "response_1", "better_response_id"),
    "saferlhf_safer": picked("prompt", "response_0", "response_1", "safer_response_id"),
    "ultrafeedback": rankings(
        lambda messages, responses, scores: {
            "instruction": said(messages),
            "completions": [
                {"response": a, "overall_score": b, "model": "x"} for a, b in zip(responses, scores, strict=True)
            ],
        }
    ),
    "prm800k": prm800k(),
    "apo_rm": with_id(apo_rm(), "query_id"),
    "reversegen": with_id(
        pairs(lambda messages, good, bad: {"prompt": messages, "positive": good, "negative": bad})
        | pairs(
            lambda messages, good, bad: (
                {"system": told(messages), "prompt": said(messages)} | {"positive": good, "negative": bad}
            ),
            prompt=SAID,
        )
    ),
    "trl_kto": with_id(
        feedback(lambda messages, text, label: {"prompt": messages, "completion": [answer(text)], "label": label})
        | feedback(
            lambda messages, text, label: (
                {"system": told(messages), "prompt": said(messages)} | {"completion": text, "label": label}
            ),
            prompt=SAID,
        )
    ),
    "alpaca_kto": with_id(alpaca(KTO)),
    "sharegpt_kto": with_id(
        feedback(lambda messages, text, label: {"conversations": sharegpt(whole(messages, text)), "kto_tag": label})
        | feedback(lambda messages, text, label: {"messages": whole(messages, text), "kto_tag": int(label)})
    ),
    "seapo": feedback(lambda messages, text, label: {"messages": whole(messages, text), "label": label}),
    "kto": feedback(lambda messages, text, label: {"messages": whole(messages, text), "label": label}),
    "trl_implicit_texts": with_id(implicit_texts()),
}


# ---- layouts of several files


@st.composite
def ragtruth(draw):
    prompt, (chosen, rejected) = draw(TEXT), draw(different(TEXT))
    found, given = draw(places(rejected, fewest=1)), draw(ID)
    labels = [{"start": a, "end": b, "text": rejected[a:b], "label_type": "Evident Conflict"} for a, b in found]
    rows = [
        {"id": "right", "source_id": "9", "labels": [], "quality": "good", "response": chosen},
        {"id": given, "source_id": "9", "labels": labels, "quality": "good", "response": rejected},
    ]

    def write(folder):
        write_jsonl(folder / "response.jsonl", rows)
        write_jsonl(folder / "source_info.jsonl", [{"source_id": "9", "task_type": "QA", "prompt": prompt}])
        return read_ragtruth(folder / "response.jsonl", folder / "source_info.jsonl")

    record = {"id": given, "prompt": prompt} | two(chosen, rejected) | given_spans(rejected_spans=found)
    return write, [record]


@st.composite
def apo_samples(draw):
    messages, (golden, *samples) = draw(TURNS), draw(different(STRIPPED, 3))
    query, given = hh_query(messages), draw(st.integers(0, 99))

    def write(folder):
        first = {"query_id": given, "query": query}
        write_jsonl(folder / "golden.jsonl", [first | {"golden": golden}])
        write_jsonl(folder / "samples.jsonl", [first | {f"sample_{i}": text for i, text in enumerate(samples)}])
        return read_apo_samples(folder / "samples.jsonl", folder / "golden.jsonl")

    common = {"messages": messages, "scores": [1.0, 0.0], "kind": "apo"}
    return write, [common | {"responses": [golden, sample]} for sample in samples]


def words(text):
    """A tokenizer whose tokens are the words with the space before them; ids are their lengths."""
    found = [match.span() for match in re.finditer(r"\s*\S+", text)]
    return [end - start for start, end in found], found


@st.composite
def sepo_csv(draw):
    prompt, both = draw(TEXT), draw(different(st.lists(WORD, min_size=2, max_size=6).map(" ".join)))
    row, record = {"prompt": prompt}, {"prompt": prompt} | two(*both)
    for side, name, text in (("chosen", "selected", both[0]), ("rejected", "unselected", both[1])):
        ids, offsets = words(text)
        positions = sorted(draw(st.sets(st.integers(0, len(ids) - 2), min_size=1)))
        row |= {f"{side}_response": f"{text}</s>", f"{side}_responses_ids": ",".join(map(str, [*ids, 2]))}
        for each in ("selected", "unselected"):
            row[f"{side}_{each}_args"] = ",".join(map(str, positions if each == name else [0]))
        found = []
        for start, end in (offsets[position + 1] for position in positions):
            if found and found[-1][1] == start:
                start = found.pop()[0]
            found.append((start, end))
        record |= given_spans(**{f"{side}_spans": found})

    def write(folder):
        with open(folder / "top.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [*row], escapechar="\\", lineterminator="\n")
            writer.writeheader()
            writer.writerow(row)
        return read_sepo_csv(folder / "top.csv", words)

    return write, [record]


FILES = {"r_tuning": r_tuning(), "ragtruth": ragtruth(), "apo_samples": apo_samples(), "sepo_csv": sepo_csv()}
