"""Tokenised data on LLaMA-Factory: made by the stage's processor, and saved in a folder that says what it is."""

from __future__ import annotations

import functools
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from finepref import stages
from finepref.formats import records, scores
from finepref.formats.problems import BadData, Problem
from finepref.hosts import receipt
from finepref.hosts.llamafactory.data import adapter_of
from finepref.hosts.llamafactory.verdicts import columns_of, drop_in_stream, keep_checked, keep_good, rows_of, verdict
from finepref.hosts.run import Run, current
from finepref.methods import overlong
from finepref.methods.options import Options
from finepref.methods.pair_rows import offsets_in, problem_of_record
from finepref.synth.engines.checkpoint import ToolsRefusedError

MARKER = "finepref_tokenized.json"
RESULTS = "\n</tool_response>\n<tool_response>\n"  # between results that the host joins
CONTENT = "{{content}}"  # stands for the message in the host's templates


def encode(processor: Any, prompt: records.Prompt, response: str) -> tuple[list[int], list[int]]:
    """Token ids of prompt and response by the template of a host's DatasetProcessor, not cut.

    Raises:
        ToolsRefusedError: the template cannot write the tools, a call of functions or its result.
    """
    template = processor.template
    tools, turns = records.split_tools(prompt)
    system = turns[0].content if turns[0].role == "system" else None
    turns = [*(message for message in turns if message.role != "system"), records.as_turn(response)]
    _check_tools(template, tools, turns)
    messages = _as_the_host(turns)
    prompt_ids, response_ids = template.encode_oneturn(processor.tokenizer, messages, system, tools or None)
    if template.efficient_eos:
        response_ids = [*response_ids, processor.tokenizer.eos_token_id]
    return prompt_ids, response_ids


def encoded(
    processor: Any, record: records.Record, texts: Mapping[str, str], problems: list[Problem]
) -> tuple[list[int], dict[str, list[int]]]:
    """Token ids of a record's prompt, and of responses to it by name, see `encode`.

    Args:
        processor: see `encode`.
        record: the record.
        texts: field of each response -> its text.
        problems: list to which FP242 is appended; the record is then tokenised without its tools, and not used.
    """
    prompt_ids: list[int] = []
    responses = {}
    prompt = record.prompt
    for field, text in texts.items():
        try:
            prompt_ids, responses[field] = encode(processor, prompt, text)
        except ToolsRefusedError as error:
            problem = problem_of_record(record, error.field or field, error.code, str(error))
            problems += [problem] if problem not in problems else []
            prompt_ids, responses[field] = encode(processor, _without_tools(prompt), str(text))
    return prompt_ids, responses


def _as_the_host(turns: Sequence[records.Message]) -> list[dict[str, str]]:
    """Turns as the host's messages; it joins the results of parallel calls to one."""
    messages: list[dict[str, str]] = []
    for role, text in turns:
        if role == messages[-1]["role"] == "observation" if messages else False:
            messages[-1]["content"] += RESULTS + text
        else:
            messages.append({"role": "function" if role == "function_call" else role, "content": text})
    return messages


def _without_tools(prompt: records.Prompt) -> records.Prompt:
    """A prompt with its tool turns as those of user and assistant."""
    _, turns = records.split_tools(prompt)
    plain = {"observation": "user", "function_call": "assistant"}
    return tuple(records.Message(plain.get(role, role), text) for role, text in turns)


_FORMATTERS_RAISE = (RuntimeError, ValueError, LookupError, TypeError, AttributeError)


def _check_tools(template: Any, tools: str, turns: Sequence[records.Message]) -> None:
    """Raise ToolsRefusedError if the template cannot write the tools or a call; its field is "" for the response."""
    try:
        text = template.format_tools.apply(content=tools)[0] if tools else ""
    except _FORMATTERS_RAISE as error:
        raise ToolsRefusedError(f"the template cannot write the tools: {_told(error)}", "tools") from error
    if tools and not (text.strip() and any(text in each for each in _texts(template.format_system, text))):
        raise ToolsRefusedError("the template does not write the tools", "tools")
    for number, (role, content) in enumerate(turns, start=1):
        if role == "function_call":
            try:
                _calls_as_written(template, content)
            except _FORMATTERS_RAISE as error:
                place = "" if number == len(turns) else "prompt"
                raise ToolsRefusedError(f"the template cannot write the calls: {_told(error)}", place) from error


