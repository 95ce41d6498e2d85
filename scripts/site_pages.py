"""Write the parts of docs/ that are made of the code: options, formulas, costs, error codes, commands.

.venvs/core/bin/python scripts/site_pages.py           writes them
.venvs/core/bin/python scripts/site_pages.py --check   exit code 1 if a page is stale

A part stands between `<!-- made: NAME WHAT -->` and `<!-- end of what is made -->`; what is around it is written by
hand. NAME is a function of `MAKERS` below, WHAT its argument.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from finepref import stages
from finepref.cli import app
from finepref.formats.check import check_file
from finepref.formats.markdown_table import table
from finepref.formats.problems import CODES, LEFT_OUT, NOTES
from finepref.formats.remedies import EXAMPLES, REMEDIES
from finepref.hosts.openrlhf.command_line import flag_of
from finepref.methods.options import Described, Options
from finepref.methods.stage import Stage
from finepref.pipelines.apo import apo
from finepref.pipelines.reversegen import reversegen
from typer.main import get_command

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PART = re.compile(r"(<!-- made: (\S+)(?: (\S+))? -->\n).*?(\n<!-- end of what is made -->)", re.S)

LOSSES = {
    "seapo_kto": ("kto",),
    "sepo": ("sepo",),
    "tdpo": ("tdpo", "ld_dpo"),
    "tgdpo": ("tgdpo",),
    "tis_dpo": ("tis_dpo",),
    "cdpo": ("cdpo",),
    "confpo": ("confpo",),
    "simper": ("simper",),
    "dpo_pl": ("plackett_luce",),
    "apo_rm": ("apo_rm", "ranking", "plackett_luce"),
}
"""Stage -> the files of `finepref.losses` whose formulas it can use."""

ARMS = {
    "seapo_kto": ("seapo_kto", "seapo_kto, cached"),
    "sepo": ("sepo 30 %", "OpenRLHF sepo 30 %"),
    "tdpo": ("tdpo2", "tdpo dpo", "tdpo dpo, cached", "OpenRLHF tdpo2", "OpenRLHF tdpo dpo"),
}
"""Stage -> its arms in benchmarks/results/training.json."""

RUNS = {
    "seapo_kto": ("seapo*",),
    "sepo": ("sepo*",),
    "tdpo": ("tdpo*",),
    "apo_rm": ("apo", "apo_rm*"),
    "apo": ("apo", "apo_run*", "apo_near*"),
    "reversegen": ("reversegen*",),
}
"""Method -> patterns of the folders of docs/reproduction with its runs; smollm2 has a page per stage beside them."""

PIPELINES: dict[str, Callable[..., None]] = {"apo": apo, "reversegen": reversegen}


def papers(text: str) -> str:
    """A text whose arXiv numbers are links."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def facts(name: str) -> str:
    """What a stage is and where it runs, as a table."""
    stage = _stage(name)
    llamafactory = f"`stage: {stage.host_stage}`, `{stage.switch}: true`" if stage.switch else f"`stage: {name}`"
    reference = "no"
    if callable(stage.reference):
        reference = "by its options"
    elif stage.reference:
        reference = "yes"
    recipes = [stage.recipe, *(path for path in _recipes(stage) if path != stage.recipe)]
    rows = [
        ("paper", papers(stage.paper)),
        ("data formats", ", ".join(f"[`{each}`](../../dataset_info/README.md#{each})" for each in stage.formats)),
        ("reference model", reference),
        ("on LLaMA-Factory", llamafactory),
        ("on OpenRLHF", f"`openrlhf.cli.{stage.command}`" if stage.command else "not supported"),
        ("recipes", ", ".join(f"[{Path(path).name}](../../{path})" for path in recipes)),
        ("included data", f"`{stage.demo_dataset}`"),
        ("metrics in the log", ", ".join(f"`{each}`" for each in stage.metrics) or "the host's"),
    ]
    return table(("stage", f"`{name}`"), rows)


