"""The trainings that pages show are read by the host's own parser, with our flags in it: flags, types and values."""

from __future__ import annotations

import sys

import pytest
from doc_blocks import blocks, of_openrlhf, without_launcher
from finepref import stages
from finepref.hosts.openrlhf import command_line

SHOWN = sorted(
    {
        (command, *(flag for flag in flags if flag != "..."))
        for block in blocks()
        for words in block.commands
        if (found := of_openrlhf(without_launcher(words)))[0]
        for command, flags in [found]
        if command != "train_wsimpo"  # of examples/own_stage, which is not installed here
    }
)
NEEDED = {"--model.model_name_or_path": "MODEL", "--data.dataset": "tdpo_demo"}
"""Flags that `...` stands for."""


def parse(monkeypatch, command, flags) -> None:
    given = list(flags)
    for flag, value in NEEDED.items():
        if flag not in given:
            given += [flag, value]
        elif (i := given.index(flag)) + 1 == len(given) or given[i + 1].startswith("--"):
            given.insert(i + 1, value)
    row = stages.of_command(command) or stages.find(command)
    monkeypatch.setattr(sys, "argv", [command, *given])
    monkeypatch.setattr(command_line, "resolve_name", lambda name: lambda request: lambda: None)
    monkeypatch.setattr(command_line.environment, "check", lambda request: None)
    command_line.run(row)


def test_some_trainings_are_shown():
    assert len(SHOWN) > 4


@pytest.mark.parametrize("words", SHOWN, ids=" ".join)
def test_the_host_reads_a_training_that_a_page_shows(words, monkeypatch):
    parse(monkeypatch, words[0], words[1:])


@pytest.mark.parametrize("flags", [["--tdpo.no_such_flag", "1"], ["--tdpo.alpha", "much"], ["--no.such_flag"]])
def test_a_flag_that_there_is_not_or_a_value_that_is_none_is_refused(flags, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(monkeypatch, "train_tdpo", flags)
    assert ended.value.code == 2
    assert flags[0] in capsys.readouterr().err
