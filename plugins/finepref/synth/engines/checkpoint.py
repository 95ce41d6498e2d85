"""A model's checkpoint: its weights, tokenizer, chat template and context, and a digest of all of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finepref.formats import tool_calls
from finepref.formats.problems import Problem
from finepref.formats.records import Message, split_tools

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    name: str, *, adapter: str | None = None, dtype: str = "auto", device_map: str = ""
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model, see `load_network`, and its tokenizer.

    Raises:
        ValueError: the tokenizer has no chat template or no end-of-sequence token.
    """
    tokenizer = load_tokenizer(name)
    return load_network(name, adapter=adapter, dtype=dtype, device_map=device_map), tokenizer


def accelerator() -> torch.device | None:
    """The accelerator of this process: of several cards that of its LOCAL_RANK; None if there is only a CPU."""
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None else torch.device(found.type, int(os.environ.get("LOCAL_RANK", "0")))


def load_network(
    name: str, *, adapter: str | None = None, dtype: str = "auto", head: bool = True, device_map: str = ""
) -> PreTrainedModel:
    """A causal language model, ready for inference on the accelerator or else the CPU.

    Weights are read straight to the accelerator, a tensor at a time, so that ranks do not each hold a model in the
    machine's memory.

    Args:
        name: folder or hub name.
        adapter: folder or hub name of a peft adapter to put on the model.
        dtype: of the weights, such as float32; "auto" is the checkpoint's.
        head: with or without its output head.
        device_map: as in `from_pretrained`, such as "auto", which divides the layers among all accelerators that this
            process sees; "" is one of them.

    Raises:
        ValueError: with the device map some weights would stay in the machine's memory or on the disk.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    device = accelerator()
    placing = {"device_map": device_map or {"": device}} if device_map or device is not None else {}
    model = (AutoModelForCausalLM if head else AutoModel).from_pretrained(name, dtype=dtype, **placing)
    if outside := [part for part, weight in model.named_parameters() if weight.is_meta]:
        raise ValueError(
            f"device_map {device_map} finds no room for {len(outside)} weights of {name} on the accelerators "
            f"({outside[0]} is the first): use more of them, or a smaller number format"
        )
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter, torch_device=str(input_device(model)))
    return model.eval()


def input_device(network: PreTrainedModel) -> torch.device:
    """Where a model takes its token ids: the device of its embeddings, also if its layers are on several."""
    return network.get_input_embeddings().weight.device


def load_tokenizer(name: str, *, chat_template: bool = True) -> PreTrainedTokenizerBase:
    """The tokenizer of an instruction-tuned model.

    Args:
        name: folder or hub name.
        chat_template: whether it must have one.

    Raises:
        ValueError: it has no chat template or no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name)
    if chat_template and tokenizer.chat_template is None:
        raise ValueError(f"the tokenizer of {name} has no chat template: give an instruction-tuned model")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {name} has no end-of-sequence token")
    return tokenizer


