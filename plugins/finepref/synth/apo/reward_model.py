"""The rewards of a reward model that either host trained, from its files only.

    LLaMA-Factory  a decoder or a LoRA adapter, and value_head.safetensors (v_head.summary.weight [1, H] and bias [1])
    OpenRLHF       a decoder with one more tensor NAME.weight [1, H]; NAME is `value_head_prefix` in config.json

The reward is the same as in the hosts' own scoring: a linear function of the hidden state at the last token of the
response (or its end token, or of a mean or maximum over all tokens). OpenRLHF's optional normalisation is not applied.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from finepref.formats.records import Prompt
from finepref.formats.scores import fingerprint
from finepref.losses.pooling import pool, tokens_read
from finepref.synth.engines.checkpoint import identity, load_network
from finepref.synth.scorers.protocol import Item
from finepref.synth.scorers.token_tree import batches

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

Encode = Callable[[Prompt, str], tuple[list[int], list[int]]]
"""(prompt, response) -> token ids of both; those of the response include what the template adds after it."""

LLAMAFACTORY_HEAD = "value_head.safetensors"


class TokenRow(NamedTuple):
    """Token ids, the position where the reward is read, and whether the beginning was cut off."""

    ids: list[int]
    position: int
    cut: bool


class RewardModel:
    """A reward model, from its files.

    Args:
        folder: the folder that the host saved.
        base: the model under a LoRA adapter; default: the one that the adapter names.
        encoder: takes the tokenizer and returns what makes the tokens; default: the tokenizer's chat template.
        template: a name for the encoder, for the journal.
        pooling: last, eos, mean or max, as the model was trained.
        cutoff_len: longer sequences are cut off at the beginning.
        dtype: of the weights, such as float32; "auto" is the checkpoint's.
        batch_tokens: most tokens in a batch, padding included.

    Raises:
        FileNotFoundError: the folder has no value head.
        ValueError: there is neither an encoder nor a chat template, or no end-of-sequence token.
    """

    def __init__(
        self,
        folder: Path,
        *,
        base: str | None = None,
        encoder: Callable[[PreTrainedTokenizerBase], Encode] | None = None,
        template: str = "",
        pooling: str = "last",
        cutoff_len: int = 2048,
        dtype: str = "auto",
        batch_tokens: int = 4096,
    ) -> None:
        from transformers import AutoTokenizer

        self.folder, self.pooling, self.cutoff_len, self.dtype = folder, pooling, cutoff_len, dtype
        self.batch_tokens = batch_tokens
        self.head = head_of(folder)
        adapter = folder / "adapter_config.json"
        self.base = base or (json.loads(adapter.read_bytes())["base_model_name_or_path"] if adapter.exists() else None)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        if encoder is None and not self.tokenizer.chat_template:
            raise ValueError(f"the tokenizer in {folder} has no chat template: name LLaMA-Factory's template")
        if self.tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer in {folder} has no end-of-sequence token")
        self.encode = (encoder or chat_template)(self.tokenizer)
        self.model = f"reward:{identity(str(folder), self.base)}:{dtype}"
        layout = template or hashlib.blake2b(self.tokenizer.chat_template.encode(), digest_size=4).hexdigest()
        self.tokens = f"{fingerprint(self.tokenizer.backend_tokenizer.to_str())}-{layout}"

    def sequence(self, prompt: Prompt, response: str) -> TokenRow:
        """The token ids of a dialogue, as in both hosts' stages, and where its reward is read.

        Raises:
            ValueError: the response leaves no room for the prompt, or pooling is eos and it has no end token.
        """
        before, own = self.encode(prompt, response)
        if len(own) >= self.cutoff_len:
            raise ValueError(f"a response of {len(own)} tokens leaves no room for the prompt in {self.cutoff_len}")
        ids, read = [*before, *own], tokens_read(own, self.tokenizer.eos_token_id, self.pooling)
        if read is None:
            raise ValueError("the template adds no end token after a response: use pooling last instead of eos")
        dropped = max(0, len(ids) - self.cutoff_len)
        return TokenRow(ids[dropped:], len(before) + read - 1 - dropped, dropped > 0)

    def rewards(self, items: Mapping[str, TokenRow], *, done: Collection[str] = ()) -> Iterator[dict[str, float]]:
        """The rewards of sequences by name, batch by batch.

        Sequences of similar lengths form a batch. Which ones depends on all items, also if some are `done`.
        """
        import torch

        network = self.network
        weight, bias = (tensor.to(network.device, torch.float32) for tensor in self.head)
        finished = {*done}
        named = [Item(name, item.ids, {}) for name, item in items.items()]
        for batch in batches(named, batch_tokens=self.batch_tokens):
            names = [item.id for item in batch]
            if not finished.issuperset(names):
                with torch.inference_mode():
                    pooled = self._pooled(network, [items[name] for name in names])  # [N, H]
                    values = (pooled.float() @ weight + bias).tolist()
                yield dict(zip(names, values, strict=True))

    @cached_property
    def network(self) -> nn.Module:
        """The decoder without its output head."""
        if self.base:
            return load_network(self.base, adapter=str(self.folder), dtype=self.dtype).get_base_model().base_model
        return load_network(str(self.folder), dtype=self.dtype, head=False)

    def _pooled(self, network: nn.Module, rows: Sequence[TokenRow]) -> Tensor:
        import torch

        width = max(len(row.ids) for row in rows)
        ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows], device=network.device)  # [N, T]
        lengths = torch.tensor([len(row.ids) for row in rows], device=network.device)
        attended = torch.arange(width, device=network.device) < lengths.unsqueeze(1)
        positions = torch.tensor([row.position for row in rows], device=network.device)
        hidden = network(input_ids=ids, attention_mask=attended.long(), use_cache=False).last_hidden_state
        return pool(hidden, attended, positions, self.pooling)


def head_of(folder: Path) -> tuple[Tensor, Tensor]:
    """The weight [H] and bias [] of the value head in a folder.

    Raises:
        FileNotFoundError: there is no value head.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file

    if (folder / LLAMAFACTORY_HEAD).is_file():
        tensors = load_file(folder / LLAMAFACTORY_HEAD)
        return tensors["v_head.summary.weight"][0], tensors["v_head.summary.bias"][0]
    config = folder / "config.json"
    prefix = json.loads(config.read_bytes()).get("value_head_prefix", "score") if config.is_file() else ""
    for file in sorted(folder.glob("*.safetensors")) if prefix else ():
        with safe_open(file, framework="pt") as stored:
            if f"{prefix}.weight" in stored.keys():  # noqa: SIM118 (not a mapping)
                return stored.get_tensor(f"{prefix}.weight")[0], torch.zeros(())
    raise FileNotFoundError(f"{folder} has no value head: neither {LLAMAFACTORY_HEAD} nor OpenRLHF's score.weight")


def chat_template(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """Tokens by the tokenizer's chat template, prompt and response each on its own, as in our OpenRLHF stages."""

    def encode(prompt: Prompt, response: str) -> tuple[list[int], list[int]]:
        turns = [turn._asdict() for turn in prompt]
        before = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        turns.append({"role": "assistant", "content": response})
        both = tokenizer.apply_chat_template(turns, tokenize=False)
        if not both.startswith(before):
            raise ValueError("the chat template changes the turns before a response when the response is added")
        parts = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, both[len(before) :]))
        return next(parts), next(parts)

    return encode
