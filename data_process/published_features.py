"""The published system's feature files, one numpy array each, into the project's stores.

Two kinds of folder are read. `<id>_<frame>.jpg.npy`, a frame's features [tokens, dim], frames counted from 1,
become a `FeatureStore`; `<id>_<clip>.pkl`, a clip's visual tokens [tokens * frames, dim], clips counted from
0, become a `ClipStore`. The .pkl files are pickles, which can run anything when they are opened. Here nothing
that such a file names is looked up or called: the few names that numpy arrays are pickled with are
understood, each by a stand-in of our own, and all others are refused.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import re
import tokenize
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_process.feature_store import ClipStore, FeatureStore
from data_process.video_file import for_each_video
from videonarrator.schema import NarratorError
from videonarrator.visual_memory import THRESHOLD

PUBLISHED = "published features"
"""What stands for the encoder in the settings of converted features; its checksum "" means unknown."""

FRAME_FILE = re.compile(r"(?P<video>.+)_(?P<number>[0-9]+)\.jpg\.npy", re.DOTALL)
CLIP_FILE = re.compile(r"(?P<video>.+)_(?P<number>[0-9]+)\.pkl", re.DOTALL)

FLOATS = ("float16", "float32", "float64")

NPY = b"\x93NUMPY"
"""What a .npy file begins with."""

Files = dict[str, list[tuple[int, Path]]]
"""Video id -> number (of the frame or clip) and file of each of its arrays, ascending."""


def convert_features(
    source: str | Path, out: str | Path, say: Callable[[str], None] = lambda line: None
) -> tuple[str, int, dict[str, str]]:
    """Read the published files below the folder `source`, subfolders included, into a store in `out`.

    Returns what they are (`FeatureStore.what` or `ClipStore.what`), the number of videos, and failed video ->
    reason. Dtype and values stay as they are. A video that is stored and whole is kept unless a file of it
    is newer. All arrays must have the dtype and width (of frames: the shape) that most videos' first files
    have; a video with another one fails. Raises `NarratorError` where the folder has no such files, or both
    kinds, or where `out` is a store of something else.
    """
    source = Path(source)
    frames, clips = find_published(source, say)
    if frames:
        what, files, read = FeatureStore.what, frames, read_npy
        dtype, shape = _usual_form(files, read, whole=True)
        settings = _settings(dtype, shape[-1]) | {"tokens": shape[0]}
        store = FeatureStore.create(out, settings)
    else:
        what, files, read = ClipStore.what, clips, read_pickle
        dtype, shape = _usual_form(files, read, whole=False)
        settings = {"threshold": THRESHOLD, "memory": "tokens", "dtype": dtype, "width": shape[-1]}
        store = ClipStore.create(out, settings | {"features": _settings(dtype, shape[-1])})

    def save(video: Path) -> None:
        video_id = video.name
        numbered = files[video_id]
        _check_once(video_id, numbered)
        if _is_current(store, video_id, numbered):
            return
        arrays = {number: _in_form(file, read(file), dtype, shape) for number, file in numbered}
        if isinstance(store, FeatureStore):
            store.write(video_id, list(arrays), torch.from_numpy(np.stack(list(arrays.values()))))
        else:
            digest = hashlib.sha256()
            for _, file in numbered:
                digest.update(file.read_bytes())
            tensors = {number: torch.from_numpy(array) for number, array in arrays.items()}
            store.write(video_id, tensors, digest.hexdigest())

    return what, len(files), for_each_video([Path(name) for name in files], save, what, say)


def find_published(source: Path, say: Callable[[str], None] = lambda line: None) -> tuple[Files, Files]:
    """The frame files and the clip files below `source`, one of them empty; the id ends at the last "_".

    Other files (and those whose name begins with a dot) are passed over; `say` gets their number.
    """
    if not source.is_dir():
        raise NarratorError(f"no folder {source}: name the one that holds the published .npy or .pkl files")
    found: dict[re.Pattern[str], Files] = {FRAME_FILE: {}, CLIP_FILE: {}}
    others = []
    for folder, subfolders, names in os.walk(source):
        subfolders.sort()
        for name in sorted(names):
            if name.startswith("."):
                continue
            for pattern, files in found.items():
                if match := pattern.fullmatch(name):
                    numbered = files.setdefault(match["video"], [])
                    numbered.append((int(match["number"]), Path(folder, name)))
                    break
            else:
                others.append(name)
    frames, clips = ({name: sorted(found[kind][name]) for name in sorted(found[kind])} for kind in found)
    if frames and clips:
        raise NarratorError(
            f"{source} holds features of frames ({_first(frames).name} ...) and of clips "
            f"({_first(clips).name} ...): name a folder with one kind of them"
        )
    if not frames and not clips:
        inside = ", ".join(others[:5]) or "nothing"
        raise NarratorError(
            f"{source} holds none of the published features, which are named <video id>_001.jpg.npy (frames) "
            f"or <video id>_0.pkl (clips); it holds {inside}"
        )
    if others:
        say(f"passed over {len(others)} other files, first {others[0]}")
    return frames, clips


# ------------------------------------------------------------------------------- one video's files


def _check_once(video_id: str, numbered: Sequence[tuple[int, Path]]) -> None:
    for (number, file), (following, other) in pairwise(numbered):
        if number == following:
            raise NarratorError(f"video {video_id}: {file} and {other} are both number {number}; keep one")


def _is_current(store: FeatureStore | ClipStore, video_id: str, numbered: Sequence[tuple[int, Path]]) -> bool:
    """Whether the video is stored, whole, with these numbers, and no file changed since.

    The time of a file's last change of status is looked at: a file that was replaced by an older one has a
    new one, too.
    """
    if not store.has(video_id):
        return False
    written = store.file(video_id).stat().st_mtime_ns
    if any(file.stat().st_ctime_ns >= written for _, file in numbered):
        return False
    stored = store.read(video_id)[0].tolist() if isinstance(store, FeatureStore) else store.clips(video_id)
    return stored == [number for number, _ in numbered]


def _in_form(file: Path, array: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """`array` where it has the dtype and shape (`None`: any) of the folder's others, else an error."""
    if str(array.dtype) != dtype or not _fits(array.shape, shape):
        raise NarratorError(
            f"{file} holds {array.dtype} {_sizes(array.shape)}, most of the folder {dtype} {_sizes(shape)}: "
            "a store holds features of one kind, get this file again or convert it from a folder of its own"
        )
    if not np.isfinite(array).all():
        raise NarratorError(f"{file} holds NaN or infinite values; get it again")
    return array


