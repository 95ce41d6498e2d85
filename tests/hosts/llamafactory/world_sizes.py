"""The gradients of every stage on one process, two and four, under DDP, FSDP and DeepSpeed; as a script, a table.

A step of SGD without momentum changes the weights by the learning rate times the gradient. The rate is so large that
the weights before the step do not matter to the rounding of those after it.

    .venvs/llamafactory/bin/python tests/hosts/llamafactory/world_sizes.py [WAY...]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

EXAMPLES = Path(__file__).parents[3] / "examples"
RATE = 1024.0
ROWS = 8
"""Rows of the step, on all processes together."""
WITHOUT_TOKENS = "span-0,span-2,span-10,span-11"
"""Records of the step that need no token: half of them, and all that the second of two processes has."""
ONE_STEP = {
    "max_steps": 1,
    "gradient_accumulation_steps": 1,
    "optim": "sgd",
    "learning_rate": RATE,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "finetuning_type": "full",
}


def fsdp(version: int) -> dict[str, str]:
    """What `accelerate launch --config_file` sets for a file such as those in LLaMA-Factory's examples/accelerate."""
    return {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": str(version),
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_USE_ORIG_PARAMS": "true",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
        "FSDP_SYNC_MODULE_STATES": "false",  # accelerate wants a GPU for it
    }


def zero(stage: int, **more: Any) -> dict[str, Any]:
    """A DeepSpeed configuration as users write it: sizes from the recipe, ZeRO stage 2 or 3."""
    sharding = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": stage == 3}
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    own = {"zero_allow_untested_optimizer": True, "zero_optimization": sharding}
    return dict.fromkeys(sizes, "auto") | own | more


CPU = {"DS_ACCELERATOR": "cpu"}
WAYS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "ddp": ({}, {}),
    "fsdp1": ({}, fsdp(1)),
    "fsdp2": ({}, fsdp(2)),
    "zero2": ({"deepspeed": zero(2)}, CPU),
    "zero3": ({"deepspeed": zero(3)}, CPU),
    "ds_z2": ({"deepspeed": str(EXAMPLES / "deepspeed/ds_z2.json"), "bf16": True}, CPU),
    "ds_z3": ({"deepspeed": str(EXAMPLES / "deepspeed/ds_z3.json"), "bf16": True}, CPU),
}
"""For each way to share the work: further keys of a recipe, and variables of the processes."""


def train(
    process: Any,
    folder: Path,
    recipes: Mapping[str, dict[str, Any]],
    *,
    way: str,
    processes: int,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Path]:
    """Train on several processes, one recipe after the other.

    Args:
        process: the `warm.Warm` that forks the processes.
        folder: for the recipes and what they write.
        recipes: name -> settings.
        way: key of `WAYS`.
        processes: how many.
        environment: further variables.

    Returns:
        The output folder of each recipe.
    """
    folder.mkdir(parents=True)
    keys, variables = WAYS[way]
    files, outputs = [], {}
    for name, settings in recipes.items():
        outputs[name] = folder / name
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**settings, **keys, "output_dir": str(outputs[name])}))
        files.append(file)
    worker = Path(__file__).with_name("sharded_worker.py")
    done = process.run(
        ["python", worker, *files], processes=processes, environment=variables | dict(environment or {}), timeout=600
    )
    (folder / "output.txt").write_text(done.output)
    assert done.code == 0, f"{way} on {processes} ended with {done.code}:\n{done.output[-6000:]}"
    return outputs


