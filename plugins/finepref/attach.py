"""The start-up half: waits for a host module to be imported, then lets the adapter work on it.

`finepref.pth` calls `install()` at the start of every Python process of the environment, because torchrun workers, Ray
workers and the web UI's child processes are all fresh processes that no console script of ours could reach. So this
file imports nothing that Python has not loaded by then, and a process that never imports a host pays one dictionary
look-up per import. `FINEPREF_DISABLE=1` switches it off.
"""

import os
import sys

# Host modules that patch cards rebind something in, -> the function called once right after that module ran.
# A test keeps this table equal to the cards in patches/.
WATCHED = {
    "llamafactory.data.converter": "finepref.hosts.patching:attach",
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

# Beside OpenRLHF's own command lines, every stage has one under this prefix (see `finepref.stages.Stage.command`).
COMMANDS = "openrlhf.cli.train_"


class _AfterImport:
    """A loader that runs the module's own loader, then the adapter; the module sees only its own loader."""

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
    """First on `sys.meta_path`; asks the finders behind it for the modules that it watches or may have to provide."""

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
    """The command line of a stage, under a name that the host itself does not have; None where no stage has it."""
    from importlib.util import spec_from_file_location

    from finepref import stages

    if stages.of_command(name.rpartition(".")[2]) is None:
        return None
    return spec_from_file_location(name, os.path.join(os.path.dirname(__file__), "hosts", "openrlhf", "train.py"))


def install():
    """Watch for host modules. Harmless when called twice."""
    if os.environ.get("FINEPREF_DISABLE", "") not in ("", "0") or _Finder in sys.meta_path:
        return
    sys.meta_path.insert(0, _Finder)
