"""A reward model as a SequenceClassification checkpoint, which transformers, vLLM and TEI load without code of ours.

Such a model reads its one label at the last token, by a linear layer `score` without a bias. So a reward model that
was trained at the last token of the text (`last`), or at the end token (`eos`), fits, and its weights are copied.
transformers takes the last token that is not the padding token, wherever the attention mask ends; so a model that is
read at the end token must be padded with another one.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from finepref.formats.records import Message
from finepref.synth.apo.reward_model import RewardModel

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

LABEL = "reward"
POOLINGS = ("last", "eos")
OF_OPENRLHF = ("value_head_prefix", "normalize_reward", "mean", "std")
"""What OpenRLHF adds to config.json for its own class of reward models."""

PROBES = (
    [Message("user", "What is 1 + 1?")],
    [Message("user", "Hi"), Message("assistant", "Hello, what now?"), Message("user", "Name a colour.")],
)
ANSWER = "It is 2."

CARD = """---
library_name: transformers
pipeline_tag: text-classification
---

# {name}

A reward model as `{architecture}` with one label: the reward is the logit, read at {place}.

```python
model = AutoModelForSequenceClassification.from_pretrained(folder)
dialogue = [{{"role": "user", "content": prompt}}, {{"role": "assistant", "content": response}}]
ids = tokenizer.apply_chat_template(dialogue, return_tensors="pt", return_dict=True)
reward = model(**ids).logits[0, 0]
```

`vllm serve FOLDER` answers with rewards at `/classify`; send `messages`, so that the chat template writes the text.
{notes}"""


class Written(NamedTuple):
    """What was written: the class in config.json, the padding token, and remarks for the user."""

    architecture: str
    pad_token: str
    notes: list[str]


def write(model: RewardModel, output: Path, *, drop_bias: bool = False) -> Written:
    """Write config, weights, tokenizer and model card into a new folder.

    Args:
        model: the reward model; a LoRA adapter is merged into its base.
        output: folder to make; if it exists, it must be empty.
        drop_bias: leave a bias of the value head out, so that all rewards are lower by it.

    Raises:
        ValueError: the pooling, the bias or the architecture has no such form, or no token can pad.
        FileExistsError: the folder is not empty.
    """
    if model.pooling not in POOLINGS:
        raise ValueError(
            f"a sequence classifier reads one token, the last, but this reward model has pooling {model.pooling}: "
            f"score with `finepref apo score`, or train with apo_pooling {' or '.join(POOLINGS)}"
        )
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise FileExistsError(f"{output} exists already: name a new folder")
    weight, bias = model.head
    if bias and not drop_bias:
        raise ValueError(
            f"the value head has the bias {bias.item():.6g}, and a sequence classifier has none: --drop-bias leaves "
            "it out, which lowers all rewards by it and changes no comparison"
        )
    tokenizer = model.tokenizer
    pad = _padding_token(tokenizer, keep_end=model.pooling == "eos")
    network = _classifier(_merged(model), weight, tokenizer.convert_tokens_to_ids(pad))
    tokenizer.pad_token, tokenizer.padding_side = pad, "right"
    notes = []
    if bias:
        notes.append(f"Rewards are lower by {bias.item():.6g} than those of `finepref apo score`: a bias is left out.")
    if tokenizer.chat_template:
        tokenizer.chat_template = _closed(tokenizer, model.pooling)
    if (note := _template_note(model)) is not None:
        notes.append(note)
    architecture = type(network).__name__
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    try:
        network.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / "README.md").write_text(_card(model, output.name, architecture, notes), encoding="utf-8")
        partial.chmod(0o755)
        partial.replace(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Written(architecture, pad, notes)


def _merged(model: RewardModel) -> nn.Module:
    """The decoder without an output head, an adapter merged into it, on the CPU."""
    from transformers import AutoModel, AutoModelForCausalLM

    if not model.base:
        return AutoModel.from_pretrained(model.folder, dtype=model.dtype)
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(model.base, dtype=model.dtype)
    return PeftModel.from_pretrained(base, model.folder).merge_and_unload().base_model


def _classifier(decoder: Any, weight: Any, pad: int) -> Any:
    """The SequenceClassification model of a decoder and a head [H], which stays in float32.

    Raises:
        ValueError: transformers has no such class for the decoder, or one with another head.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    config = decoder.config
    for key in OF_OPENRLHF:
        if key in vars(config):
            delattr(config, key)
    config.num_labels, config.problem_type, config.pad_token_id = 1, "regression", pad
    config.id2label, config.label2id = {0: LABEL}, {LABEL: 0}
    try:
        with torch.device("meta"):
            network = AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        raise ValueError(f"transformers has no SequenceClassification class for {config.model_type}") from None
    prefix, head = network.base_model_prefix, getattr(network, "score", None)
    same = type(getattr(network, prefix, None)) is type(decoder)
    if not (same and isinstance(head, torch.nn.Linear) and head.bias is None):
        raise ValueError(
            f"{type(network).__name__} is not a {type(decoder).__name__} with a linear score without bias"
        )
    setattr(network, prefix, decoder)
    network.score = torch.nn.Linear(len(weight), 1, bias=False)
    network.score.weight.data = weight.float().reshape(1, -1).clone()
    return network


