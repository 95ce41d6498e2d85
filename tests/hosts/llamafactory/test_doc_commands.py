"""The trainings that pages show are read by the host's own parser, with our keys in it: every key, type and value."""

from __future__ import annotations

import sys

import pytest
from doc_blocks import ROOT, blocks, of_llamafactory, without_launcher

COMMANDS = sorted(
    {
        (recipe, *overrides)
        for block in blocks()
        for words in block.commands
        if (found := of_llamafactory(without_launcher(words)))[0]
        for recipe, overrides in [found]
        if "own_stage" not in recipe  # a package that is not installed here
    }
)


def parse(monkeypatch, words) -> None:
    import llamafactory.train.tuner  # noqa: F401 (a run imports it first, and the patch cards want it there)
    from llamafactory.hparams import parser

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["llamafactory-cli", *words, "bf16=false"])
    parser._parse_train_args()


def test_some_trainings_are_shown():
    assert len(COMMANDS) > 15


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_host_reads_a_training_that_a_page_shows(words, monkeypatch, tmp_path):
    parse(monkeypatch, [*words, f"output_dir={tmp_path}"])


def test_a_key_that_there_is_not_is_refused(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="no_such_key"):
        parse(monkeypatch, ["examples/sepo.yaml", "no_such_key=1", f"output_dir={tmp_path}"])
