"""The forms that make data sets: `finepref sepo score` and `finepref seapo inject` with progress and abort."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from finepref.hosts.llamafactory.webui import forms, made, texts
from finepref.hosts.llamafactory.webui.jobs import Job, JobBusy, Record, State, Status
from finepref.synth.seapo.prompts import ERRORS

EVERY = 2.0
"""Seconds between two looks at a job's folder."""
ENGINES = ("hf", "vllm", "openai", "rules")
PROBLEM = "border-left: 4px solid #c00; padding-left: 8px"
BAR = """<div role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent}"
style="height: 10px; border-radius: 5px; overflow: hidden; background: var(--border-color-primary)">
<div style="height: 100%; width: {percent}%; background: var(--color-accent)"></div></div>"""
TABLE = "│┃┏┡└"
"""Characters of the lines of tables."""
HOST = ("training_stage", "dataset_dir", "dataset", "cutoff_len")
"""Elements of the host's Train tab that a form reads."""
TOP = ("lang", "model_name", "finetuning_type", "model_path", "template")
SCORING = ("tab", "dataset", "reference", "oracle", "name", "options", "start", "stop", "again", "use")
INJECTING = ("tab", "dataset", "engine", "model", "url", "types", "by", "name", "options")
INJECTING += ("start", "stop", "again", "use")
ELEMENTS = tuple(f"{kind}_{name}" for kind, names in (("scoring", SCORING), ("inject", INJECTING)) for name in names)


class Seen(NamedTuple):
    """What a browser tab shows of a kind of job."""

    html: str
    dataset_dir: str
    name: str
    running: bool
    ended: bool
    ready: bool

    @property
    def job(self) -> Job:
        """The job that it shows."""
        return made.job_of(self.dataset_dir, self.name)


@dataclass
class Last:
    """What this web UI has started last; a page that is loaded while it runs shows it."""

    kind: str = ""
    dataset_dir: str = ""
    stage: str = ""


LAST = Last()


def build(kind: made.Kind) -> dict[str, Any]:
    """Make the elements of a form, by name. Must be called inside an accordion."""
    found = _score_inputs() if kind is made.SCORE else _inject_inputs()
    with gr.Row():
        found["start"] = gr.Button(variant="primary")
        found["stop"] = gr.Button(variant="stop", interactive=False)
        found |= {"again": gr.Button(interactive=False), "use": gr.Button(interactive=False)}
    found |= {"notice": gr.HTML(visible=False), "status": gr.HTML(visible=False)}
    return {f"{kind.key}_{name}": element for name, element in found.items()}


def _score_inputs() -> dict[str, Any]:
    with gr.Row():
        dataset = gr.Dropdown(choices=[], value=None, allow_custom_value=True)
        reference = gr.Textbox(value="", max_lines=1)
        oracle = gr.Dropdown(choices=[], value=None, allow_custom_value=True)
    with gr.Row():
        name, options = gr.Textbox(value="", max_lines=1), gr.Textbox(value="", max_lines=1)
    return {"dataset": dataset, "reference": reference, "oracle": oracle, "name": name, "options": options}


def _inject_inputs() -> dict[str, Any]:
    with gr.Row():
        dataset = gr.Dropdown(choices=[], value=None, allow_custom_value=True)
        engine = gr.Dropdown(choices=[*ENGINES], value="hf")
        model, url = gr.Textbox(value="", max_lines=1), gr.Textbox(value="", max_lines=1)
    with gr.Row():
        types = gr.Dropdown(choices=[*ERRORS], value=[*ERRORS], multiselect=True)
        by = gr.Dropdown(choices=["answer", "sentence"], value="answer")
        name, options = gr.Textbox(value="", max_lines=1), gr.Textbox(value="", max_lines=1)
    found = {"dataset": dataset, "engine": engine, "model": model, "url": url}
    return found | {"types": types, "by": by, "name": name, "options": options}


