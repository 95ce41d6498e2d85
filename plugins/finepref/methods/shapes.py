"""The shapes of batches: for each one, the trainer that it uses on each host and the patch cards that it needs.

A stage's row only names its shape; the rest follows from the table here. This file imports nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

HOST_STAGES = ("pt", "sft", "rm", "ppo", "dpo", "kto")

# Every stage on LLaMA-Factory needs these patch cards, to read its data and to start.
LLAMAFACTORY_CARDS = (
    "finetuning-arguments",
    "run-exp",
    "dataset-list",
    "load-single-dataset",
    "align-dataset",
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

# Every stage on OpenRLHF needs these.
OPENRLHF_CARDS = (
    "openrlhf-strategy",
    "openrlhf-sampler",
    "openrlhf-reward-dataset",
    "openrlhf-get-tokenizer",
    "openrlhf-param-dtype",
    "openrlhf-barrier",
)

# Stages that use the host's DPO trainer need these.
OPENRLHF_DPO_CARDS = (
    *OPENRLHF_CARDS,
    "openrlhf-train-dpo",
    "openrlhf-dpo-trainer",
    "openrlhf-actor",
    "openrlhf-unpad",
    "openrlhf-gather-and-pad",
)

# The web UI offers our stages only if none of these has drifted. Training from the command line does not need them.
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

# Without this one an export does not take the receipt along; everything else works.
EXPORT_CARDS = ("export-model",)

DPO_FLAGS = ("model.ipo_enable", "model.label_smoothing", "model.nll_loss_coef")
RM_FLAGS = ("model.loss_type", "model.margin_loss_enable", "model.compute_fp32_loss_enable")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One shape of batch.

    Attributes:
        formats: the data formats whose records give such batches.
        llamafactory_stage: the host's own stage on which it is based.
        llamafactory_adapter: `module:Class`, a subclass of `finepref.hosts.llamafactory.adapter.Adapter`.
        llamafactory_cards: patch cards that must be in place.
        openrlhf_module: the host's command line on which it is based, "" if the shape does not run on OpenRLHF.
        openrlhf_prepare: `module:function` that checks the data and returns the function that trains.
        openrlhf_cards: patch cards that must be in place.
        openrlhf_unused: the host's flags that no stage of this shape reads.
    """

    formats: tuple[str, ...]
    llamafactory_stage: str
    llamafactory_adapter: str
    llamafactory_cards: tuple[str, ...]
    openrlhf_module: str = ""
    openrlhf_prepare: str = ""
    openrlhf_cards: tuple[str, ...] = ()
    openrlhf_unused: tuple[str, ...] = ()


SHAPES = {
    "pair": Shape(
        formats=("pair", "span_pair", "scored_pair"),
        llamafactory_stage="dpo",
        llamafactory_adapter="finepref.hosts.llamafactory.pairs:PairAdapter",
        llamafactory_cards=(*LLAMAFACTORY_CARDS, "run-dpo", "dpo-trainer", "pair-collator"),
        openrlhf_module="openrlhf.cli.train_dpo",
        openrlhf_prepare="finepref.hosts.openrlhf.pairs:prepare",
        openrlhf_cards=OPENRLHF_DPO_CARDS,
        openrlhf_unused=DPO_FLAGS,
    ),
    "unpaired": Shape(
        formats=("negatives", "feedback"),
        llamafactory_stage="kto",
        llamafactory_adapter="finepref.hosts.llamafactory.unpaired:UnpairedAdapter",
        llamafactory_cards=(*LLAMAFACTORY_CARDS, "run-kto", "kto-trainer", "kto-collator"),
        openrlhf_module="openrlhf.cli.train_dpo",
        openrlhf_prepare="finepref.hosts.openrlhf.unpaired:prepare",
        openrlhf_cards=OPENRLHF_DPO_CARDS,
        openrlhf_unused=(*DPO_FLAGS, "data.rejected_key"),
    ),
    "ranked": Shape(
        formats=("ranked", "pair"),
        llamafactory_stage="rm",
        llamafactory_adapter="finepref.hosts.llamafactory.ranked:RankedAdapter",
        llamafactory_cards=(
            *LLAMAFACTORY_CARDS,
            "run-rm",
            "rm-trainer",
            "value-head",
            "value-head-callback",
            "parse-train-args",
        ),
        openrlhf_module="openrlhf.cli.train_rm",
        openrlhf_prepare="finepref.hosts.openrlhf.ranked:prepare",
        openrlhf_cards=(*OPENRLHF_CARDS, "openrlhf-train-rm", "openrlhf-rm-trainer", "openrlhf-regression"),
        openrlhf_unused=RM_FLAGS,
    ),
    "lists": Shape(
        formats=("ranked", "pair"),
        llamafactory_stage="dpo",
        llamafactory_adapter="finepref.hosts.llamafactory.lists:ListAdapter",
        llamafactory_cards=(*LLAMAFACTORY_CARDS, "run-dpo", "dpo-trainer"),
        openrlhf_module="openrlhf.cli.train_dpo",
        openrlhf_prepare="finepref.hosts.openrlhf.lists:prepare",
        openrlhf_cards=OPENRLHF_DPO_CARDS,
        openrlhf_unused=DPO_FLAGS,
    ),
    "single": Shape(
        formats=("span_pair",),
        llamafactory_stage="sft",
        llamafactory_adapter="finepref.hosts.llamafactory.single:SingleAdapter",
        llamafactory_cards=(*LLAMAFACTORY_CARDS, "run-sft", "sft-trainer", "sft-collator"),
    ),
}
