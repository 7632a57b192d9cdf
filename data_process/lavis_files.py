"""LAVIS's files of a BLIP-2: which they are, and what is in them.

LAVIS keeps it in two: blip2_pretrained.pth, {"model": names and tensors}, without the frozen vision
transformer (ViT), and eva_vit_g.pth, whose names lack their prefix. A fine-tuned checkpoint holds both parts
in one file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from videonarrator.schema import NarratorError
from videonarrator.weight_files import PICKLED, only_tensors, read_tensors, read_torch

BLIP2_FILES = "blip2_pretrained*.pth"
VIT_FILE = "eva_vit_g.pth"
VIT_PREFIX = "visual_encoder."
VIT_G_BLOCKS = 39
BEHIND_THE_VIT = re.compile(rf"(blocks\.{VIT_G_BLOCKS}|norm|fc_norm|head)\..+")
"""What eva_vit_g.pth may hold and LAVIS does not build: its ViT ends after 39 blocks, without a norm."""


@dataclass(frozen=True)
class LavisTensors:
    """The tensors by LAVIS's names (those of the ViT without their prefix), and where they are from."""

    vit: dict[str, Tensor]
    vit_file: Path
    rest: dict[str, Tensor]
    blip2_file: Path


def read_lavis(
    checkpoint: Path, vit: Path | None = None, say: Callable[[str], None] = lambda line: None
) -> LavisTensors:
    """The tensors of a BLIP-2 of LAVIS.

    checkpoint: the folder of both files, a BLIP-2 file (the ViT is then `vit`, or eva_vit_g.pth beside it),
    or one state dict of the whole model (.pth or .safetensors). A ViT inside the BLIP-2 file is preferred.
    Raises `NarratorError` naming the file that is none of these.
    """
    return _read(*_files(checkpoint, vit), say)


def some(names: Iterable[str]) -> str:
    """The first few of `names`, for a message."""
    first = list(names)
    return ", ".join(first[:4]) + (", ..." if len(first) > 4 else "") if first else "nothing"


def _files(checkpoint: Path, vit: Path | None) -> tuple[Path, Path | None]:
    """The BLIP-2 file, and the ViT's if there is one."""
    file = checkpoint
    if checkpoint.is_dir():
        found = sorted(checkpoint.glob(BLIP2_FILES))
        if len(found) != 1:
            names = ", ".join(path.name for path in found or sorted(checkpoint.iterdir())[:8])
            what = f"{len(found)} files" if found else "no file"
            raise NarratorError(
                f"{checkpoint} holds {what} {BLIP2_FILES} ({names or 'it is empty'}): give the file itself"
            )
        file = found[0]
    beside = file.parent / VIT_FILE
    if vit is None and beside.is_file() and beside != file:
        vit = beside
    return file, vit


def _read(blip2_file: Path, vit_file: Path | None, say: Callable[[str], None]) -> LavisTensors:
    tensors = _state_dict(blip2_file)
    if not any(name.startswith("Qformer.") for name in tensors):
        if "patch_embed.proj.weight" in tensors:
            raise NarratorError(
                f"{blip2_file} holds the vision transformer alone; its place is --vit, and the checkpoint is "
                "the file with the Q-Former (blip2_pretrained.pth): are the two swapped?"
            )
        raise NarratorError(f"{blip2_file} is no BLIP-2 of LAVIS's: no Qformer.*; it holds {some(tensors)}")
    inside = {
        name.removeprefix(VIT_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(VIT_PREFIX)
    }
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(VIT_PREFIX)}
    if inside:
        if vit_file is not None:
            say(f"{blip2_file} has a vision transformer of its own, which is taken; {vit_file} is not read")
        return LavisTensors(inside, blip2_file, rest, blip2_file)
    if vit_file is None:
        raise NarratorError(
            f"{blip2_file} lacks the vision transformer ({VIT_PREFIX}*), which LAVIS keeps in {VIT_FILE}: "
            f"put that file beside it, or name it with --vit FILE"
        )
    vit = _state_dict(vit_file)
    if any(name.startswith("Qformer.") for name in vit):
        raise NarratorError(f"{vit_file} holds a Q-Former, expected the vision transformer alone")
    if "patch_embed.proj.weight" not in vit:
        raise NarratorError(
            f"{vit_file} is no ViT of LAVIS's: no patch_embed.proj.weight; it holds {some(vit)}"
        )
    ignored = [name for name in vit if BEHIND_THE_VIT.fullmatch(name)]
    if ignored:
        say(f"{vit_file}: {len(ignored)} tensors behind the last block that LAVIS builds are left out")
    return LavisTensors({n: t for n, t in vit.items() if n not in ignored}, vit_file, rest, blip2_file)


def _state_dict(file: Path) -> dict[str, Tensor]:
    if file.suffix not in PICKLED:
        return read_tensors(file)
    content = read_torch(file)
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    return only_tensors(content, str(file))
