"""The judge `classifier`: a Hugging Face text classifier whose probability of unsafe is compared with a threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from finepref.formats.records import Message
from finepref.formats.row import RowReader
from finepref.synth.engines.checkpoint import accelerator, identity, rendered
from finepref.synth.judges.verdict import BatchJudge, Reads, Row, Verdict

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

OVERLAP = 4
"""Windows over a text that is longer than the context overlap by a quarter."""
_OFFSET = {"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "xmod", "mpnet", "longformer"}
"""Types of models that number positions from the padding token's id + 1, so that these places are not for tokens."""


def classifier(
    model: str,
    unsafe: Sequence[str],
    *,
    threshold: float = 0.5,
    reads: Reads = "response",
    batch_size: int = 8,
) -> BatchJudge:
    """A judge that passes a row if the probability of the unsafe labels is below the threshold.

    The probability is that of transformers' own pipeline: a sigmoid per label if the model's `problem_type` is
    multi_label_classification or it has one label, otherwise a softmax. Of several unsafe labels the sum counts with a
    softmax, and the greatest otherwise. A text that is longer than the model's context is read in windows that overlap
    by a quarter, of which the most unsafe counts; the reason of its verdict tells their number.

    Args:
        model: folder or name of a model for sequence classification.
        unsafe: its labels that mean unsafe, or the only one.
        threshold: the row fails at this probability or above.
        reads: the response alone; or the dialogue, which the tokenizer's chat template writes, or, without one, as two
            segments: the turns of the prompt, and the response.
        batch_size: texts per forward pass. Floating-point sums depend on it, so keep it when a job resumes.

    Raises:
        ValueError: the model has no such label, or is a regression.
    """
    found = _Classifier(model, unsafe, reads)
    return BatchJudge(found.judge, found.version, batch_size, threshold, reads)


def unsafe_labels(given: Sequence[str], known: Sequence[str], model: str) -> list[str]:
    """The labels as the model spells them, from values that are labels or lists with commas; case counts for nothing.

    Raises:
        ValueError: none is given, or the model has no such label.
    """
    by_name = {label.casefold(): label for label in known}
    names = [name for value in given for name in ([value] if value.casefold() in by_name else value.split(","))]
    names = [name.strip() for name in names if name.strip()]
    told = f"the labels of {model} are {', '.join(known)}"
    if not names:
        raise ValueError(f"--judge classifier needs --unsafe-label: {told}")
    if unknown := [name for name in names if name.casefold() not in by_name]:
        raise ValueError(f"--unsafe-label {unknown[0]!r} is no label: {told}")
    return [*dict.fromkeys(by_name[name.casefold()] for name in names)]


class _Text(NamedTuple):
    """What is read of a row: a text, or two segments."""

    first: str
    second: str | None = None


class _Classifier:
    """The model, loaded when it judges for the first time."""

    def __init__(self, model: str, unsafe: Sequence[str], reads: Reads) -> None:
        self.model, self.reads = model, reads
        labels = [str(self.config.id2label[i]) for i in range(self.config.num_labels)]
        if self.config.problem_type == "regression":
            raise ValueError(f"{model} is a regression: it gives no probability")
        chosen = unsafe_labels(unsafe, labels, model)
        self.unsafe = [labels.index(label) for label in chosen]
        self.labels = labels
        several = self.config.problem_type == "multi_label_classification"
        self.softmax = len(labels) > 1 and not several
        self.version = f"classifier-1:{identity(model)}:{reads}:{'+'.join(chosen)}"

    def judge(self, rows: Sequence[Row]) -> list[Verdict]:
        """One verdict per row, `passed` by the probability 0.5; see `BatchJudge`."""
        import torch

        tokenizer, network = self._loaded
        windows: list[Mapping[str, Any]] = []
        owners: list[int] = []
        verdicts: dict[int, Verdict] = {}
        for number, row in enumerate(rows):
            found = self._windows(tokenizer, self._text(row))
            if isinstance(found, str):
                verdicts[number] = Verdict(None, found)
                continue
            windows += found
            owners += [number] * len(found)
        values: dict[int, list[tuple[float, str]]] = {}
        for start in range(0, len(windows), len(rows)):
            batch = tokenizer.pad(windows[start : start + len(rows)], return_tensors="pt").to(network.device)
            with torch.inference_mode():
                logits = network(**batch).logits.float()  # [N, labels]
            shares = logits.softmax(-1) if self.softmax else logits.sigmoid()
            for owner, each in zip(owners[start:], shares[:, self.unsafe].tolist(), strict=False):
                best = self.labels[self.unsafe[max(range(len(each)), key=each.__getitem__)]]
                values.setdefault(owner, []).append((min(1.0, sum(each)) if self.softmax else max(each), best))
        for number, each in values.items():
            score, label = max(each)
            told = label if len(each) == 1 else f"{label}, {len(each)} windows"
            verdicts[number] = Verdict(score < 0.5, told, score)
        return [verdicts[number] for number in range(len(rows))]

    def _text(self, row: Row) -> _Text:
        response = str(row["response"])
        if self.reads == "response":
            return _Text(response)
        tokenizer, _ = self._loaded
        prompt = RowReader(row, columns={}, file="", line=0, nulls_absent=True).prompt()
        if tokenizer.chat_template:
            return _Text(rendered(tokenizer, [*prompt, Message("assistant", response)], answer=False))
        return _Text("\n\n".join(turn.content for turn in prompt), response)

    def _windows(self, tokenizer: PreTrainedTokenizerBase, text: _Text) -> list[Mapping[str, Any]] | str:
        """A text as one sequence, or as windows of the model's context; or why it cannot be read."""
        room = context_of_classifier(self.config, tokenizer)
        frame = tokenizer.num_special_tokens_to_add(pair=text.second is not None)
        pair = {} if text.second is None else {"text_pair": text.second}
        kept = frame
        if text.second is not None:
            kept += len(tokenizer(text.first, add_special_tokens=False)["input_ids"])
        if room - kept < 2:
            return f"the prompt leaves no room in the classifier's {room} tokens"
        whole = {"add_special_tokens": not (self.reads == "dialogue" and text.second is None)}
        found = tokenizer(
            text.first,
            **pair,
            **whole,
            truncation="longest_first" if text.second is None else "only_second",
            max_length=room,
            stride=(room - kept) // OVERLAP,
            return_overflowing_tokens=True,
        )
        names = [name for name in tokenizer.model_input_names if name in found]
        return [{name: found[name][i] for name in names} for i in range(len(found["input_ids"]))]

    @cached_property
    def config(self) -> PretrainedConfig:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.model)

    @cached_property
    def _loaded(self) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        device = accelerator()
        placing = {} if device is None else {"device_map": {"": device}}
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        network = AutoModelForSequenceClassification.from_pretrained(self.model, **placing)
        if network.config.pad_token_id is None:
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            network.config.pad_token_id = tokenizer.pad_token_id  # or such a model reads no batch
        return tokenizer, network.eval()


def context_of_classifier(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """The longest sequence that a classifier reads, in tokens."""
    own = getattr(config, "max_position_embeddings", None) or 2**31
    if config.model_type in _OFFSET:
        own -= (config.pad_token_id or 0) + 1
    return min(own, tokenizer.model_max_length)