def _recipes(stage: Stage) -> Iterator[str]:
    """Every recipe of examples/ for either host that trains with the stage."""
    for path in sorted((ROOT / "examples").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        if re.search(rf"^stage: {stage.name}\b", text, re.M):
            yield path.relative_to(ROOT).as_posix()
    for path in sorted((ROOT / "examples/openrlhf").glob("*.sh")):
        if stage.command and re.search(rf"openrlhf\.cli\.{stage.command}\b", path.read_text(encoding="utf-8")):
            yield path.relative_to(ROOT).as_posix()


def formula(name: str) -> str:
    """The docstrings of the losses of a stage: formula, symbols, differences from the paper."""
    parts = []
    for each in LOSSES[name]:
        path = f"plugins/finepref/losses/{each}.py"
        text = re.match(r'"""(.*?)"""', (ROOT / path).read_text(encoding="utf-8"), re.S)
        assert text is not None, path
        title, _, body = text[1].strip().partition("\n\n")
        parts.append(f"{papers(' '.join(title.split()))} Code: [{path}](../../{path}).\n\n```text\n{body}\n```")
    return "\n\n".join(parts)


def options(name: str) -> str:
    """Every option of a stage but those of all stages, on both hosts."""
    stage = _stage(name)
    shared = {field.name for field in fields(Options)}
    return _options_table(stage, [each for each in _names(stage) if each not in shared])


def shared_options(_: str) -> str:
    """The options that every stage has; a flag begins with the group of its stage."""
    stage = _stage("tdpo")
    text = _options_table(stage, [field.name for field in fields(Options)])
    return text.replace(f"`--{stage.group}.", "`--GROUP.")


def _names(stage: Stage) -> list[str]:
    described = {**stage.options.described("llamafactory"), **stage.options.described("openrlhf")}
    names = [field.name for field in fields(stage.options) if field.name in described]
    return sorted(names, key=lambda name: name.startswith("finepref_"))


def _options_table(stage: Stage, names: list[str]) -> str:
    yaml, flags = stage.options.described("llamafactory"), stage.options.described("openrlhf")
    bounds = {field.name: field.metadata for field in fields(stage.options)}
    rows = []
    for name in names:
        each = yaml.get(name) or flags[name]
        values = _values(each, bounds[name])
        default = _default(each)
        if name in flags and stage.command and _default(flags[name]) != default:
            default += f"; OpenRLHF: {_default(flags[name])}"
        key = f"`{name}`" if name in yaml else "-"
        flag = f"`{flag_of(stage, name)}`" if name in flags and stage.command else "-"
        helped = each.help
        if each.host_key:
            helped += " The host's own."
        rows.append((key, flag, default, values, helped))
    return table(("YAML key", "flag on OpenRLHF", "default", "values", "meaning"), rows)


def _default(each: Described) -> str:
    if each.host_key:
        return "the host's"
    if each.default is None:
        return ""
    return f"`{str(each.default).lower() if isinstance(each.default, bool) else each.default}`"


def _values(each: Described, bounds: Any) -> str:
    kind = each.kind
    if get_origin(kind) in (Union, UnionType):
        kind = next(arm for arm in get_args(kind) if arm is not type(None))
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if bounds["comma_list"]:
        return "a comma list"
    limits = [
        f"{word} {bounds[limit]:g}"
        for limit, word in (("above", "above"), ("at_least", "at least"), ("at_most", "at most"))
        if bounds[limit] is not None
    ]
    word = {bool: "true, false", int: "a whole number", float: "a number", str: "a text"}[kind]
    return " ".join([word, " and ".join(limits)]).strip()


def _stage(name: str) -> Stage:
    stage = stages.find(name)
    assert stage is not None, name
    return stage


def cost(name: str) -> str:
    """The measured time and memory of a stage beside its peers, from benchmarks/results."""
    result = json.loads((ROOT / "benchmarks/results/training.json").read_text())
    rows = []
    for claim in result["claims"]:
        if claim["ours"] in ARMS[name] and "skipped" not in claim:
            rows.append((
                f"{claim['ours']} / {claim['peer']}",
                _MODELS[claim["setting"]],
                f"{claim['cpu']['ratio']:.2f}",
                f"{claim['MiB']['ratio']:.2f}",
                f"{claim['cpu']['ours']:.1f} s",
                f"{claim['MiB']['ours']:.0f} MiB",
            ))  # fmt: skip
    text = table(("ours / peer", "model", "time, ratio", "memory above the model, ratio", "CPU time", "memory"), rows)
    growth = json.loads((ROOT / "benchmarks/results/growth.json").read_text())["curves"]
    found = [each for each in growth if each["arm"] in ARMS[name]]
    told = [
        f"against {each['curve']} {', '.join(f'{size:,}' for size in each['sizes'])}: "
        f"{', '.join(f'{value:,.0f}' for value in each['MiB'])} MiB"
        for each in found
    ]
    grown = f"\n\nMemory above the model ({found[0]['arm']}) {'; '.join(told)}." if found else ""
    cores = result["machine"]["cores"]
    when = f"{result['when']}, commit {result['commit']}, {cores} cores of a CPU, {result['rounds']} round"
    return (
        f"{text}{grown}\n\nMeasured {when}; nothing was measured on a GPU. What was compared and how: "
        "[Benchmarks](../../benchmarks/README.md#training)."
    )


_MODELS = {
    "tiny-128k": "4 layers, vocabulary 128k",
    "smollm2": "SmolLM2-135M",
    "smollm2-long": "the same, long prompts",
}


def evidence(name: str) -> str:
    """The kept runs of a method, by the titles of their pages."""
    folder = DOCS / "reproduction"
    found = [path for pattern in RUNS.get(name, ()) for path in sorted(folder.glob(f"{pattern}/README.md"))]
    found += sorted(folder.glob(f"smollm2/{name}.md"))
    if not found:
        return "No run of it is kept in [docs/reproduction](../reproduction/README.md)."
    lines = ["Kept runs, with settings, seeds, logs and limits:", ""]
    for path in found:
        title = re.search(r"^# (.*)", path.read_text(encoding="utf-8"), re.M)
        assert title is not None, path
        lines.append(f"- [{title[1]}](../{path.relative_to(DOCS).as_posix()})")
    return "\n".join(lines)


def settings(name: str) -> str:
    """Every key of a pipeline's YAML, from the function that runs it."""
    function = PIPELINES[name]
    parameters = inspect.signature(function).parameters
    rows = []
    for names, told in _arguments(inspect.getdoc(function) or ""):
        if names == ["pipeline"]:
            continue
        required = [key for key in names if parameters[key].default is inspect.Parameter.empty]
        written = dict.fromkeys(filter(None, (_written(parameters[key].default) for key in names)))
        default = "required" if required else ", ".join(written)
        if required and required != names:
            default = f"required: {', '.join(f'`{key}`' for key in required)}"
        told = told.replace("`finepref.pipelines.apo.apo`", "[APO](apo.md#settings)")
        rows.append((", ".join(f"`{key}`" for key in names), default, told))
    return table(("key", "default", "meaning"), rows)


def _written(default: Any) -> str:
    if default is None or default in ("", {}) or default is inspect.Parameter.empty:
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _arguments(doc: str) -> list[tuple[list[str], str]]:
    """(parameters, their text) of each entry of the section Args of a docstring."""
    found: list[tuple[list[str], str]] = []
    for line in doc.partition("Args:\n")[2].partition("\n\n")[0].splitlines():
        if head := re.match(r"    (\w+(?:, \w+)*): (.*)", line):
            found.append((head[1].split(", "), head[2]))
        else:
            names, told = found.pop()
            found.append((names, f"{told} {line.strip()}"))
    return found


SECTIONS = (
    ("Files and their text", r"FP00|FP097|FP110|FP111"),
    ("Rows: fields, types, turns", r"FP01[0-5]|FP02|FP088|FP089|FP11[78]|FP121"),
    ("Formats: what a record of each must be", r"FP03|FP05|FP06[01]"),
    ("Spans", r"FP04"),
    ("Converting and joining", r"FP06[2-8]|FP112"),
    ("dataset_info.json", r"FP016|FP017|FP07"),
    ("Layouts", r"FP08[0-7]|FP09[0-6]|FP10|FP12[02]"),
    ("Stages", r"FP2[0-6]"),
    ("Multiple choice, ReverseGen", r"FP28|FP29"),
    ("finepref eval, report, view", r"FP3"),
)
"""Heading -> its codes, as a pattern; the first that fits."""


def error_codes(_: str) -> str:
    """Every code with its meaning, an example and what to do."""
    examples = {**EXAMPLES, **{code: message for code, (message, _) in caught().items()}}
    rows = {code: row for code, (_, row) in caught().items()}
    parts = []
    for title, pattern in SECTIONS:
        codes = [code for code in CODES if _section(code) == pattern]
        parts.append(f"## {title}")
        for code in codes:
            kind = " A note: the row is good." if code in NOTES else ""
            kind = " The row is left out and counted; it stops nothing." if code in LEFT_OUT else kind
            meaning = f"{CODES[code][0].upper()}{CODES[code][1:]}.{kind}"
            shown = "\n".join(filter(None, (rows.get(code), f"{code} {examples[code]}")))
            parts.append(f"### {code}\n\n{meaning}\n\n```output\n{shown}\n```\n\n{REMEDIES[code]}")
    return "\n\n".join(parts)


def _section(code: str) -> str:
    return next(pattern for _, pattern in SECTIONS if re.match(pattern, code))


def caught() -> dict[str, tuple[str, str]]:
    """Code -> (message, row) of a small file in tests/bad_inputs that has only this problem.

    It is the first whose row can be read as it stands, else the first one.
    """
    sys.path.insert(0, str(ROOT / "tests/bad_inputs"))
    from bad_input_table import CASES

    found: dict[str, tuple[str, str]] = {}
    for plain_row in (True, False):
        for case in CASES:
            code, line, _ = case.found[0]
            row = case.content.split(b"\n")[line - 1] if line else b""
            text = row.decode("ascii", "backslashreplace")
            if len(case.found) > 1 or len(case.content) > 700 or code in found:
                continue
            if plain_row and not (row.isascii() and text.isprintable() and text.startswith("{")):
                continue
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "data.jsonl")
                path.write_bytes(case.content)
                (problem,) = check_file(path, case.formatting, **case.options).problems
            message = str(problem).replace(f"{folder}/", "").removeprefix(f"{code} ")
            shown = message if len(message) < 250 else f"{message[:200]} ..."
            found[code] = (shown, text if len(text) < 250 else "")
    return found


