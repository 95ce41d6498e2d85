"""The rewards of a reward model that either host trained, from its files only.

    LLaMA-Factory  a decoder or a LoRA adapter, and value_head.safetensors (v_head.summary.weight [1, H] and bias [1])
    OpenRLHF       a decoder or a LoRA adapter with one more tensor NAME.weight [1, H]; NAME is `value_head_prefix` in
                   config.json. A SequenceClassification checkpoint has the same form, with NAME `score`

The reward is the same as in the hosts' own scoring: a linear function of the hidden state at the last token of the
response (or its end token, or of a mean or maximum over all tokens). OpenRLHF's optional normalisation is not applied.
What is too long is cut as in training (`methods.overlong`): all responses of a record keep the same prompt.
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
from finepref.methods import host_rules
from finepref.methods.overlong import END_CUT, Fit, Overlong, fit, told
from finepref.methods.pair_rows import CHAT_TEMPLATE
from finepref.synth.encoding import TOKENIZERS_OWN, Template
from finepref.synth.engines.checkpoint import base_of, identity, load_network
from finepref.synth.scorers.protocol import Item
from finepref.synth.scorers.token_tree import batches

if TYPE_CHECKING:
    from torch import Tensor, nn
LLAMAFACTORY_HEAD, LLAMAFACTORY_HEAD_BIN = "value_head.safetensors", "value_head.bin"


class TokenRow(NamedTuple):
    """Token ids, the position where the reward is read, and whether something was cut off."""

    ids: list[int]
    position: int
    cut: bool


class Sequences(NamedTuple):
    """The responses of a record as token ids.

    Attributes:
        rows: one per response; empty if the record is left out.
        cut: what is cut, see `methods.overlong.Fit`.
        skipped: the reason for which the record is left out, "" if it is not.
        refused: what is wrong if the record is an error (policy `error`), else "".
    """

    rows: list[TokenRow]
    cut: str = ""
    skipped: str = ""
    refused: str = ""


class RewardModel:
    """A reward model, from its files.

    Args:
        folder: the folder that the host saved.
        base: the model under a LoRA adapter; default: the one that the adapter names.
        template: what writes prompts and responses.
        pooling: last, eos, mean or max, as the model was trained.
        cutoff_len: most tokens of a sequence.
        overlong: what happens to longer ones; `host` is LLaMA-Factory's rule.
        dtype: of the weights, such as float32; "auto" is the checkpoint's.
        batch_tokens: most tokens in a batch, padding included.

    Raises:
        FileNotFoundError: the folder has no value head.
        ValueError: there is neither a template nor a chat template, or no end-of-sequence token.
    """

    def __init__(
        self,
        folder: Path,
        *,
        base: str | None = None,
        template: Template = TOKENIZERS_OWN,
        pooling: str = "last",
        cutoff_len: int = 2048,
        overlong: Overlong = "truncate_left",
        dtype: str = "auto",
        batch_tokens: int = 4096,
    ) -> None:
        from transformers import AutoTokenizer

        self.folder, self.pooling, self.cutoff_len, self.dtype = folder, pooling, cutoff_len, dtype
        self.batch_tokens, self.overlong = batch_tokens, overlong
        self.head = head_of(folder)
        own = (folder / name for name in (LLAMAFACTORY_HEAD, LLAMAFACTORY_HEAD_BIN))
        self.keeps_end = not any(file.is_file() for file in own)  # OpenRLHF: a response that is cut keeps its end
        self.base = base or base_of(str(folder))
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        if template.name == CHAT_TEMPLATE and not self.tokenizer.chat_template:
            raise ValueError(f"the tokenizer in {folder} has no chat template: name LLaMA-Factory's template")
        if self.tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer in {folder} has no end-of-sequence token")
        self.encode, self.template = template.encoder(self.tokenizer), template.name
        self.model = f"reward:{identity(str(folder), self.base)}:{dtype}"
        layout = template.name
        if layout == CHAT_TEMPLATE:
            layout = hashlib.blake2b(self.tokenizer.chat_template.encode(), digest_size=4).hexdigest()
        self.tokens = f"{fingerprint(self.tokenizer.backend_tokenizer.to_str())}-{layout}"

    def sequence(self, prompt: Prompt, response: str) -> TokenRow:
        """The token ids of a dialogue that is not left out, see `sequences`."""
        (row,) = self.sequences(prompt, [response]).rows
        return row

    def sequences(self, prompt: Prompt, responses: Sequence[str]) -> Sequences:
        """The token ids of responses to one prompt, as in both hosts' stages, and where their rewards are read.

        Raises:
            RefusedByTemplateError, ChangedByTemplateError: see `synth.encoding`.
            ValueError: pooling is eos and a whole response has no end token.
        """
        tokens = [self.encode(prompt, response) for response in responses]
        before, own = tokens[0].prompt, [each.response for each in tokens]
        lengths = [*map(len, own)]
        rule = host_rules.llamafactory
        kept = fit(len(before), lengths, self.cutoff_len, policy=self.overlong, host_rule=rule)
        if kept.refused:
            return Sequences([], refused=told(len(before), lengths, self.cutoff_len, "--cutoff-len"))
        if kept.skipped:
            return Sequences([], skipped=kept.skipped)
        rows = [self._row(before, ids, kept) for ids in own]
        if None in rows:
            return Sequences([], skipped=END_CUT)
        return Sequences([row for row in rows if row], kept.cut)

    def _row(self, before: list[int], own: list[int], kept: Fit) -> TokenRow | None:
        """One sequence; None if the reward is read at an end token that is cut off."""
        end = self.tokenizer.eos_token_id
        left, ids = before[kept.start : kept.stop], own[: kept.response]
        if self.keeps_end:
            ids = [own[i] for i in host_rules.kept_with_end(own, kept.response, end)]
        read = tokens_read(ids, end, self.pooling)
        if read is None and tokens_read(own, end, self.pooling) is None:
            raise ValueError("the template adds no end token after a response: use pooling last instead of eos")
        if read is None:
            return None
        return TokenRow([*left, *ids], len(left) + read - 1, len(left) + len(ids) < len(before) + len(own))

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

    for name in (LLAMAFACTORY_HEAD, LLAMAFACTORY_HEAD_BIN):
        if (folder / name).is_file():
            tensors = _tensors(folder / name, lambda key: True)
            return tensors["v_head.summary.weight"][0], tensors["v_head.summary.bias"][0]
    config = folder / "config.json"
    prefix = json.loads(config.read_bytes()).get("value_head_prefix", "score") if config.is_file() else ""
    adapted = False
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("adapter_model.bin")]) if prefix else ():
        tensors = _tensors(file, lambda key: f".{key}".endswith((f".{prefix}.weight", f".{prefix}.lora_A.weight")))
        for key, tensor in tensors.items():
            if not key.endswith("lora_A.weight"):
                return tensor[0], torch.zeros(())
            adapted = True
    if adapted:
        raise FileNotFoundError(
            f"{folder} has a LoRA of the value head `{prefix}`, but not the value head below it, which OpenRLHF drew "
            "at random and did not save: train the reward model again"
        )
    raise FileNotFoundError(f"{folder} has no value head: neither {LLAMAFACTORY_HEAD} nor OpenRLHF's score.weight")


def _tensors(file: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """Some tensors of a file of weights, by their names."""
    import torch
    from safetensors import safe_open

    if file.suffix == ".bin":
        found = torch.load(file, map_location="cpu", weights_only=True)
        return {key: tensor for key, tensor in found.items() if wanted(key)}
    with safe_open(file, framework="pt") as stored:
        return {key: stored.get_tensor(key) for key in stored.keys() if wanted(key)}  # noqa: SIM118 (not a mapping)