def chat_template_of(model: str) -> str:
    """The chat template of a model's tokenizer, "" if it has none."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return tokenizer.get_chat_template() if tokenizer.chat_template else ""


MERGED = "+merged-system"
"""Added to the name of an engine whose prompts have a merged system turn where its template refuses one."""


class RefusedByTemplateError(ValueError):
    """The chat template has no form for a dialogue, such as "System role not supported".

    Attributes:
        field: what it refuses: "system" if it accepts the dialogue without its system turn, else "prompt".
        code: of the problem.
    """

    code = "FP240"

    def __init__(self, reason: str, field: str) -> None:
        super().__init__(f"the model's chat template refuses the dialogue: {reason}")
        self.field = field


class ToolsRefusedError(RefusedByTemplateError):
    """The template cannot write tools, calls of functions or their results, or would leave them out.

    Attributes:
        field: "tools"; "prompt" for a turn of it; "" for the response.
    """

    code = "FP242"

    def __init__(self, reason: str, field: str) -> None:
        ValueError.__init__(self, reason)
        self.field = field


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    answer: bool = True,
    merge_system: bool = False,
    variables: Mapping[str, object] | None = None,
) -> str:
    """A dialogue as text in the model's chat template.

    Tools go to the template as `tools`, calls of functions as `tool_calls`, and their results with the role `tool`.

    Args:
        tokenizer: has a chat template.
        messages: the dialogue, with the turn of its tools if there are any.
        answer: go on up to the start of the next answer.
        merge_system: put a system turn that the template refuses before the text of the first user turn, with an
            empty line between them, as LLaMA-Factory's templates of such models do.
        variables: None, or further variables of the template of a guard model, which has to write the last two turns
            whole; if it does not, it gets texts as lists of parts, as templates of models that also see images want.

    Raises:
        RefusedByTemplateError: the template raises an error, or leaves out a text that has to be whole.
        ToolsRefusedError: it leaves out the tools, a call or a result.
    """
    tools, turns = split_tools(messages)
    if variables is not None:
        return _asked_of_guard(tokenizer, turns, merge_system, variables)
    try:
        return _applied(tokenizer, turns, answer, tools)
    except ToolsRefusedError:
        raise
    except RefusedByTemplateError as error:
        first, *rest = turns
        if first.role != "system" or not rest:
            raise
        try:
            without = _applied(tokenizer, rest, answer, tools)
        except RefusedByTemplateError:
            raise error from None
        if not merge_system or rest[0].role != "user":
            raise RefusedByTemplateError(str(error).partition(": ")[2], "system") from None
        if not first.content:
            return without
        merged = Message("user", f"{first.content}\n\n{rest[0].content}")
        return _applied(tokenizer, [merged, *rest[1:]], answer, tools)


def _asked_of_guard(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message], merge_system: bool, variables: Mapping[str, object]
) -> str:
    """The question to a guard model about a dialogue without tools, see `rendered`."""
    from jinja2 import TemplateError

    first, *rest = turns
    if merge_system and first.role == "system" and rest and rest[0].role == "user":
        turns = [Message("user", f"{first.content}\n\n{rest[0].content}"), *rest[1:]]
    plain = chat_messages(turns)
    in_parts = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in plain]
    reason = "it does not write the whole text of the last two turns"
    for form in (plain, in_parts):
        try:
            text = tokenizer.apply_chat_template(form, tokenize=False, add_generation_prompt=True, **variables)
        except (TemplateError, TypeError) as error:
            if form is plain:
                reason = " ".join(str(error).split())
            continue
        as_code = form is in_parts and "'type': 'text'" in text  # the list itself was written
        if not as_code and all(turn["content"].strip() in text for turn in plain[-2:]):
            return text
    raise RefusedByTemplateError(reason, "prompt")


def _applied(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answer: bool, tools: str) -> str:
    from jinja2 import TemplateError

    listed = chat_tools(tools) or None
    turns = chat_messages(messages)

    def apply(turns: Sequence[Mapping[str, Any]], tools: list[Any] | None) -> str:
        named = {} if tools is None else {"tools": tools}
        return tokenizer.apply_chat_template([*turns], tokenize=False, add_generation_prompt=answer, **named)

    try:
        text = apply(turns, listed)
        if listed and apply(turns, None) == text:
            raise ToolsRefusedError("the chat template does not write the tools", "tools")
        for i, turn in enumerate(turns):
            other = _changed(turn)
            if other is not turn and apply([*turns[:i], other, *turns[i + 1 :]], listed) == text:
                what = "a tool's result" if turn["role"] == "tool" else "calls of functions"
                text = f"the chat template does not write {what} (turn {i + 1})"
                raise ToolsRefusedError(text, "" if turn is turns[-1] and not answer else "prompt")
    except (TemplateError, TypeError) as error:
        raise RefusedByTemplateError(" ".join(str(error).split()), "prompt") from error
    return text


def _changed(turn: dict[str, Any]) -> dict[str, Any]:
    """The turn of a tool with another text or other calls; every other turn as it is."""
    if turn["role"] == "tool":
        return turn | {"content": f"{turn['content']}."}
    if "tool_calls" not in turn:
        return turn
    calls = turn["tool_calls"]
    functions = [call["function"] | {"name": f"{call['function']['name']}_"} for call in calls]
    return turn | {"tool_calls": [call | {"function": each} for call, each in zip(calls, functions, strict=True)]}


def chat_messages(messages: Sequence[Message], *, as_text: bool = False) -> list[dict[str, Any]]:
    """Turns as chat templates have them, without that of the tools.

    Calls get ids of nine characters, by their number in the dialogue, and results those of the calls before them.

    Args:
        messages: the dialogue.
        as_text: arguments as JSON text, as OpenAI has them; else as objects.

    Raises:
        ToolsRefusedError: the calls of a turn cannot be read; the last turn is a response then.
    """
    _, turns = split_tools(messages)
    made: list[dict[str, Any]] = []
    count, open_calls = 0, list[str]()
    for turn in turns:
        if turn.role == "observation":
            made.append({"role": "tool", "content": turn.content})
            if open_calls:
                made[-1]["tool_call_id"] = open_calls.pop(0)
        elif turn.role == "function_call":
            try:
                before, calls = tool_calls.read(turn.content)
            except ValueError as error:
                raise ToolsRefusedError(str(error), "" if turn is turns[-1] else "prompt") from None
            open_calls = [f"call{number:05d}" for number in range(count, count + len(calls))]
            count += len(calls)
            listed = [
                {"id": name, "type": "function", "function": {"name": call["name"], "arguments": arguments}}
                for name, call in zip(open_calls, calls, strict=True)
                for arguments in [_arguments(call, as_text)]
            ]
            made.append({"role": "assistant", "content": before, "tool_calls": listed})
        else:
            made.append(turn._asdict())
    return made


def chat_tools(tools: str) -> list[dict[str, Any]]:
    """The tools of a prompt as OpenAI and chat templates have them, {type, function}; none for ""."""
    listed = json.loads(tools) if tools else []
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in listed]


def _arguments(call: Mapping[str, Any], as_text: bool) -> Any:
    """The arguments of a call, which a row may have either way."""
    arguments = call["arguments"]
    if as_text:
        return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    if isinstance(arguments, str):
        with suppress(ValueError):
            return json.loads(arguments)
    return arguments


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    merge_system: bool = False,
    variables: Mapping[str, object] | None = None,
) -> list[int]:
    """The token ids of a dialogue in the model's chat template, up to the start of the answer; see `rendered`."""
    text = rendered(tokenizer, messages, merge_system=merge_system, variables=variables)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def template_problems(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    file: str,
    line: int,
    merge_system: bool = False,
    variables: Mapping[str, object] | None = None,
) -> list[Problem]:
    """FP240 or FP242 if the chat template refuses the dialogue of a row; a job finds such rows before any work.

    Args:
        tokenizer, messages, merge_system, variables: see `rendered`.
        file, line: place of the row.
    """
    try:
        rendered(tokenizer, messages, merge_system=merge_system, variables=variables)
    except RefusedByTemplateError as error:
        return [Problem(file, line, error.field, error.code, str(error))]
    return []


