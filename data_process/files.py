"""Writing files whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from videonarrator.schema import NarratorError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes `path`'s place once the block ends well, and goes otherwise.

    Folders are made. Raises `NarratorError` where the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise NarratorError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            part.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, indented, Chinese as it is, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def read_text(path: Path) -> str:
    """A UTF-8 file's text. Raises `NarratorError` where it does not exist or is something else."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise NarratorError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise NarratorError(f"cannot read {path}: {error.strerror or error}") from error


def read_json(path: Path) -> Any:
    """A JSON file's value; an object that has a key twice becomes a `Repeated`."""
    try:
        return json.loads(read_text(path), object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise NarratorError(
            f"{path} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        ) from None


class Repeated(dict):
    """A JSON object that has keys more than once: `repeated` names them; the last value is kept."""

    repeated: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) == len(keys):
        return dict(pairs)
    value = Repeated(pairs)
    value.repeated = tuple(dict.fromkeys(key for key in keys if keys.count(key) > 1))
    return value
