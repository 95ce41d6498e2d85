"""One stage on the real small model, as a user would run it: `make env-llamafactory`, then

    .venvs/llamafactory/bin/python scripts/check_on_smollm2.py tdpo --model demo/models/smollm2

Trains eight steps of the shipped recipe on the stage's demo set by `llamafactory-cli`, again as four steps and four
resumed ones, then two steps on two processes, exports, and generates. Writes the commands, their times, the held-out
metrics before and after, and what was found to docs/reproduction/smollm2/STAGE.md. For `tdpo` it also trains `dpo` on
the same tokens and compares their sequential KL at the margin that both reach.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

from finepref import stages

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
STEPS, SEED = 8, 7

# What differs from the recipes, which are for larger models, more data and GPUs.
OVERRIDES = {
    "template": "chatml",
    "finetuning_type": "lora",
    "lora_rank": 8,
    "learning_rate": 2.0e-4,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "warmup_ratio": 0.0,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "per_device_eval_batch_size": 4,
    "max_steps": STEPS,
    "save_steps": STEPS // 2,
    "eval_strategy": "steps",
    "eval_steps": STEPS // 2,
    "eval_on_start": "true",
    "val_size": 8,
    "cutoff_len": 512,
    "bf16": "false",
    "disable_gradient_checkpointing": "true",
    "preprocessing_num_workers": 1,
    "dataloader_num_workers": 0,
    "logging_steps": 1,
    "seed": SEED,
}

# Of each stage: further keys, and the held-out metric that training must raise (+) or lower (-).
STAGES = {
    "seapo_kto": ({}, "+eval_rewards/margins"),
    "sepo": ({}, "+eval_rewards/margins"),
    "tdpo": (
        {"tdpo_masks": "none", "tdpo_sides": "two", "optim": "adamw_torch", "eval_steps": 2},
        "+eval_rewards/accuracies",
    ),
    "granular_sft": ({}, "-eval_loss"),
    "apo_rm": ({}, "+eval_rewards/accuracies"),
}


class Check:
    """The commands of one stage, timed and logged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands: list[tuple[str, float]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, *words: object, **environment: str) -> None:
        """One command; its output goes to log.txt."""
        shown = shlex.join([*(f"{name}={value}" for name, value in environment.items()), *map(str, words)])
        print(f"$ {shown}", flush=True)
        inherited = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
        started = time.monotonic()
        with (self.folder / "log.txt").open("a") as log:
            log.write(f"$ {shown}\n")
            log.flush()
            code = subprocess.call(
                list(map(str, words)), env=inherited | environment, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT
            )
        if code != 0:
            sys.exit(f"this command failed with code {code}, see {self.folder / 'log.txt'}: {shown}")
        self.commands.append((shown, time.monotonic() - started))

    def train(self, row: stages.Stage, name: str, keys: dict[str, object], **environment: str) -> Path:
        """One run of the stage's recipe; returns its output folder."""
        output = self.folder / name
        pairs = (f"{key}={value}" for key, value in (keys | {"output_dir": output}).items())
        self.run("llamafactory-cli", "train", row.recipe, *pairs, **environment)
        return output


def evaluations(output: Path) -> list[dict[str, float]]:
    """The evaluations of a run, the one before the first step included."""
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in log if any(key.startswith("eval_") for key in entry)]


def same_weights(one: Path, other: Path) -> bool:
    """Whether two adapters are equal bit by bit."""
    from safetensors.torch import load_file

    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(tensor.equal(second[name]) for name, tensor in first.items())


def generated(folder: Path) -> str:
    """What the exported model answers to a sum, greedily."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 2 + 3?"}], add_generation_prompt=True, return_tensors="pt"
    )
    ids = asked["input_ids"] if hasattr(asked, "keys") else asked
    answer = model.generate(ids, max_new_tokens=16, do_sample=False)
    return tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)


def at_margin(found: list[dict[str, float]], margin: float) -> float:
    """Sequential KL, the sum of both responses', where the held-out margin first reaches a value, by linear steps."""
    points = [(e["eval_rewards/margins"], e["eval_kl/chosen"] + e["eval_kl/rejected"]) for e in found]
    for (m0, k0), (m1, k1) in pairwise(points):
        if m0 <= margin <= m1:
            return k0 + (k1 - k0) * (margin - m0) / (m1 - m0) if m1 > m0 else k1
    return points[-1][1]


