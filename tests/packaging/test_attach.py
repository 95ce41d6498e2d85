"""The post-import hook: it runs once after the module, leaves the module as it was, and lets errors through."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path

import pytest
from finepref import attach

ROOT = Path(__file__).parents[2]


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A module `finepref_probe` that attach watches; returns what the adapter was called with."""
    (tmp_path / "finepref_probe.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    calls: list[types.ModuleType] = []
    adapter = types.ModuleType("finepref_probe_adapter")
    adapter.work = calls.append
    monkeypatch.setitem(sys.modules, "finepref_probe_adapter", adapter)
    monkeypatch.setitem(attach.WATCHED, "finepref_probe", "finepref_probe_adapter:work")
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    attach.install()
    yield calls
    sys.modules.pop("finepref_probe", None)


def test_the_adapter_sees_the_finished_module_once(watched):
    module = importlib.import_module("finepref_probe")
    importlib.import_module("finepref_probe")
    assert watched == [module]
    assert module.VALUE == 1


def test_the_module_keeps_its_own_loader(watched):
    module = importlib.import_module("finepref_probe")
    assert type(module.__loader__).__name__ == "SourceFileLoader"
    assert module.__spec__.loader is module.__loader__
    assert importlib.reload(module) is module


def test_an_error_of_the_adapter_reaches_whoever_imports_the_host(watched, monkeypatch):
    def fail(module: types.ModuleType) -> None:
        raise RuntimeError("drift")

    monkeypatch.setattr(sys.modules["finepref_probe_adapter"], "work", fail)
    with pytest.raises(RuntimeError, match="drift"):
        importlib.import_module("finepref_probe")
    assert "finepref_probe" not in sys.modules


def test_installing_twice_adds_one_finder(watched):
    attach.install()
    assert sys.meta_path.count(attach._Finder) == 1


@pytest.mark.parametrize(("value", "installed"), [("1", False), ("yes", False), ("0", True), ("", True)])
def test_finepref_disable_switches_the_hook_off(monkeypatch, value, installed):
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if f is not attach._Finder])
    monkeypatch.setenv("FINEPREF_DISABLE", value)
    attach.install()
    assert (attach._Finder in sys.meta_path) is installed


@pytest.mark.parametrize(
    ("module", "words", "named"),
    [
        ("llamafactory.hparams.parser", ["llamafactory-cli", "--stage", "tdpo"], "tdpo"),
        ("llamafactory.hparams.parser", ["llamafactory-cli", "stage=sepo"], "sepo"),
        ("openrlhf.cli.train_selective", ["-m"], "train_selective"),
        ("llamafactory.hparams.parser", ["llamafactory-cli", "--stage", "sft", "--granular", "true"], "granular"),
        ("llamafactory.hparams.parser", ["llamafactory-cli", "examples/granular_sft.yaml"], "granular"),
        ("llamafactory.hparams.parser", ["llamafactory-cli", "examples/tdpo_spans.yaml"], "tdpo"),
        ("llamafactory.hparams.parser", ["llamafactory-cli", "--stage", "dpo"], ""),
        ("openrlhf.cli.train_dpo", ["-m"], ""),
        ("llamafactory.data.loader", ["llamafactory-cli", "--stage", "tdpo"], ""),
    ],
)
def test_switched_off_only_a_run_of_our_stages_is_told_so(monkeypatch, module, words, named):
    monkeypatch.setenv("FINEPREF_DISABLE", "yes")
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if f is not attach._Finder])
    attach.install()
    attach.install()
    assert sys.meta_path.count(attach._Off) == 1
    if not named:
        assert attach._Off.find_spec(module) is None
        return
    with pytest.raises(SystemExit) as ended:
        attach._Off.find_spec(module)
    assert str(ended.value) == f"{named} is finepref's, and FINEPREF_DISABLE=yes switches it off: unset it"


def test_a_watched_module_that_does_not_exist_stays_a_module_not_found_error(watched, monkeypatch):
    monkeypatch.setitem(attach.WATCHED, "finepref_nowhere", "finepref_probe_adapter:work")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("finepref_nowhere")


@pytest.fixture
def hosts_commands(tmp_path, monkeypatch):
    """A package `openrlhf.cli` without any command of its own."""
    (tmp_path / "openrlhf/cli").mkdir(parents=True)
    for folder in ("openrlhf", "openrlhf/cli"):
        (tmp_path / folder / "__init__.py").write_text("")
    for name in [name for name in sys.modules if name.partition(".")[0] == "openrlhf"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    attach.install()
    yield tmp_path / "openrlhf/cli"
    for name in ("openrlhf", "openrlhf.cli"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["train_selective", "train_tdpo", "train_kto", "train_apo_rm"])
def test_every_stage_has_a_command_in_the_hosts_package(hosts_commands, name):
    spec = importlib.util.find_spec(f"openrlhf.cli.{name}")
    assert spec.origin.endswith("finepref/hosts/openrlhf/train.py")


def test_a_command_that_is_no_stages_stays_unknown(hosts_commands):
    assert importlib.util.find_spec("openrlhf.cli.train_nothing") is None


def test_the_hosts_own_file_of_that_name_goes_first(hosts_commands):
    (hosts_commands / "train_selective.py").write_text("")
    found = importlib.util.find_spec("openrlhf.cli.train_selective").origin
    assert found == str(hosts_commands / "train_selective.py")
