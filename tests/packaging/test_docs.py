"""What the README and docs/ say is there: links, every stage, and what is made of the code."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import own_scripts
import pytest
from doc_blocks import PAGES, ROOT
from finepref.cli import app
from finepref.formats.problems import CODES
from finepref.formats.remedies import EXAMPLES, REMEDIES
from finepref.hosts.openrlhf.command_line import flag_of
from finepref.methods import BUILT_IN
from typer.main import get_command

SOURCE = re.sub(
    r'"\s*\n\s*f?"',
    "",
    "\n".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "plugins/finepref").rglob("*.py")
        if path.name not in ("remedies.py", "problems.py")
    ),
)
"""The code, with texts over several lines in one piece."""
SHORT = ("FP081", "FP217", "FP264", "FP280")
"""Codes whose message has no three words in a row that are always the same, but two."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading_that_exist(page):
    links = re.findall(r"\]\((?!https?://)([^)]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{name_of(page)} links to {link}"


@pytest.mark.parametrize("stage", BUILT_IN, ids=lambda stage: stage.name)
def test_the_table_of_methods_has_every_stage_with_its_recipe_and_its_page(stage):
    table = (ROOT / "docs/methods/README.md").read_text(encoding="utf-8")
    (row,) = (line for line in table.splitlines() if line.startswith("|") and f"({stage.name}.md), `" in line)
    assert f"](../../{stage.recipe})" in row
    assert all(f"`{formatting}`" in row for formatting in stage.formats)
    assert f"(docs/methods/{stage.name}.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("stage", BUILT_IN, ids=lambda stage: stage.name)
def test_the_page_of_a_method_has_all_sections(stage):
    page = (ROOT / f"docs/methods/{stage.name}.md").read_text(encoding="utf-8")
    sections = ["When to use it", "Loss", "Data", "Recipe", "Options", "Cost", "Evidence"]
    assert re.findall(r"^## (.*)", page, re.M) == sections
    assert stage.recipe in page


@pytest.fixture(scope="module")
def script():
    return own_scripts.loaded("site_pages")


def test_what_is_made_of_the_code_is_current(script):
    """If not: .venvs/core/bin/python scripts/site_pages.py."""
    assert [path.relative_to(ROOT).as_posix() for path in script.stale()] == []


def test_a_changed_option_code_or_command_makes_a_page_stale(script, monkeypatch):
    monkeypatch.setitem(script.CODES, "FP034", "something else")
    monkeypatch.setattr(script, "_default", lambda option: "`7`")
    found = {path.relative_to(script.DOCS).as_posix() for path in script.stale()}
    assert {"error-codes.md", "stages.md"} <= found
    assert {f"methods/{stage.name}.md" for stage in BUILT_IN} <= found


def test_every_page_of_an_experiment_is_named_by_a_method():
    pages = {file.parent.name for file in (ROOT / "docs/reproduction").glob("*/README.md")}
    text = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "docs/methods").glob("*.md"))
    assert [page for page in pages if f"reproduction/{page}/README.md" not in text] == []


@pytest.mark.parametrize("stage", BUILT_IN, ids=lambda stage: stage.name)
def test_every_option_of_a_stage_is_on_its_page_or_on_that_of_all_stages(stage, script):
    """The expected lines are built here from the command line and the YAML keys, not by the script."""
    own = (ROOT / f"docs/methods/{stage.name}.md").read_text(encoding="utf-8")
    shared = (ROOT / "docs/stages.md").read_text(encoding="utf-8").replace("--GROUP.", f"--{stage.group}.")
    lines = [line for line in f"{own}\n{shared}".splitlines() if line.startswith("| `")]
    for name, option in stage.options.new_on("llamafactory").items():
        (line,) = (line for line in lines if line.startswith(f"| `{name}` |"))
        assert option.help.replace("|", "\\|") in line
    if stage.command:
        for name, option in stage.options.new_on("openrlhf").items():
            (line,) = (line for line in f"{own}\n{shared}".splitlines() if f"| `{flag_of(stage, name)}` |" in line)
            default = "" if option.default is None else f"`{option.default}`".lower()
            assert default in line.lower()


def test_every_code_is_on_the_page_of_codes_with_its_meaning_an_example_and_what_to_do():
    page = (ROOT / "docs/error-codes.md").read_text(encoding="utf-8")
    found = re.findall(r"^### (FP\d{3})\n\n(.+)\n\n```output\n((?:.+\n)+)```\n\n(.+)$", page, re.M)
    assert sorted(code for code, *_ in found) == sorted(CODES)
    for code, meaning, example, remedy in found:
        assert meaning.lower().startswith(CODES[code].lower())
        assert example.splitlines()[-1].startswith(f"{code} ")
        assert remedy == REMEDIES[code]


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_of_a_message_has_words_of_the_code_that_raises_it(code):
    """Three words in a row; numbers, names and quoted texts are the example's own."""
    message = EXAMPLES[code].partition(": ")[2]
    words = message.split()
    size = 2 if code in SHORT else 3
    runs = {message} | {" ".join(words[i : i + size]) for i in range(len(words) - size + 1)}
    assert any(run in SOURCE for run in runs)


def test_a_remedy_names_options_that_there_are():
    todo, known = [get_command(app)], {flag_of(stage, name) for stage in BUILT_IN for name in _described(stage)}
    while todo:
        command = todo.pop()
        todo += getattr(command, "commands", {}).values()
        known |= {opt for parameter in command.params for opt in parameter.opts}
    named = {flag for text in REMEDIES.values() for flag in re.findall(r"--[\w.-]*\w", text)}
    assert named - known == {"--data.apply_chat_template"}  # OpenRLHF's own
    keys = {key for text in REMEDIES.values() for key in re.findall(r"`((?:finepref|tdpo|apo|seapo|sepo)_\w+)", text)}
    assert keys <= {name for stage in BUILT_IN for name in _described(stage)}


def _described(stage):
    return {**stage.options.described("llamafactory"), **stage.options.described("openrlhf")}


def test_every_command_of_finepref_is_on_the_page_of_commands_with_its_options():
    page = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (finepref .*)\n((?:(?!^## ).*\n?)*)", page, re.M))
    todo = [("finepref", get_command(app))]
    while todo:
        name, command = todo.pop()
        if hasattr(command, "commands"):
            todo += [(f"{name} {word}", inner) for word, inner in command.commands.items()]
            continue
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert f"| {', '.join(f'`{opt}`' for opt in parameter.opts)} |" in sections[name]


@pytest.mark.parametrize("name", ["apo", "reversegen"])
def test_every_key_of_a_pipeline_is_on_its_page(name, script):
    page = (ROOT / f"docs/methods/{name}.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    keys = [key for row in rows for key in re.findall(r"`(\w+)`", row.split(" | ")[0])]
    parameters = inspect.signature(script.PIPELINES[name]).parameters
    assert {key for key in keys if key in parameters} == {*parameters} - {"pipeline"}