def context_of(model: str) -> int:
    """The longest sequence that a model can read, in tokens, by its configuration."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model).get_text_config()
    return getattr(config, "max_position_embeddings", None) or 2**31


def vocabulary_of(model: str) -> int:
    """The number of token ids that a model knows, by its configuration."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model).get_text_config()
    return getattr(config, "vocab_size", None) or 2**31


def base_of(model: str) -> str | None:
    """The base that an adapter's folder names; None of what is no adapter.

    Raises:
        ValueError: the adapter names no base.
    """
    config = Path(model, "adapter_config.json")
    if not config.is_file():
        return None
    base = json.loads(config.read_bytes()).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{config} names no base model (base_model_name_or_path)")
    return str(base)


def with_base(model: str) -> tuple[str, str | None]:
    """(model, adapter): of an adapter's folder its base and itself, else the model and None. Raises like `base_of`."""
    base = base_of(model)
    return (model, None) if base is None else (base, model)


def identity(model: str, adapter: str | None = None) -> str:
    """A name for a model (with an adapter) as it is now: the digests of local folders, and the names of hub models."""
    names = [model] if adapter is None else [model, adapter]
    return "+".join(folder_digest(Path(name)) if Path(name).is_dir() else name for name in names)


def folder_digest(folder: Path) -> str:
    """32 hex digits that depend on the weights, settings and tokenizer in a model folder, not on its path."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.iterdir()):
        if path.suffix in {".safetensors", ".bin", ".json", ".jinja", ".model", ".txt"}:
            with open(path, "rb") as file:
                digest.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()
