"""Change what a module reads, within a `with` block, also where `torch.compile` has compiled the module.

A compiled model does not look for new hooks: one that is registered after the first call is ignored. So a hook is
registered once and stays; outside its `with` block it does nothing. Compiled code checks what the hook is given.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn


class _Hook:
    """A forward pre-hook: the first input x becomes function(x, *given), or stays as it is while `given` is None."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.given: tuple[Any, ...] | None = None

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.given is None:
            return None
        return (self.function(inputs[0], *self.given), *inputs[1:])


_HOOKS: WeakKeyDictionary[nn.Module, dict[Callable[..., Tensor], _Hook]] = WeakKeyDictionary()


@contextmanager
def first_input(module: nn.Module, function: Callable[..., Tensor], *given: Any) -> Iterator[None]:
    """In the context, `module` reads function(x, *given) in place of its first input x.

    Args:
        module: a module inside a model. The hooks of LoRA, ZeRO-3, FSDP and tensor parallelism run as well.
        function: a function of a module, not one that is made for each call.
        given: its further arguments.
    """
    hook = _HOOKS.setdefault(module, {}).get(function)
    if hook is None:
        hook = _HOOKS[module][function] = _Hook(function)
        module.register_forward_pre_hook(hook)
        if "torch._dynamo" in sys.modules:  # what is compiled already does not know the hook
            sys.modules["torch._dynamo"].reset()
    before, hook.given = hook.given, given
    try:
        yield
    finally:
        hook.given = before
