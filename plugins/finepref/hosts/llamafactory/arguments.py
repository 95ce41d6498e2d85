"""Adds our YAML keys to the host's FinetuningArguments, and checks the patch cards before a stage of ours starts."""

import dataclasses
import functools
import os
import sys
from collections.abc import Mapping
from typing import Any, Literal

from finepref import stages
from finepref.hosts import patching
from finepref.hosts.llamafactory import value_types
from finepref.hosts.run_setup import without_secrets
from finepref.methods.options import Options, in_yaml

HOST = "llamafactory"

# Keys of the host's preference stages. The host's stages ignore keys that they do not read; ours refuse them.
PREFERENCE_KEYS = (
    "pref_beta",
    "pref_ftx",
    "pref_bco_weight",
    "pref_loss",
    "dpo_label_smoothing",
    "simpo_gamma",
    "ld_alpha",
    "kto_chosen_weight",
    "kto_rejected_weight",
)
REFERENCE_KEYS = ("ref_model", "ref_model_adapters", "ref_model_quantization_bit")


def options_of(row: stages.Stage, finetuning_args: Any) -> Options:
    """Read and check the stage's options from the host's arguments.

    Raises:
        ValueError: one line naming the key.
    """
    return row.read_options(HOST, vars(finetuning_args), in_yaml)


def extend(original: type) -> type:
    """FinetuningArguments with our stages in `stage` and their keys as fields (card `finetuning-arguments`).

    Our stage is replaced by its host stage before the host's own checks run, so that these apply to it. Its name is
    kept in `finepref_stage`, which is not an argument.
    """
    stages.report_broken()
    rows = stages.all_stages()
    owners: dict[str, set[str]] = {}
    new: dict[str, Any] = {}
    for row in rows.values():
        for name, option in row.options.new_on(HOST).items():
            owners.setdefault(name, set()).add(row.name)
            new[name] = option

    def post_init(self: object) -> None:
        row = stages.find(self.stage) or stages.switched(self.stage, vars(self))
        self.finepref_stage = row.name if row else None
        for name, option in new.items():
            if (row is None or row.name not in owners[name]) and getattr(self, name) != option.default:
                stage = row.name if row else self.stage
                having = ", ".join(sorted(owners[name]))
                raise ValueError(f"`{name}` is a key of stage {having}, not of {stage}")
        if row is not None:
            patching.require(row.llamafactory_cards, needed_by=f"stage {row.name}")
            if self.use_mca:
                raise ValueError(f"stage {row.name} does not run on Megatron: unset USE_MCA")
            self.stage = row.host_stage
            options = options_of(row, self)
            _refuse_unread(self, row, options)
            if row.host_stage == "dpo" and not row.needs_reference(options):
                self.pref_loss = "simpo"  # the host's only way to say that there is no reference model
        original.__post_init__(self)

    def to_dict(self: object) -> dict:
        values = original.to_dict(self)
        values["stage"] = self.finepref_stage or self.stage
        values.pop("finepref_given", None)  # the whole YAML is not an argument
        return values

    host_stages = original.__annotations__["stage"].__args__
    stage = dataclasses.field(
        default="sft", metadata={"help": original.__dataclass_fields__["stage"].metadata["help"]}
    )
    extended = dataclasses.make_dataclass(
        original.__name__,
        [
            ("stage", Literal[(*host_stages, *rows)], stage),
            ("finepref_stage", str | None, dataclasses.field(init=False, default=None)),
            ("finepref_resume", str | None, dataclasses.field(init=False, default=None)),
            ("finepref_given", dict | None, dataclasses.field(init=False, default=None)),
            *((name, option.kind, _field(option)) for name, option in new.items()),
        ],
        bases=(original,),
        namespace={"__post_init__": post_init, "to_dict": to_dict, "__doc__": original.__doc__},
    )
    extended.__module__, extended.__qualname__ = original.__module__, original.__qualname__  # pickle by reference
    return extended


def _field(option: Any) -> Any:
    return dataclasses.field(default=option.default, metadata={"help": option.help})


def _refuse_unread(arguments: Any, row: stages.Stage, options: Options) -> None:
    """Raise ValueError for a key of the host's preference stages that would be ignored in this one."""
    if row.shape == "single":
        return  # the host's own loss reads all its keys
    read = {option.host_key for option in row.options.described(HOST).values()}
    unread = {*PREFERENCE_KEYS} - read | (set() if row.needs_reference(options) else {*REFERENCE_KEYS})
    for field in dataclasses.fields(arguments):
        if field.name in unread and getattr(arguments, field.name) != field.default:
            raise ValueError(f"`{field.name}` does nothing in stage {row.name}, so leave it out")


def guard(original):
    """`run_exp` that checks the stage's patch cards before it reads any argument (card `run-exp`).

    FinetuningArguments checks them too. If one of the two places has drifted, the other one still reports it.
    """

    @functools.wraps(original)
    def run_exp(args=None, callbacks=None):
        if isinstance(args, dict):
            asked = args.get("stage")
        else:
            asked = patching.asked_stage(sys.argv if args is None else args)
        row = stages.find(asked)
        if row is not None:
            patching.require(row.llamafactory_cards, needed_by=f"stage {row.name}")
        return original(args, callbacks)

    return run_exp


def keep_given(original):
    """`_parse_train_args` that checks types, and keeps what was given (card `parse-train-args`).

    It keeps the settings of a YAML with what overrides them, for the receipt, and the checkpoint to resume from. The
    host later discards that for reward models with full or frozen weights, which it cannot resume.
    """

    @functools.wraps(original)
    def _parse_train_args(args=None):
        from llamafactory.hparams.parser import _TRAIN_ARGS, read_args

        given = read_args(args)
        if isinstance(given, dict) and _stage_of(given):
            value_types.check(given, _TRAIN_ARGS)
        parsed = original(args)
        _, _, training_args, finetuning_args, _ = parsed
        finetuning_args.finepref_resume = training_args.resume_from_checkpoint
        if isinstance(given, dict):
            finetuning_args.finepref_given = without_secrets(given)
        return parsed

    return _parse_train_args


def _stage_of(given: Mapping[str, Any]) -> stages.Stage | None:
    """Our stage that the settings of a YAML ask for, None for one of the host's."""
    asked = given.get("stage", "sft")
    return stages.find(asked) or stages.switched(asked, given)


def resume_point(training_args, finetuning_args) -> str | None:
    """The checkpoint to resume from: the given one, else the last one in an output folder that is not overwritten."""
    from transformers.trainer_utils import get_last_checkpoint

    asked = training_args.resume_from_checkpoint or finetuning_args.finepref_resume
    if asked is True:
        return get_last_checkpoint(training_args.output_dir) or asked
    if asked or training_args.overwrite_output_dir or not os.path.isdir(training_args.output_dir):
        return asked
    return get_last_checkpoint(training_args.output_dir)
