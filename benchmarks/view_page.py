"""How long the page of `finepref view` takes to its first paint, and what a user's steps in it take.

    .venvs/llamafactory/bin/python benchmarks/view_page.py --records 1000 --tokens 300

Makes scored pairs with random rewards, writes the page, and opens it in headless Chromium, five times, each in a new
tab with an empty cache. Prints medians: `ready` is the end of the page's script, `painted` the browser's own
first-contentful-paint, both in milliseconds since the start of the navigation; `next` is a step to the next record
with its layout, `search` a search in all texts, `slide` a change of the share k.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WORDS = ("the", "a", "of", "in", "and", "so", "total", "answer", "dozen", "eggs", "pages", "days", "number")
STEPS = {
    "next": "KEYS.j()",
    "search": "$('search').value = 'no such text'; filter(); $('search').value = ''; filter()",
    "slide": "share(31); share(30)",
}


def rows(records: int, tokens: int) -> Any:
    """Scored pairs."""
    draw = random.Random(0)
    for i in range(records):
        row: dict[str, Any] = {
            "id": f"record-{i}",
            "prompt": " ".join(draw.choices(WORDS, k=40)),
            "tokenizer": "words",
        }
        for side in ("chosen", "rejected"):
            words = [f"{word} " for word in draw.choices(WORDS, k=tokens)]
            ends = [0]
            for word in words:
                ends.append(ends[-1] + len(word))
            row[side] = "".join(words)[:-1] + "."
            row[f"{side}_offsets"] = [[start, end] for start, end in pairwise(ends)]
            row[f"{side}_scores"] = [round(draw.gauss(0, 1), 6) for _ in words]
        yield row


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=300, help="of each response")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests" / "hosts" / "llamafactory"))
    import webui_browser
    from finepref.cli import app
    from finepref.formats.jsonl import write_jsonl
    from typer.testing import CliRunner

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_jsonl(folder / "rows.jsonl", rows(given.records, given.tokens))
        page = folder / "page.html"
        started = time.perf_counter()
        words = ["view", str(folder / "rows.jsonl"), "--output", str(page), "--count", str(given.records)]
        outcome = CliRunner().invoke(app, words)
        assert outcome.exit_code == 0, outcome.output
        print(f"page     {time.perf_counter() - started:8.2f} s, {page.stat().st_size / 1e6:.1f} MB")
        found: dict[str, list[float]] = {}
        with webui_browser.chromium(folder / "profile") as browser:
            driver = browser.driver
            driver.set_window_size(1400, 900)
            for _ in range(given.rounds):
                driver.get("about:blank")
                driver.get(page.as_uri())
                paint = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
                painted = webui_browser.until(lambda paint=paint: driver.execute_script(paint), "the first paint")
                found.setdefault("painted", []).append(painted)
                ready = driver.execute_script("return Number(document.documentElement.dataset.ready)")
                found.setdefault("ready", []).append(ready)
                for step, script in STEPS.items():
                    timed = f"const t = performance.now(); {script}; document.body.offsetHeight;"
                    taken = driver.execute_script(f"{timed} return performance.now() - t")
                    found.setdefault(step, []).append(taken)
        for step, values in found.items():
            print(f"{step:8} {statistics.median(values):8.1f} ms (greatest {max(values):.1f})")


if __name__ == "__main__":
    main()
