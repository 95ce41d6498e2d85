"""Runs the recipe once per (card, mutation) in a forked child whose host has been changed in just that way.

Usage: python drift_probe.py FOLDER, which holds STAGE.yaml for each stage; a card is changed in a run of the first
stage that needs it. Prints one JSON object {"card/mutation": outcome}. The parent loads the heavy libraries, and of
the host only the module without which trl does not import, so that a child costs the import of the rest.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib
import json
import os
import sys
import types

MUTATIONS = ("deleted", "renamed", "signature", "made a function", "version", "card removed")


def mutate(module: types.ModuleType, name: str, mutation: str, methods: dict[str, str]) -> None:
    """Change the host object as an upgrade of the host could."""
    original = getattr(module, name)
    if mutation in ("deleted", "renamed"):
        delattr(module, name)
        if mutation == "renamed":
            setattr(module, f"{name}_v2", original)
    elif mutation == "made a function":
        if isinstance(original, type):
            setattr(module, name, lambda *args, **kwargs: original(*args, **kwargs))
        else:  # a function becomes a callable object
            setattr(module, name, type(name, (), {"__call__": lambda self, *args: original(*args)})())
    elif isinstance(original, type):
        changed = type(original.__name__, (original,), {next(iter(methods)): lambda self, context, *rest: None})
        setattr(module, name, changed)
    else:
        setattr(module, name, lambda context, *args, **kwargs: original(*args, **kwargs))


def outcome(recipe: str, card_name: str, mutation: str) -> dict:
    """What the run ends with, and whether any model or tokenizer was loaded before."""
    from finepref.hosts import patching
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = []
    for factory in (AutoModelForCausalLM, AutoTokenizer):
        factory.from_pretrained = lambda *args, **kwargs: loaded.append(args) or 1 / 0
    cards = patching.load_cards()
    card = cards[card_name]
    if mutation == "version":
        cards[card_name] = dataclasses.replace(card, versions=">=99")
    elif mutation == "card removed":
        del cards[card_name]
    elif card.replacement:
        attach = patching.attach

        def attach_to_changed(module: types.ModuleType) -> None:
            if module.__name__ == card.module:
                mutate(module, card.attribute, mutation, card.methods)
            attach(module)

        patching.attach = attach_to_changed
    try:
        sys.argv = ["llamafactory-cli", recipe]
        if not card.replacement and mutation in MUTATIONS[:4]:
            importlib.import_module("llamafactory.train.tuner")  # the host's own users of the name have been adapted
            mutate(importlib.import_module(card.module), card.attribute, mutation, card.methods)
        from llamafactory.train.tuner import run_exp

        run_exp()
        return {"ended": "no error", "message": "", "loaded": bool(loaded)}
    except BaseException as error:
        return {"ended": type(error).__name__, "message": str(error), "loaded": bool(loaded)}


def start(recipe: str, card: str, mutation: str) -> tuple[int, int]:
    """A forked child that runs the recipe: its process id, and the pipe that it writes its outcome to."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        os.write(writing, json.dumps(outcome(recipe, card, mutation)).encode()[:60_000])
        os._exit(0)
    os.close(writing)
    return child, reading


HEAVY = ("torch", "transformers", "peft", "datasets", "accelerate", "llamafactory.extras.packages")
HEAVY += ("trl.trainer.kto_trainer", "trl.trainer.dpo_trainer", "torchaudio", "av", "omegaconf", "matplotlib.pyplot")


def main() -> None:
    for name in HEAVY:
        importlib.import_module(name)
    from finepref import stages
    from finepref.hosts import patching

    gc.freeze()  # or every child would copy most of the memory
    results = {}
    sys.stdout.flush()
    needing = {card: name for name, row in reversed(stages.all_stages().items()) for card in row.llamafactory_cards}
    rebinding = {card for card in needing if patching.load_cards()[card].replacement}
    for cards in (rebinding, needing.keys() - rebinding):
        probes = [
            (f"{card}/{mutation}", f"{sys.argv[1]}/{needing[card]}.yaml", card, mutation)
            for card in sorted(cards)
            for mutation in MUTATIONS
        ]
        together = os.cpu_count() or 1
        for k in range(0, len(probes), together):
            started = [(name, *start(*probe)) for name, *probe in probes[k : k + together]]
            for name, child, reading in started:
                with os.fdopen(reading) as pipe:
                    results[name] = json.loads(pipe.read())
                os.waitpid(child, 0)
        importlib.import_module("llamafactory.train.tuner")
        gc.freeze()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
