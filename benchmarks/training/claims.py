"""What is compared: settings (model and rows), arms (a process in an environment), and claims about two arms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flops import Sizes


@dataclass(frozen=True)
class Setting:
    """A model and rows.

    Attributes:
        model: its name in `inputs`.
        rows: `real`, or `long prompts`.
        records: how many; an epoch is measured.
        batch: records of a micro-batch.
        cutoff_len: most tokens of a row.
        sizes: of a random model.
    """

    model: str
    rows: str
    records: int
    batch: int
    cutoff_len: int
    sizes: Mapping[str, int] = field(default_factory=dict)


TINY_SIZES = Sizes(layers=4, hidden=256, intermediate=688, heads=4, key_value_heads=4, vocabulary=128_256)
GPU_SIZES = Sizes(layers=8, hidden=2048, intermediate=5504, heads=16, key_value_heads=16, vocabulary=128_256)
SMOLLM2_SIZES = Sizes(layers=30, hidden=576, intermediate=1536, heads=9, key_value_heads=3, vocabulary=49_152)


def model_config(sizes: Sizes) -> dict[str, int]:
    """Sizes as LlamaConfig names them."""
    return {
        "num_hidden_layers": sizes.layers,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.key_value_heads,
        "vocab_size": sizes.vocabulary,
    }


SETTINGS = {
    "cpu": {
        "tiny-128k": Setting("tiny-128k", "real", 4, 2, 512, model_config(TINY_SIZES)),
        "smollm2": Setting("smollm2", "real", 2, 1, 512),
        "smollm2-long": Setting("smollm2", "long prompts", 2, 1, 768),
    },
    "cuda": {
        "tiny-128k": Setting("gpu-128k", "real", 64, 4, 1024, model_config(GPU_SIZES)),
        "smollm2": Setting("smollm2", "real", 64, 4, 1024),
        "smollm2-long": Setting("smollm2", "long prompts", 64, 4, 2048),
    },
    "smoke": {  # only to see that every arm runs
        "tiny-128k": Setting("smoke", "real", 2, 1, 512, model_config(Sizes(2, 64, 128, 2, 2, 49_152))),
        "smollm2": Setting("smoke", "real", 2, 1, 512, model_config(Sizes(2, 64, 128, 2, 2, 49_152))),
        "smollm2-long": Setting("smoke", "long prompts", 2, 1, 1024, model_config(Sizes(2, 64, 128, 2, 2, 49_152))),
    },
}


def sizes_of(setting: Setting) -> Sizes:
    """The sizes of a setting's model."""
    if not setting.sizes:
        return SMOLLM2_SIZES
    return Sizes(*(setting.sizes[name] for name in model_config(SMOLLM2_SIZES)))


@dataclass(frozen=True)
class Arm:
    """One of two that are compared.

    Attributes:
        host: llamafactory, openrlhf or trl.
        stage: of the host, or ours.
        data: name of the data set.
        cost: how its operations are counted, see `flops.COSTS`.
        options: further settings.
        rows_of_record: rows in a micro-batch for each record.
        fill: a whole run comes first, which fills the cache of the reference.
    """

    host: str
    stage: str
    data: str
    cost: str
    options: Mapping[str, Any] = field(default_factory=dict)
    rows_of_record: int = 1
    fill: bool = False


CACHE = {"finepref_reference_cache": True}
EVERY_TOKEN = {"tdpo_masks": "none"}
DPO = {"tdpo_masks": "none", "tdpo_variant": "dpo"}
RANDOM = {"sepo_selection": "random", "sepo_ratio_chosen": 0.3, "sepo_ratio_rejected": 0.3}
ONCE = {"seapo_resample": "once"}
LF, OR = "llamafactory", "openrlhf"

