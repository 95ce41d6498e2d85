"""The methods: one file each, written once for both hosts. The maths is in `finepref.losses`, the data in `formats`.

A method's file has its options, the weights that it gives to tokens, its loss, and at its end its row. A host can list
stages and print their help without torch, so these files import it, and `finepref.losses`, where a function runs.
"""

from finepref.methods import apo_rm, granular_sft, seapo_kto, sepo, tdpo

BUILT_IN = (seapo_kto.STAGE, sepo.STAGE, tdpo.STAGE, granular_sft.STAGE, apo_rm.STAGE)
