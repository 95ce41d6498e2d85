"""Time and memory from the data files to the tokenised rows, at several sizes, first and second start, on either host.

    OMP_NUM_THREADS=1 .venvs/llamafactory/bin/python benchmarks/start.py [--rows 10000 100000] [--workers 2]
    OMP_NUM_THREADS=1 .venvs/openrlhf/bin/python benchmarks/start.py [--rows 10000 100000]

The host is the one of the environment. Each start is a process of its own with a cache that only it and its second
start use; the imports before it are not counted. `own` is the anonymous memory (RssAnon) that the start adds at its
peak: what every rank needs for itself. `resident` (VmHWM) also has the libraries, and the pages of mapped files, which
all ranks of a machine share. Worker processes of LLaMA-Factory's tokenising are not counted.

On LLaMA-Factory its own stage dpo reads the same pairs. finepref also checks every row, keeps its place and weighs its
tokens, which the host does not. With two sizes or more, the growth is the exponent b of `a * rows ** b`, and the last
size is extrapolated by it to a million rows.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

STAGES = {
    "llamafactory": {"host's dpo": "dpo", "tdpo": "tdpo", "sepo": "sepo", "seapo_kto": "seapo_kto"},
    "openrlhf": {"tdpo": "tdpo", "sepo": "sepo", "seapo_kto": "seapo_kto"},
}
FORMATS = {"tdpo": "pair", "sepo": "scored_pair", "seapo_kto": "negatives"}
MILLION = 1_000_000
GIB = 2**30


def write_data(folder: Path, rows: int, model: str, stages: list[str], most: int) -> None:
    """The same pairs as an alpaca ranking set of the host and in each stage's format; `most` words in a response."""
    from finepref.formats.scores import fingerprint
    from transformers import AutoTokenizer

    draw = random.Random(0)
    words = [f"word{i}" for i in range(2000)]
    tokenizer = AutoTokenizer.from_pretrained(model)
    owner = fingerprint(tokenizer.backend_tokenizer.to_str())

    def text(low: int, high: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(low, high)))

    with ExitStack() as stack:
        opened = {stage: stack.enter_context(open(folder / f"{stage}.jsonl", "w")) for stage in stages}
        for i in range(rows):
            prompt, chosen, rejected = (
                text(1 + most // 24, most // 2),
                text(1 + most // 6, most),
                text(1 + most // 6, most),
            )
            own = {"id": str(i), "prompt": prompt, "chosen": chosen}
            made: dict[str, dict[str, Any]] = {
                "dpo": {"instruction": prompt, "input": "", "chosen": chosen, "rejected": rejected},
                "tdpo": own | {"rejected": rejected},
                "seapo_kto": own | {"negatives": {"correctness": rejected, "logic": f"no {rejected}"}},
            }
            if "sepo" in stages:
                counts = [len(tokenizer(each, add_special_tokens=False)["input_ids"]) for each in (chosen, rejected)]
                scores = [[round(draw.gauss(0, 1), 4) for _ in range(count)] for count in counts]
                made["sepo"] = made["tdpo"] | {"tokenizer": owner}
                made["sepo"] |= {"chosen_scores": scores[0], "rejected_scores": scores[1]}
            for stage, file in opened.items():
                file.write(json.dumps(made[stage]) + "\n")
    columns = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
    entries = {stage: {"file_name": f"{stage}.jsonl", "formatting": FORMATS.get(stage)} for stage in stages}
    entries |= {"dpo": {"file_name": "dpo.jsonl", "ranking": True, "columns": columns}} if "dpo" in stages else {}
    (folder / "dataset_info.json").write_text(json.dumps(entries))


def memory(name: str) -> int:
    """A number of bytes of this process, such as VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Seconds, and memory in bytes at its peak, of what is done in the block."""
    found: dict[str, float] = {"own": 0.0}
    before, ended = memory("RssAnon"), threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            found["own"] = max(found["own"], memory("RssAnon") - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    try:
        yield found
    finally:
        found["seconds"] = time.perf_counter() - began
        found["left"] = memory("RssAnon") - before
        ended.set()
        watcher.join()
        found["resident"] = memory("VmHWM")


def start_llamafactory(stage: str, folder: Path, model: str, workers: int) -> dict[str, Any]:
    """Prepare the data of a stage as its run does."""
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
    with measured() as result:
        if stage == "dpo":
            found = get_dataset(template, model_args, data_args, training_args, stage="rm", **module)
        else:
            row = stages.find(stage)
            args = workflow.HostArguments(model_args, data_args, training_args, finetuning_args)
            with Run(row, arguments.options_of(row, finetuning_args), ()).active() as run:
                found = get_dataset(template, model_args, data_args, training_args, stage=stage, **module)
                workflow.check_splits(data.adapter_of(row), run, found, args)
                workflow.count_rows(run, found, args)
    train = found["train_dataset"]
    size = sum(os.path.getsize(each["filename"]) for each in train.cache_files)
    return {**result, "rows": len(train), "bytes_per_row": size / len(train)}


def start_openrlhf(stage: str, folder: Path, model: str) -> dict[str, Any]:
    """Prepare the data of a stage as its command line does."""
    os.environ["HF_DATASETS_CACHE"] = str(folder / f"cache-{stage}")
    from finepref import stages
    from finepref.hosts.openrlhf import command_line, compat

    compat.install()
    from finepref.hosts.openrlhf import training

    prepare, result = training.prepare, {}

    def timed(*arguments: Any, **options: Any) -> Any:
        with measured() as found:
            made = prepare(*arguments, **options)
        splits = made[1]
        size = sum(batch.nbytes for batch in splits[0].batches)
        result.update(found, rows=len(splits[0]), bytes_per_row=size / len(splits[0]))
        return made

    training.prepare = timed
    training.host_train = lambda *arguments, **names: lambda host: None
    flags = {
        "model.model_name_or_path": model,
        "data.dataset": stage,
        "data.dataset_dir": folder,
        "data.max_len": 512,
        "ckpt.output_dir": folder / f"out-{stage}",
        "ds.param_dtype": "fp32",
    } | ({"tdpo.masks": "none"} if stage == "tdpo" else {})
    sys.argv = ["start", *(str(word) for name, value in flags.items() for word in (f"--{name}", value))]
    sys.argv.append("--data.apply_chat_template")
    command_line.run(stages.find(stage))
    return result


def growth(small: dict[str, Any], large: dict[str, Any], name: str) -> float:
    """The exponent by which a quantity grows with the rows."""
    return math.log(max(large[name], 1e-9) / max(small[name], 1e-9)) / math.log(large["rows"] / small["rows"])


def report(found: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    """Print a table."""
    print(f"{'stage':12} {'start':7} {'rows':>8} {'seconds':>8} {'own MiB':>8} {'resident MiB':>12} {'bytes/row':>9}")
    for (label, which), results in found.items():
        for each in results:
            numbers = f"{each['rows']:8} {each['seconds']:8.1f} {each['own'] / 2**20:8.0f}"
            print(f"{label:12} {which:7} {numbers} {each['resident'] / 2**20:12.0f} {each['bytes_per_row']:9.0f}")
        if len(results) > 1:
            small, large = results[0], results[-1]
            exponents = {name: growth(small, large, name) for name in ("seconds", "own")}
            at = {name: large[name] * (MILLION / large["rows"]) ** max(b, 0) for name, b in exponents.items()}
            told = f"time grows by {exponents['seconds']:.2f}, own memory by {exponents['own']:.2f}"
            print(f"{label:12} {which:7} {told}; a million rows: {at['seconds']:.0f} s, {at['own'] / GIB:.2f} GiB own")


def main() -> None:
    """Make the data and measure the starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--words", type=int, default=120, help="most words of a response")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--stages", nargs="+", help="default: all")
    parser.add_argument("--model", default="")
    parser.add_argument("--json", type=Path, help="file of the numbers")
    parser.add_argument("--start", nargs=2, metavar=("STAGE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    host = "openrlhf" if find_spec("openrlhf") else "llamafactory"
    if options.start:
        stage, folder = options.start
        if host == "openrlhf":
            result = start_openrlhf(stage, Path(folder), options.model)
        else:
            result = start_llamafactory(stage, Path(folder), options.model, options.workers)
        return print(json.dumps(result))
    stages = {label: stage for label, stage in STAGES[host].items() if stage in (options.stages or [stage])}
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for rows in sorted(options.rows):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if not (model := options.model):
                sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
                from tiny_llama import save_chatml_llama

                model = str(save_chatml_llama(folder / "model"))
            write_data(folder, rows, model, [*stages.values()], options.words)
            for which in ("first", "second"):
                for label, stage in stages.items():
                    command = [sys.executable, __file__, "--start", stage, name, "--model", model]
                    command += ["--workers", str(options.workers)]
                    done = subprocess.run(command, capture_output=True, text=True)
                    if done.returncode:
                        sys.exit(done.stdout + done.stderr)
                    found.setdefault((label, which), []).append(json.loads(done.stdout.splitlines()[-1]))
                    print(f"{rows} rows, {which} start of {label}: {done.stdout.splitlines()[-1]}", flush=True)
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    report(found)
    if options.json:
        content = [{"stage": label, "start": which, **each} for (label, which), all_ in found.items() for each in all_]
        options.json.write_text(json.dumps({"host": host, "starts": content}, indent=1))


if __name__ == "__main__":
    main()
