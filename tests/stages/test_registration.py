"""A row of another package: what is missing or malformed is said with package, row and field; nothing else breaks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from finepref import methods, stages
from finepref.formats.problems import CODES

EXAMPLE = (Path(__file__).parents[2] / "examples/own_stage/finepref_wsimpo.py").read_text(encoding="utf-8")


@pytest.fixture
def register(tmp_path, monkeypatch):
    """Install a module with a row under a name of its own; returns what the registry then has."""
    count = 0

    def install(text, *, module="finepref_wsimpo", value=None):
        nonlocal count
        count += 1
        folder = tmp_path / str(count)
        info = folder / "finepref_wsimpo-0.1.0.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(text)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: finepref-wsimpo\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text(f"[finepref.stages]\nwsimpo = {value or f'{module}:STAGE'}\n")
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, module, raising=False)
        stages.registry.cache_clear()
        found = stages.registry()
        return found.rows, found.broken

    known = dict(CODES)
    yield install
    stages.registry.cache_clear()
    CODES.clear()
    CODES.update(known)


def test_the_example_is_a_stage_beside_ours_in_at_most_50_lines(register):
    rows, broken = register(EXAMPLE)
    assert [*rows] == [*(row.name for row in methods.BUILT_IN), "wsimpo"]
    assert broken == {}
    assert len(EXAMPLE.splitlines()) <= 50


# (what stands in the example, what a mistake puts there, what is said)
MISTAKES = {
    "no loss": ("    losses=losses,\n", "", "losses: a stage of shape pair needs the function of its loss"),
    "loss of three arguments": (
        "def losses(pairs: Pairs, options: WsimpoOptions)",
        "def losses(pairs: Pairs, options: WsimpoOptions, seed: int)",
        "losses: is called with 2 arguments, but its signature is (pairs: ",
    ),
    "no function": ("    losses=losses,\n", "    losses=0.5,\n", "losses: expected a function, got float"),
    "shape": ('shape="pair"', 'shape="pairs"', "shape: expected pair, unpaired, ranked, lists, single, got 'pairs'"),
    "name of the host's": ('name="wsimpo"', 'name="dpo"', "name: dpo is a stage of LLaMA-Factory itself"),
    "name of ours": ('name="wsimpo"', 'name="sepo"', "name: finepref has a stage sepo already"),
    "spelling": (
        'name="wsimpo"',
        'name="W-SimPO"',
        "name: 'W-SimPO' must be lower-case letters, digits and _, starting",
    ),
    "empty title": ('title="SimPO on weighted tokens"', 'title=" "', "title: expected a text, got ' '"),
    "no formats": ('formats=("pair", "span_pair")', "formats=()", "formats: expected a tuple with one of pair,"),
    "formats": (
        'formats=("pair", "span_pair")',
        'formats=("pair", "ranked")',
        "formats: 'ranked' does not fit shape pair; use pair or span_pair or scored_pair",
    ),
    "options of another kind": (
        "class WsimpoOptions(PairOptions)",
        "class WsimpoOptions",
        "options: expected a dataclass derived from finepref.methods.options.PairOptions",
    ),
    "plain field": (
        'wsimpo_beta: float = option(2.0, "Scale of the mean log-probability.", above=0)',
        "wsimpo_beta: float = 2.0",
        "options.wsimpo_beta: declare it with finepref.methods.options.option",
    ),
    "no help": ('"Scale of the mean log-probability."', '" "', "options.wsimpo_beta: its help is empty"),
    "default out of bounds": ("option(2.0,", "option(-2.0,", "the defaults are refused, or a type cannot be read: "),
    "key of the host's": (
        'wsimpo_gamma: float = option(0.5, "Margin',
        'learning_rate: float = option(0.5, "Margin',
        "options.learning_rate: its name must begin with wsimpo_",
    ),
    "command": (
        "    losses=losses,\n",
        '    losses=losses,\n    openrlhf_command="train_kto",\n',
        "openrlhf_command: train_kto is that of stage seapo_kto",
    ),
    "KL without reference": (
        "    losses=losses,\n",
        '    losses=losses,\n    kl=lambda options: "loss",\n',
        "kl: the KL is to a reference model, but `reference` is False",
    ),
    "metrics": ('metrics=("logps/chosen", "logps/rejected")', 'metrics="logps"', "metrics: expected a tuple of texts"),
    "switch": (
        "    losses=losses,\n",
        '    losses=losses,\n    switch="weighted",\n',
        "switch: weighted is not one of the stage's options",
    ),
    "code of ours": (
        "    losses=losses,\n",
        '    losses=losses,\n    codes={"FP300": "odd"},\n',
        "codes: expected a code such as AB001, not FP..., and a text, got 'FP300': 'odd'",
    ),
    "no row": (
        "STAGE = Stage(",
        "STAGE = dict(",
        "expected a finepref.methods.stage.Stage, or a tuple of them, got dict",
    ),
}


@pytest.mark.parametrize(("good", "bad", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_package_row_and_field_and_leaves_the_others_alone(register, good, bad, said):
    assert EXAMPLE.count(good) == 1 or good == "    losses=losses,\n"
    rows, broken = register(EXAMPLE.replace(good, bad))
    assert [*rows] == [row.name for row in methods.BUILT_IN]
    (text,) = broken.values()
    assert text.startswith("a stage of finepref-wsimpo cannot be used\n  finepref-wsimpo, stage ")
    assert said in text


def test_an_option_that_means_something_else_in_another_stage_is_refused(register):
    text = EXAMPLE.replace("wsimpo_gamma", "sepo_margin").replace('name="wsimpo"', 'name="sepo_simpo"')
    (said,) = register(text.replace("wsimpo_beta", "sepo_simpo_beta"))[1].values()
    assert "options.sepo_margin: stage sepo of finepref has another option of that name" in said


def test_every_mistake_of_a_row_is_said_at_once(register):
    text = EXAMPLE.replace('title="SimPO on weighted tokens"', 'title=""').replace("    losses=losses,\n", "")
    (said,) = register(text)[1].values()
    assert "stage wsimpo, title: " in said
    assert "stage wsimpo, losses: " in said


def test_asking_for_a_stage_that_cannot_be_used_says_why_and_the_hosts_own_stages_run(register):
    register(EXAMPLE.replace('shape="pair"', 'shape="pairs"'))
    with pytest.raises(stages.StageError, match="finepref-wsimpo, stage wsimpo, shape: "):
        stages.find("wsimpo")
    assert stages.find("dpo") is None


def test_a_package_that_does_not_import_is_named(register):
    rows, broken = register("raise RuntimeError('half installed')", module="finepref_half")
    assert [*rows] == [row.name for row in methods.BUILT_IN]
    assert broken == {
        "wsimpo": "finepref-wsimpo: entry point wsimpo = finepref_half:STAGE: RuntimeError('half installed')"
    }


def test_a_row_brings_its_own_problem_codes(register):
    from finepref.formats.problems import Problem

    row = '    losses=losses,\n    codes={"WS001": "odd"},\n'
    assert register(EXAMPLE.replace("    losses=losses,\n", row))[1] == {}
    assert "WS001 a.jsonl:3 chosen: so" in str(Problem("a.jsonl", 3, "chosen", "WS001", "so"))


CARD = """\
versions = ">=0.9.5"
module = "{module}"
attribute = "run_exp"
signature = "(args=, callbacks=)"
{replacement}
why = "a stage of its own relies on it"
without_it = "the stage cannot start"
upstream = "none"
drop_when = "never"

