"""From a folder or hub name to a model in transformers' layout; no code of a model is run.

The published encoders lie on the hub as pytorch_model.bin: such files are read with torch's `weights_only`,
which refuses everything that is no tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from metrics.base import sha256
from videonarrator.schema import NarratorError

PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors")
"""What is fetched of a hub repository: configuration, tokenizer, weights."""

PICKLED = "pytorch_model*.bin"
"""Weights of a repository without safetensors."""

IDENTITY = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.safetensors",
    PICKLED,
)
"""Files that decide what an encoder gives."""


def model_folder(source: str) -> Path:
    """The local folder of a model in transformers' layout, by its path or hub name.

    Raises `NarratorError` where there is none, or where it has no weights.
    """
    folder = fetched(source, PATTERNS)
    if not any(folder.glob("*.safetensors")):
        folder = fetched(source, (*PATTERNS, PICKLED))
    if not (folder / "config.json").is_file():
        raise NarratorError(
            f"encoder {source}: no config.json, but {listing(folder)}: not a model in transformers' layout"
        )
    if not any(folder.glob("*.safetensors")) and not any(folder.glob(PICKLED)):
        raise NarratorError(
            f"encoder {source}: no weights, but {listing(folder)}; expected model.safetensors or "
            "pytorch_model.bin"
        )
    return folder


def fetched(source: str, patterns: Iterable[str]) -> Path:
    """A local folder as it is; else the folder of a hub name in the hub's cache, where the files of these
    patterns are fetched to unless HF_HUB_OFFLINE is set.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=list(patterns)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise NarratorError(
            f"encoder {source!r}: no such folder, and the hub does not give it ({error}); type a folder, or "
            "a hub name such as hfl/chinese-roberta-wwm-ext-large or OFA-Sys/chinese-clip-vit-base-patch16"
        ) from None


def listing(folder: Path) -> str:
    """The first names in a folder, for messages."""
    return ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"


def identity(folder: Path) -> str:
    """12 hexadecimal digits of a SHA-256 over configuration, tokenizer and weights: names and contents."""
    return digest({path for pattern in IDENTITY for path in folder.glob(pattern) if path.is_file()})


def digest(files: Iterable[Path]) -> str:
    """12 hexadecimal digits of a SHA-256 over the files' names and contents."""
    lines = sorted(f"{file.name} {sha256(file)}" for file in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def load_network(kind: Any, folder: Path, *, unused: tuple[str, ...] = ()) -> Any:
    """A transformers model in float32; `kind` is its class. Weights whose names begin as `unused` may lack.

    Raises `NarratorError` where files are damaged, or lack weights (transformers would draw them at random).
    """
    from pickle import UnpicklingError

    from safetensors import SafetensorError

    try:
        network, report = kind.from_pretrained(
            folder,
            dtype="float32",
            use_safetensors=any(folder.glob("*.safetensors")),
            weights_only=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError, EOFError) as error:
        reason = str(error).split("\n")[0]
        raise NarratorError(f"encoder {folder}: transformers cannot load it: {reason}") from error
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(unused))
    if missing:
        raise NarratorError(
            f"encoder {folder}: its weights are not whole, {len(missing)} are missing, first {missing[0]}; "
            "fetch the model again"
        )
    return network


def load_tokenizer(kind: Any, folder: Path, vocabulary: int) -> Any:
    """The folder's tokenizer for a model of `vocabulary` tokens; `kind` is a transformers class.

    Raises `NarratorError` where the folder has none (transformers would make up one of five tokens), or one
    that knows tokens which the model does not.
    """
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise NarratorError(f"encoder {folder}: its tokenizer cannot be read: {error}") from error
    names = sorted(set(tokenizer.vocab_files_names.values()))
    if not any((folder / name).is_file() for name in names):
        raise NarratorError(
            f"encoder {folder}: no tokenizer; copy the model's own there ({', '.join(names)})"
        )
    if len(tokenizer) > vocabulary:
        raise NarratorError(
            f"encoder {folder}: its tokenizer has {len(tokenizer)} tokens and its weights are for "
            f"{vocabulary}: they do not belong together"
        )
    return tokenizer


def token_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Ids of each text, the special tokens included, uncut."""
    return tokenizer(
        texts, return_attention_mask=False, return_token_type_ids=False, truncation=False, verbose=False
    )["input_ids"]
