"""Rewards from a trained reward model of either host, read from its files alone.

    LLaMA-Factory  a decoder or a LoRA adapter, and value_head.safetensors (v_head.summary.weight [1, H] and bias [1])
    OpenRLHF       a decoder with a tensor NAME.weight [1, H] beside it, NAME by `value_head_prefix` of config.json

The reward is that of the hosts' own scoring: a linear function of the hidden state at the last token of the response
(or its end token, or a mean or maximum over all tokens). OpenRLHF's optional normalisation is not applied.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from finepref.formats.apo_samples import cut_at_next_turn, read_items
from finepref.formats.check import digest
from finepref.formats.identified import read_identified
from finepref.formats.jsonl import read_rows, write_jsonl
from finepref.formats.problems import BadData
from finepref.formats.records import Pair, Prompt, Ranked, content_id, parse
from finepref.formats.released import dialogue
from finepref.formats.row import RowReader
from finepref.formats.scores import fingerprint
from finepref.synth.apo.sample import Scored, texts_of
from finepref.synth.engines.hf import folder_digest, load_network
from finepref.synth.journal import Journal
from finepref.synth.scorers.hf import Item, batches

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

Encode = Callable[[Prompt, str], tuple[list[int], list[int]]]
"""(prompt, response) -> token ids of both, the response with what the template puts after it."""

LLAMAFACTORY_HEAD = "value_head.safetensors"


class TokenRow(NamedTuple):
    """Token ids, and the position where the reward is read."""

    ids: list[int]
    position: int
    cut: bool


class RewardModel:
    """A reward model's files.

    Args:
        folder: what the host saved.
        base: the decoder under a LoRA adapter; default: the one that the adapter names.
        encoder: makes the tokens, given the tokenizer; default: its chat template.
        template: a name for what the encoder does, for the journal.
        pooling: last, eos, mean or max, as the model was trained.
        cutoff_len: longer sequences lose their beginning.
        dtype: of the weights, such as float32; "auto" is the checkpoint's.
        batch_tokens: most tokens in a batch, padding included.

    Raises:
        FileNotFoundError: the folder is not a reward model's.
        ValueError: there is no chat template to make tokens by, or no end-of-sequence token.
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
        parts = [folder_digest(folder)]
        if self.base:
            parts.append(folder_digest(Path(self.base)) if Path(self.base).is_dir() else self.base)
        self.model = f"reward:{'+'.join(parts)}:{dtype}"
        layout = template or hashlib.blake2b(self.tokenizer.chat_template.encode(), digest_size=4).hexdigest()
        self.tokens = f"{fingerprint(self.tokenizer.backend_tokenizer.to_str())}-{layout}"

    def sequence(self, prompt: Prompt, response: str) -> TokenRow:
        """The tokens that are read, as both hosts' stages make them.

        Raises:
            ValueError: the response leaves no room for the prompt, or has no end token where the reward is read.
        """
        before, own = self.encode(prompt, response)
        if len(own) >= self.cutoff_len:
            raise ValueError(f"a response of {len(own)} tokens leaves no room for the prompt in {self.cutoff_len}")
        ids, end = [*before, *own], self.tokenizer.eos_token_id
        closing = len(ids) - 1 - own[::-1].index(end) if end in own else -1
        if self.pooling == "eos" and closing < 0:
            raise ValueError("the template ends no response with the tokenizer's end token: pooling eos cannot be")
        position = closing if self.pooling == "eos" else (closing if closing >= 0 else len(ids)) - 1
        dropped = max(0, len(ids) - self.cutoff_len)
        return TokenRow(ids[dropped:], position - dropped, dropped > 0)

    def rewards(self, items: Mapping[str, TokenRow], *, done: Sequence[str] = ()) -> Iterator[dict[str, float]]:
        """The rewards of sequences by name, batch by batch; the batches, of similar lengths, depend on all items."""
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

        from finepref.losses.pooling import pool

        width = max(len(row.ids) for row in rows)
        ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows], device=network.device)  # [N, T]
        lengths = torch.tensor([len(row.ids) for row in rows], device=network.device)
        attended = torch.arange(width, device=network.device) < lengths.unsqueeze(1)
        positions = torch.tensor([row.position for row in rows], device=network.device)
        hidden = network(input_ids=ids, attention_mask=attended.long(), use_cache=False).last_hidden_state
        return pool(hidden, attended, positions, self.pooling)


