"""Weight files: other people's are read tensor by tensor, with nothing in them executed.

Files of torch (.bin, .pth, .pt: pickles) are opened with `weights_only`, which refuses everything that is no
tensor or plain container, and are mapped, not copied, where the format allows it. safetensors are read as
they are.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from videonarrator.schema import NarratorError

PICKLED = (".bin", ".pth", ".pt")
"""Endings of torch's own files."""


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a torch file that holds names and tensors and nothing else.

    Raises `NarratorError` naming the file where it is absent, cut short, or holds anything else.
    """
    content = read_torch(file) if file.suffix in PICKLED else _read_safetensors(file)
    return only_tensors(content, str(file))


def read_torch(file: Path) -> Any:
    """What a torch file holds, on the CPU; tensors and plain containers only, else a `NarratorError`."""
    _check_there(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, pickle.UnpicklingError) and "eights only" in str(error):
            raise NarratorError(
                f"{file} holds more than tensors and is refused; nothing in it was run (torch: {what:.200})"
            ) from None
        raise NarratorError(
            f"{file} cannot be read: it is cut short or no file of torch's ({what:.200}); get it again"
        ) from None


def only_tensors(content: Any, where: str) -> dict[str, Tensor]:
    """`content` as names and tensors. Raises `NarratorError` naming what else `where` holds."""
    if not isinstance(content, Mapping):
        raise NarratorError(f"{where} holds {type(content).__name__}, expected names and their tensors")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise NarratorError(f"{where}: {name!r} is {type(tensor).__name__}, expected a tensor")
    return dict(content)


def weight_shards(folder: Path, name: str = "pytorch_model", safe_name: str = "model") -> list[Path]:
    """The weight files of a model folder in transformers' layout, in order: safetensors, else torch files.

    Raises `NarratorError` where there are none, or where a shard that the index names is not there.
    """
    for base, ending in ((safe_name, "safetensors"), (name, "bin")):
        index = folder / f"{base}.{ending}.index.json"
        if index.is_file():
            return _indexed(index)
        if (folder / f"{base}.{ending}").is_file():
            return [folder / f"{base}.{ending}"]
        if found := sorted(folder.glob(f"{base}-*-of-*.{ending}")):
            _check_complete(found, folder)
            return found
    raise NarratorError(
        f"{folder} has no weights: expected {safe_name}.safetensors or {name}.bin, whole or in shards "
        f"(found: {listing(folder)})"
    )


def open_to_others(folder: Path) -> None:
    """Give all files in `folder` the mode of new files: safetensors writes them for their owner alone."""
    trial = folder / ".mode"
    trial.touch()
    mode = trial.stat().st_mode
    trial.unlink()
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def listing(folder: Path) -> str:
    """The first names in a folder, for messages."""
    if not folder.is_dir():
        return "no folder"
    return ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NarratorError(f"{index} is no index of weight files: {error}") from None
    outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if outside:
        raise NarratorError(f"{index} names {outside[0]!r}, expected names of files beside it")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise NarratorError(
            f"{index} names {len(names)} shards, of which {len(missing)} are not there: "
            f"{', '.join(missing[:5])}; get them again"
        )
    return [index.parent / name for name in names]


def _check_complete(found: list[Path], folder: Path) -> None:
    """Shards without an index say how many there are in their names."""
    total = found[0].stem.rpartition("-of-")[2]
    if not total.isdecimal() or len(found) != int(total):
        raise NarratorError(
            f"{folder} has {len(found)} of {total} shards: {', '.join(p.name for p in found[:5])}"
        )


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    _check_there(file)
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise NarratorError(
            f"{file} cannot be read: it is cut short or no safetensors ({error}); get it again"
        ) from None


def _check_there(file: Path) -> None:
    if not file.is_file():
        raise NarratorError(f"no file {file}; in {file.parent}: {listing(file.parent)}")
    if file.stat().st_size < 200 and file.read_bytes().startswith(b"version https://git-lfs"):
        raise NarratorError(
            f"{file} is a Git LFS pointer, not the weights: run `git lfs pull` in {file.parent}"
        )