def main() -> None:
    """Run it all and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=list(STAGES))
    parser.add_argument("--model", type=Path, required=True, help="a folder made by `finepref model smollm2`")
    parser.add_argument("--output", type=Path, default=Path("saves/smollm2_check"))
    given = parser.parse_args()
    row = stages.all_stages()[given.stage]
    extra, metric = STAGES[row.name]
    folder = given.output / row.name
    shutil.rmtree(folder, ignore_errors=True)
    check = Check(folder)
    keys = {"model_name_or_path": given.model, "dataset": row.demo_dataset} | OVERRIDES | extra

    whole = check.train(row, "whole", keys)
    resume = {"resume_from_checkpoint": whole / f"checkpoint-{STEPS // 2}"}
    again = check.train(row, "resumed", keys | resume)
    two = {"max_steps": 2, "eval_steps": STEPS, "eval_on_start": "false"}
    ranks = check.train(row, "two_processes", keys | two, FORCE_TORCHRUN="1", NPROC_PER_NODE="2")
    export = {"model_name_or_path": given.model, "adapter_name_or_path": whole, "export_dir": folder / "merged"}
    export |= {"template": "chatml", "infer_dtype": "float32"}
    check.run("llamafactory-cli", "export", "examples/seapo_export.yaml", *(f"{k}={v}" for k, v in export.items()))

    before, *_, after = evaluations(whole)
    receipts = [json.loads((output / "finepref_receipt.json").read_text()) for output in (whole, ranks)]
    calls = [[rank["loss_calls"] for rank in receipt["ranks"]] for receipt in receipts]
    right = {
        f"held-out {metric[1:]} {'rose' if metric[0] == '+' else 'fell'}": (after[metric[1:]] > before[metric[1:]])
        == (metric[0] == "+"),
        "8 steps = 4 + 4 resumed, bit by bit": same_weights(whole, again),
        "receipts of one and two processes add up": all(
            count == receipt["expected_loss_calls"]
            for receipt, counts in zip(receipts, calls, strict=True)
            for count in counts
        ),
    }
    lines = []
    if row.name == "tdpo":
        dpo = check.train(row, "dpo", keys | {"tdpo_variant": "dpo", "tdpo_alpha": "null", "tdpo_log_kl": "true"})
        curves = [evaluations(output) for output in (whole, dpo)]
        margin = min(curve[-1]["eval_rewards/margins"] for curve in curves)
        kls = [at_margin(curve, margin) for curve in curves]
        lines += [f"Sequential KL at the held-out margin {margin:.4f}: tdpo2 {kls[0]:.4f}, dpo {kls[1]:.4f} nats.", ""]
        right["KL of tdpo2 below that of dpo at equal margin"] = kls[0] < kls[1]
    answer = generated(folder / "merged")

    names = sorted(key for key in after if key.startswith("eval_") and "_per_second" not in key and key in before)
    table = [f"| {name} | {before[name]:.4f} | {after[name]:.4f} |" for name in names if name != "eval_runtime"]
    report = [
        f"# Stage `{row.name}` on SmolLM2-135M-Instruct",
        "",
        f"{STEPS} steps of 2 records on {row.demo_dataset}, seed {SEED}, on {os.cpu_count()} cores: a check that the",
        "parts work on a real model, at the smallest scale; no reproduction of the paper.",
        f"Made by `scripts/check_on_smollm2.py {row.name}`.",
        "",
        "| held-out | before | after |",
        "|---|---|---|",
        *table,
        "",
        *lines,
        *(f"- {what}: {'yes' if holds else 'NO'}" for what, holds in right.items()),
        f"- loss calls: {calls}; the exported model says {answer!r}",
        "",
        "```",
        *(f"{command}    # {seconds:.0f} s" for command, seconds in check.commands),
        "```",
        "",
    ]
    target = ROOT / "docs" / "reproduction" / "smollm2" / f"{row.name}.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join(report), encoding="utf-8")
    print("\n".join(report))
    if not all(right.values()):
        sys.exit("not everything held; see above")


if __name__ == "__main__":
    main()
