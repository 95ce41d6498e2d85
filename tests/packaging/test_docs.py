"""What the README and docs/ say is there: links, commands with their flags, and every stage."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from finepref.cli import app
from finepref.methods import BUILT_IN
from typer.main import get_command

ROOT = Path(__file__).parents[2]
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("benchmarks/*.md"),
    *ROOT.glob("examples/**/*.md"),
]
OWN = [page for page in PAGES if "reproduction" not in page.parts and page.parent.name != "own_stage"]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands(page: Path) -> list[list[str]]:
    """The words of every `finepref` command in the shell blocks of a page."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    lines = (line for block in blocks for line in block.replace("\\\n", " ").splitlines())
    words = (shlex.split(line, comments=True) for line in lines)
    return [each[1:] for each in words if each[:1] == ["finepref"]]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading_that_exist(page):
    links = re.findall(r"\]\((?!https?://)([^)]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{name_of(page)} links to {link}"


@pytest.mark.parametrize("page", [page for page in OWN if commands(page)], ids=name_of)
def test_every_command_of_a_page_has_the_options_that_it_is_shown_with(page):
    for words in commands(page):
        command, rest = get_command(app), words
        while hasattr(command, "commands"):
            if rest[0] not in command.commands and (default := getattr(command, "default", "")):
                rest = [default, *rest]  # `finepref annotate FILE`
            assert rest[0] in command.commands, words
            command, rest = command.commands[rest[0]], rest[1:]
        command.make_context(words[0], list(rest))


def test_some_commands_are_shown():
    """Else the test above would have nothing to check."""
    assert {words[0] for page in OWN for words in commands(page)} >= {"seapo", "sepo", "apo", "reversegen", "doctor"}


@pytest.mark.parametrize("stage", BUILT_IN, ids=lambda stage: stage.name)
def test_the_readme_has_every_stage_with_its_recipe_and_its_page(stage):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (row,) = (line for line in readme.splitlines() if line.startswith("|") and f"docs/stages.md#{stage.name})" in line)
    assert f"]({stage.recipe})" in row
    assert all(f"`{formatting}`" in row for formatting in stage.formats)
    assert f"\n## {stage.name}\n" in (ROOT / "docs/stages.md").read_text(encoding="utf-8")


def test_the_table_of_flags_on_openrlhf_is_that_of_the_command_line():
    from finepref import stages
    from finepref.hosts.openrlhf.command_line import flag_of

    row = stages.find("sepo")
    expected = []
    for name, option in row.options.new_on("openrlhf").items():
        default = "" if option.default in (None, False) else f" `{option.default}`"
        expected.append(f"| `{flag_of(row, name)}` |{default} | {option.help} |")
    page = (ROOT / "docs/openrlhf.md").read_text(encoding="utf-8")
    assert [line for line in page.splitlines() if line.startswith("| `--")] == expected