def head_of(folder: Path) -> tuple[Tensor, Tensor]:
    """Weight [H] and bias [] of the value head in a folder.

    Raises:
        FileNotFoundError: there is none.
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
            if f"{prefix}.weight" in stored.keys():  # noqa: SIM118 (it is no mapping)
                return stored.get_tensor(f"{prefix}.weight")[0], torch.zeros(())
    raise FileNotFoundError(f"{folder} has no value head: neither {LLAMAFACTORY_HEAD} nor OpenRLHF's score.weight")


def chat_template(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """Tokens by the tokenizer's chat template, prompt and response each by itself, as our OpenRLHF stages do."""

    def encode(prompt: Prompt, response: str) -> tuple[list[int], list[int]]:
        turns = [turn._asdict() for turn in prompt]
        before = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        turns.append({"role": "assistant", "content": response})
        both = tokenizer.apply_chat_template(turns, tokenize=False)
        if not both.startswith(before):
            raise ValueError("the chat template writes the turns before a response differently when it is there")
        parts = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, both[len(before) :]))
        return next(parts), next(parts)

    return encode


class Outcome(NamedTuple):
    """Rows and responses, and how many of the latter are empty, so without a reward, or lost their beginning."""

    rows: int
    responses: int
    empty: int
    cut: int


def score(path: Path, output: Path, *, model: RewardModel, cut: bool = True, work_dir: Path | None = None) -> Outcome:
    """Rewards of all responses of a file: rows {id, prompt or messages, responses, rewards, scores?, kind?}.

    Args:
        path: samples {query_id, query, sample_0, ...}; `ranked` or `pair` records, whose scores are kept; or rows
            {id?, prompt or messages, responses}. An empty response has the reward null; there may be any number.
        output: the JSON Lines file to write.
        model: gives the rewards.
        cut: of samples, leave out what follows "\\nHuman:".
        work_dir: where the journal is; by default `<stem>.work` beside the output.

    Raises:
        BadData: the input has problems.
        ValueError: see `RewardModel.sequence`; or a reward is NaN or infinite.
        JournalBusy, JournalChanged, JournalDamaged: see `Journal`.
    """
    records = read_scorable(path, cut=cut)
    items: dict[str, TokenRow] = {}
    for record in records:
        for i, text in enumerate(record.responses):
            if text.strip():
                items[f"{record.id}/{i}"] = model.sequence(record.prompt, text)
    with Journal(
        work_dir or output.with_suffix(".work"),
        job="apo score",
        model=model.model,
        prompt_version=model.tokens,
        sampling={
            "pooling": model.pooling,
            "cutoff_len": model.cutoff_len,
            "cut": cut,
            "batch_tokens": model.batch_tokens,
        },
        seed=0,
        input_digest=digest(path),
    ) as journal:
        if any(name not in journal.done for name in items):
            with tqdm(
                total=len(items), initial=len(journal.done), desc="apo score", unit="response", disable=None
            ) as bar:
                for found in model.rewards(items, done=[*journal.done]):
                    if any(abs(value) == float("inf") or value != value for value in found.values()):
                        raise ValueError(f"{model.folder} gives no number for one of {', '.join(found)}")
                    journal.append({"id": name, "reward": value} for name, value in found.items())
                    bar.update(len(found))
        done = journal.done
    rows = []
    for record in records:
        names = [f"{record.id}/{i}" for i in range(len(record.responses))]
        rewards = tuple(float(str(done[name]["reward"])) if name in items else None for name in names)
        rows.append(record._replace(rewards=rewards).row)
    write_jsonl(output, rows)
    responses = sum(len(record.responses) for record in records)
    return Outcome(len(rows), responses, responses - len(items), sum(item.cut for item in items.values()))


def read_scorable(path: Path, *, cut: bool = True) -> list[Scored]:
    """The rows of a file of samples, records or responses, without rewards.

    Raises:
        BadData: with all problems of the file.
    """
    if not any("query" in (raw.value or {}) for raw in islice(read_rows(path), 1)):
        return read_identified(path, _scorable)
    items, problems = read_items(path, "sample")
    if problems:
        raise BadData(problems)
    found = []
    for key, item in items.items():
        texts = [cut_at_next_turn(text) if cut else text for text in item.texts.values()]
        prompt, responses = dialogue(item.query, texts)
        found.append(Scored(key, prompt, tuple(responses), (None,) * len(texts)))
    return found


def _scorable(reader: RowReader) -> Scored | None:
    row = reader.row
    if "responses" in row and "scores" not in row:
        given, prompt, texts = reader.id(), reader.prompt(), texts_of(reader)
        return Scored(given or content_id(prompt, texts), prompt, texts, (None,) * len(texts))
    record = parse(row, "pair" if "chosen" in row else "ranked", file=reader.file, line=reader.line)
    if isinstance(record, list):
        reader.problems += record
        return None
    if isinstance(record, Pair):
        margin = 1.0 if record.margin is None else record.margin
        if not margin > 0:
            reader.note("margin", "FP220", f"is {margin:g}, so chosen is not above rejected")
        return Scored(record.id, record.prompt, (record.chosen, record.rejected), (None, None), (margin, 0.0))
    assert isinstance(record, Ranked)
    return Scored(
        record.id, record.prompt, record.responses, (None,) * len(record.responses), record.scores, record.kind
    )
