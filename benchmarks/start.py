"""Time from the data files to the tokenised rows, first and second start, against LLaMA-Factory's own stage dpo.

    OMP_NUM_THREADS=1 .venvs/llamafactory/bin/python benchmarks/start.py [--rows 20000] [--workers 2]

Both read the same pairs, in their own layout, with the same tokenizer, template and cutoff. Each start is a process of
its own with a cache that only it and its second start use; the imports before it are not counted. finepref also checks
every row, keeps its place and weighs its tokens, which the host does not.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STAGES = {"host's dpo": "dpo", "finepref's tdpo": "tdpo"}


def write_data(folder: Path, rows: int) -> None:
    """The same pairs as an alpaca ranking set of the host and in finepref's format `pair`."""
    draw = random.Random(0)
    words = [f"word{i}" for i in range(2000)]

    def text(low: int, high: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(low, high)))

    with open(folder / "host.jsonl", "w") as host, open(folder / "ours.jsonl", "w") as ours:
        for i in range(rows):
            prompt, chosen, rejected = text(5, 60), text(20, 120), text(20, 120)
            host.write(json.dumps({"instruction": prompt, "input": "", "chosen": chosen, "rejected": rejected}) + "\n")
            own = {"id": str(i), "prompt": prompt, "chosen": chosen, "rejected": rejected}
            ours.write(json.dumps(own) + "\n")
    columns = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
    entries = {
        "dpo": {"file_name": "host.jsonl", "ranking": True, "columns": columns},
        "tdpo": {"file_name": "ours.jsonl", "formatting": "pair"},
    }
    (folder / "dataset_info.json").write_text(json.dumps(entries))


def start(stage: str, folder: Path, model: str, workers: int) -> None:
    """Prepare the data of a stage as its run does, and print the seconds."""
    from finepref import stages
    from finepref.hosts.llamafactory import arguments, data, workflow
    from finepref.hosts.run import Run
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer
    from llamafactory.train import tuner  # noqa: F401 - the cards of a run are applied when it is imported

    settings = {
        "stage": stage,
        "do_train": True,
        "finetuning_type": "lora",
        "model_name_or_path": model,
        "template": "chatml",
        "dataset": stage,
        "dataset_dir": str(folder),
        "cutoff_len": 512,
        "cache_dir": str(folder / f"cache-{stage}"),
        "output_dir": str(folder / f"out-{stage}"),
        "preprocessing_num_workers": workers,
        "report_to": "none",
    } | ({"tdpo_masks": "none"} if stage == "tdpo" else {})
    model_args, data_args, training_args, finetuning_args, _ = get_train_args(settings)
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    began = time.perf_counter()
    if stage == "dpo":
        found = get_dataset(template, model_args, data_args, training_args, stage="rm", **module)
    else:
        row = stages.find(stage)
        args = workflow.HostArguments(model_args, data_args, training_args, finetuning_args)
        with Run(row, arguments.options_of(row, finetuning_args), ()).active() as run:
            found = get_dataset(template, model_args, data_args, training_args, stage=stage, **module)
            workflow.check_splits(data.adapter_of(row), run, found, args)
            workflow.count_rows(run, found, args)
    print(json.dumps({"seconds": time.perf_counter() - began, "rows": len(found["train_dataset"])}))


def main() -> None:
    """Make the data and time the four starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--model", default="")
    parser.add_argument("--start", nargs=2, metavar=("STAGE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        stage, folder = options.start
        return start(stage, Path(folder), options.model, options.workers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not options.model:
            sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
            from tiny_llama import save_chatml_llama

            options.model = str(save_chatml_llama(folder / "model"))
        write_data(folder, options.rows)
        seconds = {}
        for round_name in ("first", "second"):
            for label, stage in STAGES.items():
                command = [sys.executable, __file__, "--start", stage, name, "--model", options.model]
                command += ["--workers", str(options.workers)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(done.stdout + done.stderr)
                result = json.loads(done.stdout.splitlines()[-1])
                seconds[label, round_name] = result["seconds"]
                print(f"{round_name} start, {label}: {result['seconds']:.2f} s for {result['rows']} rows", flush=True)
        host, ours = STAGES
        for round_name in ("first", "second"):
            ratio = seconds[ours, round_name] / seconds[host, round_name]
            print(f"{round_name} start: {ratio:.2f} x the time of the host")


if __name__ == "__main__":
    main()