ARMS = {
    "dpo": Arm(LF, "dpo", "dpo", "all logits"),
    "simpo": Arm(LF, "dpo", "dpo", "all logits, one model", {"pref_loss": "simpo"}),
    "plain tdpo2": Arm(LF, "plain_tdpo2", "dpo", "all logits"),
    "kto": Arm(LF, "kto", "kto", "all logits, unpaired", rows_of_record=2),
    "sepo 30 %": Arm(LF, "sepo", "pairs", "30 % of the tokens", RANDOM),
    "tdpo2": Arm(LF, "tdpo", "pairs", "tokens and KL", EVERY_TOKEN),
    "tdpo dpo": Arm(LF, "tdpo", "pairs", "tokens", DPO),
    "tdpo dpo, cached": Arm(LF, "tdpo", "pairs", "tokens, cached", DPO | CACHE, fill=True),
    "seapo_kto": Arm(LF, "seapo_kto", "negatives", "unpaired", ONCE, 2),
    "seapo_kto, cached": Arm(LF, "seapo_kto", "negatives", "unpaired, cached", ONCE | CACHE, 2, fill=True),
    "TRL dpo": Arm("trl", "dpo", "trl_dpo", "recomputed head"),
    "TRL kto": Arm("trl", "kto", "trl_kto", "recomputed head, unpaired", rows_of_record=2),
    "OpenRLHF dpo": Arm(OR, "dpo", "openrlhf", "all logits"),
    "OpenRLHF sepo 30 %": Arm(
        OR,
        "sepo",
        "pairs",
        "30 % of the tokens",
        {"selective.selection": "random", "selective.ratio_chosen": 0.3, "selective.ratio_rejected": 0.3},
    ),
    "OpenRLHF tdpo2": Arm(OR, "tdpo", "pairs", "tokens and KL", {"tdpo.masks": "none"}),
    "OpenRLHF tdpo dpo": Arm(OR, "tdpo", "pairs", "tokens", {"tdpo.masks": "none", "tdpo.variant": "dpo"}),
}


@dataclass(frozen=True)
class Claim:
    """Ours takes at most these shares of the peer's time, and of its memory above the model.

    Attributes:
        setting, ours, peer: names.
        time, memory: the goals; None: none is set.
    """

    setting: str
    ours: str
    peer: str
    time: float | None = None
    memory: float | None = None


CLAIMS = {
    "sepo-simpo": Claim("tiny-128k", "sepo 30 %", "simpo", 0.32, 0.3),
    "tdpo2-plain": Claim("tiny-128k", "tdpo2", "plain tdpo2", 0.45, 0.3),
    "tdpo2-dpo": Claim("tiny-128k", "tdpo2", "dpo", 1.05, 0.4),
    "dpo-dpo": Claim("tiny-128k", "tdpo dpo", "dpo", 0.9, 0.35),
    "dpo-dpo-cached": Claim("tiny-128k", "tdpo dpo, cached", "dpo", 0.7, 0.35),
    "dpo-trl": Claim("tiny-128k", "tdpo dpo", "TRL dpo", 1.0, 1.0),
    "kto-kto": Claim("tiny-128k", "seapo_kto", "kto", 0.65, 0.3),
    "kto-kto-cached": Claim("tiny-128k", "seapo_kto, cached", "kto", 0.45, 0.3),
    "kto-trl": Claim("tiny-128k", "seapo_kto", "TRL kto", 1.0, 1.0),
    "openrlhf-sepo": Claim("tiny-128k", "OpenRLHF sepo 30 %", "OpenRLHF dpo"),
    "openrlhf-tdpo2": Claim("tiny-128k", "OpenRLHF tdpo2", "OpenRLHF dpo"),
    "openrlhf-dpo": Claim("tiny-128k", "OpenRLHF tdpo dpo", "OpenRLHF dpo"),
    "smollm2-sepo": Claim("smollm2", "sepo 30 %", "simpo", 0.8, 0.5),
    "smollm2-kto": Claim("smollm2", "seapo_kto", "kto", 0.7, 0.5),
    "smollm2-kto-cached": Claim("smollm2", "seapo_kto, cached", "kto", 0.52, 0.5),
    "smollm2-long-sepo": Claim("smollm2-long", "sepo 30 %", "simpo", 0.65, 0.35),
    "smollm2-long-kto": Claim("smollm2-long", "seapo_kto", "kto", 0.55, 0.35),
    "smollm2-long-kto-cached": Claim("smollm2-long", "seapo_kto, cached", "kto", 0.37, 0.35),
}
