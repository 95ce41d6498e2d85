"""Start-up hook: waits until a host module is imported, then applies the patch cards to it.

`finepref.pth` calls `install()` at the start of every Python process of the environment: torchrun workers, Ray workers
and the web UI's child processes are new processes that no console script of ours could reach. So this file imports
nothing that Python has not loaded already, and a process that never imports a host pays one dictionary look-up per
import. Set `FINEPREF_DISABLE=1` to switch it off.
"""

import os
import sys

# Host modules in which patch cards rebind a name -> the function called once, right after the module was imported.
# A test keeps this table equal to the cards in patches/.
WATCHED = {
    "llamafactory.data.loader": "finepref.hosts.patching:attach",
    "llamafactory.data.parser": "finepref.hosts.patching:attach",
    "llamafactory.hparams.finetuning_args": "finepref.hosts.patching:attach",
    "llamafactory.train.dpo": "finepref.hosts.patching:attach",
    "llamafactory.hparams.parser": "finepref.hosts.patching:attach",
    "llamafactory.train.kto": "finepref.hosts.patching:attach",
    "llamafactory.train.sft": "finepref.hosts.patching:attach",
    "llamafactory.train.rm": "finepref.hosts.patching:attach",
    "llamafactory.train.tuner": "finepref.hosts.patching:attach",
    "llamafactory.webui.components.data": "finepref.hosts.patching:attach",
    "llamafactory.webui.components.train": "finepref.hosts.patching:attach",
    "llamafactory.webui.control": "finepref.hosts.patching:attach",
    "llamafactory.webui.runner": "finepref.hosts.patching:attach",
}

SWITCH = "FINEPREF_DISABLE"

HOST_PARSER = "llamafactory.hparams.parser"  # imported by a training before it reads its arguments

# While finepref is off: called with HOST_PARSER, or the name of a command line of OpenRLHF, when that is imported.
WHEN_OFF = "finepref.hosts.patching:stop_if_asked"

# Prefix of OpenRLHF's command lines. Each stage adds one (see `finepref.methods.stage.Stage.command`).
COMMANDS = "openrlhf.cli.train_"


class _AfterImport:
    """Runs the module's own loader, then the function in `WATCHED`. The module itself sees only its own loader."""

    def __init__(self, loader):
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        where, _, name = WATCHED[module.__name__].partition(":")
        __import__(where)
        getattr(sys.modules[where], name)(module)


class _Finder:
    """First on `sys.meta_path`. Finds watched host modules, through the other finders, and stages' command lines."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in WATCHED and not name.startswith(COMMANDS):
            return None
        for finder in sys.meta_path:
            if finder is _Finder:
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if name in WATCHED and spec.loader is not None:
                    spec.loader = _AfterImport(spec.loader)
                return spec
        return _command(name) if name.startswith(COMMANDS) else None


def _command(name):
    """The module spec of a stage's command line; None if no stage has a command of that name."""
    from importlib.util import spec_from_file_location

    from finepref import stages

    if stages.of_command(name.rpartition(".")[2]) is None:
        return None
    return spec_from_file_location(name, os.path.join(os.path.dirname(__file__), "hosts", "openrlhf", "train.py"))


class _Off:
    """On `sys.meta_path` while finepref is off: says so to a run of one of its stages, which the host does not know.

    Nothing of finepref is imported unless a host reads a command line, or a command under `openrlhf.cli` is not there.
    """

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == HOST_PARSER or name.startswith(COMMANDS):
            where, _, function = WHEN_OFF.partition(":")
            __import__(where)
            getattr(sys.modules[where], function)(name)
        return None


def install():
    """Start to watch for host modules. A second call does nothing. With FINEPREF_DISABLE set, nothing is adapted."""
    finder = _Finder if os.environ.get(SWITCH, "") in ("", "0") else _Off
    if _Finder in sys.meta_path or _Off in sys.meta_path:
        return
    sys.meta_path.insert(0, finder)
