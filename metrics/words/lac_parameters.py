"""The files of jieba's neural segmenter (`jieba/lac_small`): the network's variables and its two tables.

They are read where jieba is installed; jieba itself is neither imported nor copied. One file holds one
variable, in PaddlePaddle's form (little endian): uint32 version, uint64 number of levels of detail (each
uint64 bytes, then so many bytes), uint32 version, int32 length of a protobuf descriptor, the descriptor
(field 1: type, 5 is float32; field 2, repeated: dimensions), and the numbers, row by row.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from videonarrator.schema import NarratorError

EMBEDDING = HIDDEN = 128
CHARACTERS, TAGS = 20941, 57
OOV = "OOV"
"""The table's name for every character that it does not hold."""

SHAPES = {
    "word_emb": (CHARACTERS, EMBEDDING),
    **{f"fc_{k}.w_0": (EMBEDDING if k < 2 else 2 * HIDDEN, 3 * HIDDEN) for k in range(4)},
    **{f"fc_{k}.b_0": (3 * HIDDEN,) for k in range(4)},
    **{f"gru_{k}.w_0": (HIDDEN, 3 * HIDDEN) for k in range(4)},
    **{f"gru_{k}.b_0": (1, 3 * HIDDEN) for k in range(4)},
    "fc_4.w_0": (2 * HIDDEN, TAGS),
    "fc_4.b_0": (TAGS,),
    "crfw": (2 + TAGS, TAGS),
}
"""Every variable's shape, as its file states it (a GRU's weights are two matrices in one buffer: `lac`)."""

FLOAT32 = 5

REINSTALL = "pip install --force-reinstall jieba==0.42.1 brings its files back"

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class LacParameters:
    """variables: by file name, float32. ids: of each character (and of `OOV`). tags: by id.

    digest: SHA-256 over all files, in hexadecimal.
    """

    variables: dict[str, np.ndarray]
    ids: dict[str, int]
    tags: list[str]
    digest: str


def lac_folder() -> Path:
    """The installed jieba's folder `lac_small`. Raises `NarratorError` where there is none."""
    spec = importlib.util.find_spec("jieba")
    if spec is None or not spec.submodule_search_locations:
        raise NarratorError(
            "the lac segmenter reads jieba's files, and jieba is not there: pip install jieba"
        )
    folder = Path(spec.submodule_search_locations[0]) / "lac_small"
    if not folder.is_dir():
        raise NarratorError(
            f"{folder}: no such folder; this jieba is without its neural mode's files; {REINSTALL}"
        )
    return folder


def load_parameters(folder: str | Path | None = None) -> LacParameters:
    """Read all of `lac_small` (default: the installed jieba's), about 13 MB.

    Raises `NarratorError` where a file is missing, damaged, or of another shape than jieba 0.42.1's.
    """
    folder = lac_folder() if folder is None else Path(folder)
    digest = hashlib.sha256()

    def content(name: str) -> bytes:
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise NarratorError(f"{folder / name}: {error.strerror}; {REINSTALL}") from None
        digest.update(f"{name} {len(data)}\n".encode() + data)
        return data

    def read(name: str, parse: Callable[[bytes], Parsed]) -> Parsed:
        try:
            return parse(content(name))
        except (ValueError, struct.error) as error:
            raise NarratorError(f"{folder / name}: damaged ({error}); {REINSTALL}") from None

    variables = {name: read(f"model_baseline/{name}", _variable) for name in SHAPES}
    for name, shape in SHAPES.items():
        if variables[name].shape != shape:
            raise NarratorError(
                f"{folder / 'model_baseline' / name}: shape {variables[name].shape}, not {shape}; {REINSTALL}"
            )
    words, tags = read("word.dic", _table), read("tag.dic", _table)
    if OOV not in words or max(words.values()) >= CHARACTERS:
        raise NarratorError(
            f"{folder / 'word.dic'}: not {CHARACTERS} ids with {OOV!r} among them; {REINSTALL}"
        )
    if sorted(tags.values()) != list(range(TAGS)):
        raise NarratorError(f"{folder / 'tag.dic'}: {len(tags)} tags, not {TAGS}; {REINSTALL}")
    return LacParameters(variables, words, sorted(tags, key=tags.__getitem__), digest.hexdigest())


def _table(data: bytes) -> dict[str, int]:
    """Lines `id<TAB>entry`. Entries are white space of many kinds, so only line feeds end a line."""
    table = {}
    for line in data.decode("utf-8").removesuffix("\n").split("\n"):
        number, tab, entry = line.partition("\t")
        if not tab or not number.isdecimal() or entry in table:
            raise ValueError(f"line {line!r}")
        table[entry] = int(number)
    if len(set(table.values())) < len(table):
        raise ValueError("an id stands there twice")
    return table


def _variable(data: bytes) -> np.ndarray:
    """A variable's file as an array, float32 and read-only. Raises `ValueError` where it is not one."""
    (version, levels), at = struct.unpack_from("<IQ", data), 12
    for _ in range(levels):
        at += 8 + struct.unpack_from("<Q", data, at)[0]
    tensor_version, length = struct.unpack_from("<Ii", data, at)
    at += 8
    if version or tensor_version or length < 0:
        raise ValueError("not a PaddlePaddle variable of version 0")
    kind, shape = _descriptor(data[at : at + length])
    numbers = data[at + length :]
    if kind != FLOAT32 or len(numbers) != 4 * math.prod(shape):
        raise ValueError(f"{len(numbers)} bytes for type {kind} of shape {shape}")
    array = np.frombuffer(numbers, "<f4").astype(np.float32, copy=False).reshape(shape)
    if not np.isfinite(array).all():
        raise ValueError("a number is not finite")
    return array


def _descriptor(data: bytes) -> tuple[int, tuple[int, ...]]:
    """(type, shape) of a protobuf message whose fields are varints: 1 is the type, 2 the dimensions."""
    values: list[int] = []
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            values.append(value)
            value = shift = 0
    keys = values[::2]  # field number << 3 | wire type 0
    if shift or len(values) % 2 or keys[:1] != [1 << 3] or {*keys[1:]} - {2 << 3}:
        raise ValueError("descriptor without type and dimensions")
    return values[1], tuple(values[3::2])
