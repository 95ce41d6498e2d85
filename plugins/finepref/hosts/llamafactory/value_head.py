"""The host's value-head model: one reward per sequence, and files that its export, API and PPO can read.

The value head gets the pooled hidden state instead of all hidden states. The output head, whose logits a reward model
does not use, gets one position instead of all. Forward pre-hooks do both, inside the modules' own forward.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from llamafactory.extras.constants import V_HEAD_SAFE_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor

from finepref.hosts.llamafactory.export import head_file
from finepref.losses.chunked import whole
from finepref.losses.hooks import first_input
from finepref.losses.pooling import pool


@contextmanager
def pooled(model: Any, attended: Tensor, position: Tensor, how: str) -> Iterator[None]:
    """Within the `with` block, a forward pass on [N, T] gives values [N, 1] and logits [N, 1, V].

    Args:
        model: the value-head model.
        attended: [N, T], the attention mask.
        position: [N], the position that is read with "last" and "eos".
        how: "last", "eos", "mean" or "max", see `finepref.losses.pooling`.
    """
    with ExitStack() as stack:
        stack.enter_context(first_input(model.v_head, _read, attended, position, how))
        output_head = model.pretrained_model.get_output_embeddings()
        if output_head is not None:
            stack.enter_context(first_input(output_head, _last))
        yield


def _read(hidden: Tensor, attended: Tensor, position: Tensor, how: str) -> Tensor:
    """Hidden states [N, T, H] -> [N, 1, H]."""
    return pool(whole(hidden), attended, position, how).unsqueeze(1)


def _last(hidden: Tensor) -> Tensor:
    """Hidden states [N, T, H] -> [N, 1, H]."""
    return hidden[:, -1:]


def settle(model: Any, *, new: bool = False) -> None:
    """Make the value head deterministic and exact, and freeze the parameters that a reward model does not use.

    Args:
        model: the value-head model.
        new: whether the head is a random one. Then its bias becomes 0, so that the reward is linear in the hidden
            state as on OpenRLHF and in a SequenceClassification model.

    TRL gives the head a dropout of 0.1, which neither APO nor the rest of the model has. The head computes in float32
    wherever it runs: autocast or weights in bfloat16 would round rewards to 8 bits. Its bias shifts all rewards
    equally, so the bias's gradient is 0 except for rounding errors, which Adam would turn into steps of full length.
    An untied output head gets no gradient, and DDP must not wait for it.
    """
    model.v_head.dropout = torch.nn.Identity()
    summary = model.v_head.summary
    summary.bias.requires_grad_(False)
    if new:
        summary.bias.data.zero_()
    summary.forward = partial(_exact, summary)  # within the module, whose hooks gather its weight under ZeRO-3
    # TRL's own forward rounds the hidden states to the type of the weight
    model.v_head.forward = partial(torch.nn.Module.__call__, summary)
    output_head = model.pretrained_model.get_output_embeddings()
    if output_head is not None and output_head.weight is not model.pretrained_model.get_input_embeddings().weight:
        output_head.requires_grad_(False)


def match_dtype(model: Any) -> None:
    """Give the value head the number format of the other trained weights: ZeRO-3 puts them into one buffer."""
    trained = [parameter for parameter in model.pretrained_model.parameters() if parameter.requires_grad]
    if trained:
        model.v_head.to(trained[0].dtype)


def name_by_modules(model: Any) -> None:
    """Let the state dict name each weight by its module, as PyTorch's FSDP needs; TRL's leaves out a prefix."""
    model.state_dict = partial(torch.nn.Module.state_dict, model)


def _exact(linear: torch.nn.Linear, hidden: Tensor) -> Tensor:
    """A linear layer in float32, on whatever device it is called, inside autocast or not."""
    with torch.autocast(hidden.device.type, enabled=False):
        return torch.nn.functional.linear(hidden.float(), linear.weight.float(), linear.bias.float())


def has_head(model_args: Any) -> bool:
    """Whether the host has loaded a value head with the model: it looks beside the last adapter, else the model."""
    place = (model_args.adapter_name_or_path or [model_args.model_name_or_path])[-1]
    return head_file(place, model_args, online=False) is not None  # a head on the hub is downloaded by now


def split(state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a state dict into (decoder, value head), without the prefix of decoder names under ZeRO-3 and FSDP."""
    head = {name: tensor for name, tensor in state_dict.items() if name.startswith("v_head.")}
    decoder = {
        name.removeprefix("pretrained_model."): tensor for name, tensor in state_dict.items() if name not in head
    }
    return decoder, head


def save_head(head: dict[str, Tensor], folder: str) -> None:
    """Write the head to the file that the host's load_model, export and API read."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.items()}
    save_file(tensors, str(Path(folder, V_HEAD_SAFE_WEIGHTS_NAME)), metadata={"format": "pt"})


def copy_head(source: str, target: str) -> None:
    """Copy what `save_head` wrote into another folder."""
    shutil.copy(Path(source, V_HEAD_SAFE_WEIGHTS_NAME), Path(target, V_HEAD_SAFE_WEIGHTS_NAME))


def load_head(model: Any, folder: str) -> None:
    """Load the value head from a checkpoint.

    Raises:
        FileNotFoundError: the folder has no value head.
    """
    file = Path(folder, V_HEAD_SAFE_WEIGHTS_NAME)
    if not file.is_file():
        raise FileNotFoundError(
            f"there is no {V_HEAD_SAFE_WEIGHTS_NAME} in {folder}: it is not a checkpoint of a reward model"
        )
    tensors = load_file(str(file))
    model.v_head.load_state_dict({name.removeprefix("v_head."): tensor for name, tensor in tensors.items()})