def _padding_token(tokenizer: PreTrainedTokenizerBase, *, keep_end: bool) -> str:
    """A token to pad with; not the end token if `keep_end`, because the last token that is not padding is read.

    Raises:
        ValueError: there is none.
    """
    for token in (tokenizer.pad_token, tokenizer.unk_token, tokenizer.bos_token):
        if token is not None and not (keep_end and token == tokenizer.eos_token):
            return str(token)
    if not keep_end:
        return str(tokenizer.eos_token)
    raise ValueError(
        f"the reward is read at the end token {tokenizer.eos_token}, and the tokenizer pads with it: give it another "
        "pad_token"
    )


def _closed(tokenizer: PreTrainedTokenizerBase, pooling: str) -> str:
    """The chat template, changed so that a dialogue that ends in a response ends at the token that is read."""
    end, (probe, *_) = str(tokenizer.eos_token), PROBES
    turns = [message._asdict() for message in (*probe, Message("assistant", ANSWER))]
    template = tokenizer.chat_template
    if end not in tokenizer.apply_chat_template(turns, tokenize=False).rpartition(ANSWER)[2]:
        return template
    kept = f" ~ {json.dumps(end)}" if pooling == "eos" else ""
    return (
        f"{{% set rendered %}}{template}{{% endset %}}"
        "{% if not add_generation_prompt and messages and messages[-1]['role'] == 'assistant' %}"
        f"{{{{ rendered[:rendered.rfind({json.dumps(end)})]{kept} }}}}"
        "{% else %}{{ rendered }}{% endif %}"
    )


def _template_note(model: RewardModel) -> str | None:
    """A remark if the tokenizer's chat template does not write the tokens that the model was trained on."""
    from finepref.synth.encoding import ChangedByTemplateError, RefusedByTemplateError

    tokenizer = model.tokenizer
    try:
        for prompt in PROBES:
            row = model.sequence(prompt, ANSWER)
            turns = [message._asdict() for message in (*prompt, Message("assistant", ANSWER))]
            written = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
            if written != row.ids[: row.position + 1]:
                break
        else:
            return None
    except (ChangedByTemplateError, RefusedByTemplateError, ValueError):
        pass
    return (
        f"The tokenizer's chat template does not write the tokens of the training's template ({model.template}): "
        "write the text by that template, up to the token that is read."
    )


def _card(model: RewardModel, name: str, architecture: str, notes: list[str]) -> str:
    end = model.tokenizer.eos_token
    place = f"the end token `{end}`" if model.pooling == "eos" else f"the last token of the response, before `{end}`"
    return CARD.format(name=name, architecture=architecture, place=place, notes="".join(f"\n{n}\n" for n in notes))
