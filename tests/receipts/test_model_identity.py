"""A model is told from another one by what its folder holds, and a reference model has to read the same tokens."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from finepref.hosts import model_identity
from finepref.hosts.foreign import require_same_tokens
from finepref.hosts.missing_model import missing_model_hint
from tiny_llama import byte_tokenizer


def folder(path: Path, *, config: dict | None = None, **files: bytes) -> str:
    """A model folder; `__` in a name stands for a dot."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config or {"vocab_size": 9}))
    for name, content in files.items():
        (path / name.replace("__", ".")).write_bytes(content)
    return str(path)


def test_the_digest_of_the_weights_covers_names_sizes_and_contents(tmp_path):
    """By hand: `NAME SIZE SHA256` of each file, by name; optimizer states and training arguments are no weights."""
    files = {"b__safetensors": b"12", "a__bin": b"345", "training_args__bin": b"x", "optimizer__bin": b"x"}
    found = model_identity.identity(folder(tmp_path / "m", **files))
    parts = (("a.bin", b"345"), ("b.safetensors", b"12"))
    content = "".join(f"{name} {len(data)} {hashlib.sha256(data).hexdigest()}" for name, data in parts)
    assert found == {
        "path": str(tmp_path / "m"),
        "config_sha256": hashlib.sha256(b'{"vocab_size": 9}').hexdigest(),
        "weights_sha256": hashlib.sha256(content.encode()).hexdigest(),
        "weights_hashed": "contents",
        "weights_bytes": 5,
    }


@pytest.mark.parametrize("place", [0, 65_535, -1])
def test_large_weights_are_told_apart_by_samples(tmp_path, monkeypatch, place):
    monkeypatch.setattr(model_identity, "WHOLE", 1000)
    content = bytearray(os.urandom(3_000_000))
    one = model_identity.identity(folder(tmp_path / "one", a__bin=bytes(content)))
    content[place] ^= 1
    other = model_identity.identity(folder(tmp_path / "other", a__bin=bytes(content)))
    assert one["weights_hashed"] == "samples"
    assert one["weights_sha256"] != other["weights_sha256"]
    assert not model_identity.same(one, other)


def test_a_copied_model_is_the_same_and_one_that_is_not_there_is_known_by_its_name(tmp_path):
    one, two = (model_identity.identity(folder(tmp_path / name, a__bin=b"1")) for name in ("one", "two"))
    assert model_identity.same(one, two)
    absent = model_identity.identity(str(tmp_path / "none"))
    assert absent == {
        "path": str(tmp_path / "none"),
        **dict.fromkeys(("config_sha256", "weights_sha256", "weights_hashed", "weights_bytes")),
    }
    assert model_identity.same(absent, absent)
    assert not model_identity.same(absent, one)


def test_an_adapter_is_described_by_its_own_configuration(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert model_identity.identity(str(tmp_path))["config_sha256"] == hashlib.sha256(b"{}").hexdigest()


def test_a_model_of_the_hub_is_found_where_its_client_has_put_it(tmp_path, monkeypatch):
    place = Path(folder(tmp_path / "snapshot", a__bin=b"1"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: str(place / file))
    assert model_identity.identity("owner/name") == model_identity.identity(str(place)) | {"path": "owner/name"}


def test_a_reference_with_the_same_tokens_passes_also_with_more_of_its_own(tmp_path):
    tokenizer = byte_tokenizer()
    plain = folder(tmp_path / "plain", config={"vocab_size": 257})
    require_same_tokens(tokenizer, plain, key="ref_model")
    tokenizer.save_pretrained(plain)
    require_same_tokens(tokenizer, plain, key="ref_model")
    larger = byte_tokenizer()
    larger.add_tokens(["<more>"])
    larger.save_pretrained(folder(tmp_path / "larger", config={"text_config": {"vocab_size": 300}}))
    require_same_tokens(tokenizer, str(tmp_path / "larger"), key="ref_model")


def test_a_reference_of_the_hub_is_downloaded_for_the_comparison_or_not_compared(tmp_path, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    small = folder(tmp_path / "small", config={"vocab_size": 255})
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file: f"{small}/{file}")
    byte_tokenizer().save_pretrained(small)
    with pytest.raises(ValueError, match=r"^ref_model owner/name has an embedding for 255 tokens"):
        require_same_tokens(byte_tokenizer(), "owner/name", key="ref_model")

    def offline(name: str, file: str) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    require_same_tokens(byte_tokenizer(), "owner/name", key="ref_model")


def test_a_reference_with_other_ids_or_too_few_is_refused_by_the_key(tmp_path):
    tokenizer = byte_tokenizer()
    small = folder(tmp_path / "small", config={"vocab_size": 255})
    with pytest.raises(ValueError, match=r"^ref_model .*small has an embedding for 255 tokens, .* has 257: it lacks "):
        require_same_tokens(tokenizer, small, key="ref_model")
    other = Path(folder(tmp_path / "other", config={"vocab_size": 300}))
    tokenizer.save_pretrained(other)
    text = json.loads((other / "tokenizer.json").read_text())
    vocab = text["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (other / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(ValueError, match=r"^ref_model .*other has another tokenizer than the model: 2 tokens have"):
        require_same_tokens(tokenizer, str(other), key="ref_model")


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("./none", "there is no model folder './none'"),
        ("/no/where/at/all", "there is no model folder '/no/where/at/all'"),
        ("models/qwen", "there is no model folder 'models/qwen'"),
        ("runs/sft/last", "there is no model folder 'runs/sft/last'"),
        ("models/SmolLM2", "`finepref model smollm2 --output models/SmolLM2` makes one"),
        ("owner/name", None),
        ("gpt2", None),
    ],
)
def test_a_missing_folder_is_named_and_smollm2_can_be_made(path, hint):
    found = missing_model_hint(path)
    assert (found is None) if hint is None else hint in found
    assert "smollm2" not in (found or "") or "smollm2" in path.lower()
