"""The Train tab with our stages (card `webui-train-tab`): Stage list, an accordion per stage, the forms that make
data sets, the view of tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gradio as gr
from llamafactory.extras.constants import TRAINING_STAGES

from finepref import stages
from finepref.hosts.llamafactory import webui
from finepref.hosts.llamafactory.webui import forms, made, make_panels, texts, tokens


def extend(original: Callable) -> Callable:
    """`create_train_tab` that offers our stages, or shows why it cannot."""

    @functools.wraps(original)
    def create_train_tab(engine):
        if message := webui.drift():
            gr.Markdown(f"**finepref**\n```\n{message}\n```")
            return original(engine)
        rows = list(stages.all_stages().values())
        TRAINING_STAGES.update({forms.label_of(row): row.name for row in rows})
        _add_texts(rows)

        accordions, options = {}, {}
        for row in rows:
            with gr.Accordion(open=True, visible=False) as accordions[f"{row.name}_tab"]:
                options |= forms.build(row)
        making = {}
        for kind in made.KINDS.values():
            with gr.Accordion(open=False, visible=False) as making[f"{kind.key}_tab"]:
                making |= make_panels.build(kind)
        with gr.Accordion(open=False, visible=False) as tokens_tab:
            view = tokens.build()
        host = _with_inputs(original, engine, set(options.values()))
        shown = [*accordions.values(), *(making[f"{key}_tab"] for key in made.KINDS), tokens_tab]
        _move_behind(host["rlhf_tab"], shown)

        elements = host | options | accordions | making | view | {"tokens_tab": tokens_tab}
        host["training_stage"].change(
            show_stage, [host["training_stage"]], [*shown, host["rlhf_tab"]], queue=False, show_progress="hidden"
        )
        show_tokens = tokens.wire(engine.manager, elements)
        timer = gr.Timer(make_panels.EVERY)
        for kind in made.KINDS.values():
            make_panels.Panel(kind, engine, elements, timer).wire(show_tokens)
        return elements

    return create_train_tab


def _add_texts(rows: list[stages.Stage]) -> None:
    """Add the texts of our elements to the table that the host reads when the language changes."""
    from llamafactory.webui.locales import LOCALES

    for row in rows:
        LOCALES[f"{row.name}_tab"] = texts.of_accordion(forms.label_of(row))
        LOCALES.update({key: texts.of_option(row, option) for key, option in forms.options_of(row).items()})
    LOCALES.update(texts.of_elements((*make_panels.ELEMENTS, *tokens.ELEMENTS)))


def _with_inputs(original: Callable, engine: Any, inputs: set[Any]) -> dict[str, Any]:
    """Make the host's tab with our options as inputs wherever it uses its own: preview, start, save, load, resume.

    The host begins its set of inputs with `get_base_elems()`, so ours are added there, during this one call.
    """
    base_elems = engine.manager.get_base_elems
    engine.manager.get_base_elems = lambda: base_elems() | inputs
    try:
        return original(engine)
    finally:
        del engine.manager.get_base_elems


def _move_behind(anchor: Any, blocks: list[Any]) -> None:
    """Move blocks behind `anchor` on the page. They had to be made first, so that the host could wire them."""
    siblings = anchor.parent.children
    for block in blocks:
        siblings.remove(block)
    at = siblings.index(anchor) + 1
    siblings[at:at] = blocks


def show_stage(label: str) -> list[Any]:
    """Show a stage's accordion, the forms that make its data, its view of tokens, and the RLHF keys if it reads any.

    Returns:
        Updates of each stage's accordion, of each form, of the view of tokens, and of the host's RLHF accordion.
    """
    row = forms.chosen(label)
    updates = [gr.Accordion(visible=other is row) for other in stages.all_stages().values()]
    updates += [gr.Accordion(visible=row is not None and kind.fits(row)) for kind in made.KINDS.values()]
    updates.append(gr.Accordion(visible=row is not None and tokens.selects(row)))
    reads_host_keys = row is not None and forms.host_elements(row)
    return [*updates, gr.Accordion(open=True) if reads_host_keys else gr.skip()]
