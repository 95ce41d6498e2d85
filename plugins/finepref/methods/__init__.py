"""The methods: one file each, written once for both hosts. The maths is in `finepref.losses`, the data in `formats`.

A method's file has its options, its token weights, its loss and, at the end, its row. The files import torch and
`finepref.losses` inside functions only, so that listing stages and printing help does not need torch.
"""

from finepref.methods import (
    apo_rm,
    cdpo,
    confpo,
    dpo_pl,
    granular_sft,
    seapo_kto,
    sepo,
    simper,
    tdpo,
    tgdpo,
    tis_dpo,
)

BUILT_IN = (
    seapo_kto.STAGE,
    sepo.STAGE,
    tdpo.STAGE,
    tgdpo.STAGE,
    tis_dpo.STAGE,
    cdpo.STAGE,
    confpo.STAGE,
    simper.STAGE,
    granular_sft.STAGE,
    apo_rm.STAGE,
    dpo_pl.STAGE,
)
