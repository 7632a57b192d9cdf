"""Frame features as EMScore wants them: read from a file, or computed from a folder of stills."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from metrics.base import sha256
from metrics.encoders.loading import listing
from videonarrator.schema import NarratorError
from videonarrator.timeline import frame_numbers

if TYPE_CHECKING:
    from metrics.encoders.clip import ClipEncoder

FLOATS = ("F16", "F32", "F64")
ENDINGS = (".jpg", ".jpeg", ".png")
STILLS = 32
"""Stills that are held in memory at once."""

SAVE_SECONDS = 60
"""Longest time between two savings of the cache: what an interruption costs."""


class FrameFeatures(Mapping[str, np.ndarray]):
    """Key `<video id>_<clip index>` -> float32 [frames, dim], each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            self._file = safe_open(path, framework="np")
        except (OSError, SafetensorError) as error:
            raise NarratorError(f"frame features {path}: {_not_safetensors(path, error)}") from None
        self.metadata: dict[str, str] = self._file.metadata() or {}
        dims: dict[int, str] = {}
        self._keys = dict.fromkeys(self._file.keys())
        for key in self._keys:
            part = self._file.get_slice(key)
            shape, dtype = part.get_shape(), part.get_dtype()
            if len(shape) != 2 or dtype not in FLOATS:
                raise NarratorError(
                    f"frame features {path}: {key!r} is {dtype} {shape}; expected [frames, dim] of "
                    f"{', '.join(FLOATS)} for every key <video id>_<clip index>"
                )
            dims.setdefault(shape[1], key)
        if len(dims) > 1:
            widths = ", ".join(f"{dim} ({key!r})" for dim, key in dims.items())
            raise NarratorError(
                f"frame features {path}: widths differ: {widths}; they must be of one encoder"
            )

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self._keys:
            raise KeyError(key)
        return self._file.get_tensor(key).astype(np.float32, copy=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def read_frame_features(path: Path) -> FrameFeatures:
    """The frame features of a safetensors file: key `<video id>_<clip index>` -> float32 [frames, dim].

    They are given as they are; EMScore L2-normalises them by default, and takes them unchanged under the
    published rules. Raises `NarratorError` where it is no such file, is empty, or holds another rank or
    several widths. Values are not looked at.
    """
    features = FrameFeatures(Path(path))
    if not features:
        raise NarratorError(f"frame features {path}: no features; expected keys <video id>_<clip index>")
    return features


def frame_features_from_folder(
    folder: Path,
    clips: Mapping[str, tuple[str, float, float]],
    encoder: ClipEncoder,
    cache: Path | None = None,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Mapping[str, np.ndarray], dict[str, str]]:
    """Features of all frames of clips from their stills, and the keys that have none with the reason.

    Frame k of a video is the still at second k-1, `<video id>_<k in three digits>.jpg` (or .jpeg, .png) in
    `folder` or in a folder of the video's id in it. clips: key -> (video id, start, end), in seconds.
    Reasons: "still_missing", "still_unreadable"; `say` gets the file's name, and the progress.

    cache: a safetensors file that keeps the features with the encoder's name and the stills' SHA-256. What is
    there already and made by the same encoder from the same stills is not computed again; the file is written
    every minute. Raises `NarratorError` where no clip has its stills, or `cache` is another kind of file.
    """
    stills, reasons = _find_stills(Path(folder), clips, say)
    if clips and not stills:
        raise NarratorError(
            f"stills {folder}: none of the {len(clips)} clips has its stills there; expected "
            f"<video id>_001.jpg and so on, one a second, found {listing(Path(folder))}"
        )
    prints = _fingerprints(stills, reasons, say)
    features = _read_cache(cache, encoder.name, prints)
    missing = {key: stills[key] for key in prints if key not in features}
    wanted = list(dict.fromkeys(path for paths in missing.values() for path in paths))
    rows: dict[Path, np.ndarray | None] = {}
    started = saved = time.monotonic()
    for start in range(0, len(wanted), STILLS):
        rows.update(_encode(wanted[start : start + STILLS], encoder, say))
        now = time.monotonic()
        if cache is not None and now - saved >= SAVE_SECONDS:
            _write_cache(cache, encoder.name, features | _assemble(missing, rows), prints)
            rate = len(rows) / (now - started)
            left = (len(wanted) - len(rows)) / rate
            say(
                f"features of {len(rows)}/{len(wanted)} stills, {rate:.1f} a second, {left / 60:.0f} min left"
            )
            saved = time.monotonic()
    features |= _assemble(missing, rows)
    reasons |= dict.fromkeys(prints.keys() - features.keys(), "still_unreadable")
    if missing and cache is not None:
        _write_cache(cache, encoder.name, features, prints)
    return {key: features[key] for key in clips if key in features}, reasons


def _find_stills(
    folder: Path, clips: Mapping[str, tuple[str, float, float]], say: Callable[[str], None]
) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Key -> stills, and key -> reason where one is missing. Each folder is listed once."""
    if not folder.is_dir():
        raise NarratorError(f"stills {folder}: no such folder")
    flat = _images(folder)
    nested: dict[str, dict[str, Path]] = {}
    stills, reasons = {}, {}
    for key, (video, start, end) in clips.items():
        if video not in nested:
            nested[video] = _images(folder / video)
        names = [f"{video}_{k:03d}" for k in frame_numbers(start, end)]
        found = [flat.get(name) or nested[video].get(name) for name in names]
        if None in found:
            reasons[key] = "still_missing"
            say(f"{key}: no still {names[found.index(None)]}.jpg in {folder}")
        else:
            stills[key] = found
    return stills, reasons


def _images(folder: Path) -> dict[str, Path]:
    """Name without ending -> image file; nothing where there is no such folder."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        paths = (Path(entry.path) for entry in entries)
        return {path.stem: path for path in paths if path.suffix.lower() in ENDINGS}


def _fingerprints(
    stills: Mapping[str, Sequence[Path]], reasons: dict[str, str], say: Callable[[str], None]
) -> dict[str, str]:
    """Key -> SHA-256 over its stills' contents; unreadable ones go into `reasons`."""
    known: dict[Path, str] = {}
    prints = {}
    for key, paths in stills.items():
        try:
            known |= {path: sha256(path) for path in paths if path not in known}
        except OSError as error:
            reasons[key] = "still_unreadable"
            say(f"{key}: {error}")
        else:
            prints[key] = hashlib.sha256("".join(known[path] for path in paths).encode()).hexdigest()
    return prints


def _encode(
    paths: Sequence[Path], encoder: ClipEncoder, say: Callable[[str], None]
) -> dict[Path, np.ndarray | None]:
    """Still -> feature [dim], None where it is no image."""
    images = {}
    for path in paths:
        try:
            with Image.open(path) as image:
                images[path] = image.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            say(f"{path}: {error}")
    features = encoder.encode_images(list(images.values()))
    return dict.fromkeys(paths) | dict(zip(images, features, strict=True))


def _assemble(
    stills: Mapping[str, Sequence[Path]], rows: Mapping[Path, np.ndarray | None]
) -> dict[str, np.ndarray]:
    """Key -> [frames, dim] of the clips whose stills all have their features."""
    features = {}
    for key, paths in stills.items():
        found = [row for path in paths if (row := rows.get(path)) is not None]
        if len(found) == len(paths):
            features[key] = np.stack(found)
    return features


def _read_cache(cache: Path | None, encoder: str, prints: Mapping[str, str]) -> dict[str, np.ndarray]:
    """What the cache holds of these clips, made by this encoder from these stills."""
    if cache is None or not cache.exists():
        return {}
    stored = FrameFeatures(cache)
    if not {"encoder", "stills"} <= stored.metadata.keys():
        raise NarratorError(
            f"frame cache {cache}: other features stand there; give another name, or give the file as frame "
            "features"
        )
    if stored.metadata["encoder"] != encoder:
        return {}
    made_from = json.loads(stored.metadata["stills"])
    return {key: stored[key] for key in stored if key in prints and made_from.get(key) == prints[key]}


def _write_cache(
    cache: Path, encoder: str, features: Mapping[str, np.ndarray], prints: Mapping[str, str]
) -> None:
    """Replace the file at once, whole."""
    from safetensors.numpy import save_file

    made_from = {key: prints[key] for key in features}
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_name(f".{cache.name}.{os.getpid()}.partial")
    save_file(dict(features), partial, metadata={"encoder": encoder, "stills": json.dumps(made_from)})
    partial.replace(cache)


def _not_safetensors(path: Path, error: Exception) -> str:
    if not path.is_file():
        return "no such file"
    with path.open("rb") as file:
        pickled = file.read(2) in (b"PK", b"\x80\x02")
    if not pickled:
        return f"not a safetensors file ({error})"
    return (
        'a pickle of PyTorch, which is not read; convert it once: python -c "import torch; from '
        "safetensors.torch import save_file; save_file({k: v.contiguous() for k, v in "
        f"torch.load('{path}', weights_only=True).items()}}, 'NEW.safetensors')\""
    )
