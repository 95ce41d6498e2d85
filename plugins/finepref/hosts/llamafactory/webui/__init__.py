"""Our stages in the host's web UI: in its Stage list with their options, data sets, command, and a view of tokens.

If the host's web UI differs from our patch cards, it shows a message instead and has only the host's own stages.
"""

import sys
from functools import cache

from finepref.hosts import patching
from finepref.methods.shapes import WEBUI_CARDS


@cache
def drift() -> str:
    """How the host's web UI differs from our cards, "" if it does not. Also printed to standard error, once."""
    try:
        patching.require(WEBUI_CARDS, needed_by="the web UI")
    except patching.HostDrift as error:
        text = f"HostDrift: {error}\n  this web UI has the host's own stages only"
        print(f"finepref: {text}", file=sys.stderr)
        return text
    return ""
