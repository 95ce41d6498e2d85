"""Our stages in the host's web UI: in its Stage list with their options, data sets, command, and a view of tokens.

The UI gets all of it or, on a host that is not as our cards say, nothing but a message: `drift` decides.
"""

import sys
from functools import cache

from finepref.hosts import patching
from finepref.methods.shapes import WEBUI_CARDS


@cache
def drift() -> str:
    """What in the host's web UI is not as our cards say, "" when all is. Told on standard error, once."""
    try:
        patching.require(WEBUI_CARDS, needed_by="the web UI")
    except patching.HostDrift as error:
        text = f"HostDrift: {error}\n  this web UI has the host's own stages only"
        print(f"finepref: {text}", file=sys.stderr)
        return text
    return ""