class Panel:
    """One form with the host's elements that it reads and sets.

    Args:
        kind: what it makes.
        engine: the host's.
        elements: all elements of the Train tab by name.
        timer: ticks while the page is open.
    """

    def __init__(self, kind: made.Kind, engine: Any, elements: dict[str, Any], timer: gr.Timer) -> None:
        self.kind, self.engine, self.elements, self.timer = kind, engine, elements, timer
        own = [name for name in elements if name.startswith(f"{kind.key}_") and name not in self._shown_names()]
        overlong = [name for name in elements if name.endswith(".finepref_overlong")]
        self.inputs = {name: elements[name] for name in (*HOST, *own, *overlong)}
        self.inputs |= {name: engine.manager.get_elem_by_id(f"top.{name}") for name in TOP}

    def _shown_names(self) -> tuple[str, ...]:
        return tuple(
            f"{self.kind.key}_{name}" for name in ("notice", "status", "start", "stop", "again", "use", "tab")
        )

    def wire(self, after_use: Callable[[Any], None]) -> None:
        """Connect the elements.

        Args:
            after_use: is called with the event of a made data set having been chosen.
        """
        start, stop, again, use = (self._own(name) for name in ("start", "stop", "again", "use"))
        seen = gr.State(None)
        inputs = {*self.inputs.values(), seen}
        outputs = [self._own("status"), stop, again, use, seen]
        restored = [self.elements["training_stage"], self.elements["dataset_dir"], self._own("tab")]
        quiet = {"queue": False, "show_progress": "hidden"}
        told = [self._own("notice"), *outputs]
        for button, method in ((start, self.start), (again, self.again), (stop, self.stop)):
            button.click(partial(self._clicked, method, seen), inputs, told, queue=False)
        self.timer.tick(
            lambda values: self.tick(self._get(values), values[seen]), inputs, [*outputs, *restored], **quiet
        )
        names = ("dataset", "tokens_record", "tokens_tab", "tokens_page", "tokens_page_file")
        chosen = [self.elements[name] for name in names]
        after_use(use.click(lambda values: self.use(self._get(values), values[seen]), inputs, chosen, **quiet))
        dataset, oracle = self._own("dataset"), self.elements.get(f"{self.kind.key}_oracle")
        folder = self.elements["dataset_dir"]
        dataset.focus(
            lambda folder: gr.Dropdown(choices=made.sources(self.kind, folder)), [folder], [dataset], **quiet
        )
        if oracle is not None:
            top = [self.inputs["model_name"], self.inputs["finetuning_type"]]
            oracle.focus(lambda *top: gr.Dropdown(choices=checkpoints(*top)), top, [oracle], **quiet)

    def _own(self, name: str) -> Any:
        return self.elements[f"{self.kind.key}_{name}"]

    def _get(self, values: dict[Any, Any]) -> made.Get:
        """Values by name; an option of the chosen stage by its key."""
        label = values[self.inputs["training_stage"]]
        row = forms.chosen(label)

        def get(name: str) -> Any:
            element = self.inputs.get(name) or self.inputs.get(forms.element_name(row, name) if row else name)
            return values.get(element)

        return get

    def _clicked(self, method: Callable[[made.Get, Seen | None], str], seen: gr.State, values: dict) -> list[Any]:
        """Do what a button says. Shows what it has to tell, and the job."""
        get = self._get(values)
        notice = method(get, values[seen])
        return [gr.HTML(_box(notice, PROBLEM), visible=bool(notice)), *self.look(get, None)]

    def start(self, get: made.Get, seen: Seen | None) -> str:
        """Start the form's command, unless its output is being made already; why not, or ""."""
        row = forms.chosen(get("training_stage"))
        return self._run(get, lambda: made.prepare(self.kind, get, row)) if row is not None else ""

    def again(self, get: made.Get, seen: Seen | None) -> str:
        """Let the job that this tab shows go on as it was started; why not, or ""."""
        status = seen.job.status() if seen is not None else None
        if seen is None or status is None:
            return ""
        return self._run(get, lambda: (seen.job, made.again(self.kind, status, seen.dataset_dir)))

    def stop(self, get: made.Get, seen: Seen | None) -> str:
        """End the job that this tab shows."""
        if seen is not None and seen.running:
            seen.job.abort()
        return ""

    def _run(self, get: made.Get, prepare: Callable[[], tuple[Job, Record]]) -> str:
        """Start a job; why that is not possible, or ""."""
        try:
            if self.engine.demo_mode:
                raise made.Refused("demo")
            job, record = prepare()
            try:
                job.start(record)
            except JobBusy:
                raise made.Refused("busy", name=job.name) from None
        except made.Refused as error:
            return phrase(get("lang"), error.key, **error.values)
        except OSError as error:
            return str(error)
        LAST.kind, LAST.dataset_dir, LAST.stage = self.kind.key, record.dataset_dir, record.stage
        return ""

    def tick(self, get: made.Get, seen: Seen | None) -> list[Any]:
        """What the tab should show; of a page that was just loaded also the stage and the folder of a running job."""
        values, restored = {}, [gr.skip()] * 3
        if seen is None and LAST.kind == self.kind.key:
            values = {"dataset_dir": LAST.dataset_dir, "training_stage": LAST.stage}
            status = made.shown(self.kind, values.get)
            if status is not None and status.state is State.running:
                restored = [LAST.stage, LAST.dataset_dir, gr.Accordion(open=True)]
            else:
                values = {}
        return [*self.look(lambda name: values.get(name) or get(name), seen), *restored]

    def look(self, get: made.Get, seen: Seen | None) -> list[Any]:
        """What the tab should show: status, both buttons, and that; nothing new if it shows that already."""
        row = forms.chosen(get("training_stage"))
        status = made.shown(self.kind, get) if row is not None else None  # else the form is hidden
        if status is None:
            now = Seen("", "", "", False, False, False)
        else:
            ready = bool(row and made.for_stage(status, row))
            running, ended = status.state is State.running, status.state in (State.failed, State.stopped)
            html = described(status, get("lang"))
            now = Seen(html, get("dataset_dir"), status.name, running, ended, ready)
        if seen == now:
            return [gr.skip()] * 5
        buttons = (gr.Button(interactive=on) for on in (now.running, now.ended, now.ready))
        return [gr.HTML(now.html, visible=bool(now.html)), *buttons, now]

    def use(self, get: made.Get, seen: Seen | None) -> list[Any]:
        """Choose the made data set in the Train tab, and open the view of tokens at its first record."""
        row = forms.chosen(get("training_stage"))
        status = seen.job.status() if seen is not None else None
        name = made.for_stage(status, row) if status and row else ""
        if not name:
            return [gr.skip()] * 5
        old_page = [gr.HTML(visible=False), gr.DownloadButton(visible=False)]
        return [gr.Dropdown(value=[name]), 1, gr.Accordion(open=True), *old_page]


