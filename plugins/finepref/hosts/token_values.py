"""What a loss reads of a forward pass, the same on both hosts: log-probabilities and KL at the needed tokens.

The model's output head computes them in place of logits, a chunk at a time (`finepref.losses.fused_head`), within the
model's own forward pass: so ZeRO-3 and FSDP gather its weights as always. Of a reference whose KL is read, only the
hidden states of the needed positions are kept; its logits are made chunk by chunk in the policy's pass.

Which heads: plain linear layers, tied or not, frozen or trained; those of LoRA, DoRA or quantised layers by their own
code; logits that the model scales or caps afterwards. A trial with one token shows whether the model does anything
else with them; then the logits of the needed positions are computed as they are.

N needed positions on this process, V vocabulary size, H hidden size, M responses, L tokens, T = L - 1.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from finepref.losses import chunked, fused_head, ops
from finepref.losses.hooks import forward_as

logger = logging.getLogger(__name__)

SMALL = 2**27
"""Float32 logits of up to this many bytes are kept if the head has a gradient: else they would be computed twice."""


class Wanted(NamedTuple):
    """The tokens that a loss reads.

    Attributes:
        positions: [N], flat indices of the positions that predict them, in the layout of the hidden states.
        targets: [N], the token ids.
        place: puts values [N] into [M, T], in label space, 0 elsewhere.
        rejected_from: before this position, none belongs to a rejected response; 0 where that is not known.
    """

    positions: Tensor
    targets: Tensor
    place: Callable[[Tensor], Tensor]
    rejected_from: int = 0

    def kl_from(self, kl: str) -> int:
        """The first position whose KL has a gradient, N if none has; `kl` as `Stage.kl`."""
        return {"loss": 0, "rejected": self.rejected_from}.get(kl, len(self.positions))


class TokenValues(NamedTuple):
    """Values of the needed tokens, 0 elsewhere, [M, T] each: log pi, KL(pi_ref || pi), log pi_ref."""

    logps: Tensor
    kl: Tensor | None = None
    reference: Tensor | None = None


class Pass(NamedTuple):
    """A model and how to run it.

    Attributes:
        network: the Hugging Face model, in its wrapper of LoRA, without those of DDP, DeepSpeed and FSDP.
        run: () -> logits of the batch.
        run_one: token ids [1, 1] -> logits [1, 1, V], for the trial; None if there can be none.
    """

    network: nn.Module
    run: Callable[[], Tensor]
    run_one: Callable[[Tensor], Tensor] | None


class Reference(NamedTuple):
    """What is kept of the reference's pass: `logps` [M, T] if no KL is read, else how to make its logits.

    Attributes:
        kept: hidden states [N, H] of the wanted positions; logits [N, V] if `head` is None.
        head: makes logits [n, V] of hidden states [n, H]; `OWN` for the policy's own head.
        processed: what the model does with its head's output.
    """

    logps: Tensor | None = None
    kept: Tensor | None = None
    head: Any = None
    processed: Callable[[Tensor], Tensor] | None = None

    def logits(self, own: Callable[[Tensor], Tensor], start: int, stop: int) -> Tensor:
        """The logits of a chunk; `own` is the forward of the policy's head."""
        rows = self.kept[start:stop]
        if self.head is not None:
            rows = (own if self.head is OWN else self.head)(rows)
        return self.processed(rows)


OWN = object()


def read(policy: Pass, wanted: Wanted, reference: Reference | None = None, *, kl: str = "") -> TokenValues:
    """A forward pass of the policy, and the values at the wanted tokens.

    Args:
        policy: the model.
        wanted: the tokens.
        reference: of `read_reference`, with the same `kl`.
        kl: as `Stage.kl`.

    Raises:
        ValueError: the model did not use its output head once.
    """
    theirs = reference if kl else None
    after, head = _after(policy), policy.network.get_output_embeddings()
    if after is None:
        with chunked.head_at(head, wanted.positions):
            logits = chunked.whole(policy.run()[0])
        found = _of_logits(
            logits, wanted.targets, theirs and theirs.kept, gradient=wanted.kl_from(kl) < len(wanted.positions)
        )
    else:
        head = _computing(head)
        with after.left_out(), forward_as(head, _values, head, after, wanted, theirs, wanted.kl_from(kl)):
            output = policy.run()
        if output.shape[:2] != (1, len(wanted.positions)):
            raise ValueError(
                f"{len(wanted.positions)} positions were asked for, the output head was not cut: it gave "
                f"{[*output.shape]}. `finepref_full_logits` computes all logits instead"
            )
        found = fused_head.Values(*output[0].unbind(-1))
    placed = [each if each is None else wanted.place(each) for each in found]
    return TokenValues(*placed) if theirs or reference is None else TokenValues(placed[0], None, reference.logps)


