"""Time and memory of training steps, ours against a peer's, in one run.

    make bench                                                   every claim, growth curves, and the page
    python benchmarks/training --list                            names of the claims
    python benchmarks/training sepo-simpo kto-trl --rounds 5     some claims

Every round runs each arm once, in a process of its own in the environment of its host (.venvs/llamafactory, openrlhf,
trl), so that ours and the peer alternate. Both train on the same rows with the same model and micro-batches, in
float32 (bfloat16 on a GPU), LoRA of rank 8 on all linear layers but the head, and gradient checkpointing. An epoch is
the warm-up, and shows the peak of memory above the loaded model (`meter.py`); the next one is timed, whole steps:
reading the batch, forward passes, backward, optimizer. A ratio is the median over the rounds; its bound is that
of the operations (`flops.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from statistics import median
from typing import Any

from claims import ARMS, CLAIMS, SETTINGS, Claim, sizes_of
from flops import work_of
from page import claims_table
from runs import ROOT, Failed, Runs, fail, records_of


def main() -> None:
    """Run the claims that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", metavar="CLAIM", help="default: all")
    parser.add_argument("--list", action="store_true", help="print the claims")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--sizes", choices=[*SETTINGS], default="cpu", help="cuda: larger, on a GPU; smoke: a try")
    parser.add_argument("--work", type=Path, default=ROOT / ".bench", help="folder of models, data and caches")
    parser.add_argument("--pairs", default="", help="file of LLaMA-Factory's dpo_en_demo; default: downloaded")
    parser.add_argument("--json", type=Path, help="file of the results")
    asked = parser.parse_args()
    if asked.list:
        for name, claim in CLAIMS.items():
            print(f"{name:24} {claim.setting}: {claim.ours} / {claim.peer}")
        return
    if unknown := [name for name in asked.claims if name not in CLAIMS]:
        parser.error(f"no claim {', '.join(unknown)}: see --list")
    runs = Runs(asked.work, asked.threads, "cuda" if asked.sizes == "cuda" else "cpu", asked.pairs)
    try:
        result = measured({name: CLAIMS[name] for name in asked.claims or CLAIMS}, asked.sizes, runs, asked.rounds)
    except Failed as error:
        fail(error)
    for line in claims_table(result["claims"]):
        print(line)
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(result, indent=1) + "\n")


def measured(claims: dict[str, Claim], sizes: str, runs: Runs, rounds: int) -> dict[str, Any]:
    """The result of all rounds, as it is written to a file."""
    settings = {claim.setting: SETTINGS[sizes][claim.setting] for claim in claims.values()}
    rows = {name: runs.prepare(setting) for name, setting in settings.items()}
    arms = dict.fromkeys((claim.setting, arm) for claim in claims.values() for arm in (claim.peer, claim.ours))
    found: dict[tuple[str, str], list[dict[str, Any]]] = {key: [] for key in arms}
    rates: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
    load = [os.getloadavg()[0]]
    for which in range(rounds):
        for name, setting in settings.items():
            tokens = max(sum(len(row["prompt"]) + len(row["chosen"]) for row in rows[name]) // setting.records, 64)
            rates[name].append(runs.rates(sizes_of(setting), tokens * setting.batch))
        for key in found:
            setting, arm = settings[key[0]], ARMS[key[1]]
            if found[key][:1] and "skipped" in found[key][0]:
                continue
            began = time.perf_counter()
            once = runs.measure(setting, arm)
            if which == 0 and arm.fill and "skipped" not in once:
                runs.fill(setting, arm)
                once = runs.measure(setting, arm)
            found[key].append(once)
            took = time.perf_counter() - began
            print(f"round {which + 1}, {key[0]}, {key[1]}: {_told(once)} ({took:.0f} s in all)", flush=True)
        load.append(os.getloadavg()[0])
    operations = {
        key: work_of(ARMS[key[1]].cost, sizes_of(settings[key[0]]), records_of(rows[key[0]], ARMS[key[1]]), batch)
        for key in found
        for batch in [settings[key[0]].batch]
    }
    shares = {  # OpenRLHF's first step is the warm-up, and not measured
        key: each[0]["steps"] * settings[key[0]].batch / settings[key[0]].records
        for key, each in found.items()
        if "steps" in each[0]
    }
    return {
        "when": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "load": load, "device": runs.device},
        "threads": runs.threads,
        "rounds": rounds,
        "sizes": sizes,
        "settings": {
            name: {"records": setting.records, "batch": setting.batch, "tokens": _tokens(rows[name])}
            for name, setting in settings.items()
        },
        "rates": {
            name: {part: median(each[part] for each in all_) for part in all_[0]} for name, all_ in rates.items()
        },
        "arms": [
            {"setting": key[0], "arm": key[1], "layers": work.layers, "head": work.head, "runs": found[key]}
            for key, work in operations.items()
        ],
        "claims": [_claimed(name, claim, found, operations, rates, shares) for name, claim in claims.items()],
    }


def _claimed(
    name: str, claim: Claim, found: dict[Any, Any], operations: dict[Any, Any], rates: Any, shares: dict[Any, float]
) -> dict[str, Any]:
    """What came out of a claim."""
    ours, peer = ((claim.setting, arm) for arm in (claim.ours, claim.peer))
    result: dict[str, Any] = {"name": name, "setting": claim.setting, "ours": claim.ours, "peer": claim.peer}
    for key in (ours, peer):
        if "skipped" in found[key][0]:
            return {**result, "skipped": found[key][0]["skipped"]}
    for part, goal in (("cpu", claim.time), ("wall", claim.time), ("MiB", claim.memory)):
        ratios = [mine[part] / other[part] for mine, other in zip(found[ours], found[peer], strict=True)]
        result[part] = {
            "ratio": median(ratios),
            "low": min(ratios),
            "high": max(ratios),
            "goal": goal,
            "ours": median(each[part] for each in found[ours]),
            "peer": median(each[part] for each in found[peer]),
        }
    result["bound"] = operations[ours].total / operations[peer].total
    for key, side in ((ours, "ours"), (peer, "peer")):
        rate = {part: median(each[part] for each in rates[claim.setting]) for part in ("layers", "head")}
        least = operations[key].layers / rate["layers"] + operations[key].head / rate["head"]
        result[f"over_limit_{side}"] = result["wall"][side] / (least * shares[key])
    return result


def _told(once: dict[str, Any]) -> str:
    if "skipped" in once:
        return f"skipped: {once['skipped']}"
    return f"{once['cpu']:.1f} s of CPU, {once['wall']:.1f} s, {once['MiB']:.0f} MiB above the model's"


def _tokens(rows: list[dict[str, list[int]]]) -> dict[str, float]:
    return {name: sum(len(row[name]) for row in rows) / len(rows) for name in rows[0]}


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
