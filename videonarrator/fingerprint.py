"""A fingerprint of a model folder: enough to notice that it is another one, without reading gigabytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

BLOCK, BLOCKS, WHOLE = 1 << 16, 64, 1 << 28

SOURCE_KEY = "converted_from"
"""In the config.json of a converted model folder: the fingerprint of the folder it was made from."""


def fingerprint(folder: Path, endings: tuple[str, ...] = (".safetensors",)) -> str:
    """sha256 (hex) over config.json and, of every weight file, name, size and 64 evenly spaced blocks.

    Files of up to 256 MiB are read whole. Raises `FileNotFoundError` where there is no config.json.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(path for path in folder.iterdir() if path.suffix in endings):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as stream:
            if size <= WHOLE:
                digest.update(stream.read())
                continue
            for block in range(BLOCKS):
                stream.seek(block * (size - BLOCK) // (BLOCKS - 1))
                digest.update(stream.read(BLOCK))
    return digest.hexdigest()


def source_fingerprint(folder: Path) -> str:
    """The same for all layouts a model was converted to: the fingerprint of what it was made from.

    A folder that was not converted is its own source (pickled weights count, too).
    """
    converted = json.loads((folder / "config.json").read_text("utf-8")).get(SOURCE_KEY)
    return str(converted) if converted else fingerprint(folder, (".safetensors", ".bin"))