def checkpoints(model_name: str, finetuning_type: str) -> list[str]:
    """Folders of what the web UI has trained of a model."""
    from llamafactory.webui.common import get_save_dir

    if not model_name:
        return []
    folder = Path(get_save_dir(model_name, finetuning_type))
    names = ("adapter_config.json", "config.json")
    return [str(path) for path in sorted(folder.glob("*")) if any((path / name).is_file() for name in names)]


def phrase(lang: str | None, key: str, **values: object) -> str:
    """A sentence of texts.toml in a language of the web UI."""
    return texts.phrase(key, lang or "en").format(**values)


def described(status: Status, lang: str | None) -> str:
    """A job as HTML: what it is doing, its bar, what is wrong, and its last lines. All that it printed is escaped."""
    progress = status.progress
    words = [phrase(lang, str(status.state), name=status.name)]
    bar = ""
    if status.state is State.running:
        share = status.share
        if share is not None:
            words.append(f"{share:.0%}")
        bar = BAR.format(percent=round(100 * (share or 0)))
        if progress.part:
            words.append(phrase(lang, "part", part=progress.part, done=progress.done, total=progress.total))
            if "?" not in progress.left:
                words.append(phrase(lang, "left", left=progress.left))
    if status.result is not None and status.result.added:
        words.append(phrase(lang, "added", names=", ".join(status.result.added)))
    html = [f"<p><b>{escape(words[0])}</b>{''.join(f' · {escape(word)}' for word in words[1:])}</p>", bar]
    if status.state is State.failed:
        html.append(_box(cause(status, lang), PROBLEM))
    command = "$ " + shlex.join(["finepref", *status.record.command[len(made.FINEPREF) :]])
    note = [progress.note] if status.state is State.running and progress.note else []
    html.append(_box("\n".join([command, *status.lines, *note]), "opacity: 0.8; font-size: 0.85em; max-height: 28em"))
    return f'<div class="finepref-job">{"".join(html)}</div>'


def _box(text: str, style: str) -> str:
    return f'<pre style="white-space: pre-wrap; overflow: auto; margin: 4px 0; {style}">{escape(text)}</pre>'


def cause(status: Status, lang: str | None) -> str:
    """Why a job failed: the problem of its outputs, the last error of a traceback, or the last lines printed."""
    result = status.result
    if result is None:
        return ""
    if result.problem:
        return result.problem
    if result.code < 0:
        return phrase(lang, "killed", signal=-result.code)
    text = "\n".join(status.lines)
    raised = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt): (.+(?:\n\S.*)*)", text, re.MULTILINE)
    plain = [line for line in status.lines if not set(TABLE) & set(line)]
    return raised[-1] if raised else "\n".join(plain[-4:]) or f"exit code {result.code}"
