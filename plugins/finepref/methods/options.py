"""Options of a method: declared once, checked by one function, written in messages as each host's user writes them.

An option is a field of a dataclass derived from `Options`, made with `option` or `host_option`. On LLaMA-Factory each
one is a flat YAML key; on OpenRLHF it is a flag of the stage's group. This file imports neither torch nor a host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from types import UnionType
from typing import Any, ClassVar, Literal, NamedTuple, Self, Union, get_args, get_origin, get_type_hints

from finepref.formats.bad_rows import BadRows, share_of
from finepref.methods.overlong import Overlong

HOSTS = ("llamafactory", "openrlhf")


def option(
    default: Any,
    help: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    comma_list: bool = False,
    only: str = "",
    openrlhf: Mapping[str, Any] | None = None,
) -> Any:
    """A dataclass field that is a new key of LLaMA-Factory's YAML and a new flag on OpenRLHF.

    Args:
        default: value if none is given; None means that the method decides.
        help: one line for `--help`, the web UI and the documentation.
        above, at_least, at_most: bounds of a number.
        comma_list: names separated by commas; in YAML also a list.
        only: the one host that has the option; elsewhere it keeps its default.
        openrlhf: what differs on OpenRLHF: `default`, `choices`, `help`.
    """
    metadata = {
        "help": help,
        "above": above,
        "at_least": at_least,
        "at_most": at_most,
        "comma_list": comma_list,
        "only": only,
        "openrlhf": dict(openrlhf or {}),
        "host_keys": {},
    }
    return field(default=default, metadata=metadata)


def host_option(default: Any, help: str, *, llamafactory: str = "", openrlhf: str = "", **rest: Any) -> Any:
    """A dataclass field for an option that a host already has. On a host for which no name is given, it is new.

    Args:
        default, help: as in `option`; the host's own default applies where the host has the option.
        llamafactory: a YAML key, which must be the field's name.
        openrlhf: a flag without dashes, e.g. "model.beta".
        rest: as in `option`.
    """
    made = option(default, help, **rest)
    keys = {"llamafactory": llamafactory, "openrlhf": openrlhf}
    made.metadata = {**made.metadata, "host_keys": {host: key for host, key in keys.items() if key}}
    return made


class Described(NamedTuple):
    """One option as one host shows it."""

    name: str
    kind: Any  # bool, int, float, str, Literal[...] or one of these | None
    default: Any
    help: str
    host_key: str  # the host's own key or flag for it, "" where it is ours


OVERLONG_HELP = (
    "Records longer than cutoff_len: host (cut as the host does; the default), keep_prompt (cut responses only), "
    "truncate_left (drop the beginning of the prompt; the default of reward models), skip, error."
)


@dataclass
class Options:
    """Base of every method's options: rows that do not fit, the size of micro-batches, a resume of another run."""

    host: ClassVar[str] = "llamafactory"
    spelling: ClassVar[Callable[[str, str], str]]

    finepref_overlong: Overlong | None = option(  # noqa: RUF009 (it makes a field)
        None, OVERLONG_HELP, openrlhf={"help": OVERLONG_HELP.replace("cutoff_len", "--data.max_len")}
    )
    finepref_bad_rows: Literal["error", "skip"] = option(
        "error", "Rows with a coded problem: error stops the run; skip writes them to rejected.jsonl."
    )
    finepref_max_bad: str = option("1%", "Largest share of the rows that finepref_bad_rows may skip.")
    finepref_batch_tokens: int | None = option(
        None,
        "Padded tokens of a micro-batch, of rows of similar length; replaces per_device_train_batch_size.",
        at_least=1,
        only="llamafactory",
    )
    finepref_group_by_length: bool = option(
        False, "Put rows of similar length into the same micro-batch, which leaves less padding.", only="openrlhf"
    )
    finepref_resume_changed: bool = option(
        False, "Resume although data, stage, options or seed differ from those in the checkpoint's receipt."
    )

    @classmethod
    @cache
    def described(cls, host: str) -> dict[str, Described]:
        """The options of `host` by name, with its defaults, choices and helps."""
        hints = get_type_hints(cls)
        found = {}
        for each in fields(cls):
            if each.metadata["only"] not in ("", host):
                continue
            differing = each.metadata["openrlhf"] if host == "openrlhf" else {}
            kind = Literal[differing["choices"]] if "choices" in differing else hints[each.name]
            found[each.name] = Described(
                each.name,
                kind,
                differing.get("default", each.default),
                differing.get("help", each.metadata["help"]),
                each.metadata["host_keys"].get(host, ""),
            )
        return found

    @classmethod
    def new_on(cls, host: str) -> dict[str, Described]:
        """The options that `host` itself does not have."""
        return {name: each for name, each in cls.described(host).items() if not each.host_key}

    @classmethod
    def read(cls, host: str, values: Mapping[str, Any], spelling: Callable[[str, str], str]) -> Self:
        """Make the options from a host's values and check them. Missing options get their default.

        Args:
            host: one of `HOSTS`.
            values: option name -> value.
            spelling: (name, value) -> the option as a user of the host writes it; with value "" the name alone.

        Raises:
            ValueError: one line that names the option as the host spells it.
        """
        described = cls.described(host)
        given = {name: values.get(name, each.default) for name, each in described.items()}
        made = cls(**given)
        made.host, made.spelling = host, spelling
        for each in fields(cls):
            if each.name in described:
                made._check_value(each, described[each.name].kind)
        try:
            share_of(made.finepref_max_bad)
        except ValueError as error:
            raise ValueError(f"{made.key('finepref_max_bad')}: {error}") from None
        made.check_together()
        return made

    @property
    def caches_reference(self) -> bool:
        """Whether the reference's log-probabilities are read once, into a file."""
        return bool(getattr(self, "finepref_reference_cache", False))

    @property
    def overlong(self) -> Overlong:
        """What happens to records that are too long, see `finepref.methods.overlong`."""
        return self.finepref_overlong or "host"

    @property
    def bad_rows(self) -> BadRows:
        """A new collector of bad rows."""
        return BadRows.of(self.finepref_bad_rows, self.finepref_max_bad)

    def check_together(self) -> None:
        """Refuse values that contradict each other. Override it to raise ValueError."""

    def key(self, name: str, value: str = "") -> str:
        """An option as users write it: "`tdpo_alpha`", "`tdpo_masks: none`", "--tdpo.alpha", "--tdpo.masks none"."""
        return self.spelling(name, value)

    def _check_value(self, owner: Any, kind: Any) -> None:
        """Check type, choices and bounds of one value. YAML gives any type, and no host checks it."""
        name, value = owner.name, getattr(self, owner.name)
        if get_origin(kind) in (Union, UnionType):
            if value is None:
                return
            (kind,) = (each for each in get_args(kind) if each is not type(None))
        if owner.metadata["comma_list"] and isinstance(value, list | tuple) and all(type(v) is str for v in value):
            value = ",".join(value)
            setattr(self, name, value)
        if get_origin(kind) is Literal:
            if value not in get_args(kind):
                raise ValueError(f"{self.key(name)} must be {' or '.join(get_args(kind))}, not {value!r}")
        elif kind is bool:
            if type(value) is not bool:
                raise ValueError(f"{self.key(name)} must be true or false, not {value!r}")
        elif kind is int:
            if type(value) is not int:
                raise ValueError(f"{self.key(name)} must be a whole number, not {value!r}")
        elif kind is float:
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(f"{self.key(name)} must be a number, not {value!r}")
        elif type(value) is not str:
            raise ValueError(f"{self.key(name)} must be a text, not {value!r}")
        elif owner.metadata["comma_list"] and not all(part.strip() for part in value.split(",")):
            raise ValueError(f"{self.key(name)} has an empty name: {value!r}")
        if kind in (int, float):
            self._check_bounds(name, value, owner.metadata)

    def _check_bounds(self, name: str, value: float, bounds: Mapping[str, Any]) -> None:
        above, least, most = (bounds[key] for key in ("above", "at_least", "at_most"))
        low = above is None or value > above
        if most is not None and not (low and value <= most):
            raise ValueError(f"{self.key(name)} must be above {above} and at most {most}, not {value}")
        if not low:
            raise ValueError(f"{self.key(name)} must be above {above}, not {value}")
        if least == 0 and value < 0:
            raise ValueError(f"{self.key(name)} must not be negative, but is {value}")
        if least is not None and value < least:
            raise ValueError(f"{self.key(name)} must be at least {least}, not {value}")