@contextmanager
def in_place_of_logits(policy: Pass, wanted: Wanted) -> Iterator[bool]:
    """In the context, the model's logits are log pi of the wanted tokens [1, N, 1]. Yields whether that is so.

    For a loss function that runs within the model's own forward pass.
    """
    after, head = _after(policy), _computing(policy.network.get_output_embeddings())
    if after is None:
        yield False
    else:
        with after.left_out(), forward_as(head, _values, head, after, wanted, None, 0):
            yield True


def read_reference(reference: Pass, wanted: Wanted, policy: nn.Module, *, kl: str = "") -> Reference:
    """A forward pass of the reference. It must be called without gradients.

    Args:
        reference, wanted, kl: as in `read`.
        policy: the network that is trained. It may be the reference's too, with its adapter switched off.
    """
    if not kl:
        return Reference(read(reference, wanted).logps)
    after, head = _after(reference), reference.network.get_output_embeddings()
    if after is None:
        with chunked.head_at(head, wanted.positions):
            return Reference(None, chunked.whole(reference.run()[0]), None, lambda logits: logits)
    source, kept = _source(reference.network, policy), list[tuple[Tensor, bool]]()
    with after.left_out(), forward_as(_computing(head), _keep, wanted.positions, source is None, kept):
        reference.run()
    (found, is_logits) = kept[0]
    return Reference(None, found, None if is_logits else source, after.head.processed)


@torch.compiler.disable
def _values(
    forward: Callable[[Tensor], Tensor],
    hidden: Tensor,
    module: nn.Module,
    after: _After,
    wanted: Wanted,
    reference: Reference | None,
    kl_from: int,
) -> Tensor:
    """In place of a head's logits [1, N, V]: the values [1, N, 1 or 3]."""
    rows = chunked.kept(hidden, wanted.positions)
    theirs = reference and (lambda start, stop: reference.logits(forward, start, stop))
    if isinstance(rows, DTensor):  # tensor parallelism
        logits = after.head.processed(chunked.whole(forward(rows))[0])
        found = _of_logits(logits, wanted.targets, theirs and theirs(0, len(logits)), gradient=kl_from < len(logits))
    elif type(module).forward is nn.Linear.forward and not hasattr(module, "_hf_hook"):
        head = after.head._replace(weight=module.weight, bias=module.bias)
        trained = torch.is_grad_enabled() and module.weight.requires_grad
        if trained and reference is None and 4 * rows.shape[1] * len(module.weight) <= SMALL:
            found = _of_logits(head.logits(rows[0]), wanted.targets)
        else:
            found = fused_head.values(rows[0], head, wanted.targets, theirs, kl_from=kl_from)
    else:
        call = lambda part: after.head.processed(forward(part))  # noqa: E731
        found = fused_head.through(call, rows[0], wanted.targets, theirs, kl_from=kl_from)
    return torch.stack([each for each in found if each is not None], -1).unsqueeze(0)


def _of_logits(
    logits: Tensor, targets: Tensor, theirs: Tensor | None = None, *, gradient: bool = True
) -> fused_head.Values:
    """The values of stored logits [N, V]; `gradient` is whether the KL has one."""
    logps = chunked.logps_at(logits, targets)
    if theirs is None:
        return fused_head.Values(logps)
    with torch.set_grad_enabled(gradient and torch.is_grad_enabled()):
        kl = chunked.kl_at(logits, theirs)
    with torch.no_grad():
        return fused_head.Values(logps, kl, chunked.logps_at(theirs, targets))


@torch.compiler.disable
def _keep(
    forward: Callable[[Tensor], Tensor],
    hidden: Tensor,
    positions: Tensor,
    logits: bool,
    kept: list[tuple[Tensor, bool]],
) -> Tensor:
    """Keep the hidden states at the positions, or their logits, and give the model zeros [1, N, 1] to go on with."""
    rows = chunked.kept(hidden, positions)
    logits = logits or isinstance(rows, DTensor)  # tensor parallelism
    found = chunked.whole(forward(rows) if logits else rows)[0]
    kept.append((found, logits))
    return found.new_zeros(1, len(positions), 1)


def _source(network: nn.Module, policy: nn.Module) -> Any:
    """What makes logits of the reference's hidden states in the policy's pass; None if its logits must be kept."""
    outer = network.get_output_embeddings()
    head = _computing(outer)
    sharded = any(hasattr(each, "ds_id") or isinstance(each, DTensor) for each in head.parameters()) or any(
        isinstance(each, FullyShardedDataParallel) for each in network.modules()
    )
    if network is not policy or hasattr(outer, "modules_to_save"):
        return head if not sharded and not any(each.requires_grad for each in head.parameters()) else None
    if hasattr(head, "base_layer"):  # LoRA on the head itself
        return head.base_layer if head.disable_adapters else None
    return None if any(each.requires_grad for each in head.parameters()) else OWN


