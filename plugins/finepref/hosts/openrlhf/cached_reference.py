"""The option `finepref_reference_cache` on OpenRLHF, see `finepref.hosts.reference_cache`.

The host's `train` makes the policy, then the reference, and loads a checkpoint later. So in place of the reference the
files are made, by the policy as it was loaded or by a model that is given up then. Under ZeRO-3 a model runs only in
its engine: the reference is made as without a cache, the files by it right before the first step, and it is given up.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from openrlhf.models import Actor
from torch import Tensor

from finepref.hosts import reference_cache
from finepref.hosts.evaluating import evaluating
from finepref.hosts.model_identity import identity
from finepref.hosts.openrlhf import compat, data, forward, training
from finepref.hosts.openrlhf.command_line import Request
from finepref.hosts.openrlhf.run_setup import same_model
from finepref.hosts.openrlhf.stored_rows import TokenisedRows
from finepref.hosts.reference_cache import Cache, Kept, Text, Texts
from finepref.hosts.run import Run

NAME = "reference"
"""Array beside the columns of tokenised rows, with the log-probabilities of each row, see `Kept`."""


def refuse(request: Request) -> None:
    """Refuse ways to run with which a process has parts of sequences, or of weights in groups.

    Raises:
        ValueError: one line that names the flag.
    """
    key = request.options.key("finepref_reference_cache", "true")
    for flag, size in (
        ("--ds.ring_attn_size", request.host.ds.ring_attn_size),
        ("--ds.tensor_parallel_size", request.host.ds.tensor_parallel_size),
    ):
        if size > 1:
            raise ValueError(f"{key} does not go with {flag} {size}: leave one of them out")


class CachedReference:
    """The files of a run, one of each split.

    Args:
        run: the run; its setup gets the names of the files.
        request: the parsed command line.
        splits: the tokenised rows.
        texts_of: makes the texts of a split.
    """

    def __init__(
        self, run: Run, request: Request, splits: Sequence[TokenisedRows], texts_of: Callable[[TokenisedRows], Texts]
    ) -> None:
        refuse(request)
        self.run, self.args, self.splits = run, request.host, splits
        self.texts = [texts_of(split) for split in splits]
        self.caches: list[Cache] = []
        self.pending = False  # whether the trainer has to make the files

    def actors(self) -> dict[str, Any]:
        """The name `Actor` of the host's `train`."""
        made: list[Actor] = []

        def actor(*arguments: Any, **options: Any) -> Any:
            if made:  # the host makes the policy first
                return self._reference(made[0], lambda: Actor(*arguments, **options))
            made.append(Actor(*arguments, **options))
            return made[0]

        return {"Actor": actor}

    def _reference(self, policy: Actor, load: Callable[[], Actor]) -> Any:
        """What the host gets as reference: nothing, as soon as the files are there."""
        args, own = self.args, None
        if same_model(args):
            own = training.WithoutAdapter(policy) if args.ds.lora.rank else policy
        sharded, loaded = args.ds.zero_stage == 3, None
        name = args.ref.model_name_or_path
        if own is None and not sharded and not identity(name)["weights_sha256"]:
            loaded = load()  # it has to be downloaded, so that its digests are known
        model = reference_cache.about(
            identity(name), [], dtype=args.ds.param_dtype, quantization=4 if args.ds.load_in_4bit else None
        )
        self.caches = [Cache(texts, model, data.cache_dir()) for texts in self.texts]
        if reference_cache.found(self.caches):
            for cache in self.caches:
                tell(f"reference log-probabilities: found {reference_cache.described(cache)}")
        elif sharded:
            self.pending = True
            return own if args.ds.lora.rank and own is not None else load()
        else:
            if own is None:
                own = load() if loaded is None else loaded
            self._fill_by(own)
        del loaded, own
        _free()
        self.open(self.splits)
        return training.NoReference()

    def open(self, splits: Sequence[TokenisedRows]) -> None:
        """Let the rows have what the files hold, and note them in the receipt."""
        for split, cache in zip(splits, self.caches, strict=True):
            split.more[NAME] = Kept(cache.folder)
        if self.run.setup is not None:
            self.run.setup.reference = {**self.run.setup.reference, "cache": [cache.key for cache in self.caches]}

    def _fill_by(self, actor: Any) -> None:
        device = torch.device("cpu") if compat.is_cpu() else torch.device("cuda", torch.cuda.current_device())
        if not self.args.ds.load_in_4bit:
            actor.model.to(device)
        with evaluating(actor.model):
            self.fill(actor, device)

    def fill(self, actor: Any, device: torch.device, *, in_step: bool = False) -> None:
        """Make the files.

        Args:
            actor: the reference, the host's Actor or `training.WithoutAdapter`.
            device: where it is.
            in_step: see `reference_cache.fill`.
        """
        full = self.run.options.full_logits

        def read(texts: Sequence[Text]) -> np.ndarray:
            ids, mask, needed = padded(texts)
            count = int(needed.sum())
            inputs = (each.to(device) for each in (ids, mask, needed))
            values, _ = forward.values(actor, forward.Rows(*inputs, count, None, full))
            return values.logps.float().cpu()[needed].numpy()

        with torch.no_grad():
            reference_cache.fill(self.caches, read, in_step=in_step, tell=tell)

    def before_first_step(self, trainer: Any) -> None:
        """Make the files by the trainer's reference, if they could not be made before, and give it up."""
        if not self.pending:
            return
        reference = trainer.ref_model
        reference.eval()
        self.fill(reference, next(trainer.model.parameters()).device, in_step=True)
        loaders = (trainer.train_dataloader, trainer.eval_dataloader)
        self.open([each.dataset.rows for each in loaders if each is not None])
        trainer.ref_model = training.NoReference()
        if isinstance(reference, Actor):
            reference.model = None  # the host's `train` keeps the Actor
        self.pending = False
        _free()


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def tell(text: str) -> None:
    """Print a line, in the first process."""
    if os.environ.get("RANK", "0") == "0":
        print(f"finepref: {text}", file=sys.stderr)


def padded(texts: Sequence[Text]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and attention mask [M, L] of sequences, padded on the right, and which tokens [M, T] are of responses."""
    length = max(len(prompt) + len(response) for prompt, response in texts)
    ids = np.zeros((len(texts), length), dtype=np.int64)
    mask, needed = np.zeros_like(ids), np.zeros_like(ids, dtype=bool)
    for row, (prompt, response) in enumerate(texts):
        end = len(prompt) + len(response)
        ids[row, : len(prompt)], ids[row, len(prompt) : end] = prompt, response
        mask[row, :end], needed[row, len(prompt) : end] = 1, True
    return torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(needed)[:, 1:].contiguous()


def placed(values: Sequence[np.ndarray], lengths: Sequence[int]) -> Tensor:
    """Log-probabilities of the responses of a batch that is padded on the right: [M, T], 0 elsewhere.

    Args:
        values: of each response.
        lengths: number of tokens of each prompt with its response.
    """
    return torch.from_numpy(reference_cache.placed(values, lengths, max(lengths)))[:, 1:].contiguous()
