"""Peak memory while a large file is checked: `check_file` in a fresh process, on a small file and on one of 2 GB.

    python benchmarks/validate_memory.py [--gigabytes 2]

Makes the file in a temporary folder, prints both peaks (resident set) and the rate, and deletes the file. The row ids
are all different, which is what memory could grow with.
"""

from __future__ import annotations

import argparse
import json
import resource
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


def check(path: str) -> None:
    """Check one file in this process and print what it took."""
    from finepref.formats.check import check_file

    start = time.perf_counter()
    report = check_file(path, "pair")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{Path(path).stat().st_size / 1e6:8,.0f} MB {report.rows:>10,} rows {report.total_problems} problems "
        f"{seconds:6.1f} s {report.rows / seconds:>9,.0f} records/s, peak {peak:.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        check(arguments.child)
        return
    with tempfile.TemporaryDirectory() as folder:
        for gigabytes in (0.02, arguments.gigabytes):
            path = Path(folder) / "large.jsonl"
            make(path, int(gigabytes * 1e9))
            subprocess.run([sys.executable, __file__, "--child", str(path)], check=True)


if __name__ == "__main__":
    main()
