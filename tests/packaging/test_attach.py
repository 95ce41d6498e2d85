"""The post-import hook: it runs once after the module, leaves the module as it was, and lets errors through."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types

import pytest
from finepref import attach


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


def test_a_watched_module_that_does_not_exist_stays_a_module_not_found_error(watched, monkeypatch):
    monkeypatch.setitem(attach.WATCHED, "finepref_nowhere", "finepref_probe_adapter:work")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("finepref_nowhere")


@pytest.fixture
def other_names(tmp_path, monkeypatch):
    """A package `hosted` in which attach serves the name `hosted.ours`."""
    (tmp_path / "hosted").mkdir()
    (tmp_path / "hosted/__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setitem(attach.ALIASES, "hosted.ours", "train_selective.py")
    attach.install()
    yield tmp_path / "hosted"
    sys.modules.pop("hosted", None)


def test_a_name_of_ours_in_the_hosts_package_is_our_file(other_names):
    spec = importlib.util.find_spec("hosted.ours")
    assert spec.origin.endswith("finepref/hosts/openrlhf/train_selective.py")
    assert "openrlhf.cli.train_selective" in attach.ALIASES


def test_the_hosts_own_file_of_that_name_goes_first(other_names):
    (other_names / "ours.py").write_text("")
    assert importlib.util.find_spec("hosted.ours").origin == str(other_names / "ours.py")