def one_step(
    process: Any, folder: Path, recipes: Mapping[str, dict[str, Any]], *, way: str, processes: int
) -> dict[str, Path]:
    """`train` on the same rows whatever the number of processes, some of which need no token."""
    each = {"per_device_train_batch_size": ROWS // processes}
    made = {name: settings | each for name, settings in recipes.items()}
    environment = {"WITHOUT_TOKENS": WITHOUT_TOKENS}
    return train(process, folder, made, way=way, processes=processes, environment=environment)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a saved model."""
    from safetensors.torch import load_file

    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def gradients(folder: Path, start: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The gradient of each trained weight, by its change in a step of SGD.

    Args:
        folder: the saved model.
        start: its weights before the step; a weight that is not among them began at 0.
    """
    after = tensors(folder)
    return {name: (start.get(name, torch.zeros_like(w)).double() - w.double()) / RATE for name, w in after.items()}


def differences(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> tuple[float, float]:
    """The largest difference of a number, and the largest difference of a tensor in proportion to its own size."""
    assert found.keys() == expected.keys()
    apart = {name: found[name] - tensor for name, tensor in expected.items()}
    relative = [float(apart[n].norm() / t.norm()) for n, t in expected.items() if t.norm() > 0]
    return max(float(tensor.abs().max()) for tensor in apart.values()), max(relative)


def largest(expected: Mapping[str, torch.Tensor]) -> float:
    """The largest number of a gradient."""
    return max(float(tensor.abs().max()) for tensor in expected.values())


def settings_of(stage: str, recipe: str, model: Path, reference: Path, data: Path, dataset: str) -> dict[str, Any]:
    """A shipped recipe for one step on the tiny model, whose reference is another model where the stage has one."""
    settings = yaml.safe_load((EXAMPLES / f"{recipe}.yaml").read_text(encoding="utf-8"))
    more: dict[str, Any] = {"ref_model": str(reference)} if stage in ("tdpo", "seapo_kto") else {}
    return settings | {
        "model_name_or_path": str(model),
        "template": "chatml",
        "dataset_dir": str(data),
        "dataset": dataset,
        "bf16": False,
        "preprocessing_num_workers": 1,
        "dataloader_num_workers": 0,
        "logging_steps": 1,
        "warmup_steps": 0,
        "plot_loss": False,
        "overwrite_output_dir": True,
        **ONE_STEP,
        **more,
    }


def main(ways: Sequence[str]) -> None:
    """Print the table of all stages."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    sys.path.insert(0, str(Path(__file__).parent))
    from conftest import HOST, OF_A_BATCH, RECIPES
    from sample_rows import granular_rows, ranked_rows, rows, scored_rows, span_rows, write_rows
    from tiny_llama import save_chatml_llama, save_perturbed
    from warm import Warm

    with tempfile.TemporaryDirectory() as place, Warm((*HOST, "deepspeed"), {"DS_ACCELERATOR": "cpu"}) as process:
        folder = Path(place)
        model = save_chatml_llama(folder / "model")
        other = save_perturbed(model, folder / "other")
        data = write_rows(folder / "data", rows())
        write_rows(data, span_rows(), "spans", formatting="span_pair")
        write_rows(data, granular_rows(), "granular", formatting="span_pair")
        write_rows(data, scored_rows(model), "scores", formatting="scored_pair")
        write_rows(data, ranked_rows(), "lists", formatting="ranked")
        start = tensors(model)
        common = {"cache_dir": str(folder / "cache")}
        recipes = {
            stage: settings_of(stage, RECIPES[stage], model, other, data, dataset) | common
            for stage, dataset in OF_A_BATCH.items()
        }

        def gradients_of(way: str, processes: int) -> dict[str, dict[str, torch.Tensor]]:
            outputs = one_step(process, folder / f"{way}{processes}", recipes, way=way, processes=processes)
            return {name: gradients(output, start) for name, output in outputs.items()}

        alone = gradients_of("ddp", 1)
        print("| stage | largest gradient | way | processes | absolute | relative |\n|---|---|---|---|---|---|")
        for way in ways or ("ddp", "fsdp1", "fsdp2", "zero2", "zero3"):
            for processes in (2, 4):
                for name, found in gradients_of(way, processes).items():
                    apart = differences(found, alone[name])
                    size = largest(alone[name])
                    print(
                        f"| {name} | {size:.2g} | {way} | {processes} | {apart[0]:.1e} | {apart[1]:.1e} |", flush=True
                    )


if __name__ == "__main__":
    main(sys.argv[1:])
