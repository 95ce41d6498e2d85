"""A system turn that a chat template refuses, merged into the user turn as the host's own template does it."""

from __future__ import annotations

from finepref.formats.records import Message
from finepref.synth.engines.checkpoint import prompt_ids
from llamafactory.data.template import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments
from tiny_llama import byte_tokenizer

GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def test_the_prompt_has_the_tokens_of_the_hosts_template_gemma():
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = "</s>"
    tokenizer.chat_template = GEMMA
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template="gemma"))
    tokenizer.chat_template = GEMMA
    turns = [Message("user", "Why?"), Message("assistant", "So."), Message("user", "How?")]
    asked = [turn._asdict() for turn in turns] + [{"role": "assistant", "content": "Thus."}]
    for system in ("Be terse.", ""):
        *before, (last, _) = template.encode_multiturn(tokenizer, asked, system)
        expected = [token for source, target in before for token in (*source, *target)] + last
        messages = ([Message("system", system)] if system else []) + turns
        assert prompt_ids(tokenizer, messages, merge_system=True) == expected
