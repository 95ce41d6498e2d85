"""Each stage's options as form elements, made from its arguments dataclass, and back from the form to YAML keys."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin

import gradio as gr

from finepref import stages
from finepref.hosts.llamafactory.arguments import HOST
from finepref.methods.options import Described

PER_ROW = 4


def label_of(row: stages.Stage) -> str:
    """The stage in the Stage list, the same in every language as the host's own are: "SePO (sepo)"."""
    return f"{row.title.partition(':')[0]} ({row.name})"


def chosen(label: str) -> stages.Stage | None:
    """The stage of ours that a label in the Stage list stands for; None for the host's."""
    return next((row for row in stages.all_stages().values() if label_of(row) == label), None)


HOST_ELEMENTS = ("pref_beta", "pref_ftx")  # options of the host's that its own form has


def options_of(row: stages.Stage) -> dict[str, Described]:
    """The keys in the stage's accordion: its own, what it shares with others, then the host's that its form lacks."""
    described = row.options.described(HOST)
    new = sorted(row.options.new_on(HOST), key=lambda name: name not in row.options.__annotations__)
    host = [name for name, each in described.items() if each.host_key and name not in HOST_ELEMENTS]
    return {name: described[name] for name in (*new, *host)}


def host_elements(row: stages.Stage) -> list[str]:
    """The host's own form elements that the stage reads."""
    return [name for name in row.options.described(HOST) if name in HOST_ELEMENTS]


def element_name(row: stages.Stage, key: str) -> str:
    """Name of an option's element in the Train tab; the host takes what follows the last dot for the text's name."""
    return f"{row.name}.{key}"


def build(row: stages.Stage) -> dict[str, Any]:
    """Form elements of a stage by name; to be called inside an accordion."""
    gr.Markdown(f"{row.title} ({row.paper})")
    elements = {}
    options = list(options_of(row).values())
    for start in range(0, len(options), PER_ROW):
        with gr.Row():
            for option in options[start : start + PER_ROW]:
                elements[element_name(row, option.name)] = _element(option)
    return elements


def _element(option: Described) -> Any:
    """One option as the element that fits its type."""
    hint, default = option.kind, option.default
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (kind for kind in get_args(hint) if kind is not type(None))
    if get_origin(hint) is Literal:
        return gr.Dropdown(choices=list(get_args(hint)), value=default)
    if hint is bool:
        return gr.Checkbox(value=default)
    if hint in (int, float) and default is None:
        return gr.Textbox(value="", max_lines=1)  # a number element would show, and send, 0
    if hint in (int, float):
        return gr.Number(value=default, precision=0 if hint is int else None, step=1 if hint is int else 0.05)
    if hint is str:
        return gr.Textbox(value=default)
    raise TypeError(f"`{option.name}` is of type {hint}, for which the web UI has no form element")


def names_of(row: stages.Stage) -> dict[str, str]:
    """YAML key -> element of the Train tab, for all the keys that the form gives the stage."""
    own = {key: element_name(row, key) for key in options_of(row)}
    return own | {key: key for key in host_elements(row)}


def values(row: stages.Stage, get: Callable[[str], Any]) -> dict[str, Any]:
    """The stage's YAML keys from the form; `get` gives an element's value by its name in the Train tab."""
    options = options_of(row)
    form = {key: get(name) for key, name in names_of(row).items()}
    return {
        key: _number(text) if key in options and options[key].default is None else text for key, text in form.items()
    }


def _number(text: str) -> float | str | None:
    """What was typed for an optional number; what is none stays a text, for the options' own check to refuse."""
    try:
        return float(text) if text else None
    except ValueError:
        return text
