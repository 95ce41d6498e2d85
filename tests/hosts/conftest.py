"""The model and the data sets of the tests of both hosts."""

from __future__ import annotations

from pathlib import Path

import pytest
from sample_rows import (
    contrast_rows,
    granular_rows,
    margin_rows,
    ranked_rows,
    rows,
    scored_rows,
    span_rows,
    write_rows,
)
from tiny_llama import save_chatml_llama, save_perturbed


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with an untied head and a byte-level tokenizer trained on the demo rows."""
    return save_chatml_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def other_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference model that differs from the policy."""
    return save_perturbed(tiny_model, tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="session")
def sums(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset_dir with a data set of 12 records for each stage."""
    folder = write_rows(tmp_path_factory.mktemp("data"), rows())
    write_rows(folder, span_rows(), "spans", formatting="span_pair")
    write_rows(folder, granular_rows(), "granular", formatting="span_pair")
    write_rows(folder, scored_rows(tiny_model), "scores", formatting="scored_pair")
    write_rows(folder, margin_rows(), "margins", formatting="pair")
    write_rows(folder, contrast_rows(tiny_model), "contrasts", formatting="scored_pair")
    return write_rows(folder, ranked_rows(), "lists", formatting="ranked")
