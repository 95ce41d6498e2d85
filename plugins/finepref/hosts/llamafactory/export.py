"""`llamafactory-cli export` takes along what the host leaves behind (card `export-model`).

That is the receipt and finepref's section of the model card, and the value head of a reward model, which the host
copies only if `stage` says that it is one, and only out of a local folder. With `export_hub_model_id` the host uploads
none of these.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finepref.hosts import card, receipt

HEADS = ("value_head.safetensors", "value_head.bin")
"""The files of a value head, in the order in which the host looks for them."""


def carrying(original):
    """`export_model` that also copies and uploads the value head, the receipts and the card of what it merges."""

    @functools.wraps(original)
    def export_model(args: Any = None) -> None:
        from llamafactory.extras import logging
        from llamafactory.hparams import get_infer_args

        original(args)
        model_args, _, finetuning_args, _ = get_infer_args(args)
        sources = [model_args.model_name_or_path, *(model_args.adapter_name_or_path or ())]
        target = Path(model_args.export_dir)
        carry(sources, target)
        if (head := carry_head(sources[-1], target, model_args, online=finetuning_args.stage == "rm")) is not None:
            logging.get_logger("llamafactory.finepref").info_rank0(f"Copied {head} to {target}.")
        if model_args.export_hub_model_id is not None:
            publish(target, model_args.export_hub_model_id, token=model_args.hf_hub_token)

    return export_model


def carry(sources: Sequence[str], target: Path) -> None:
    """Copy receipt and section of the last source that has a receipt; the receipts of the others go under `earlier`.

    Args:
        sources: the model and the adapters that were merged into it, in this order.
        target: the folder of the merged model.
    """
    found = [(Path(source), content) for source in sources if (content := receipt.read(source)) is not None]
    if not found:
        return
    earlier = [content for _, content in found[:-1]]
    last, content = found[-1]
    receipt.write(target, content | ({"earlier": earlier} if earlier else {}))
    if text := card.section_of(last / card.FILE_NAME):
        card.add(target / card.FILE_NAME, text)


def head_file(source: str, model_args: Any, *, online: bool, revision: str | None = None) -> Path | None:
    """The file of the value head of a model or adapter, from a folder or the hub; None if there is none.

    Args:
        source: the folder, or the name on the hub.
        model_args: the host's, for the hub.
        online: whether to ask the hub; else only folders and the cache are looked into.
        revision: of the model on the hub.
    """
    from transformers.utils import cached_file

    where = {"cache_dir": model_args.cache_dir, "revision": revision, "token": model_args.hf_hub_token}
    quiet = ("gated_repo", "missing_entries", "connection_errors")
    where |= {"local_files_only": not online} | {f"_raise_exceptions_for_{what}": False for what in quiet}
    found = (cached_file(source, name, **where) for name in HEADS)
    return next((Path(path) for path in found if path is not None), None)


def carry_head(source: str, target: Path, model_args: Any, *, online: bool) -> str | None:
    """Copy the value head of a model or adapter, see `head_file`, unless the target has one.

    The source is the last adapter, else the model: the head of a model below an adapter reads other hidden states.
    Returns the name of the file that was copied, None if there was none to copy.
    """
    if any((target / name).is_file() for name in HEADS):
        return None
    found = head_file(source, model_args, online=online, revision=model_args.model_revision)
    if found is None:
        return None
    shutil.copy(found, target / found.name)
    return found.name


def publish(folder: Path, repository: str, *, token: str | None) -> None:
    """Upload what the host does not: the value head, the receipt, and our section below the card that it uploaded."""
    from huggingface_hub import CommitOperationAdd, create_commit, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    readme = folder / card.FILE_NAME
    if text := card.section_of(readme):
        try:
            shutil.copy(hf_hub_download(repository, card.FILE_NAME, token=token), readme)
        except (EntryNotFoundError, LocalEntryNotFoundError):
            pass
        else:
            card.add(readme, text)
    names = (*HEADS, receipt.FILE_NAME, *([card.FILE_NAME] if text else []))
    files = [CommitOperationAdd(name, folder / name) for name in names if (folder / name).is_file()]
    if files:
        create_commit(repository, files, commit_message="Upload what finepref adds", token=token)
