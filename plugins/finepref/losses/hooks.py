"""Change what a module reads or computes, within a `with` block, also where `torch.compile` has compiled the module.

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
        _forget_compiled()
    before, hook.given = hook.given, given
    try:
        yield
    finally:
        hook.given = before


class _Forward:
    """In place of a module's forward: function(forward, x, *given), or the module's own while `given` is None."""

    def __init__(self, function: Callable[..., Tensor], forward: Callable[..., Tensor]) -> None:
        self.function, self.forward = function, forward
        self.given: tuple[Any, ...] | None = None

    def __call__(self, *inputs: Any, **options: Any) -> Tensor:
        if self.given is None:
            return self.forward(*inputs, **options)
        return self.function(self.forward, inputs[0], *self.given)


@contextmanager
def forward_as(module: nn.Module, function: Callable[..., Tensor], *given: Any) -> Iterator[None]:
    """In the context, `module` computes function(its own forward, x, *given) of its first input x.

    All hooks of the module run as before, so that sharded weights are gathered for it.
    """
    if not isinstance(module.forward, _Forward):
        module.forward = _Forward(function, module.forward)
        _forget_compiled()
    there = module.forward
    before, there.function, there.given = (there.function, there.given), function, given
    try:
        yield
    finally:
        there.function, there.given = before


def _forget_compiled() -> None:
    if "torch._dynamo" in sys.modules:  # what is compiled already does not know the change
        sys.modules["torch._dynamo"].reset()
