"""A command line of OpenRLHF's with more flags: the host's own `__main__` block, run with our parser and our `train`.

The block is taken from the syntax tree of the host's file, so its flags, checks and defaults are the host's, whatever
its version, nothing global is patched, and `--help` imports neither torch nor the host's modules.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from pkgutil import resolve_name
from types import CodeType, SimpleNamespace
from typing import Any, Literal, get_args, get_origin

from finepref import stages
from finepref.formats.problems import BadData
from finepref.hosts.openrlhf import compat, environment
from finepref.hosts.patching import HostDrift

UNUSED = ("data.dataset_probs", "data.dataset_split", "eval.split")
"""Flags of the host about data that we read ourselves."""

KEY_PREFIX = re.compile(r"^(sepo|tdpo|seapo|kto|apo|finepref)_")

DATASET_DIR = (
    "Folder of the dataset_info.json that --data.dataset and --eval.dataset name data sets of; names that it lacks "
    "are looked up in finepref's own. (default: %(default)s)"
)


@dataclass(frozen=True)
class Asked:
    """What the user asked for.

    Attributes:
        stage: the method.
        host: the host's arguments as its block leaves them.
        options: the method's own.
        attention: `--ds.attn_implementation` as given; the block changes it where samples are packed.
    """

    stage: stages.Stage
    host: Any
    options: Any
    attention: str


def flag_of(group: str, key: str) -> str:
    """`sepo_ratio_chosen` -> `--selective.ratio_chosen`."""
    return f"--{group}.{KEY_PREFIX.sub('', key)}"


def run(module: str, *, stage: str, group: str, options: type, unused: tuple[str, ...], prepare: str) -> None:
    """Parse `sys.argv` and train.

    Args:
        module: the host's command line, e.g. openrlhf.cli.train_dpo.
        stage: name of the method's row in `finepref.stages`.
        group: name of our flag group.
        options: dataclass of the method's options; each field becomes a flag.
        unused: flags of the host that the method does not read; they are refused.
        prepare: `module:function`, which checks what is `Asked` and returns what then trains. The module may import
            the host. What it raises as BadData, HostDrift, ValueError or FileNotFoundError is all that is printed.
    """
    row = stages.all_stages()[stage]
    flags = {field.name: flag_of(group, field.name) for field in fields(options)}
    flags |= {"pref_beta": "--model.beta", "cutoff_len": "--data.max_len"}
    parser = _Parser(group=group, options=options, formats=row.formats)

    def start(host: Any) -> None:
        try:
            _refuse_unused(parser, (*UNUSED, *unused))
            given = vars(parser.flat)
            chosen = options(**{field.name: given[flags[field.name][2:]] for field in fields(options)})
            chosen.pref_beta, chosen.pref_ftx = getattr(host.model, "beta", 1.0), 0.0
            chosen.check()
            asked = Asked(row, host, chosen, given["ds.attn_implementation"])
            environment.check(asked)
            train = resolve_name(prepare)(asked)
        except (BadData, HostDrift, ValueError, FileNotFoundError) as error:
            sys.exit(f"{parser.prog}: {in_flags(str(error), flags)}")
        train()

    try:
        block = main_block(module)
    except HostDrift as error:
        sys.exit(f"{parser.prog}: {error}")
    shim = SimpleNamespace(**{**vars(argparse), "ArgumentParser": lambda: parser})
    exec(block, {"__name__": "__main__", "argparse": shim, "datetime": datetime, "train": start})


def in_flags(message: str, flags: Mapping[str, str]) -> str:
    """A message about option keys, in the flags that the user types."""
    for key, flag in flags.items():
        message = re.sub(rf"\b{key}\b(?!\.)", flag, message)
    return message.replace("`", "")


def main_block(module: str) -> CodeType:
    """The body of `if __name__ == "__main__":` of a host's file.

    Raises:
        HostDrift: there is no such block, or it does not end in `train(args)`.
    """
    file = compat.file_of(module)
    with open(file, encoding="utf-8") as source:
        tree = ast.parse(source.read())
    blocks = [
        node.body
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test).replace('"', "'") == "__name__ == '__main__'"
    ]
    if len(blocks) != 1 or ast.unparse(blocks[0][-1]) != "train(args)":
        raise HostDrift(f"{module}: expected one block `if __name__ == '__main__'` that ends in train(args)")
    return compile(ast.Module(blocks[0], type_ignores=[]), file, "exec")


class _Parser(argparse.ArgumentParser):
    """The host's parser, to which our flags are added when it is complete."""

    def __init__(self, *, group: str, options: type, formats: tuple[str, ...]) -> None:
        super().__init__(allow_abbrev=False)
        self.group, self.options, self.formats = group, options, formats
        self.flat = argparse.Namespace()

    def parse_args(self, args=None, namespace=None):
        """Parse, and keep what was parsed as it is before the host rewrites it."""
        data = self.add_argument_group("finepref data")
        data.add_argument("--data.dataset_dir", default="dataset_info", help=DATASET_DIR)
        text = "Format of data that is given as a file. (default: %(default)s)"
        data.add_argument("--data.formatting", choices=self.formats, default=self.formats[0], help=text)
        ours = self.add_argument_group(f"finepref {self.group}")
        for field in fields(self.options):
            ours.add_argument(flag_of(self.group, field.name), **_argument(field))
        for action in self._actions:
            if action.dest == "ds.param_dtype":
                action.choices = [*action.choices, "fp32"]
        if not compat.has_flash_attn():
            self.set_defaults(**{"ds.attn_implementation": "sdpa"})
        parsed = super().parse_args(args, namespace)
        self.flat = argparse.Namespace(**vars(parsed))
        return parsed


def _argument(field: Any) -> dict[str, Any]:
    """The argparse settings of one dataclass field."""
    settings: dict[str, Any] = {"default": field.default, "help": field.metadata["help"]}
    if field.type is bool:
        return settings | {"action": "store_true"}
    if field.default is not None:
        settings["help"] += " (default: %(default)s)"
    if get_origin(field.type) is Literal:
        return settings | {"choices": get_args(field.type)}
    kind = next(kind for kind in (float, int, str) if kind in (field.type, *get_args(field.type)))
    return settings | {"type": kind}


def _refuse_unused(parser: _Parser, unused: tuple[str, ...]) -> None:
    """Raises ValueError for a flag of the host's that would be ignored."""
    for name in unused:
        if vars(parser.flat)[name] != parser.get_default(name):
            raise ValueError(f"--{name} does nothing here, so leave it out")
