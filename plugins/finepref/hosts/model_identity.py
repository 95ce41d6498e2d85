"""Which model a folder holds, as a few digests for the receipt."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from finepref.formats.check import digest

WHOLE = 64 * 2**20
"""Weights of up to this many bytes are hashed as a whole."""

SAMPLES, SAMPLE = 16, 2**16
"""Of each larger file, this many blocks of this many bytes, evenly spaced, are hashed."""

CONFIGS = ("config.json", "adapter_config.json")
NO_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin")


def identity(name: str) -> dict[str, Any]:
    """Describe a model, or an adapter, by what its folder holds.

    Returns:
        `path` as given; `config_sha256` of config.json or adapter_config.json; `weights_sha256` over names, sizes and
        `weights_hashed` ("contents", or "samples" of them if the weights have more than 64 MiB); `weights_bytes`.
        All but the path are None if the folder cannot be found, as for a model that is not downloaded yet.
    """
    found: dict[str, Any] = dict.fromkeys(("config_sha256", "weights_sha256", "weights_hashed", "weights_bytes"))
    folder = folder_of(name)
    if folder is None:
        return {"path": name, **found}
    config = next((folder / each for each in CONFIGS if (folder / each).is_file()), None)
    files = [file for file in sorted(folder.iterdir()) if file.suffix in (".safetensors", ".bin")]
    files = [file for file in files if file.name not in NO_WEIGHTS and file.is_file()]
    size = sum(file.stat().st_size for file in files)
    hashed = hashlib.sha256()
    for file in files:
        hashed.update(f"{file.name} {file.stat().st_size} ".encode())
        hashed.update(digest(file).encode() if size <= WHOLE else _samples(file))
    return {
        "path": name,
        "config_sha256": digest(config) if config else None,
        "weights_sha256": hashed.hexdigest() if files else None,
        "weights_hashed": ("contents" if size <= WHOLE else "samples") if files else None,
        "weights_bytes": size if files else None,
    }


def _samples(file: Path) -> bytes:
    """The hash of evenly spaced blocks of a file, the first and the last among them."""
    hashed = hashlib.sha256()
    last = max(0, file.stat().st_size - SAMPLE)
    with open(file, "rb") as opened:
        for index in range(SAMPLES):
            opened.seek(last * index // (SAMPLES - 1))
            hashed.update(opened.read(SAMPLE))
    return hashed.digest()


def folder_of(name: str) -> Path | None:
    """The local folder of a model: itself, or where the hub's client has put it; None if it is not there."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for config in CONFIGS:
        try:
            cached = try_to_load_from_cache(name, config)
        except HFValidationError:  # neither a folder nor a name on the hub
            return None
        if isinstance(cached, str):
            return Path(cached).parent
    return None


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two descriptions are of the same model: by the digests, or by the path where one has no digests."""
    digests = [{key: each.get(key) for key in ("config_sha256", "weights_sha256")} for each in (one, other)]
    if all(None not in each.values() for each in digests):
        return digests[0] == digests[1]
    return one.get("path") == other.get("path")


def vocabulary(name: str) -> tuple[dict[str, int] | None, int | None]:
    """(token -> id, number of rows of the embedding) of a model; None for what its files do not tell."""
    config, tokenizer = (_file(name, file) for file in ("config.json", "tokenizer.json"))
    size = None
    if config:
        content = json.loads(config.read_text(encoding="utf-8"))
        size = content.get("vocab_size", (content.get("text_config") or {}).get("vocab_size"))
    if tokenizer is None:
        return None, size
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(tokenizer)).get_vocab(), size


def _file(name: str, file: str) -> Path | None:
    """A file of a model, downloaded if the model is on the hub; None if there is none, or no connection."""
    folder = folder_of(name)
    if folder is not None and (folder / file).is_file():
        return folder / file
    if Path(name).expanduser().is_dir():
        return None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(hf_hub_download(name, file))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled):
        return None