def _texts(formatter: Any, content: str) -> list[str]:
    """The texts that one of the host's formatters writes for a turn."""
    return [each for each in formatter.apply(content=content) if isinstance(each, str)]


def _calls_as_written(template: Any, text: str) -> list[str]:
    """The texts that the template writes for a call of functions."""
    from llamafactory.data.template import Llama2Template  # not above: this module is loaded while the host's is

    words = {"thought_words": template.thought_words, "tool_call_words": template.tool_call_words}
    if isinstance(template, Llama2Template):
        words = {}  # which the host does not give it
    return [each for each in template.format_function.apply(content=text, **words) if isinstance(each, str)]


def _told(error: Exception) -> str:
    """An error of the host's formatters in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def located(processor: Any, text: str, ids: list[int]) -> tuple[int, list[tuple[int, int]]]:
    """Where the tokens of a text are in a response, see `synth.encoding.Tokens`.

    Args:
        processor: has the host's `template` and `tokenizer`.
        text: the response.
        ids: its token ids, with what the template writes around it.

    Returns:
        The index of the first token, -1 if the template changed the text; and the character range of each token.

    Raises:
        ValueError: the tokenizer is not fast.
    """
    tokenizer = processor.tokenizer
    if not tokenizer.is_fast:
        raise ValueError("spans and scores need a fast tokenizer, for the character offsets of tokens")
    written, before = _around(processor.template, text)
    if before < 0:
        return -1, []
    encoded = tokenizer(written, add_special_tokens=False, return_offsets_mapping=True)
    piece = encoded["input_ids"]
    starts = (i for i in range(len(ids) - len(piece) + 1) if ids[i : i + len(piece)] == piece)
    start = next(starts, -1)  # above 0 if the template writes thinking tags first
    return start, offsets_in(text, encoded["offset_mapping"], before=before)


def _around(template: Any, text: str) -> tuple[str, int]:
    """The piece of a response in which the template writes its text, and where in it; -1 if it changes the text."""
    if isinstance(text, records.FunctionCall):
        pieces = [each for each in _calls_as_written(template, text) if text in each]
        return (pieces[0], pieces[0].index(text)) if len(pieces) == 1 else ("", -1)
    (slot,) = (each for each in template.format_assistant.slots if isinstance(each, str) and CONTENT in each)
    return slot.replace(CONTENT, text, 1), slot.index(CONTENT)


def dataset_processor(original: Callable) -> Callable:
    """`_get_dataset_processor` that makes the processors of our stages too (card `dataset-processor`)."""

    @functools.wraps(original)
    def _get_dataset_processor(data_args, stage, template, tokenizer, processor, do_generate=False):
        row = stages.find(stage)
        if row is None:
            return original(data_args, stage, template, tokenizer, processor, do_generate)
        make = adapter_of(row).processor(current().options)
        made = make(template=template, tokenizer=tokenizer, processor=processor, data_args=data_args)
        if current().split is not None:
            made.of_split(current().split)
        return made

    return _get_dataset_processor


def preprocessed_dataset(original: Callable) -> Callable:
    """`_get_preprocessed_dataset` that counts and drops rows that cannot be used (card `preprocessed-dataset`)."""

    @functools.wraps(original)
    def _get_preprocessed_dataset(
        dataset, data_args, training_args, stage, template, tokenizer, processor=None, is_eval=False
    ):
        row = stages.find(stage)
        if row is None or dataset is None:
            return original(dataset, data_args, training_args, stage, template, tokenizer, processor, is_eval)
        run = current()
        try:
            dataset = adapter_of(row).prepare(dataset, streaming=data_args.streaming)
        except BadData as error:
            raise _of_split(error, data_args, is_eval=is_eval) from None
        run.split = None if data_args.streaming else dataset
        tokenized = original(dataset, data_args, training_args, stage, template, tokenizer, processor, is_eval)
        if data_args.streaming:
            kept = drop_in_stream(tokenized, run.options)
            check = adapter_of(row).check(run.options)
            return kept if check is None else drop_in_stream(kept.map(check, batched=True), run.options)
        return keep_good(run, tokenized)

    return _get_preprocessed_dataset


@dataclass
class TokenizedCheck(ABC):
    """Tokenised rows -> the verdict on each by the stage's options, for `datasets.map`. Subclasses define `row`.

    Attributes:
        stage: the stage's name.
        options: its options.
        unread: columns that `row` does not read, which need not be decoded.
    """

    unread: ClassVar[tuple[str, ...]] = ()

    stage: str
    options: Options

    def __call__(self, examples: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        found = []
        for row in rows_of(examples):
            skipped, problems = self.row(row)
            place, count, cut = row["place"], row["rows"], row["cut"]
            found.append(verdict(row["example_id"], place, count, cut=cut, skipped=skipped, problems=problems))
        return columns_of(found)

    @abstractmethod
    def row(self, row: dict[str, Any]) -> tuple[str, Sequence[Problem]]:
        """(reason to skip the row, or ""; its problems)."""

    @staticmethod
    def of_cut(row: dict[str, Any], problems: Sequence[Problem], code: str, reason: str) -> tuple[str, list[Problem]]:
        """The verdict on a row with problems: it is skipped if only the cut of its responses is to blame.

        Args:
            row: the tokenised row.
            problems: what is wrong with it.
            code: the code that a cut can cause.
            reason: the reason for skipping it then.
        """
        if overlong.only_the_cut(row["cut"], (problem.code for problem in problems), code):
            return reason, []
        return "", [*problems]


def usable(run: Run, check: TokenizedCheck | None, dataset: Any, data_args: Any) -> Any:
    """The rows of a tokenised split that the run's options can use. The others are counted.

    Raises:
        BadData: there are more bad rows than the options allow.
        ValueError: no row is left.
    """
    if check is not None and len(dataset):
        dataset = keep_checked(run, dataset, check, data_args, desc="Checking tokens", unread=check.unread)
    if not len(dataset):
        raise ValueError("; ".join(["no row is left", *run.rows.summary(longest="`cutoff_len`")]))
    return dataset


def _of_split(error: BadData, data_args: Any, *, is_eval: bool) -> BadData:
    """The error with the name of the split, in problems of a data set as a whole."""
    if not is_eval:
        name = "the training split"
    elif data_args.eval_dataset:
        name = "the evaluation split, eval_dataset"
    else:
        name = f"the evaluation split, val_size {data_args.val_size}"
    return BadData([p if p.line else replace(p, file=name) for p in error.problems], error.total)


def get_dataset(original: Callable) -> Callable:
    """`get_dataset` that describes tokenised folders, and refuses one of another run (card `get-dataset`)."""

    @functools.wraps(original)
    def get_dataset(template, model_args, data_args, training_args, stage, tokenizer, processor=None):
        row = stages.find(stage)
        folder = data_args.tokenized_path
        marker = Path(folder, MARKER) if folder else None
        content = _made_by(row, data_args, tokenizer) if row else None
        if marker is not None and os.path.isdir(folder) and os.listdir(folder):
            found = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else None
            _refuse_other(folder, found, content)
            if found:
                run = current()
                run.datasets = [receipt.DatasetEntry(**entry) for entry in found["datasets"]]
                run.rows.restore(found["rows"])
        module = original(template, model_args, data_args, training_args, stage, tokenizer, processor)
        if row is not None and marker is not None and not marker.is_file() and training_args.should_save:
            run = current()
            made = {**content, "datasets": [asdict(entry) for entry in run.datasets], "rows": run.rows.kept()}
            marker.write_text(json.dumps(made, indent=2), encoding="utf-8")
        return module

    return get_dataset


def _made_by(row: stages.Stage, data_args: Any, tokenizer: Any) -> dict[str, Any]:
    """What tokenised rows depend on, as the user names it."""
    return {
        "stage": row.name,
        "schema": adapter_of(row).schema,
        "cutoff_len": data_args.cutoff_len,
        "template": data_args.template,
        "tool_format": data_args.tool_format,
        "tokenizer": scores.fingerprint(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else "",
        "finepref_overlong": current().options.overlong,
    }


def _refuse_other(folder: str, found: dict[str, Any] | None, content: dict[str, Any] | None) -> None:
    """Raise ValueError if a folder of tokenised rows is not what this run would make."""
    if found is None and content is None:
        return
    if found is None or content is None:
        theirs, ours = ("a stage of the host", content) if found is None else (found, "a stage of the host")
        named = [each if isinstance(each, str) else f"stage {each['stage']}" for each in (theirs, ours)]
        differing = f"was written for {named[0]}, this run is {named[1]}"
    else:
        changed = [
            f"{name} {found.get(name)!r}, now {value!r}" for name, value in content.items() if found.get(name) != value
        ]
        if not changed:
            return
        differing = f"was written with {'; '.join(changed)}"
    raise ValueError(f"tokenized_path {folder} {differing}; use another folder")
