"""Form elements for each stage's options, made from the options' dataclass, and the form's values as YAML keys."""

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
    """The stage's label in the Stage list, e.g. "SePO (sepo)"; not translated, as the host's own labels."""
    return f"{row.title.partition(':')[0]} ({row.name})"


def chosen(label: str) -> stages.Stage | None:
    """Our stage with this label in the Stage list; None for the host's stages."""
    return next((row for row in stages.all_stages().values() if label_of(row) == label), None)


HOST_ELEMENTS = ("pref_beta", "pref_ftx")  # host options for which the host's form has an element


def options_of(row: stages.Stage) -> dict[str, Described]:
    """The options in the stage's accordion: its own, shared ones, then host options that the host's form lacks."""
    described = row.options.described(HOST)
    new = sorted(row.options.new_on(HOST), key=lambda name: name not in row.options.__annotations__)
    host = [name for name, each in described.items() if each.host_key and name not in HOST_ELEMENTS]
    return {name: described[name] for name in (*new, *host)}


def host_elements(row: stages.Stage) -> list[str]:
    """The host's own form elements that the stage reads."""
    return [name for name in row.options.described(HOST) if name in HOST_ELEMENTS]


def element_name(row: stages.Stage, key: str) -> str:
    """Name of an option's element in the Train tab. The host looks up its texts by the part after the last dot."""
    return f"{row.name}.{key}"


def build(row: stages.Stage) -> dict[str, Any]:
    """Make the form elements of a stage, by name. Must be called inside an accordion."""
    gr.Markdown(f"{row.title} ({row.paper})")
    elements = {}
    options = list(options_of(row).values())
    for start in range(0, len(options), PER_ROW):
        with gr.Row():
            for option in options[start : start + PER_ROW]:
                elements[element_name(row, option.name)] = _element(option)
    return elements


def _element(option: Described) -> Any:
    """Make the form element that fits an option's type."""
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
    """YAML key -> name of its element in the Train tab, for all keys of the stage in the form."""
    own = {key: element_name(row, key) for key in options_of(row)}
    return own | {key: key for key in host_elements(row)}


def values(row: stages.Stage, get: Callable[[str], Any]) -> dict[str, Any]:
    """YAML key -> value, from the form. `get` returns an element's value by its name in the Train tab."""
    options = options_of(row)
    form = {key: get(name) for key, name in names_of(row).items()}
    return {
        key: _number(text, options[key].kind) if key in options and options[key].default is None else text
        for key, text in form.items()
    }


def _number(text: str, kind: Any) -> float | str | None:
    """An optional number as typed: None if empty. Other text stays text, which the options' check refuses."""
    try:
        return (int if int in get_args(kind) else float)(text) if text else None
    except ValueError:
        return text
