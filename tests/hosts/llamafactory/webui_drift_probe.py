"""Starts the web UI once per (card, mutation) in a forked child whose host has been changed in just that way.

Prints one JSON object {"card/mutation": outcome}. The parent loads all but the web UI's own modules.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import sys
import types
from itertools import product

import webui_form
from drift_probe import mutate

MUTATIONS = ("deleted", "signature", "card removed")  # more kinds of change: test_drift.py, on the same code


def outcome(card_name: str, mutation: str) -> dict:
    """What the web UI tells, which stages it offers, and whether it is there at all."""
    from finepref.hosts import patching

    cards = patching.load_cards()
    card = cards[card_name]
    if mutation == "card removed":
        del cards[card_name]
    elif card.replacement and mutation in MUTATIONS:
        attach = patching.attach

        def attach_to_changed(module: types.ModuleType) -> None:
            if module.__name__ != card.module:
                return attach(module)
            original = getattr(module, card.attribute)
            mutate(module, card.attribute, mutation, card.methods)
            changed = vars(module).get(card.attribute)
            attach(module)
            if vars(module).get(card.attribute) is changed:  # left alone; the host's own users of it have been adapted
                setattr(module, card.attribute, original)

        patching.attach = attach_to_changed
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        try:
            from llamafactory.webui.control import TRAINING_STAGES

            if not card.replacement and mutation in ("deleted", "signature"):
                importlib.import_module("llamafactory.webui.interface")
                mutate(importlib.import_module(card.module), card.attribute, mutation, card.methods)
            elements = [name for name, _ in webui_form.build().manager.get_elem_iter()]
        except BaseException as error:
            return {"ended": repr(error), "told": told.getvalue()}
    return {"ended": "", "told": told.getvalue(), "stages": list(TRAINING_STAGES.values()), "elements": elements}


def main() -> None:
    for name in ("gradio", "llamafactory.train.tuner", "llamafactory.chat", "llamafactory.eval.evaluator"):
        importlib.import_module(name)
    from finepref.methods.shapes import WEBUI_CARDS

    gc.freeze()  # or every child would copy most of the memory
    results = {}
    for card, mutation in [(WEBUI_CARDS[0], "none"), *product(WEBUI_CARDS, MUTATIONS)]:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(2, 1)
            os.write(writing, json.dumps(outcome(card, mutation)).encode()[:60_000])
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            results[f"{card}/{mutation}"] = json.loads(pipe.read())
        os.waitpid(child, 0)
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