[tested]
"0.9.5" = "0000000000000000"
"""


@pytest.fixture
def cards(tmp_path, monkeypatch):
    """Install a package with one card; returns all cards."""
    from finepref.hosts import patching

    def install(**parts):
        package, info = tmp_path / "wsimpo_cards", tmp_path / "finepref_wsimpo-0.1.0.dist-info"
        (package / "llamafactory").mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "llamafactory/wsimpo-run.toml").write_text(CARD.format(**parts))
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: finepref-wsimpo\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text("[finepref.cards]\nwsimpo = wsimpo_cards\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "wsimpo_cards", raising=False)
        patching.load_cards.cache_clear()
        return patching.load_cards()

    yield install
    patching.load_cards.cache_clear()


def test_a_package_brings_its_own_patch_cards(cards):
    card = cards(module="llamafactory.train.tuner", replacement="")["wsimpo-run"]
    assert (card.host, card.target) == ("llamafactory", "llamafactory.train.tuner.run_exp")


def test_a_card_that_rebinds_in_a_module_that_nobody_watches_is_refused_by_package_and_name(cards):
    with pytest.raises(ValueError, match=r"wsimpo_cards: patch card llamafactory/wsimpo-run: .* watches"):
        cards(module="llamafactory.chat", replacement='replacement = "wsimpo_cards:replace"')


@pytest.mark.parametrize("row", methods.BUILT_IN, ids=lambda row: row.name)
def test_our_own_rows_pass_the_same_checks(row):
    assert stages.problems_of(row) == []
