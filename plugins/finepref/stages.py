"""THE TABLE: one row per method. A row is all that the attach mechanism, the doctor and the conformance tests read.

Third parties add rows through the entry-point group `finepref.stages`: each entry point names a tuple of `Stage`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training method as a stage of LLaMA-Factory.

    Attributes:
        name: the value of `stage:` in a YAML.
        title: what people call the method.
        paper: where its maths is published.
        carrier: the host's own stage whose argument checks, export and resume rules apply.
        formats: values of `formatting` in dataset_info.json whose rows the stage trains on.
        cards: patch cards that must be in place, by name; all others may drift.
        arguments: `module:Class`, a dataclass of new flat YAML keys with a `check(self, finetuning_args)` method.
        adapter: `module:Class`, the data and training half (see `finepref.hosts.llamafactory.adapter.Adapter`).
        recipe: the YAML under examples/ with the paper's settings.
        demo_dataset: a name in dataset_info.json that the recipe also runs on.
        switch: a boolean YAML key that turns the carrier into this stage, beside the stage's own name.
        openrlhf: the module that is the method's command line on OpenRLHF, "" where there is none.
        openrlhf_cards: patch cards that it needs.
        host_options: keys of the host's own that the stage reads and the web UI sends with the stage's keys.
    """

    name: str
    title: str
    paper: str
    carrier: str
    formats: tuple[str, ...]
    cards: tuple[str, ...]
    arguments: str
    adapter: str
    recipe: str
    demo_dataset: str
    switch: str = ""
    openrlhf: str = ""
    openrlhf_cards: tuple[str, ...] = ()
    host_options: tuple[str, ...] = ()


# Every LLaMA-Factory stage reads its data and starts through these seams.
LLAMAFACTORY_CARDS = (
    "finetuning-arguments",
    "run-exp",
    "dataset-list",
    "dataset-converter",
    "merged-dataset",
    "dataset-processor",
    "preprocessed-dataset",
    "get-dataset",
    "load-model",
    "reference-model",
    "model-card",
    "plot-loss",
    "encode-turn",
    "sequence-lengths",
    "processor-base",
)

# Stages on pairs of responses train with the host's DPO trainer.
PAIR_CARDS = ("run-dpo", "dpo-trainer", "pair-collator")

# Every OpenRLHF command line of ours runs through these.
OPENRLHF_CARDS = (
    "openrlhf-strategy",
    "openrlhf-sampler",
    "openrlhf-reward-dataset",
    "openrlhf-get-tokenizer",
    "openrlhf-param-dtype",
    "openrlhf-barrier",
)

# Those that train with the host's DPO trainer and its models.
OPENRLHF_DPO_CARDS = (
    *OPENRLHF_CARDS,
    "openrlhf-train-dpo",
    "openrlhf-dpo-trainer",
    "openrlhf-actor",
    "openrlhf-unpad",
    "openrlhf-gather-and-pad",
)

# The web UI offers all stages or, when one of these has drifted, none; training from the command line needs none.
WEBUI_CARDS = (
    "webui-train-tab",
    "webui-runner",
    "webui-datasets",
    "webui-can-preview",
    "webui-get-preview",
    "webui-stages",
    "webui-texts",
    "webui-engine",
    "webui-manager",
    "webui-trainer-info",
    "webui-save-dir",
)

