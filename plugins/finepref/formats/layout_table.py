"""The table of layouts. Rows are recognised in its order: the more columns a layout needs, the further up it stands.

A new layout is a row here, or in another package, see `finepref.formats.layout`; the documentation's table is made
from it (`finepref formats`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache, partial
from importlib.metadata import entry_points

from finepref.formats import layout_choices as choose
from finepref.formats import layout_fields as take
from finepref.formats import layout_spans as marks
from finepref.formats.choices import LETTERS
from finepref.formats.layout import Field, Layout, problems_of
from finepref.formats.layout import recognise as first_of
from finepref.formats.record_types import FIELDS

GROUP = "finepref.layouts"

_Q, _A, _B = "What is the capital of France?", "It is Paris.", "It is Lyon."
_USER = {"role": "user", "content": _Q}
_GOOD, _BAD = {"role": "assistant", "content": _A}, {"role": "assistant", "content": _B}
_USER_PARTS, _GOOD_PARTS, _BAD_PARTS = (
    {"role": message["role"], "content": [{"type": "text", "value": message["content"]}]}
    for message in (_USER, _GOOD, _BAD)
)
_HUMAN, _GPT, _GPT_BAD = {"from": "human", "value": _Q}, {"from": "gpt", "value": _A}, {"from": "gpt", "value": _B}
_QUERY = f"\n\nHuman: {_Q}\n\nAssistant:"
_REPLIES: dict[str, str | Field] = {"chosen": Field("chosen", take.reply), "rejected": Field("rejected", take.reply)}
_CONVERSATIONS = "conversations|messages|conversation"
_TURNS: dict[str, str | Field] = {
    "id": "id",
    "system": take.system_beside(_CONVERSATIONS),
    "messages": Field(_CONVERSATIONS, take.turns),
}
_ALPACA: dict[str, str | Field] = {
    "id": "id",
    "system": "system",
    "history": "history",
    "prompt": "instruction",
    "query": "input",
}
_ALPACA_KEYS = {"prompt": "instruction", "query": "input", "response": "output"}
_SCORED = [{"response": _A, "overall_score": 8.0}, {"response": _B, "overall_score": 2.0}]
_ANSWERS = [{"text": _A, "pm_score": 4}, {"text": _B, "pm_score": 1}]
_STEP = {"completions": [{"text": "2+2=5", "rating": -1}, {"text": "2+2=4", "rating": 1}], "chosen_completion": 1}
_DETAIL = [{"begin_offset": 6, "end_offset": 10, "train": True}]
_PKU = {"prompt": _Q, "response_0": _A, "response_1": _B, "better_response_id": 0, "safer_response_id": 0}
_PAIR = {"prompt": _Q, "chosen": _A, "rejected": _B}
_ERROR = {"error type": "Wrong-Grounding", "start": 6, "end": 10}
_FEEDBACK = {"errors": [_ERROR], "missing-info": [], "corrected-prediction": _A}
_FINE_GRAINED = {"question": _Q, "passages": [["France", "Its capital is Paris."]], "prediction 1": _B}
_PREDICTION = ("question:text", "prediction 1:text", "feedback:object")
_MARKED = {"text": "Lyon", "confidence": 0.4, "severity": "major", "start": 6, "end": 10}
_RIGHT, _WRONG = {"sents": [_A], "type": ["no_hallucination"]}, {"sents": [_B], "type": ["hallucination"]}
_EDITS = "It is <entity><mark>Paris</mark><delete>Lyon</delete></entity>."
_CITIES = ["Lyon", "Paris", "Nice"]
_SHEPHERD = "2+2*2? Step 1: 2*2=4. {0}\nStep 2: The answer is 8. {1}".format

BUILT_IN = (
    Layout(
        "scored_pair",
        "scored_pair",
        "finepref",
        _PAIR | {"tokenizer": "5d1f6d2c9b0e4a37", "chosen_scores": [0.5, 0.1], "rejected_scores": [0.25]},
        ("chosen:response", "rejected:response", "chosen_scores|rejected_scores:list"),
    ),
    Layout(
        "span_pair",
        "span_pair",
        "finepref",
        _PAIR | {"rejected_spans": [{"start": 6, "end": 10}]},
        ("chosen:response", "rejected:response", "chosen_spans|rejected_spans:list"),
        widens="pair",
    ),
    Layout(
        "negatives",
        "negatives",
        "finepref",
        {"prompt": _Q, "chosen": _A, "negatives": {"hallucination": _B}},
        ("chosen:response", "negatives:object"),
    ),
    Layout(
        "choice",
        "choice",
        "finepref; MMLU-Pro, MedQA",
        {"question": _Q, "options": {"A": "Lyon", "B": "Paris"}, "answer": "B", "subject": "geography"},
        ("question:text", "options:options"),
    ),
    Layout(
        "mmlu",
        "choice",
        "cais/mmlu: `answer` is the place of an option, from 0, or a letter",
        {"question": _Q, "subject": "geography", "choices": _CITIES, "answer": 1},
        ("question:text", "choices:list", "answer"),
        make=choose.listed,
        also=("id", "question", "subject", "choices", "answer"),
    ),
    Layout(
        "mmlu_columns",
        "choice",
        "MMLU as a table, C-Eval, CMMLU: an option a column",
        {"question": _Q, "A": "Lyon", "B": "Paris", "C": "Nice", "answer": "B"},
        ("question|Question:text", "A", "B", "answer|Answer|target"),
        make=choose.in_columns,
        also=("id", "question", "Question", "subject", *LETTERS, "answer", "Answer", "target"),
    ),
    Layout(
        "arc",
        "choice",
        "allenai/ai2_arc, CommonsenseQA, OpenBookQA on the hub",
        {"id": "q7", "question": _Q, "choices": {"text": _CITIES, "label": ["1", "2", "3"]}, "answerKey": "2"},
        ("question|question_stem:text", "choices.text:list", "choices.label:list", "answerKey"),
        make=choose.by_labels,
        also=("id", "question", "question_stem", "subject", "choices", "answerKey"),
    ),
    Layout(
        "arc_stem",
        "choice",
        "ARC's own files",
        {
            "id": "q7",
            "question": {"stem": _Q, "choices": [{"text": "Lyon", "label": "A"}, {"text": "Paris", "label": "B"}]},
            "answerKey": "B",
        },
        ("question.stem:text", "question.choices:objects", "answerKey"),
        make=choose.of_stem,
        also=("id", "question", "subject", "answerKey"),
    ),
    Layout(
        "r_tuning",
        "choice",
        "R-Tuning, and ReverseGen's questions: a file of lists by subject",
        {"geography": [[_Q, *_CITIES, "B"]]},
        by_row=False,
    ),
    Layout(
        "granular",
        "span_pair",
        "TDPO fork with span masks, e17d5cc",
        {"prompt": _Q, "correct_response": _A, "incorrect_response": _B, "masked_region": [6, 10, -1]},
        ("correct_response|correct:text", "incorrect_response|incorrect:text", "masked_region|masked_regions:list"),
        make=take.regions,
        also=(
            *("id", "prompt", "correct_response", "correct", "incorrect_response", "incorrect"),
            *("masked_region", "masked_regions"),
        ),
    ),
    Layout(
        "finegrained_rlhf",
        "span_pair",
        "allenai/FineGrainedRLHF, QA feedback; the passages follow the question",
        _FINE_GRAINED | {"feedback": _FEEDBACK},
        _PREDICTION,
        make=marks.fine_grained,
        also=("id", "question", "passages", "gold", "prediction 1", "feedback"),
    ),
    Layout(
        "finegrained_rlhf_question",
        "span_pair",
        "the same, the question alone",
        _FINE_GRAINED | {"feedback": _FEEDBACK},
        make=marks.question_alone,
        also=("id", "question", "gold", "prediction 1", "feedback"),
    ),
    Layout(
        "anah",
        "span_pair",
        "ANAH, Mask-DPO: sentences with types",
        {"prompt": [_USER], "chosen": [_GOOD], "chosen_item": _RIGHT, "rejected": [_BAD], "rejected_item": _WRONG},
        ("prompt", "chosen", "rejected", "chosen_item:object", "rejected_item:object"),
        make=marks.sentences,
        also=("id", "prompt", "chosen", "rejected", "chosen_item", "rejected_item"),
    ),
    Layout(
        "math_step_dpo",
        "span_pair",
        "xinlai/Math-Step-DPO-10K: the step is the span",
        {"prompt": "2+3*4?", "initial_reason_steps": "3*4=12.\n", "chosen": "2+12=14.", "rejected": "2+12=15."},
        ("prompt:text", "initial_reason_steps:text", "chosen:text", "rejected:text"),
        make=marks.step_after,
        also=("prompt", "initial_reason_steps", "chosen", "rejected"),
    ),
    Layout(
        "fava",
        "span_pair",
        "FAVA: a text with its edits",
        {"prompt": f"Reference: Paris is the capital of France.\n[Text] {_B}", "completion": _EDITS},
        ("!label", "prompt:text", "completion:edited"),
        make=marks.edits,
        also=("prompt", "completion"),
    ),
    Layout(
        "xcomet",
        "span_pair",
        "xCOMET: a translation with marked errors, and its reference",
        {"src": "Es ist Paris.", "mt": _B, "ref": _A, "error_spans": [_MARKED]},
        ("src:text", "mt:text", "ref:text", "error_spans|errors:list"),
        make=marks.translation,
        also=("id", "src", "mt", "ref", "error_spans", "errors"),
    ),
    Layout(
        "math_shepherd",
        "feedback",
        "peiyi9979/Math-Shepherd; desirable if every step is",
        {"input": _SHEPHERD("ки", "ки"), "label": _SHEPHERD("+", "-"), "task": "GSM8K"},
        ("input:text", "label:text", "task:text"),
        make=marks.marked_steps,
        also=("input", "label"),
    ),
    Layout(
        "processbench",
        "feedback",
        "Qwen/ProcessBench; desirable if no step is wrong",
        {"id": "g-0", "problem": "2+2*2?", "steps": ["2*2=4.", "The answer is 8."], "label": 1},
        ("problem:text", "steps:list", "label:integer"),
        make=marks.first_wrong_step,
        also=("id", "problem", "steps", "label"),
    ),
    Layout(
        "halueval",
        "feedback",
        "HaluEval, general",
        {"ID": "1", "user_query": _Q, "chatgpt_response": _B, "hallucination": "yes", "hallucination_spans": ["Lyon"]},
        ("user_query:text", "chatgpt_response:text", "hallucination:text"),
        make=marks.judged,
        also=("ID", "user_query", "chatgpt_response", "hallucination", "hallucination_spans"),
    ),
    Layout(
        "halueval_qa",
        "pair",
        "HaluEval, QA: the knowledge, then the question",
        {"knowledge": "Paris is in France.", "question": _Q, "right_answer": _A, "hallucinated_answer": _B},
        ("question:text", "right_answer:text", "hallucinated_answer:text"),
        {"prompt": "knowledge", "query": "question", "chosen": "right_answer", "rejected": "hallucinated_answer"},
    ),
    Layout(
        "halueval_dialogue",
        "pair",
        "HaluEval, dialogues: the knowledge, then the turns",
        {
            "knowledge": "Paris.",
            "dialogue_history": f"[Human]: {_Q}",
            "right_response": _A,
            "hallucinated_response": _B,
        },
        ("dialogue_history:text", "right_response:text", "hallucinated_response:text"),
        make=marks.spoken,
        also=("knowledge", "dialogue_history", "right_response", "hallucinated_response"),
    ),
    Layout(
        "halueval_summarization",
        "pair",
        "HaluEval, summaries",
        {"document": "Paris is the capital of France.", "right_summary": _A, "hallucinated_summary": _B},
        ("document:text", "right_summary:text", "hallucinated_summary:text"),
        {"prompt": "document", "chosen": "right_summary", "rejected": "hallucinated_summary"},
    ),
    Layout(
        "openai_preference",
        "pair",
        "OpenAI preference fine-tuning",
        {"input": {"messages": [_USER]}, "preferred_output": [_GOOD], "non_preferred_output": [_BAD]},
        ("input.messages:messages", "preferred_output:reply", "non_preferred_output:reply"),
        {
            "id": "id",
            "messages": Field("input", take.chat_input),
            "tools": "input.tools|tools",
            "chosen": Field("preferred_output", take.reply),
            "rejected": Field("non_preferred_output", take.reply),
        },
    ),
    Layout(
        "openrlhf_context",
        "pair",
        "OpenRLHF, `context_messages`",
        {"context_messages": [_USER], "chosen": [_GOOD], "rejected": [_BAD]},
        ("context_messages:messages", "chosen:reply", "rejected:reply"),
        {
            "id": "id",
            "system": take.system_beside("context_messages"),
            "messages": Field("context_messages", take.turns),
            **_REPLIES,
        },
    ),
    Layout(
        "ms_swift",
        "pair",
        "ms-swift",
        {"messages": [_USER, _GOOD], "rejected_response": _B},
        ("messages:messages", "rejected_response:reply"),
        {
            "id": "id",
            "system": take.system_beside("messages"),
            "messages": Field("messages", take.before_last),
            "chosen": Field("messages", take.last),
            "rejected": Field("rejected_response", take.reply),
        },
    ),
    Layout(
        "ms_swift_dialogues",
        "pair",
        "ms-swift, `rejected_messages`: two whole dialogues",
        {"messages": [_USER, _GOOD], "rejected_messages": [_USER, _BAD]},
        ("messages:messages", "rejected_messages:messages"),
        make=partial(take.common_prompt, better="messages", worse="rejected_messages"),
        also=("id", "system", "prompt", "messages", "rejected_messages"),
    ),
    Layout(
        "llamafactory_v1",
        "pair",
        "LLaMA-Factory, v1: two whole dialogues of parts",
        {"chosen_messages": [_USER_PARTS, _GOOD_PARTS], "rejected_messages": [_USER_PARTS, _BAD_PARTS]},
        ("chosen_messages:messages", "rejected_messages:messages"),
        make=take.dialogues_of_parts,
        also=("id", "system", "prompt", "chosen_messages", "rejected_messages"),
    ),
    Layout(
        "train_detail",
        "span_pair",
        "axolotl's spans in a preference row",
        {"conversations": [_HUMAN], "chosen": _GPT | {"train_detail": _DETAIL}, "rejected": _GPT_BAD},
        ("chosen:message", "rejected:message", "chosen.train_detail|rejected.train_detail:list"),
        {
            **_TURNS,
            **_REPLIES,
            **take.prompt_of("prompt"),
            "messages": Field(f"{_CONVERSATIONS}|prompt", take.messages_only),
            "system": take.system_beside(f"{_CONVERSATIONS}|prompt"),
            "chosen_spans": Field("chosen.train_detail", take.details),
            "rejected_spans": Field("rejected.train_detail", take.details),
        },
        widens="sharegpt",
    ),
    Layout(
        "sharegpt",
        "pair",
        "LLaMA-Factory, `formatting: sharegpt` with `ranking: true`; axolotl",
        {"conversations": [_HUMAN], "chosen": _GPT, "rejected": _GPT_BAD},
        ("conversations|messages|conversation:messages", "chosen:single", "rejected:single"),
        {**_TURNS, **_REPLIES},
        keys={"messages": "conversations"},
    ),
    Layout(
        "sharegpt_texts",
        "pair",
        "the same, the two responses as texts",
        {"conversations": [_HUMAN], "chosen": _A, "rejected": _B},
        ("conversations|conversation:messages", "chosen:text", "rejected:text"),
        {**_TURNS, **_REPLIES},
        keys={"messages": "conversations"},
    ),
    Layout(
        "trl_explicit",
        "pair",
        "TRL, OpenRLHF: a prompt of messages",
        {"prompt": [_USER], "chosen": [_GOOD], "rejected": [_BAD]},
        ("prompt:messages", "chosen:reply", "rejected:reply"),
        make=take.given_prompt,
        also=("id", "system", "prompt", "chosen", "rejected"),
    ),
    Layout(
        "trl_implicit",
        "pair",
        "TRL, UltraFeedback binarized: two whole dialogues",
        {"chosen": [_USER, _GOOD], "rejected": [_USER, _BAD]},
        ("chosen:messages", "rejected:messages"),
        make=take.common_prompt,
        also=("id", "system", "prompt", "chosen", "rejected"),
    ),
    Layout(
        "rewardbench",
        "pair",
        "RewardBench",
        _PAIR | {"chosen_model": "a", "rejected_model": "b", "subset": "x", "id": 12},
        ("prompt:text", "chosen:text", "rejected:text", "chosen_model", "rejected_model"),
        {name: name for name in FIELDS["pair"]},
        widens="pair",
    ),
    Layout(
        "alpaca",
        "pair",
        "LLaMA-Factory, `formatting: alpaca` with `ranking: true`",
        {"instruction": "Name the capital.", "input": "France", "chosen": _A, "rejected": _B},
        ("!prompt", "instruction:text", "chosen:text", "rejected:text"),
        {**_ALPACA, "chosen": "chosen", "rejected": "rejected"},
        keys=_ALPACA_KEYS,
    ),
    Layout(
        "orca",
        "pair",
        "Intel/orca_dpo_pairs",
        {"system": "", "question": _Q, "chosen": _A, "rejected": _B},
        ("!prompt", "question:text", "chosen:text", "rejected:text"),
        {"id": "id", "system": "system", "prompt": "question", "chosen": "chosen", "rejected": "rejected"},
    ),
    Layout(
        "hh",
        "pair",
        "Anthropic/hh-rlhf",
        {"chosen": f"{_QUERY} {_A}", "rejected": f"{_QUERY} {_B}"},
        ("!prompt", "!messages", "chosen:transcript", "rejected:transcript"),
        make=take.transcripts,
        also=("id", "chosen", "rejected"),
    ),
    Layout(
        "shp",
        "pair",
        "stanfordnlp/SHP",
        {"history": _Q, "human_ref_A": _A, "human_ref_B": _B, "labels": 1},
        ("history:text", "human_ref_A:text", "human_ref_B:text", "labels"),
        {"prompt": "history", **take.better_of("labels", "human_ref_A", "human_ref_B", one_is_first=True)},
        also=("human_ref_A", "human_ref_B"),
    ),
    Layout(
        "stack_exchange_paired",
        "pair",
        "lvwerra/stack-exchange-paired",
        {"qid": 7, "question": _Q, "response_j": _A, "response_k": _B},
        ("question:text", "response_j:text", "response_k:text"),
        {"prompt": "question", "chosen": "response_j", "rejected": "response_k"},
    ),
    Layout(
        "stack_exchange",
        "ranked",
        "HuggingFaceH4/stack-exchange-preferences",
        {"qid": 7, "question": _Q, "answers": _ANSWERS},
        ("question:text", "answers:objects"),
        {
            "prompt": "question",
            "responses": Field("answers", take.each("text")),
            "scores": Field("answers", take.each("pm_score")),
        },
    ),
    Layout(
        "saferlhf",
        "pair",
        "PKU-SafeRLHF, by `better_response_id`",
        _PKU,
        ("prompt:text", "response_0:text", "response_1:text", "better_response_id"),
        {"prompt": "prompt", **take.better_of("better_response_id", "response_0", "response_1")},
        also=("response_0", "response_1"),
    ),
    Layout(
        "saferlhf_safer",
        "pair",
        "PKU-SafeRLHF, by `safer_response_id`",
        _PKU,
        (),
        {"prompt": "prompt", **take.better_of("safer_response_id", "response_0", "response_1")},
        also=("response_0", "response_1"),
    ),
    Layout(
        "ultrafeedback",
        "ranked",
        "openbmb/UltraFeedback: rated completions",
        {"instruction": _Q, "completions": _SCORED},
        ("instruction:text", "completions:objects"),
        {
            "prompt": "instruction",
            "responses": Field("completions", take.each("response")),
            "scores": Field("completions", take.each("overall_score")),
        },
    ),
    Layout(
        "prm800k",
        "span_pair",
        "openai/prm800k: a pair for each step with a right and a wrong completion",
        {"question": {"problem": "2+2?"}, "label": {"steps": [_STEP]}},
        ("question.problem:text", "label.steps:list"),
        make=take.steps,
        also=("question", "label"),
    ),
    Layout(
        "apo_rm",
        "ranked",
        "Linear95/APO, 4282775, and DSP (`score`, no `<sep>`)",
        {"text": [f"{_QUERY}<sep> {_A}", f"{_QUERY}<sep> {_B}"], "scores": [1, 0], "query_id": 7},
        ("text:list", "scores|score:list"),
        make=take.query_and_responses,
        also=("text", "scores", "score", "query_id", "type"),
    ),
    Layout(
        "apo_samples",
        "ranked",
        "Linear95/APO, samples; `--golden` is the file of golden answers",
        {"query_id": 7, "query": _QUERY, "sample_0": _B},
        ("query_id", "query:text", "sample_0"),
        by_row=False,
    ),
    Layout(
        "ragtruth",
        "span_pair",
        "RAGTruth, response.jsonl beside source_info.jsonl: `finepref convert` pairs the responses of a prompt",
        {"id": "1", "source_id": "9", "labels": [_MARKED], "response": _B},
        ("source_id", "response:text", "labels:list"),
        by_row=False,
    ),
    Layout(
        "sepo_csv",
        "span_pair",
        "SePO's top_K.csv, with `--tokenizer`",
        {"prompt": _Q, "chosen_response": f"{_A}</s>", "chosen_selected_args": "0"},
        by_row=False,
    ),
    Layout(
        "reversegen",
        "pair",
        "qtli/ReverseGen, 9b48b88",
        {"prompt": _Q, "positive": _A, "negative": _B},
        ("positive:text", "negative:text"),
        {
            "id": "id",
            "system": take.system_beside("prompt"),
            **take.prompt_of("prompt"),
            "chosen": "positive",
            "rejected": "negative",
        },
    ),
    Layout(
        "ranked",
        "ranked",
        "finepref",
        {"prompt": _Q, "responses": [_A, _B], "scores": [1.0, 0.0]},
        ("responses:list", "scores:list"),
    ),
    Layout(
        "trl_kto",
        "feedback",
        "TRL: `completion` and `label`",
        {"prompt": _Q, "completion": _A, "label": True},
        ("prompt:reply", "completion:reply", "label:label"),
        {
            "id": "id",
            "system": take.system_beside("prompt"),
            **take.prompt_of("prompt"),
            "response": Field("completion", take.reply),
            "label": "label",
        },
    ),
    Layout(
        "alpaca_kto",
        "feedback",
        "LLaMA-Factory, `formatting: alpaca` with `kto_tag`",
        {"instruction": _Q, "input": "", "output": _A, "kto_tag": True},
        ("instruction:text", "output:text", "kto_tag:label"),
        {**_ALPACA, "response": "output", "label": "kto_tag"},
        keys=_ALPACA_KEYS,
    ),
    Layout(
        "sharegpt_kto",
        "feedback",
        "LLaMA-Factory, `formatting: sharegpt` with `kto_tag`",
        {"conversations": [_HUMAN, _GPT], "kto_tag": True},
        ("conversations|messages|conversation:messages", "kto_tag:label"),
        {
            "id": "id",
            "system": take.system_beside(_CONVERSATIONS),
            "messages": Field(_CONVERSATIONS, take.before_last),
            "response": Field(_CONVERSATIONS, take.last),
            "label": "kto_tag",
        },
        keys={"messages": "conversations"},
    ),
    Layout(
        "feedback",
        "feedback",
        "finepref",
        {"prompt": _Q, "response": _A, "label": True},
        ("label:label", "response|messages"),
    ),
    Layout(
        "seapo",
        "feedback",
        "yunjie777/SeaPO, 47335d0; `logic=FILE` for the file of error type logic",
        {"messages": [_USER, _GOOD], "label": True},
    ),
    Layout("kto", "feedback", "KTO data: the same", {"messages": [_USER, _GOOD], "label": True}),
    Layout(
        "trl_implicit_texts",
        "pair",
        "TRL, two texts; what both begin with is taken for the prompt",
        {"chosen": f"{_Q} {_A}", "rejected": f"{_Q} {_B}"},
        make=take.common_beginning,
        also=("id", "chosen", "rejected"),
    ),
    Layout("pair", "pair", "finepref; TRL, OpenRLHF", _PAIR, ("chosen:response", "rejected:response")),
)

SUPERVISED = (
    Layout(
        "alpaca_sft",
        "feedback",
        "LLaMA-Factory, `formatting: alpaca` of supervised training",
        {"instruction": "Name the capital.", "input": "France", "output": _A},
        ("instruction:text", "output:text"),
        {**_ALPACA, "response": "output", "label": Field("output", take.desirable)},
        keys=_ALPACA_KEYS,
    ),
    Layout(
        "sharegpt_sft",
        "feedback",
        "LLaMA-Factory, `formatting: sharegpt` or `openai` of supervised training; OpenAI's `messages`",
        {"conversations": [_HUMAN, _GPT]},
        ("conversations|messages|conversation:messages",),
        {
            "id": "id",
            "system": "system",
            "messages": Field("conversations|messages|conversation", take.before_last),
            "response": Field("conversations|messages|conversation", take.last),
            "label": Field("conversations|messages|conversation", take.desirable),
        },
        keys={"messages": "conversations"},
    ),
)
"""Layouts of single good answers: input of the jobs that ask models, of no stage. They are never guessed elsewhere."""


@cache
def table() -> Mapping[str, Layout]:
    """Every usable layout by name: finepref's, then those of other packages, in the order of recognition.

    A layout of another package is looked at first. One that cannot be used is told on standard error and left out.
    """
    own = {layout.name: layout for layout in BUILT_IN}
    others: dict[str, Layout] = {}
    for entry_point in sorted(entry_points(group=GROUP), key=lambda each: each.name):
        package = entry_point.dist.name if entry_point.dist else "an unknown package"
        try:
            rows = entry_point.load()
        except Exception as error:  # an error in another package must not stop the command
            print(f"finepref: {package}: entry point {entry_point.name}: {error!r}", file=sys.stderr)
            continue
        for row in rows if isinstance(rows, tuple) else (rows,):
            problems = problems_of(row)
            name = getattr(row, "name", "")
            if name in own or name in others:
                problems.append(f"name: there is a layout {name} already")
            if problems:
                lines = "".join(f"\n  {package}, layout {name}, {problem}" for problem in problems)
                print(f"finepref: a layout of {package} cannot be used{lines}", file=sys.stderr)
            else:
                others[name] = row
    return others | own


def recognise(row: Mapping[str, object]) -> str:
    """The layout that a row looks like; "" if it looks like none."""
    return first_of(row, table().values())
