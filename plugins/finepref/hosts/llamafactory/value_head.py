"""The host's value-head model: one reward per sequence, and files that its export, API and PPO can read.

The head gets the pooled hidden state instead of all of them, and the output head, whose logits a reward model throws
away, gets one position instead of all: both by forward pre-hooks, which fire inside the modules' own forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from llamafactory.extras.constants import V_HEAD_SAFE_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor

from finepref.losses.pooling import pool


@contextmanager
def pooled(model: Any, attended: Tensor, position: Tensor, how: str) -> Iterator[None]:
    """While it lasts, a forward of the value-head model on [N, T] gives values [N, 1] and logits [N, 1, V]."""
    handles = [
        model.v_head.register_forward_pre_hook(lambda _, args: (pool(args[0], attended, position, how).unsqueeze(1),))
    ]
    output_head = model.pretrained_model.get_output_embeddings()
    if output_head is not None:
        handles.append(output_head.register_forward_pre_hook(lambda _, args: (args[0][:, -1:], *args[1:])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def settle(model: Any) -> None:
    """Make the head deterministic and exact, and leave out of training what a reward model does not use.

    TRL gives the head a dropout of 0.1, which neither APO nor the rest of the model has; under autocast it would round
    rewards to 8 bits. Its bias moves all rewards alike, so its gradient is 0 but for rounding errors, which Adam would
    make into steps of full length. An output head of its own gets no gradient, and DDP must not wait for it.
    """
    model.v_head.dropout = torch.nn.Identity()
    model.v_head.summary.bias.requires_grad_(False)
    device = next(model.v_head.parameters()).device.type
    model.v_head.forward = torch.autocast(device, enabled=False)(model.v_head.forward)
    output_head = model.pretrained_model.get_output_embeddings()
    if output_head is not None and output_head.weight is not model.pretrained_model.get_input_embeddings().weight:
        output_head.requires_grad_(False)


def split(state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(decoder, head) of the model's state dict; under ZeRO-3 the decoder's names have one more prefix."""
    head = {name: tensor for name, tensor in state_dict.items() if name.startswith("v_head.")}
    decoder = {
        name.removeprefix("pretrained_model."): tensor for name, tensor in state_dict.items() if name not in head
    }
    return decoder, head


def save_head(head: dict[str, Tensor], folder: str) -> None:
    """Write the head where the host's load_model, export and API look for it."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.items()}
    save_file(tensors, str(Path(folder, V_HEAD_SAFE_WEIGHTS_NAME)), metadata={"format": "pt"})


def load_head(model: Any, folder: str) -> None:
    """Read the head back.

    Raises:
        FileNotFoundError: the folder has none.
    """
    file = Path(folder, V_HEAD_SAFE_WEIGHTS_NAME)
    if not file.is_file():
        raise FileNotFoundError(
            f"there is no {V_HEAD_SAFE_WEIGHTS_NAME} in {folder}: it is no reward model's checkpoint"
        )
    tensors = load_file(str(file))
    model.v_head.load_state_dict({name.removeprefix("v_head."): tensor for name, tensor in tensors.items()})
