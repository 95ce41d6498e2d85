"""`llamafactory-cli export` takes the receipt and finepref's section of the model card along (card `export-model`)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finepref.hosts import card, receipt


def carrying(original):
    """`export_model` that also copies the receipts of what it merges."""

    @functools.wraps(original)
    def export_model(args: Any = None) -> None:
        from llamafactory.hparams import get_infer_args

        original(args)
        model_args, *_ = get_infer_args(args)
        carry([model_args.model_name_or_path, *(model_args.adapter_name_or_path or ())], Path(model_args.export_dir))

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
