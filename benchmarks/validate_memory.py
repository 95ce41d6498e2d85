"""Peak memory of checking a small and a large file (2 GB), with one process and with one per core.

    python benchmarks/validate_memory.py [--gigabytes 2]

Writes the file to a temporary folder, prints the peaks and the rate of `check_file` in fresh processes, and deletes
it. A peak is the largest sum of the proportional set sizes (shared pages count once) of all processes of the check and
their fork server, sampled four times a second. All row ids are different, as memory could only grow with them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def make(path: Path, size: int) -> int:
    """Write rows of about 1 kB until the file has `size` bytes; return how many."""
    text = "The answer is forty-two, because six times seven is forty-two and nothing else is. " * 5
    count = written = 0
    with open(path, "w", encoding="utf-8") as file:
        while written < size:
            row = {"id": f"row-{count}", "prompt": f"Question {count}?", "chosen": text, "rejected": f"{text}{count}"}
            written += file.write(json.dumps(row) + "\n")
            count += 1
    return count


def check(path: str, jobs: int) -> None:
    """Check one file in this process, or from it, and print what it took."""
    from finepref.formats.check import check_file

    start = time.perf_counter()
    report = check_file(path, "pair", jobs=jobs)
    seconds = time.perf_counter() - start
    print(
        f"{Path(path).stat().st_size / 1e6:8,.0f} MB {report.rows:>10,} rows {report.total_problems} problems "
        f"{jobs} processes {seconds:6.1f} s {report.rows / seconds:>9,.0f} records/s",
        end=", ",
        flush=True,
    )


def in_session(session: int) -> int:
    """Bytes of memory of all processes of a session."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                lines = (folder / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        check(arguments.child[0], int(arguments.child[1]))
        return
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        for gigabytes in (0.02, arguments.gigabytes):
            path = Path(folder) / "large.jsonl"
            make(path, int(gigabytes * 1e9))
            for jobs in (1, cores):
                peak = 0
                command = [sys.executable, __file__, "--child", str(path), str(jobs)]
                with subprocess.Popen(command, start_new_session=True) as child:
                    while child.poll() is None:
                        peak = max(peak, in_session(child.pid))
                        time.sleep(0.25)
                print(f"peak {peak / 2**20:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
