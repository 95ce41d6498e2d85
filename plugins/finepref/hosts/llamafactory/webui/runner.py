"""From the form to the command, and errors back as one line (card `webui-runner`)."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from llamafactory.hparams import finetuning_args

from finepref import stages
from finepref.hosts.llamafactory import data, webui
from finepref.hosts.llamafactory.webui import forms
from finepref.hosts.patching import HostDrift


def extend(original: type) -> type:
    """`Runner` that sends our stages' keys, checks them before anything starts, and names the cause of a failure."""

    class Runner(original):
        __doc__ = original.__doc__

        def __init__(self, manager, demo_mode=False):
            super().__init__(manager, demo_mode)
            webui.drift()  # also where the Train tab's own card is the one that drifted

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
            row = self._stage(self.running_data) if self.do_train else None
            lang = self.running_data[self.manager.get_elem_by_id("top.lang")]
            output_box = self.manager.get_elem_by_id(f"{'train' if self.do_train else 'eval'}.output_box")
            for update in super().monitor():
                if row is not None and output_box in update:
                    update[output_box] = with_cause(update[output_box], lang)
                yield update

        def _stage(self, data) -> stages.Stage | None:
            return forms.chosen(data[self.manager.get_elem_by_id("train.training_stage")])

    Runner.__module__, Runner.__qualname__ = original.__module__, original.__qualname__
    return Runner


def complaint(args: dict[str, Any]) -> str:
    """What is wrong with a command's options or formats of data, "" when nothing is. Loads no model, reads no data."""
    known = {field.name for field in fields(finetuning_args.FinetuningArguments) if field.init}
    try:
        finetuning_args.FinetuningArguments(**{key: value for key, value in args.items() if key in known})
        data.check_formats(args["dataset"].split(","), args["dataset_dir"], args["stage"])
    except (ValueError, HostDrift) as error:
        return str(error)
    return ""


def with_cause(text: str, lang: str) -> str:
    """The output box of a run that failed, with the last error's message above the traceback."""
    from llamafactory.webui.locales import ALERTS

    failed = ALERTS["err_failed"][lang]
    raised = re.findall(r"^(?:\w+\.)*\w*(?:Error|BadData|HostDrift|UnprovenRun): (.+(?:\n\S.*)*)", text, re.MULTILINE)
    if not text.startswith(failed) or not raised:
        return text
    cause = raised[-1].removesuffix("\n```")
    return f"{failed}\n```\n{cause}\n```\n{text.removeprefix(failed)}"