BUILT_IN = (
    Stage(
        name="seapo_kto",
        title="SeaPO: strategic error amplification, one random negative per prompt and epoch, KTO",
        paper="arXiv 2509.24781 (data), arXiv 2402.01306 (KTO loss)",
        carrier="kto",
        formats=("negatives", "feedback"),
        cards=(*LLAMAFACTORY_CARDS, "run-kto", "kto-trainer", "kto-collator"),
        arguments="finepref.hosts.options:SeapoOptions",
        adapter="finepref.hosts.llamafactory.seapo_kto:SeapoKTO",
        recipe="examples/seapo_kto.yaml",
        demo_dataset="seapo_demo",
        openrlhf="finepref.hosts.openrlhf.train_kto",
        openrlhf_cards=OPENRLHF_DPO_CARDS,
        host_options=("pref_beta", "pref_ftx", "kto_chosen_weight", "kto_rejected_weight"),
    ),
    Stage(
        name="sepo",
        title="SePO: selective preference optimization, on the tokens that an oracle finds decisive",
        paper="arXiv 2408.13518",
        carrier="dpo",
        formats=("scored_pair", "span_pair", "pair"),
        cards=(*LLAMAFACTORY_CARDS, *PAIR_CARDS),
        arguments="finepref.hosts.options:SepoOptions",
        adapter="finepref.hosts.llamafactory.sepo:Sepo",
        recipe="examples/sepo.yaml",
        demo_dataset="sepo_demo",
        openrlhf="finepref.hosts.openrlhf.train_selective",
        openrlhf_cards=OPENRLHF_DPO_CARDS,
    ),
    Stage(
        name="tdpo",
        title="TDPO: token-level direct preference optimization, on spans or whole responses",
        paper="arXiv 2404.11999",
        carrier="dpo",
        formats=("span_pair", "pair"),
        cards=(*LLAMAFACTORY_CARDS, *PAIR_CARDS),
        arguments="finepref.hosts.options:TdpoOptions",
        adapter="finepref.hosts.llamafactory.tdpo:Tdpo",
        recipe="examples/tdpo_spans.yaml",
        demo_dataset="tdpo_demo",
        host_options=("pref_beta",),
        openrlhf="finepref.hosts.openrlhf.train_tdpo",
        openrlhf_cards=OPENRLHF_DPO_CARDS,
    ),
    Stage(
        name="granular_sft",
        title="Granular SFT: supervised fine-tuning on annotated spans, the warm-up of span-masked TDPO",
        paper="granular fork of arXiv 2404.11999",
        carrier="sft",
        formats=("span_pair",),
        cards=(*LLAMAFACTORY_CARDS, "run-sft", "sft-trainer", "sft-collator"),
        arguments="finepref.hosts.options:GranularOptions",
        adapter="finepref.hosts.llamafactory.granular:GranularSFT",
        recipe="examples/granular_sft.yaml",
        demo_dataset="granular_demo",
        switch="granular",
    ),
    Stage(
        name="apo_rm",
        title="APO: adversarial preference optimization, the reward model's step on scored lists of responses",
        paper="arXiv 2311.08045",
        carrier="rm",
        formats=("ranked", "pair"),
        cards=(*LLAMAFACTORY_CARDS, "run-rm", "rm-trainer", "value-head", "value-head-callback", "parse-train-args"),
        arguments="finepref.hosts.options:ApoOptions",
        adapter="finepref.hosts.llamafactory.apo_rm:ApoRM",
        recipe="examples/apo_rm.yaml",
        demo_dataset="apo_demo",
        openrlhf="finepref.hosts.openrlhf.train_apo_rm",
        openrlhf_cards=(*OPENRLHF_CARDS, "openrlhf-train-rm", "openrlhf-rm-trainer", "openrlhf-regression"),
    ),
)


@cache
def all_stages() -> dict[str, Stage]:
    """Every registered stage by name.

    Raises:
        ValueError: two packages register one name, or an entry point does not name a tuple of `Stage`.
    """
    found: dict[str, Stage] = {}
    for entry_point in entry_points(group="finepref.stages"):
        rows = entry_point.load()
        for row in rows if isinstance(rows, tuple) else (rows,):
            if not isinstance(row, Stage):
                raise ValueError(
                    f"entry point {entry_point.name} = {entry_point.value}: {row!r} is not a finepref Stage"
                )
            if found.setdefault(row.name, row) is not row:
                raise ValueError(
                    f"entry point {entry_point.name} = {entry_point.value}: stage {row.name} exists already"
                )
    return found


def find(name: str | None) -> Stage | None:
    """The stage of that name, or None when it is a stage of the host."""
    return all_stages().get(name) if name else None


def switched(carrier: str, keys: Mapping[str, object]) -> Stage | None:
    """The stage that a key makes of a carrier, as `granular: true` of `stage: sft`; None when no key does."""
    rows = (row for row in all_stages().values() if row.switch and row.carrier == carrier)
    return next((row for row in rows if keys.get(row.switch)), None)


def for_formatting(formatting: str) -> Iterator[Stage]:
    """The stages that train on rows of `formatting`."""
    return (stage for stage in all_stages().values() if formatting in stage.formats)
