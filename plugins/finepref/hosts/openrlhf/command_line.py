"""OpenRLHF's command lines with further flags: the host's own `__main__` block, run with our parser and our `train`.

The block is taken from the syntax tree of the host's file. So its flags, checks and defaults are those of the
installed version, nothing global is patched, and `--help` imports neither torch nor the host's modules.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pkgutil import resolve_name
from types import CodeType, SimpleNamespace, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from finepref import stages
from finepref.formats import layouts
from finepref.formats.problems import BadData
from finepref.hosts.openrlhf import compat, environment
from finepref.hosts.patching import HostDrift
from finepref.methods.options import Described, Options

HOST = "openrlhf"

UNUSED = ("data.dataset_probs", "data.dataset_split", "eval.split")
"""The host's data flags that have no effect, because finepref reads the data itself."""

REFERENCE_FLAGS = ("ref.model_name_or_path", "ref.offload")

DATASET_DIR = (
    "Folder with a dataset_info.json, in which the names in --data.dataset and --eval.dataset are looked up; names "
    "that it lacks are looked up in finepref's own. (default: %(default)s)"
)


@dataclass(frozen=True)
class Request:
    """A parsed command line.

    Attributes:
        stage: the method.
        host: the host's arguments after its block has processed them.
        options: the method's options, checked.
        attention: `--ds.attn_implementation` as given; the block changes it if samples are packed.
        given: the flags that differ from their default, and their values.
    """

    stage: stages.Stage
    host: Any
    options: Options
    attention: str
    given: Mapping[str, Any] = field(default_factory=dict)


def flag_of(row: stages.Stage, name: str) -> str:
    """An option's flag: the host's own if it has one, else e.g. `sepo_ratio_chosen` -> `--selective.ratio_chosen`.

    The flag omits the stage's name, or the option's first word if that repeats the stage's name or group.
    """
    described = row.options.described(HOST)
    if name in described and described[name].host_key:
        return f"--{described[name].host_key}"
    first, _, rest = name.partition("_")
    if name.startswith(f"{row.name}_"):
        rest = name.removeprefix(f"{row.name}_")
    elif first not in {*row.name.split("_"), row.group, "finepref"}:
        rest = name
    return f"--{row.group}.{rest}"


def spelled(flags: dict[str, str], name: str, value: str = "") -> str:
    """An option as the user types it: the `spelling` of `finepref.methods.options.Options.read`."""
    flag = flags.get(name, name)
    return flag if value in ("", "true") else f"{flag} {value}"


def run(row: stages.Stage) -> None:
    """Parse `sys.argv` and train.

    Exits with the message alone if our checks raise BadData, HostDrift, ValueError or FileNotFoundError.
    """
    flags = {name: flag_of(row, name) for name in row.options.described(HOST)} | {"cutoff_len": "--data.max_len"}
    parser = _Parser(row, flags)

    def start(host: Any) -> None:
        try:
            _refuse_unused(parser, unused_by(row))
            given = vars(parser.flat)
            values = {name: given[flags[name][2:]] for name in row.options.described(HOST)}
            options = row.read_options(HOST, values, partial(spelled, flags))
            differing = {name: value for name, value in given.items() if value != parser.get_default(name)}
            request = Request(row, host, options, given["ds.attn_implementation"], differing)
            environment.check(request)
            train = resolve_name(row.of_shape.openrlhf_prepare)(request)
        except (BadData, HostDrift, ValueError, FileNotFoundError) as error:
            sys.exit(f"{parser.prog}: {error}")
        train()

    try:
        block = main_block(row.of_shape.openrlhf_module)
    except HostDrift as error:
        sys.exit(f"{parser.prog}: {error}")
    shim = SimpleNamespace(**{**vars(argparse), "ArgumentParser": lambda: parser})
    exec(block, {"__name__": "__main__", "argparse": shim, "datetime": datetime, "train": start})


def unused_by(row: stages.Stage) -> tuple[str, ...]:
    """The host's flags that the stage does not read. They are refused, since they would be ignored."""
    unused = (*UNUSED, *row.of_shape.openrlhf_unused)
    read = {each.host_key for each in row.options.described(HOST).values()}
    if row.of_shape.openrlhf_module == "openrlhf.cli.train_dpo":
        unused += () if "model.beta" in read else ("model.beta",)
        unused += () if row.reference else REFERENCE_FLAGS
    return tuple(flag for flag in unused if flag not in read)


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


EVERY_LINEAR = "all-linear"
"""peft's word, the flag's default. The flag itself gives a list, in which peft takes it for the name of a layer."""


class _Parser(argparse.ArgumentParser):
    """The host's parser; our flags are added when the host has added its own."""

    def __init__(self, row: stages.Stage, flags: dict[str, str]) -> None:
        super().__init__(allow_abbrev=False)
        self.row, self.flags = row, flags
        self.flat = argparse.Namespace()

    def parse_args(self, args=None, namespace=None):
        """Add our flags and parse. Keep a copy of the result, since the host rewrites it."""
        data = self.add_argument_group("finepref data")
        data.add_argument("--data.dataset_dir", default="dataset_info", help=DATASET_DIR)
        text = "Layout of --data.dataset if it is a file, see `finepref formats`. (default: recognised by all rows)"
        names = [name for name in layouts.names() if layouts.native_format(name) in self.row.formats]
        data.add_argument("--data.formatting", choices=names, metavar="LAYOUT", help=text)
        ours = self.add_argument_group(f"finepref {self.row.group}")
        for name, option in self.row.options.new_on(HOST).items():
            ours.add_argument(self.flags[name], **_argument(option))
        for action in self._actions:
            if action.dest == "ds.param_dtype":
                action.choices = [*action.choices, "fp32"]
        if not compat.has_flash_attn():
            self.set_defaults(**{"ds.attn_implementation": "sdpa"})
        parsed = super().parse_args(args, namespace)
        if vars(parsed)["ds.lora.target_modules"] == [EVERY_LINEAR]:
            setattr(parsed, "ds.lora.target_modules", EVERY_LINEAR)
        self.flat = argparse.Namespace(**vars(parsed))
        return parsed


def _argument(option: Described) -> dict[str, Any]:
    """The argparse settings of one option."""
    settings: dict[str, Any] = {"default": option.default, "help": option.help.replace("%", "%%")}
    if option.kind is bool:
        return settings | {"action": "store_true"}
    if option.default is not None:
        settings["help"] += " (default: %(default)s)"
    kinds = get_args(option.kind) if get_origin(option.kind) in (Union, UnionType) else (option.kind,)
    if choices := next((kind for kind in kinds if get_origin(kind) is Literal), None):
        return settings | {"choices": get_args(choices)}
    return settings | {"type": next(kind for kind in (float, int, str) if kind in kinds)}


def _refuse_unused(parser: _Parser, unused: tuple[str, ...]) -> None:
    """Raise ValueError for a flag of the host that would be ignored."""
    for name in unused:
        if vars(parser.flat)[name] != parser.get_default(name):
            raise ValueError(f"--{name} does nothing here, so leave it out")