def commands(_: str) -> str:
    """Every command of `finepref` with its options."""
    return "\n\n".join(
        part for name, command in _commands(get_command(app), "finepref") for part in _told(name, command)
    )


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for word, inner in command.commands.items():
            yield from _commands(inner, f"{name} {word}")
    else:
        yield name, command


def _told(name: str, command: Any) -> list[str]:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    words = [f"[{_word(each)}]" if not each.required else _word(each) for each in arguments]
    parts = [
        f"## {name}",
        plain((command.help or "").split("\f")[0].strip()),
        f"```text\n{' '.join([name, *words])} ...\n```",
    ]
    rows = [(f"`{_word(each)}`", "", plain(each.help or "")) for each in arguments]
    for each in command.params:
        if each.param_type_name == "option" and not each.hidden and each.name != "help":
            default = "all cores" if each.name == "jobs" else each.default  # the same on every machine
            shown = "" if default in (None, "", False, (), []) or callable(default) else f"`{default}`"
            rows.append(
                (
                    ", ".join(f"`{opt}`" for opt in each.opts),
                    "required" if each.required else shown,
                    plain(each.help or ""),
                )
            )
    return [*parts, *([table(("option", "default", "meaning"), rows)] if rows else [])]


def plain(text: str) -> str:
    """A text of `--help` as Markdown that shows it as it is."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;").replace("*", "\\*") for part in parts)


def _word(argument: Any) -> str:
    return argument.metavar or argument.name.upper()


MAKERS: dict[str, Callable[[str], str]] = {
    "facts": facts,
    "formula": formula,
    "options": options,
    "shared-options": shared_options,
    "cost": cost,
    "evidence": evidence,
    "settings": settings,
    "error-codes": error_codes,
    "commands": commands,
}


def made(text: str) -> str:
    """A page with its parts made anew."""
    return PART.sub(lambda part: f"{part[1]}\n{MAKERS[part[2]](part[3] or '')}\n{part[4]}", text)


def stale() -> dict[Path, str]:
    """The pages whose parts are not what the code says now -> their new text."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
    found = {path: made(text) for path, text in texts.items() if "<!-- made: " in text}
    return {path: text for path, text in found.items() if text != texts[path]}


def main() -> None:
    """Write the pages, or say which are stale."""
    found = stale()
    for path, text in found.items():
        if "--check" in sys.argv[1:]:
            print(f"{path.relative_to(ROOT)} is stale: run scripts/site_pages.py", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(ROOT))
    if found and "--check" in sys.argv[1:]:
        sys.exit(1)


if __name__ == "__main__":
    main()