def in_yaml(name: str, value: str = "") -> str:
    """An option as a user of LLaMA-Factory writes it: "`name`" or "`name: value`"."""
    return f"`{name}: {value}`" if value else f"`{name}`"


Options.spelling = staticmethod(in_yaml)


@dataclass
class LogpsOptions(Options):
    """Base of the options of all shapes whose loss reads log-probabilities."""

    finepref_full_logits: bool = option(
        False, "Compute the logits of every token and keep them: slower and larger, for comparison only."
    )

    @property
    def full_logits(self) -> bool:
        """Whether to compute the logits of every token."""
        return self.finepref_full_logits


@dataclass
class SharingOptions(LogpsOptions):
    """Base of the options of shapes whose records have several responses to one prompt, each with a loss per token."""

    finepref_prefix_sharing: Literal["auto", "off"] = option(
        "auto",
        "Read the common beginning of a record's responses once: auto (where the model gives the same numbers), off.",
    )

    @property
    def prefix_sharing(self) -> bool:
        """Whether the responses of a record may share their common beginning."""
        return self.finepref_prefix_sharing == "auto"


@dataclass
class ReferenceOptions(SharingOptions):
    """Base of the options of shapes whose losses may read a reference model."""

    finepref_reference_cache: bool = option(
        False, "Read the reference's log-probabilities once into a file, for all epochs and later runs."
    )

    def refuse_cache(self, stage: str, *, reference: bool, kl: str) -> None:
        """Refuse `finepref_reference_cache` where log-probabilities of tokens are not all that is read.

        Args:
            stage: the stage's name.
            reference: whether its loss reads a reference model with these options.
            kl: as `Stage.kl`.

        Raises:
            ValueError: one line that says why.
        """
        if not self.finepref_reference_cache or (reference and not kl):
            return
        why = "reads the reference's whole distribution over the vocabulary, of which one token would be kept"
        if not reference:
            why = "reads no reference model, so that there is nothing to keep"
        raise ValueError(f"{self.key('finepref_reference_cache', 'true')}: {stage} {why}; leave it out")


