"""One rank: what `llamafactory-cli train` starts for each of the recipes, without a GPU and without a compiler.

DeepSpeed compiles operators for CPUs, which takes minutes, and does without them. accelerate shards by FSDP only if it
finds GPUs, while PyTorch's FSDP runs on CPUs (gloo) too.

    python sharded_worker.py RECIPE.yaml... [KEY=VALUE...]
"""

import functools
import os
import re
import sys
from pathlib import Path

import torch
from llamafactory.train.tuner import run_exp
from torch import distributed as dist

if os.environ.get("DS_ACCELERATOR"):
    import deepspeed
    from transformers import training_args

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # for `bf16`; with `use_cpu`, which allows it too, the ranks would not have DeepSpeed's group
    training_args.is_torch_bf16_gpu_available = lambda: True


def adapt_to_cpus(*, fsdp: bool) -> None:
    """Let the ranks be on "cpu", not on "cpu:0", which neither FSDP1 nor the loading of an optimizer knows.

    Args:
        fsdp: let accelerate take several processes on CPUs for several GPUs; it asks only whether there are such.
    """
    from accelerate.state import DistributedType, PartialState
    from torch.distributed.fsdp import FullyShardedDataParallel

    original, state_dict_type = PartialState.__init__, FullyShardedDataParallel.state_dict_type

    def on_cpus(self: PartialState, *args: object, **kwargs: object) -> None:
        original(self, *args, **kwargs)
        self.device = torch.device("cpu")
        if fsdp and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    def on_every_rank(module, kind, config, *args):
        config.rank0_only = config.offload_to_cpu = False  # FSDP1 would read freed memory of CPUs on the other ranks
        return state_dict_type(module, kind, config, *args)

    PartialState.__init__, FullyShardedDataParallel.state_dict_type = on_cpus, staticmethod(on_every_rank)


def without_tokens(ids: list[str]) -> None:
    """Let these records need no token, in whatever batch they are."""
    from finepref.hosts.llamafactory import pairs, single

    weigh, collate = pairs.PairAdapter.weigh, single.SingleCollator.__call__

    def pair_without(self, row, options, seed):
        weights = weigh(self, row, options, seed)
        if row.record_id not in ids:
            return weights
        return weights._replace(chosen=[0.0] * len(weights.chosen), rejected=[0.0] * len(weights.rejected))

    def singles_without(self, features):
        batch = collate(self, features)
        batch["labels"][[row["example_id"] in ids for row in features]] = -100
        return batch

    pairs.PairAdapter.weigh, single.SingleCollator.__call__ = pair_without, singles_without


def note_trained(folder: Path) -> None:
    """Write for each batch that this rank trains on the numbers of its sums, one for each sequence, as a line."""
    from finepref.hosts.llamafactory import pairs, ranked, single, unpaired

    def noted(self, model, inputs, *args, original, **kwargs):
        present = inputs["present"].bool() if "present" in inputs else ...
        texts = self.processing_class.batch_decode(inputs["input_ids"][present])
        numbers = [re.search(r"What is (\d+) \+", text)[1] for text in texts]
        with open(folder / f"{self.run.stage.name}.{self.args.process_index}", "a") as file:
            print(*numbers, file=file)
        return original(self, model, inputs, *args, **kwargs)

    for trainer in (pairs.PairTrainer, ranked.RankedTrainer, single.SingleTrainer, unpaired.UnpairedTrainer):
        trainer.training_step = functools.partialmethod(noted, original=trainer.training_step)


adapt_to_cpus(fsdp="ACCELERATE_USE_FSDP" in os.environ)
if os.environ.get("WITHOUT_TOKENS"):
    without_tokens(os.environ["WITHOUT_TOKENS"].split(","))
if os.environ.get("NOTE_TRAINED"):
    note_trained(Path(os.environ["NOTE_TRAINED"]))
destroy = dist.destroy_process_group
# the host ends the group of all after each run; the next one uses it again
dist.destroy_process_group = lambda group=None: None if group is None else destroy(group)
overrides = [word for word in sys.argv[1:] if "=" in word]
for recipe in sys.argv[1 : len(sys.argv) - len(overrides)]:
    sys.argv = ["llamafactory-cli", recipe, *overrides]
    run_exp()
if dist.is_initialized():
    destroy()
