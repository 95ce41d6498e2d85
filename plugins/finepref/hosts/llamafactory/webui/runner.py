"""Starts a stage from the form, and shows errors as one line (card `webui-runner`)."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from llamafactory.hparams import finetuning_args

from finepref import stages
from finepref.hosts.llamafactory import data, webui
from finepref.hosts.llamafactory.webui import forms
from finepref.hosts.patching import HostDrift

# The last three give the output folder.
RUN = ("top.lang", "top.model_name", "top.finetuning_type", "train.output_dir")


def extend(original: type) -> type:
    """`Runner` that sends our stages' keys, checks them before anything starts, and names the cause of a failure."""

    class Runner(original):
        __doc__ = original.__doc__

        def __init__(self, manager, demo_mode=False):
            super().__init__(manager, demo_mode)
            webui.drift()  # reports drift even if the Train tab's own card has drifted

        def _initialize(self, data, do_train, from_preview):
            error = super()._initialize(data, do_train, from_preview)
            if error or not do_train or self._stage(data) is None:
                return error
            return complaint(self._parse_train_args(data))

        def _parse_train_args(self, data):
            args = super()._parse_train_args(data)
            row = self._stage(data)
            if row is None:
                return args
            form = forms.values(row, lambda name: data[self.manager.get_elem_by_id(f"train.{name}")])
            return args | {key: value for key, value in form.items() if key not in args}

        def monitor(self):
            if not self.do_train or self._stage(self.running_data) is None:
                yield from super().monitor()
                return
            running = {name: self.running_data[self.manager.get_elem_by_id(name)] for name in RUN}
            output_box, viewer = map(self.manager.get_elem_by_id, ("train.output_box", "train.loss_viewer"))
            for update in super().monitor():
                if output_box in update:
                    update[output_box] = with_cause(update[output_box], running["top.lang"])
                yield update
            if curve := last_curve(*running.values()):
                yield {viewer: curve}

        def _stage(self, data) -> stages.Stage | None:
            return forms.chosen(data[self.manager.get_elem_by_id("train.training_stage")])

    Runner.__module__, Runner.__qualname__ = original.__module__, original.__qualname__
    return Runner


def complaint(args: dict[str, Any]) -> str:
    """The error in a command's options or data formats, "" if there is none. Loads no model and reads no data."""
    known = {field.name for field in fields(finetuning_args.FinetuningArguments) if field.init}
    try:
        finetuning_args.FinetuningArguments(**{key: value for key, value in args.items() if key in known})
        data.check_formats(args["dataset"].split(","), args["dataset_dir"], args["stage"])
    except (ValueError, HostDrift) as error:
        return str(error)
    return ""


def last_curve(lang: str, *folder: str) -> Any:
    """The loss curve of a finished run. The host updates it every two seconds and may miss the end of a run."""
    from llamafactory.webui.common import get_save_dir
    from llamafactory.webui.control import get_trainer_info

    _, _, info = get_trainer_info(lang, get_save_dir(*folder), True)
    return info.get("loss_viewer")


def with_cause(text: str, lang: str) -> str:
    """The text of the output box; for a failed run with the last error's message above the traceback."""
    from llamafactory.webui.locales import ALERTS

    failed = ALERTS["err_failed"][lang]
    raised = re.findall(r"^(?:\w+\.)*\w*(?:Error|BadData|HostDrift|UnprovenRun): (.+(?:\n\S.*)*)", text, re.MULTILINE)
    if not text.startswith(failed) or not raised:
        return text
    cause = raised[-1].removesuffix("\n```")
    return f"{failed}\n```\n{cause}\n```\n{text.removeprefix(failed)}"
