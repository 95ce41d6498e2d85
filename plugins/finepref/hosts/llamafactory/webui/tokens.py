"""The view of tokens: one record with the tokens that a stage would train on, by the code that trains."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import islice
from typing import Any

import gradio as gr
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments, ModelArguments, finetuning_args
from llamafactory.model import load_tokenizer

from finepref import stages
from finepref.formats.bad_rows import BadRows
from finepref.formats.check import BadData
from finepref.hosts import packed, row_cache
from finepref.hosts.llamafactory import arguments, data
from finepref.hosts.llamafactory.verdicts import problems_of
from finepref.hosts.llamafactory.webui import forms, view_page
from finepref.hosts.missing_model import missing_model_hint
from finepref.hosts.patching import HostDrift
from finepref.hosts.reading import Sourced, SourceReader
from finepref.hosts.token_view import Piece, by_characters, pieces, token_texts, told_counts, turns_of, weighed
from finepref.methods.checks import record_problems
from finepref.methods.options import Options
from finepref.methods.pair_rows import SIDES

ELEMENTS = (
    *("tokens_tab", "tokens_record", "tokens_btn", "tokens_page_btn", "tokens_page_file"),
    *("tokens_chosen", "tokens_rejected"),
)


def selects(row: stages.Stage) -> bool:
    """Whether the stage gives a weight to each token of both responses."""
    return row.shape == "pair"


def build() -> dict[str, Any]:
    """Make the elements, by name. Must be called inside an accordion."""
    with gr.Row():
        record = gr.Number(value=1, precision=0, minimum=1, scale=1)
        button, page_button = gr.Button(scale=1), gr.Button(scale=1)
        file = gr.DownloadButton(scale=1, visible=False)
    with gr.Row():
        summary = gr.Markdown()
    with gr.Row():
        chosen, rejected = (gr.HighlightedText(combine_adjacent=True, show_inline_category=False) for _ in SIDES)
    page = gr.HTML(visible=False)
    return {
        "tokens_record": record,
        "tokens_btn": button,
        "tokens_page_btn": page_button,
        "tokens_page_file": file,
        "tokens_page": page,
        "tokens_summary": summary,
        "tokens_chosen": chosen,
        "tokens_rejected": rejected,
    }


def wire(manager: Any, elements: dict[str, Any]) -> Callable[[Any], None]:
    """Connect the buttons, which show records with the options in the form. No training is needed before.

    Returns:
        What makes an event, once it has ended, show the record too.
    """
    names = {name for row in stages.all_stages().values() for name in forms.names_of(row).values()}
    names |= {"training_stage", "dataset_dir", "dataset", "cutoff_len", "tokens_record"}
    inputs = {f"train.{name}": elements[name] for name in names}
    inputs |= {name: manager.get_elem_by_id(name) for name in ("top.model_path", "top.template")}
    outputs = [elements[f"tokens_{name}"] for name in ("summary", *SIDES)]

    def show(values: dict[Any, Any]) -> tuple[str, Any, Any]:
        return view(lambda name: values[inputs[name]])

    def page(values: dict[Any, Any]) -> tuple[Any, Any]:
        return view_page.frame(lambda name: values[inputs[name]])

    elements["tokens_btn"].click(show, set(inputs.values()), outputs)
    elements["tokens_page_btn"].click(
        page, set(inputs.values()), [elements["tokens_page"], elements["tokens_page_file"]]
    )

    def show_if_selected(values: dict[Any, Any]) -> list[Any]:
        row = forms.chosen(values[inputs["train.training_stage"]])
        return [*show(values)] if row is not None and selects(row) else [gr.skip()] * len(outputs)

    return lambda event: event.then(show_if_selected, set(inputs.values()), outputs)


def view(get: Callable[[str], Any]) -> tuple[str, Any, Any]:
    """A line about the record and its two responses as highlighted text, or the error and None twice.

    Args:
        get: element id -> value, e.g. of "train.dataset".
    """
    row = forms.chosen(get("train.training_stage"))
    try:
        if not get("train.dataset"):
            raise ValueError("choose a dataset first")
        values = forms.values(row, lambda name: get(f"train.{name}"))
        options = arguments.options_of(row, finetuning_args.FinetuningArguments(stage=row.name, **values))
        name, number = get("train.dataset")[0], int(get("train.tokens_record") or 0)
        sourced = find_record(row, name, get("train.dataset_dir"), number)
        record = sourced.record
        if problems := record_problems(record, row, options):
            raise BadData(problems)
        if get("top.model_path"):
            tokenizer_module, template = _tokenizer(get("top.model_path"), get("top.template"))
            data_args = DataArguments(template=get("top.template"), cutoff_len=get("train.cutoff_len"))
            tokenized, texts = by_tokens(row, sourced, options, tokenizer_module, template, data_args)
        else:
            tokenized, texts = by_characters(record)
        weights = weighed(tokenized, row, options)
    except (ValueError, OSError, HostDrift) as error:
        gr.Warning(str(error))
        return f"```\n{error}\n```", None, None
    found = {
        side: pieces(tokenized[f"{side}_labels"], texts[side], weight)
        for side, weight in zip(SIDES, weights, strict=True)
    }
    counts = told_counts((side, sum(weight != 0 for _, weight in each), len(each)) for side, each in found.items())
    prompt = "\n".join(f"{role}: {text}" for role, text in turns_of(record.prompt))
    shown = map(highlighted, found.values())
    return f"**{name}** {number} `{record.id}`: {counts}\n```\n{prompt}\n```", *shown


def find_record(row: stages.Stage, name: str, dataset_dir: str, number: int) -> Sourced:
    """Record `number`, counted from 1, of a data set that the stage trains on.

    Raises:
        BadData: the data set has another format, a row up to the record is bad, or the file is missing.
        ValueError: the data set has no such record, or is not a local file.
    """
    (attribute,) = data.check_formats([name], dataset_dir, row.name)
    if attribute.load_from != "file":
        raise ValueError(f"dataset {name} is not a local file")
    bad_rows = BadRows()
    reader = SourceReader(data.source_of(name, attribute, dataset_dir), bad_rows)
    found = next(islice(reader, max(number, 1) - 1, None), None)
    bad_rows.settle()
    if number < 1 or found is None:
        raise ValueError(f"dataset {name} has no record {number}")
    return found


@lru_cache(maxsize=1)
def _tokenizer(path: str, template: str) -> tuple[dict[str, Any], Any]:
    """The host's tokenizer of a model, changed for a template as in the host's runs, and the template.

    Raises:
        OSError: the model is missing, or has no tokenizer.
    """
    if hint := missing_model_hint(path):
        raise FileNotFoundError(hint)
    try:
        module = load_tokenizer(ModelArguments(model_name_or_path=path, trust_remote_code=True))
    except OSError as error:
        raise OSError(f"{path}: {error}") from error
    return module, get_template_and_fix_tokenizer(module["tokenizer"], DataArguments(template=template))


def by_tokens(
    row: stages.Stage,
    sourced: Sourced,
    options: Options,
    tokenizer_module: dict[str, Any],
    template: Any,
    data_args: Any,
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The record as the stage's processor tokenises it, and the text of each token by side.

    Args:
        row: the stage.
        sourced: the record with its place.
        options: the stage's options.
        tokenizer_module, template, data_args: those of the host.

    Raises:
        BadData: the record and the tokenizer do not fit together.
        ValueError: the record would be skipped.
    """
    make = data.adapter_of(row).processor(options)
    processor = make(template=template, data_args=data_args, **tokenizer_module)
    columns = processor.preprocess_dataset({k: [v] for k, v in row_cache.cached_row(sourced).items()})
    tokenized = packed.whole_pair({name: column[0] for name, column in columns.items()})
    if problems := problems_of(tokenized["_problem"]):
        raise BadData(problems)
    if tokenized["_skipped"]:
        raise ValueError(f"the record is skipped: {tokenized['_skipped']}")
    tokenizer = tokenizer_module["tokenizer"]
    return tokenized, {side: token_texts(tokenizer, tokenized[f"{side}_input_ids"]) for side in SIDES}


def highlighted(side: list[Piece]) -> list[tuple[str, str | None]]:
    """Pieces in gradio's form: those with a weight are labelled with it."""
    return [(text, f"{weight:g}" if weight != 0 else None) for text, weight in side]
