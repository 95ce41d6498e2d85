"""SeaPO from nothing to a measured model, in minutes on two cores. `make demo` runs it.

Each step is a command that a user would type; the report lists them. The recipes are the shipped ones, with overrides
for a model of 135 million parameters and a few dozen questions instead of the paper's 7 billion and tens of thousands.
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
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TRAIN_QUESTIONS, HELD_OUT_QUESTIONS, SEED = 40, 32, 7
TYPES = ("correctness", "logic", "hallucination")

# What differs from examples/seapo_kto.yaml, and why it must at this scale.
TRAIN_OVERRIDES = {
    "template": "chatml",  # SmolLM2's
    "learning_rate": 5.0e-4,  # 20 steps of LoRA instead of thousands
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 1.0,
    "warmup_ratio": 0.1,
    "cutoff_len": 512,
    "bf16": "false",  # CPU
    "disable_gradient_checkpointing": "true",  # a small model has the memory
    "preprocessing_num_workers": 1,
    "dataloader_num_workers": 0,
    "logging_steps": 1,
    "seed": SEED,
}


class Demo:
    """The steps, each timed and logged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "demo.log"
        self.commands: list[tuple[str, float]] = []
        (folder / "data").mkdir(parents=True, exist_ok=True)
        self.log.unlink(missing_ok=True)

    def run(self, steps: list[list[object]]) -> None:
        """Commands of this environment, one after the other, their output to the terminal and to demo.log."""
        begun = time.monotonic()
        print(f"{len(steps)} steps; log: {self.log}", flush=True)
        for number, step in enumerate(steps, 1):
            command = [str(word) for word in step]
            shown = shlex.join(command)
            started = time.monotonic()
            minutes, seconds = divmod(int(started - begun), 60)
            print(f"\nstep {number} of {len(steps)}, after {minutes}:{seconds:02}\n$ {shown}", flush=True)
            environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}
            with self.log.open("a", encoding="utf-8") as log:
                log.write(f"$ {shown}\n")
                process = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT
                )
                for line in process.stdout:
                    log.write(line)
                    print(line, end="", flush=True)
            if process.wait() != 0:
                code = process.returncode
                sys.exit(f"demo: step {number} of {len(steps)} failed with code {code}: {shown}\nlog: {self.log}")
            self.commands.append((shown, time.monotonic() - started))


def main() -> None:
    """Run all steps and write report.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo"))
    folder = parser.parse_args().output
    demo = Demo(folder)
    model, data = folder / "models" / "smollm2", folder / "data"
    train, held_out = data / "seapo_gsm.jsonl", data / "held_out.jsonl"
    table = {"seapo_gsm": {"file_name": train.name, "formatting": "negatives"}}
    (data / "dataset_info.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    before, after = folder / "margins_before.json", folder / "margins_after.json"
    adapter, merged = folder / "saves" / "seapo_kto", folder / "saves" / "seapo_merged"
    shutil.rmtree(adapter, ignore_errors=True)

    steps: list[list[object]] = [["finepref", "model", "smollm2", "--output", model]]
    for name, count, skip in (("train", TRAIN_QUESTIONS, 0), ("test", HELD_OUT_QUESTIONS, TRAIN_QUESTIONS)):
        questions = data / f"gsm_{name}.jsonl"
        steps.append(["finepref", "data", "gsm", "--n", count, "--skip", skip, "--seed", SEED, "--output", questions])
    for name, output in (("train", train), ("test", held_out)):
        source = data / f"gsm_{name}.jsonl"
        steps.append(["finepref", "seapo", "inject", source, "--engine", "rules", "--seed", SEED, "--output", output])
    steps.append(["finepref", "seapo", "margins", "--model", model, "--data", held_out, "--output", before])
    overrides = {"model_name_or_path": model, "dataset_dir": data, "dataset": "seapo_gsm", "output_dir": adapter}
    export = {"model_name_or_path": model, "adapter_name_or_path": adapter, "export_dir": merged, "template": "chatml"}
    export["infer_dtype"] = "float32"
    for verb, recipe, keys in (("train", "kto", overrides | TRAIN_OVERRIDES), ("export", "export", export)):
        pairs = [f"{key}={value}" for key, value in keys.items()]
        steps.append(["llamafactory-cli", verb, f"examples/seapo_{recipe}.yaml", *pairs])
    steps.append(["finepref", "seapo", "margins", "--model", merged, "--data", held_out, "--output", after])
    demo.run(steps)

    write_report(demo, adapter, json.loads(before.read_text()), json.loads(after.read_text()))


def write_report(demo: Demo, adapter: Path, before: dict, after: dict) -> None:
    """report.md with the table and the plots; fails when a held-out margin did not rise."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    receipt = json.loads((adapter / "finepref_receipt.json").read_text())
    names = [*TYPES, "overall"]
    summaries = [{**result["types"], "overall": result["overall"]} for result in (before, after)]

    figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for shift, label, summary in ((-0.2, "before", summaries[0]), (0.2, "after", summaries[1])):
        heights = [summary[name]["mean"] for name in names]
        axis.bar([place + shift for place in range(len(names))], heights, width=0.38, label=label)
    axis.set_xticks(range(len(names)), names)
    axis.set_ylabel("margin (nats per token)")
    axis.set_title("Held-out: log-prob of the good answer minus that of the injected error")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.legend()
    figure.savefig(demo.folder / "margins.png", dpi=120)
    shutil.copy(adapter / "training_loss.png", demo.folder / "training_loss.png")

    rows = []
    for name in names:
        old, new = (summary[name] for summary in summaries)
        shares = f"{old['share_above_zero']:.0%} | {new['share_above_zero']:.0%}"
        change = new["mean"] - old["mean"]
        rows.append(f"| {name} | {old['mean']:+.4f} | {new['mean']:+.4f} | {change:+.4f} | {shares} | {old['n']} |")
    commands = "\n".join(f"{command}    # {seconds:.0f} s" for command, seconds in demo.commands)
    rank = receipt["ranks"][0]
    total = sum(seconds for _, seconds in demo.commands)
    text = f"""# SeaPO on SmolLM2-135M-Instruct

Held-out margins: mean log-probability per answer token of the good answer minus that of each answer with one injected
error, on {HELD_OUT_QUESTIONS} questions the model was not trained on. A demonstration of the machinery at its smallest
scale ({TRAIN_QUESTIONS} questions, {receipt["optimizer_steps"]} optimizer steps), not a reproduction of the paper.

| error type | before | after | change | above 0 before | above 0 after | pairs |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

![margins](margins.png)

![loss](training_loss.png)

The loss of a single epoch need not fall: a prompt's two rows share nearly all their text, so the one that comes second
starts from what training on the first did to it, with the opposite sign. The held-out margins are what to read.

## What was run ({total / 60:.1f} minutes)

```
{commands}
```

## Receipt

- rows: {receipt["rows"]}
- KTO loss calls: {rank["loss_calls"]} of {receipt["expected_loss_calls"]} expected
- negatives drawn: {receipt["draws"]["counts"]}
- patch cards: {len(rank["cards"])}, sources {sorted({card["source"] for card in rank["cards"]})}
- versions: {receipt["versions"]}
"""
    (demo.folder / "report.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nreport: {demo.folder / 'report.md'}")
    fallen = [name for name in TYPES if summaries[1][name]["mean"] <= summaries[0][name]["mean"]]
    if fallen:
        sys.exit(f"demo: the held-out margin did not rise for {', '.join(fallen)}")


if __name__ == "__main__":
    main()