def _fits(found: Sequence[int], wanted: Sequence[int]) -> bool:
    return all(want in (-1, size) for size, want in zip(found, wanted, strict=True))


def _sizes(shape: Sequence[int]) -> str:
    return "[" + ", ".join("tokens" if size < 0 else str(size) for size in shape) + "]"


def _usual_form(files: Files, read: Callable[[Path], np.ndarray], whole: bool) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape of most videos' first arrays; a clip's number of tokens is its own (-1).

    Where no video's first array can be read, the error is that of the first.
    """
    forms: Counter[tuple[str, tuple[int, ...]]] = Counter()
    error: NarratorError | None = None
    for numbered in files.values():
        try:
            array = read(numbered[0][1])
        except NarratorError as found:
            error = error or found
            continue
        forms[str(array.dtype), array.shape if whole else (-1, array.shape[1])] += 1
    if not forms:
        assert error is not None
        raise error
    return forms.most_common(1)[0][0]


def _settings(dtype: str, width: int) -> dict[str, Any]:
    """See `feature_store.FEATURE_SETTINGS`: what is not known of published features is ""."""
    return {
        "encoder": PUBLISHED,
        "encoder_sha256": "",
        "fps": 1,
        "preprocessing": "",
        "dtype": dtype,
        "width": width,
    }


def _first(files: Mapping[str, list[tuple[int, Path]]]) -> Path:
    return next(iter(files.values()))[0][1]


# -------------------------------------------------------------------------------------- one file


def read_npy(file: Path) -> np.ndarray:
    """The array [rows, dim] of floats in a .npy file; an array of Python objects is refused unread."""
    try:
        with open(file, "rb") as stream:
            if stream.read(len(NPY)) != NPY:
                raise NarratorError(f"{file} is no .npy file and not opened as anything else; get it again")
        # mapped: what the header claims is held against the file's size before there is memory for it
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (
        ValueError, TypeError, EOFError, OverflowError, OSError, MemoryError, tokenize.TokenError,
    ) as error:  # fmt: skip
        raise _unreadable(file, "a .npy file of numbers", error) from None
    return _features(file, array)


def read_pickle(file: Path) -> np.ndarray:
    """The array [rows, dim] of floats in a pickle that holds one and nothing else.

    Pickle protocols 0 to 5, numpy 1 and 2. Raises `NarratorError` where there is anything else in it; nothing
    in it is executed.
    """
    try:
        # whole in memory: a length that the file only claims then costs nothing
        built = _ArrayUnpickler(io.BytesIO(file.read_bytes())).load()
        array = built.array if isinstance(built, _Array) else None
    except _Refused as error:
        raise NarratorError(
            f"{file} holds more than an array of numbers and is refused; nothing in it was run: {error}"
        ) from None
    except (
        pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError,
        OverflowError, MemoryError, OSError,
    ) as error:  # fmt: skip
        raise _unreadable(file, "a pickled array of numbers", error) from None
    if array is None:
        raise NarratorError(f"{file} holds {type(built).__name__.strip('_')}, expected one array of numbers")
    return _features(file, array)


def _features(file: Path, array: np.ndarray) -> np.ndarray:
    if array.dtype.name not in FLOATS or array.ndim != 2 or not array.size:
        raise NarratorError(
            f"{file} holds {array.dtype.name} {_sizes(array.shape)}, expected [tokens, dim] of "
            f"{', '.join(FLOATS)}"
        )
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="C")


def _unreadable(file: Path, expected: str, error: BaseException) -> NarratorError:
    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    return NarratorError(f"{file} cannot be read as {expected}: {why:.200}; get it again")


# --------------------------------------------------------------------------- pickles of an array


class _Refused(pickle.UnpicklingError):
    """A pickle asks for something that no array of numbers needs."""


class _ArrayUnpickler(pickle.Unpickler):
    """Understands the names an array is pickled with, and gives a stand-in for each; refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise _Refused(f"it asks for {module}.{name}"[:200])
        return _NAMES[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("it points to something outside itself")


class _StandIn:
    """A name in a pickle: can be called as `call` says, and not be changed."""

    __slots__ = ("__call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self.__call = call

    def __call__(self, *arguments: Any) -> Any:
        return self.__call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise _Refused("it changes a function")


class _Dtype:
    """Stands for a numpy dtype of floats; `value` once it is known."""

    __slots__ = ("value",)

    def __init__(self, code: Any, *flags: Any) -> None:
        if not isinstance(code, str) or code not in ("f2", "f4", "f8"):
            raise _Refused(f"it holds an array of dtype {code!r:.40}, not of floats")
        self.value = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, subarray, field names, fields, size, alignment, flags[, metadata])
        _, order, *rest = state if isinstance(state, tuple) and len(state) > 4 else (None, None)
        if order not in ("<", ">", "=", "|") or rest[:3] != [None, None, None]:
            raise _Refused("it holds an array of something other than floats")
        self.value = self.value.newbyteorder(order)


class _Array:
    """Stands for a numpy array; `array` once its state is known."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise _Refused("its array has no state of an array")
        _, shape, dtype, fortran, data = state
        self.array = _built(data, dtype, shape, "F" if fortran is True or fortran == 1 else "C")


def _built(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray):
        raise _Refused(f"its array is made of {type(data).__name__}, not of numbers")
    if not isinstance(shape, tuple) or any(type(size) is not int or size < 0 for size in shape):
        raise _Refused("its array has no shape")
    if math.prod(shape) * dtype.value.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes for shape {shape} of {dtype.value}")
    return np.frombuffer(data, dtype.value).reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    """An array that gets its state afterwards: protocols 0 to 4, and arrays that are not contiguous."""
    if kind is not _NDARRAY:
        raise _Refused("it makes an array of another class than numpy's")
    return _Array()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """An array in one step: protocol 5."""
    made = _Array()
    made.array = _built(data, dtype, shape, order)
    return made


def _encode(text: Any, encoding: Any) -> bytes:
    """How protocols 0 to 2 write bytes: as text of the same code points."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _Refused(f"it encodes text as {encoding!r:.40}")
    return text.encode("latin-1")


def _no_call(*arguments: Any) -> Any:
    raise _Refused("it calls numpy.ndarray")


_NDARRAY = _StandIn(_no_call)
_NAMES = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _StandIn(_Dtype),
    ("_codecs", "encode"): _StandIn(_encode),
    ("numpy.core.multiarray", "_reconstruct"): _StandIn(_reconstruct),  # numpy 1
    ("numpy._core.multiarray", "_reconstruct"): _StandIn(_reconstruct),  # numpy 2
    ("numpy.core.numeric", "_frombuffer"): _StandIn(_frombuffer),
    ("numpy._core.numeric", "_frombuffer"): _StandIn(_frombuffer),
}
