"""A tiny Llama that vLLM's kernels for the CPU can run: heads of 32 dimensions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny_llama import byte_tokenizer, save_tiny_llama

# Before vLLM is imported, and for the processes that tests start: little memory, and no binding to the first cores.
os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return save_tiny_llama(
        tmp_path_factory.mktemp("tiny"),
        byte_tokenizer(),
        head_dim=32,
        max_position_embeddings=256,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