@dataclass
class PairOptions(ReferenceOptions):
    """Base of the options of shape "pair"."""


@dataclass
class UnpairedOptions(ReferenceOptions):
    """Base of the options of shape "unpaired". A method overrides the properties that it has an option for.

    Attributes:
        responses: desirable and undesirable responses of the training set, in lowest terms. The host sets it as soon
            as the set is complete; before that, and of a stream, it is that of records with a draw: one of each.
    """

    responses: ClassVar[tuple[int, int]] = (1, 1)

    def count_responses(self, desirable: int, undesirable: int) -> None:
        """Set `responses`."""
        unit = math.gcd(desirable, undesirable) or 1
        vars(self)["responses"] = desirable // unit, undesirable // unit

    @property
    def error_types(self) -> tuple[str, ...] | None:
        """Error types to draw negatives from, None for all."""
        return None

    @property
    def resampled(self) -> bool:
        """Whether each epoch draws again; else all epochs use the draws of the first one."""
        return True

    @property
    def beta(self) -> float:
        """Scale of the log-ratio in the logged rewards."""
        return 1.0

    @property
    def ftx(self) -> float:
        """Coefficient of the desirable responses' negative log-likelihood (LLaMA-Factory)."""
        return 0.0

    @property
    def advice(self) -> str:
        """A warning about values that are allowed but unusual, "" if there is none."""
        return ""


@dataclass
class SingleOptions(LogpsOptions):
    """Base of the options of shape "single"."""


@dataclass
class ListOptions(ReferenceOptions):
    """Base of the options of shape "lists"."""


@dataclass
class RankedOptions(Options):
    """Base of the options of shape "ranked". A method overrides the properties that it has an option for."""

    @property
    def overlong(self) -> Overlong:
        """What happens to records that are too long: by default the end of the response is kept, where it is read."""
        return self.finepref_overlong or "truncate_left"

    @property
    def pooling(self) -> tuple[str, str]:
        """(option's name, where the reward is read: "last", "eos", "mean" or "max"), see `losses.pooling`."""
        return "", "last"

    @property
    def keeps_value_head(self) -> bool:
        """Whether to start from the checkpoint's value head (OpenRLHF)."""
        return False

    @property
    def over_step(self) -> bool:
        """Whether the loss is a mean over the whole optimizer step, for which it needs `batches.Ranked.counts`."""
        return False


# Shape -> base class of the options of its stages.
BASES = {
    "pair": PairOptions,
    "unpaired": UnpairedOptions,
    "ranked": RankedOptions,
    "lists": ListOptions,
    "single": SingleOptions,
}

BETA = "Scale of the log-ratio to the reference model (beta)."
