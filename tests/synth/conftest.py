"""The tiny Llama with a byte-level tokenizer and a chat template, made in the test."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_llama import save_tiny_llama

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(["</s>", *alphabet])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["</s>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", pad_token="</s>", chat_template=TEMPLATE
    )
    return save_tiny_llama(
        tmp_path_factory.mktemp("tiny"),
        tokenizer,
        max_position_embeddings=256,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
