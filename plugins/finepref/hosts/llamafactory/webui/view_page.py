"""The page of `finepref view` in the Tokens panel: the records of the chosen data set, by the options of the form."""

from __future__ import annotations

import subprocess
import tempfile
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import yaml

from finepref.hosts.llamafactory.arguments import HOST
from finepref.hosts.llamafactory.webui import forms, made

COUNT = 200
"""Most records in the page."""
FRAME = "width: 100%; height: 760px; border: 1px solid var(--border-color-primary); border-radius: 8px"


def command(get: made.Get, output: Path) -> list[str]:
    """The words of `finepref view` for the form.

    Raises:
        ValueError: no data set is chosen.
    """
    row = forms.chosen(get("train.training_stage"))
    if row is None or not get("train.dataset"):
        raise ValueError("choose a dataset first")
    defaults = {name: option.default for name, option in row.options.described(HOST).items()}
    values = forms.values(row, lambda name: get(f"train.{name}"))
    changed = {key: value for key, value in values.items() if value not in (None, "", defaults.get(key))}
    options = [f"{key}={_in_yaml(value)}" for key, value in changed.items()]
    words = [f"--dataset-dir={get('train.dataset_dir')}", f"--stage={row.name}", f"--output={output}"]
    words += [f"--record={max(1, int(get('train.tokens_record') or 1))}", f"--count={COUNT}"]
    if model := get("top.model_path"):
        words += [f"--model={model}", f"--template={get('top.template')}"]
        words.append(f"--cutoff-len={int(get('train.cutoff_len'))}")
    return [*made.FINEPREF, "view", *words, "--", get("train.dataset")[0], *options]


def _in_yaml(value: Any) -> str:
    return yaml.safe_dump(value).removesuffix("...\n").strip()


@cache
def _folder() -> tempfile.TemporaryDirectory:
    """A folder for the pages, which is removed when the web UI ends."""
    return tempfile.TemporaryDirectory(prefix="finepref-")


def frame(get: made.Get) -> tuple[Any, Any]:
    """The page in a frame of its own, and the button that saves it; or the error.

    The frame may run the page's script, and nothing of it reaches the web UI: `sandbox` gives it no origin.
    """
    nothing = gr.DownloadButton(visible=False)
    try:
        name = (get("train.dataset") or ["page"])[0]
        output = Path(tempfile.mkdtemp(dir=_folder().name)) / f"{Path(name).stem}.html"
        done = subprocess.run(command(get, output), capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise ValueError(done.stderr.strip()[-2000:] or f"exit code {done.returncode}")
        page = output.read_text(encoding="utf-8")
    except (ValueError, OSError) as error:
        gr.Warning(str(error))
        return gr.HTML(f"<pre style='white-space: pre-wrap'>{escape(str(error))}</pre>", visible=True), nothing
    html = f'<iframe sandbox="allow-scripts" style="{FRAME}" title="finepref view" srcdoc="{escape(page)}"></iframe>'
    return gr.HTML(html, visible=True), gr.DownloadButton(value=str(output), visible=True)
