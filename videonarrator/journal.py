"""Lines of JSON that are on disk as soon as they are written, and that a kill may cut off."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def append(file: Path, entry: Mapping[str, Any]) -> None:
    """Add a line; it is on disk when this returns. A last line that was cut off is ended first."""
    line = json.dumps(dict(entry), ensure_ascii=False) + "\n"
    with file.open("a+b") as stream:
        if stream.tell() and stream.seek(-1, os.SEEK_END) >= 0 and stream.read(1) != b"\n":
            line = "\n" + line
        stream.write(line.encode())
        stream.flush()
        os.fsync(stream.fileno())


def entries(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file that are whole; none where there is no file."""
    if not file.is_file():
        return
    for line in file.read_bytes().split(b"\n"):
        try:
            entry = json.loads(line)
        except ValueError:  # a line, or a character, was cut off
            continue
        if isinstance(entry, dict):
            yield entry
