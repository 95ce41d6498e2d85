"""Every block of commands on a page is run, or a comment says why not; if it can, its commands are parsed."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import tomllib
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from doc_blocks import PAGES, ROOT, Block, blocks, of_llamafactory, of_openrlhf, without_launcher
from finepref import stages
from finepref.cli import app
from finepref.hosts.openrlhf.command_line import flag_of
from sample_rows import span_rows
from tiny_llama import save_byte_llama
from typer.main import get_command
from typer.testing import CliRunner

BLOCKS = blocks()
RUN = [block for block in BLOCKS if block.mark == "run"]
PARSED = [block for block in BLOCKS if block.mark == "parsed"]
MARKED = [block for block in BLOCKS if block.mark == "not run"]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = re.findall(r"^([\w%-]+):", (ROOT / "Makefile").read_text(), re.M)


def parse_finepref(words: list[str]) -> None:
    """Every word is a command, an argument or an option of the command line; nothing is run."""
    command, rest = get_command(app), [word for word in words[1:] if word != "..."]
    while hasattr(command, "commands"):
        if rest[0] not in command.commands and (default := getattr(command, "default", "")):
            rest = [default, *rest]  # a group whose name alone is a command too
        assert rest[0] in command.commands, words
        command, rest = command.commands[rest[0]], rest[1:]
    try:
        command.make_context(words[0], list(rest))
    except Exception as error:  # the parser's own errors, whatever version of it
        raise AssertionError(f"{words}: {error}") from error


def parse_llamafactory(recipe: str, overrides: list[str]) -> None:
    """The recipe is there, and every override is `key=value`, a key of the recipe's or of the stage's.

    `tests/hosts/llamafactory/test_doc_commands.py` gives both to the host's own parser.
    """
    settings = yaml.safe_load((ROOT / recipe).read_text())
    stage = stages.find(settings["stage"]) or stages.switched(settings["stage"], settings)
    own = stage.options.described("llamafactory") if stage else {}
    for override in overrides:
        key, equals, _ = override.partition("=")
        assert equals
        assert key in settings or key in own or key in ("deepspeed", "max_steps", "dataset_dir"), override


def parse_openrlhf(command: str, flags: list[str]) -> None:
    """The stage is there, and every flag of its group is one of its options; see tests/hosts/openrlhf likewise."""
    stage = stages.of_command(command) or stages.find(command)
    if command == "train_wsimpo":  # of examples/own_stage, which is not installed here
        return
    assert stage is not None, command
    own = {flag_of(stage, name) for name in stage.options.described("openrlhf")}
    for flag in flags:
        if flag.startswith(f"--{stage.group}."):
            assert flag in own


def parse_pip(words: list[str]) -> None:
    """Files of constraints and folders are there, and so are extras."""
    for before, word in pairwise(words):
        if before in ("-c", "--constraint"):
            assert (ROOT / word).is_file(), word
        elif word.startswith((".", "finepref")):
            path, _, extras = word.rstrip("]").partition("[")
            assert path == "finepref" or (ROOT / path / "pyproject.toml").is_file(), word
            assert {*filter(None, extras.split(","))} <= EXTRAS.keys(), word


def parse(words: list[str]) -> None:
    """Fail unless the command is of a program that is known here, and its options are."""
    words = without_launcher(words)
    recipe, overrides = of_llamafactory(words)
    command, flags = of_openrlhf(words)
    if words[0] == "finepref":
        parse_finepref(words)
    elif recipe:
        parse_llamafactory(recipe, overrides)
    elif command:
        parse_openrlhf(command, flags)
    elif words[0] == "finepref.hosts.openrlhf.host_cli":
        assert words[1] == "openrlhf.cli.train_sft"  # the host's own
    elif words[:2] == ["pip", "install"]:
        parse_pip(words)
    elif words[0] == "make":
        assert words[1] in TARGETS or re.fullmatch(r"env-\w+", words[1]), words
    elif words[0] in ("python", ".venvs/core/bin/python"):
        assert (ROOT / words[1]).is_file(), words
    else:
        raise AssertionError(f"no test knows {words[0]}: put <!-- not run: REASON --> before the block")


def test_how_many_blocks_are_run_parsed_and_marked():
    counts = Counter({"run": len(RUN), "parsed": len(PARSED), "marked": len(MARKED)})
    commands = Counter(without_launcher(words)[0] for block in RUN + PARSED for words in block.commands)
    print(f"\n{len(BLOCKS)} blocks: {dict(counts)}; commands by program: {dict(commands.most_common())}")
    assert min(counts["run"], counts["parsed"]) > 5
    assert counts["marked"] < len(BLOCKS) / 10
    assert all(len(block.reason) > 15 for block in MARKED + PARSED)


def test_every_block_says_that_it_is_run_or_why_not():
    """A mark with a typing error is none."""
    assert [block.name for block in BLOCKS if not block.mark] == []


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_bash_can_read_a_block(block):
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("block", PARSED + RUN, ids=lambda block: block.name)
def test_every_command_of_a_block_is_one_that_there_is_with_options_that_it_has(block):
    assert block.commands
    for words in block.commands:
        parse(words)


@pytest.mark.parametrize("block", MARKED, ids=lambda block: block.name)
def test_the_commands_of_finepref_in_a_block_that_is_not_run_are_parsed_all_the_same(block):
    for words in block.commands:
        if (plain := without_launcher(words))[0] == "finepref":
            parse_finepref(plain)


@pytest.mark.parametrize(
    "words",
    [
        ["finepref", "nothing"],
        ["finepref", "validate", "a.jsonl", "--no-such-option"],
        ["llamafactory-cli", "train", "examples/no.yaml"],
        ["llamafactory-cli", "train", "examples/sepo.yaml", "sepo_nothing=1"],
        ["deepspeed", "--module", "openrlhf.cli.train_nothing"],
        ["python", "-m", "finepref.hosts.openrlhf.train", "tdpo", "--tdpo.nothing", "1"],
        ["pip", "install", "-c", "locks/no.txt", "torch"],
        ["pip", "install", ".[nothing]"],
        ["make", "nothing"],
        ["python", "scripts/no.py"],
        ["vllm", "serve", "a"],
    ],
)
def test_a_command_that_there_is_not_is_noticed(words):
    with pytest.raises((AssertionError, FileNotFoundError)):
        parse(words)


INLINE = sorted(
    {
        (page.relative_to(ROOT).as_posix(), " ".join(found.split()))
        for page in PAGES
        if page.name != "CHANGELOG.md"  # which tells of earlier versions
        for found in re.findall(r"`(finepref [^`]+)`", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S))
    }
)


@pytest.mark.parametrize(("page", "text"), INLINE)
def test_a_command_in_a_sentence_is_one_that_there_is_and_has_the_options_named(page, text):
    """`finepref sepo score --contrast`, say: a sentence leaves out what the command needs beside."""
    command, rest = get_command(app), text.replace(",", " ").split()[1:]
    while hasattr(command, "commands") and not (rest and rest[0].startswith("COMMAND")):
        default = getattr(command, "default", "")
        if not default and (not rest or rest[0].startswith("-")):
            break
        if default and (not rest or rest[0] not in command.commands):
            rest = [default, *rest]
        assert rest[0] in command.commands
        command, rest = command.commands[rest[0]], rest[1:]
    known = {opt for parameter in command.params for opt in parameter.opts} | {"--help"}
    assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= known


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with the files and models that the blocks name, and the repository's data sets."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("blocks")
    (folder / "saves/run").mkdir(parents=True)
    shutil.copytree(ROOT / "dataset_info", folder / "dataset_info")
    shutil.copy(folder / "dataset_info/samples/seapo_demo.jsonl", folder / "negatives.jsonl")
    keys = ("id", "prompt", "chosen", "rejected")
    pairs = [{key: row[key] for key in keys} for row in span_rows(4)]
    answers = [
        {"id": f"a{i}", "prompt": f"What is {i} + 1?", "response": f"It is {i + 1}.", "answer": str(i + 1)}
        for i in range(4)
    ]
    queries = [{"query_id": f"q{i}", "query": f"What is {i} + 1?"} for i in range(4)]
    golden = [{**query, "golden": f"It is {i + 1}."} for i, query in enumerate(queries)]
    human = [
        {
            "id": f"h{i}",
            "prompt": f"q{i}",
            "responses": ["right", "wrong"],
            "scores": [1, 0],
            "rewards": [0.5 + i, 0.25],
        }
        for i in range(4)
    ]
    files = {"pairs": pairs, "held_out": pairs, "rows": answers, "kept": answers, "answers": answers}
    files |= {"queries": queries, "golden": golden, "scored_human": human, "bad": [*pairs, {"prompt": "q"}]}
    for name, found in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    model = save_byte_llama(folder / "MODEL")
    for name in ("LLM", "DPO_MODEL", "SFT_MODEL", "REVERSE_DPO_MODEL", "RIGHT_MODEL", "WRONG_MODEL", "base"):
        (folder / name).symlink_to("MODEL")
    for name in ("saves/a", "saves/b"):
        (folder / name).symlink_to("../MODEL")
    AutoModelForSequenceClassification.from_pretrained(model, num_labels=1).save_pretrained(folder / "REWARD_MODEL")
    AutoTokenizer.from_pretrained(model).save_pretrained(folder / "REWARD_MODEL")
    (folder / "saves/reward").symlink_to("../REWARD_MODEL")
    with contextlib.chdir(folder):
        for line in (
            "validate bad.jsonl --format pair --max-bad 50% --rejected saves/run/rejected.jsonl",
            "sepo score pairs.jsonl --oracle MODEL --reference MODEL --output scores.jsonl",
        ):
            CliRunner().invoke(app, line.split())
    return folder


@pytest.mark.parametrize("block", RUN, ids=lambda block: block.name)
def test_a_block_that_says_so_runs(block, workplace, tmp_path, monkeypatch):
    """Every command, one after the other, in a folder of its own; in this process, which has loaded torch already."""
    monkeypatch.chdir(shutil.copytree(workplace, tmp_path / "work", symlinks=True))
    if "--output scores.jsonl" in block.text:
        for path in Path().glob("scores.*"):  # else the command would go on with them
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for words in block.commands:
        assert words[0] == "finepref"
        done = CliRunner().invoke(app, words[1:])
        assert done.exit_code == 0, f"{words}\n{done.output}\n{done.exception!r}"


def test_a_block_has_the_mark_before_it_and_no_other():
    assert [block.mark for block in BLOCKS if block.page == "docs/start.md"] == [
        *("run", "parsed", "run", "parsed", "parsed", "parsed")
    ]
    assert isinstance(BLOCKS[0], Block)