def _computing(head: nn.Module) -> nn.Module:
    """The module that computes in an output head: inside the wrappers of FSDP and of peft's `modules_to_save`."""
    while isinstance(head, FullyShardedDataParallel):
        head = head.module
    if hasattr(head, "modules_to_save"):
        name = head.active_adapters[0]
        off = head.disable_adapters or name not in head.modules_to_save
        head = head.original_module if off else head.modules_to_save[name]
    return head


class _After(NamedTuple):
    """What a model does with its head's output: scale and softcap of `head`, which has no weight.

    `neutral` has (object, attribute, value) of what must be set for the model to leave it out.
    """

    head: fused_head.Head
    neutral: tuple[tuple[Any, str, Any], ...]

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """In the context, the model's logits are its head's output."""
        before = [getattr(each, name) for each, name, _ in self.neutral]
        try:
            for each, name, value in self.neutral:
                setattr(each, name, value)
            yield
        finally:
            for (each, name, _), value in zip(self.neutral, before, strict=True):
                setattr(each, name, value)


_AFTER: WeakKeyDictionary[nn.Module, _After | None] = WeakKeyDictionary()


def _after(model: Pass) -> _After | None:
    """See `_After`; None if the model does something else with its head's output. Found by a trial, once."""
    if model.network not in _AFTER:
        _AFTER[model.network] = _trial(model) if model.run_one else None
        if _AFTER[model.network] is None:
            logger.warning("%s changes its logits in an unknown way: they are computed", type(model.network).__name__)
    return _AFTER[model.network]


def _trial(model: Pass) -> _After | None:
    head = _computing(model.network.get_output_embeddings())
    after, device = _declared(model.network, head), next(head.parameters()).device
    outputs: list[Tensor] = []

    @torch.compiler.disable
    def watched(forward: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        outputs.append(chunked.whole(forward(hidden)))
        return outputs[-1]

    ids = torch.zeros(1, 1, dtype=torch.int64, device=device)
    devices = [] if device.type == "cpu" else [device]
    with torch.no_grad(), torch.random.fork_rng(devices), forward_as(head, watched):
        usual = model.run_one(ids)
        with after.left_out():
            bare = model.run_one(ids)
    if len(outputs) != 2:
        return None
    known = torch.allclose(after.head.processed(outputs[0]).float(), usual.float(), rtol=1e-2, atol=1e-3)
    return after if known and torch.equal(outputs[1].float(), bare.float()) else None


def _declared(network: nn.Module, head: nn.Module) -> _After:
    """What the configuration says of scales and caps, by the names that transformers' models give them."""
    configs = [network.config, network.config.get_text_config()]
    owners = [each for each in network.modules() if any(child is head for child in each.children())]
    inner = [each.model for each in owners if isinstance(getattr(each, "model", None), nn.Module)]
    names = (
        (configs, "final_logit_softcapping", None),
        (configs, "logits_scaling", 1.0),
        (owners, "logit_scale", 1.0),
        (inner, "lm_head_multiplier", 1.0),
    )
    neutral = [
        (each, name, value)
        for places, name, value in names
        for each in {id(each): each for each in places}.values()
        if isinstance(getattr(each, name, None), float | int)
    ]
    found = {name: float(getattr(each, name)) for each, name, _ in neutral}
    scale = found.get("logit_scale", 1.0) * found.get("lm_head_multiplier", 1.0) / found.get("logits_scaling", 1.0)
    head_only = fused_head.Head(None, None, scale, found.get("final_logit_softcapping"))
    return _After(head_only, tuple(neutral))


class AllLogits:
    """Logits of every position, without recomputation; for comparison only (`finepref_full_logits`).

    Args:
        logits: [M, L, V].
        tokens: [M, L], the token ids.
        needed: bool [M, T], in label space.
    """

    def __init__(self, logits: Tensor, tokens: Tensor, needed: Tensor) -> None:
        self.logits, self.tokens, self.needed = chunked.whole(logits), tokens, needed

    def logps(self) -> Tensor:
        """log pi of the needed tokens, 0 elsewhere: [M, T]."""
        labels = torch.where(self.needed, self.tokens[:, 1:], -100)
        return ops.token_logps(self.logits, torch.cat((self.tokens[:, :1], labels), 1))

    def values(self, reference: AllLogits | None = None, *, kl: str = "") -> TokenValues:
        """As `read`, of a policy."""
        logps = self.logps()
        if reference is None:
            return TokenValues(logps)
        with torch.no_grad():
            known = reference.logps()
        if not kl:
            return TokenValues(logps, None, known)
        with torch.set_grad_enabled(kl in ("loss", "rejected") and torch.is_grad_enabled()):
            found = ops.position_kl(self.logits[:, :-1], reference.logits[:, :-1])
        return TokenValues(logps, torch.where(self.needed, found, 0.0), known)
