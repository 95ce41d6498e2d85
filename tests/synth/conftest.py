"""The tiny Llama with a byte-level tokenizer and a chat template, made in the test."""

from __future__ import annotations

from pathlib import Path

import pytest
from finepref.formats.jsonl import write_jsonl
from tiny_llama import byte_tokenizer, save_tiny_llama


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return save_tiny_llama(
        tmp_path_factory.mktemp("tiny"),
        byte_tokenizer(),
        max_position_embeddings=256,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )


@pytest.fixture
def rows(tmp_path):
    """A file of rows."""

    def write(*rows, name="rows.jsonl"):
        write_jsonl(tmp_path / name, rows)
        return tmp_path / name

    return write
