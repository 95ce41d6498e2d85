"""The host's web UI in this process, without a server: its Train tab as the host builds it, and a filled-in form."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any


def build() -> SimpleNamespace:
    """The host's engine with the top row and the Train tab; `form(**values)` is what a click on Start would send."""
    import gradio as gr
    from llamafactory.webui import interface

    engine = interface.Engine()
    with gr.Blocks():
        engine.manager.add_elems("top", interface.create_top())
        engine.manager.add_elems("train", interface.create_train_tab(engine))

    def form(model: Path, **values: Any) -> dict[Any, Any]:
        given = {"top.lang": "en", "top.model_name": "Custom", "top.model_path": str(model), "top.template": "chatml"}
        given |= {"train.output_dir": "train_here", "train.config_path": "saved.yaml"}
        given |= {name if "." in name else f"train.{name}": value for name, value in values.items()}
        sent = {element: getattr(element, "value", None) for element in engine.manager.get_elem_list()}
        return sent | {engine.manager.get_elem_by_id(name): value for name, value in given.items()}

    return SimpleNamespace(engine=engine, runner=engine.runner, manager=engine.manager, form=form)
