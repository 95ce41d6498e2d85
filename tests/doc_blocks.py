"""The blocks of shell commands in README.md, docs/ and the other pages, and the commands in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("benchmarks/*.md")),
    *sorted(ROOT.glob("dataset_info/*.md")),
    *sorted(ROOT.glob("examples/**/*.md")),
]
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>run|(?:parsed|not run): (?P<reason>[^\n]+?)) -->\n)?"
    r"```(?:bash|sh|shell|console)\n(?P<text>.*?)^```",
    re.M | re.S,
)


class Block(NamedTuple):
    """A block of commands, with the comment in the line before it.

    Attributes:
        page: its page, as a path in the repository.
        number: 1 for the page's first block.
        mark: "run" (a test runs it), "parsed" (its commands go to the parsers of their programs; `reason` says why it
            is not run), "not run" (`reason` says why it is neither), or "", which no block may have.
        reason: see there.
        text: the block.
    """

    page: str
    number: int
    mark: str
    reason: str
    text: str

    @property
    def name(self) -> str:
        """For the test's name."""
        return f"{self.page}-{self.number}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command. `...` stands for more options, or for a value that the reader knows."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def blocks() -> list[Block]:
    """Every block of every page; what is kept of runs (docs/reproduction) is a record, not an instruction."""
    found = []
    for page in PAGES:
        name = page.relative_to(ROOT).as_posix()
        if name.startswith("docs/reproduction/") and page.name != "README.md":
            continue
        for number, match in enumerate(BLOCK.finditer(page.read_text(encoding="utf-8")), 1):
            mark = (match["mark"] or "").partition(":")[0]
            found.append(Block(name, number, mark, match["reason"] or "", match["text"]))
    return found


def without_launcher(words: list[str]) -> list[str]:
    """A command without assignments before it and without torchrun, deepspeed or accelerate.

    A module of OpenRLHF stays as `openrlhf.cli.NAME`, LLaMA-Factory's as `llamafactory-cli train`.
    """
    while words and re.fullmatch(r"\w+=\S*", words[0]):
        words = words[1:]
    if words[:1] == ["finepref"]:
        return words
    for i, word in enumerate(words):
        if word == "llamafactory.launcher":
            return ["llamafactory-cli", "train", *words[i + 1 :]]
        if word.startswith(("openrlhf.cli.", "finepref.hosts.")) or (word == "finepref" and words[0] == "torchrun"):
            return words[i:]
        if word.startswith("openrlhf-train-"):
            return [f"openrlhf.cli.{word.removeprefix('openrlhf-').replace('-', '_')}", *words[i + 1 :]]
    return words


def of_openrlhf(words: list[str]) -> tuple[str, list[str]]:
    """(command such as `train_tdpo`, or the stage's name; its flags) of a training on OpenRLHF, ("", []) of others."""
    if words[0].startswith("openrlhf.cli."):
        return words[0].removeprefix("openrlhf.cli."), [*words[1:]]
    if words[0] == "finepref.hosts.openrlhf.train":
        return words[1], [*words[2:]]
    return "", []


def of_llamafactory(words: list[str]) -> tuple[str, list[str]]:
    """(recipe, its overrides) of a training on LLaMA-Factory, ("", []) of any other command."""
    return (words[2], words[3:]) if words[:2] == ["llamafactory-cli", "train"] else ("", [])
