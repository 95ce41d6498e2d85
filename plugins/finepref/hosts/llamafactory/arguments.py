"""Our flat YAML keys on the host's FinetuningArguments, and the two guards that every stage of ours passes first."""

import dataclasses
import functools
import os
import sys
from pkgutil import resolve_name
from typing import Literal

from finepref import stages
from finepref.hosts import patching


def extend(original: type) -> type:
    """FinetuningArguments with our stages in `stage` and their keys as fields (card `finetuning-arguments`).

    A stage of ours becomes its carrier before the host's own checks run, so these apply to it; its real name stays in
    `finepref_stage`, which is no argument.
    """
    rows = stages.all_stages()
    carriers = original.__annotations__["stage"].__args__
    owned = {row.name: resolve_name(row.arguments) for row in rows.values()}
    mixins = tuple(dict.fromkeys(owned.values()))

    def post_init(self: object) -> None:
        row = stages.find(self.stage) or stages.switched(self.stage, vars(self))
        self.finepref_stage = row.name if row else None
        for arguments in mixins:
            if row is None or arguments is not owned[row.name]:
                _refuse_foreign_keys(self, row.name if row else self.stage, arguments, owned)
        if row is not None:
            patching.require(row.cards, needed_by=f"stage {row.name}")
            if self.use_mca:
                raise ValueError(f"stage {row.name} does not run on Megatron: unset USE_MCA")
            self.stage = row.carrier
            owned[row.name].check(self)
        original.__post_init__(self)

    def to_dict(self: object) -> dict:
        values = original.to_dict(self)
        values["stage"] = self.finepref_stage or self.stage
        return values

    stage = dataclasses.field(
        default="sft", metadata={"help": original.__dataclass_fields__["stage"].metadata["help"]}
    )
    extended = dataclasses.make_dataclass(
        original.__name__,
        [
            ("stage", Literal[(*carriers, *rows)], stage),
            ("finepref_stage", str | None, dataclasses.field(init=False, default=None)),
            ("finepref_resume", str | None, dataclasses.field(init=False, default=None)),
        ],
        bases=(*mixins, original),
        namespace={"__post_init__": post_init, "to_dict": to_dict, "__doc__": original.__doc__},
    )
    extended.__module__, extended.__qualname__ = original.__module__, original.__qualname__  # pickle by reference
    return extended


def _refuse_foreign_keys(arguments: object, stage: str, foreign: type, owned: dict[str, type]) -> None:
    """A key of one stage in a run of another would be ignored in silence; refuse it."""
    for field in dataclasses.fields(foreign):
        stages_with = {name for name, owner in owned.items() if field.name in owner.__dataclass_fields__}
        if stage not in stages_with and getattr(arguments, field.name) != field.default:
            raise ValueError(f"`{field.name}` is a key of stage {', '.join(sorted(stages_with))}, not of {stage}")


def guard(original):
    """`run_exp` that refuses a drifted host before it reads any argument (card `run-exp`).

    This and the check in FinetuningArguments cover for each other: whichever of the two seams drifts, the other one
    is still there to say so.
    """

    @functools.wraps(original)
    def run_exp(args=None, callbacks=None):
        if isinstance(args, dict):
            asked = args.get("stage")
        else:
            asked = patching.asked_stage(sys.argv if args is None else args)
        row = stages.find(asked)
        if row is not None:
            patching.require(row.cards, needed_by=f"stage {row.name}")
        return original(args, callbacks)

    return run_exp


def keep_resume(original):
    """`_parse_train_args` that notes the checkpoint to resume from (card `parse-train-args`).

    The host goes on to forget it for reward models with full or frozen weights, which it cannot resume.
    """

    @functools.wraps(original)
    def _parse_train_args(args=None):
        parsed = original(args)
        _, _, training_args, finetuning_args, _ = parsed
        finetuning_args.finepref_resume = training_args.resume_from_checkpoint
        return parsed

    return _parse_train_args


def resume_point(training_args, finetuning_args) -> str | None:
    """The checkpoint to go on from: the one asked for, or the last one in an output folder not to be overwritten."""
    from transformers.trainer_utils import get_last_checkpoint

    asked = training_args.resume_from_checkpoint or finetuning_args.finepref_resume
    if asked or training_args.overwrite_output_dir or not os.path.isdir(training_args.output_dir):
        return asked
    return get_last_checkpoint(training_args.output_dir)
