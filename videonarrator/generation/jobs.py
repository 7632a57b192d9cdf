"""What is to be written, and what was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from videonarrator.schema import Product


@dataclass(frozen=True)
class ClipTask:
    """A clip to be written: index from 0, length range, visual tokens [tokens, width], position 0..99.

    label: a script label given by the user; None has it generated. seconds: the clip's duration, for
    candidates that are judged by how long they take to say (None: by their length in characters or words).
    """

    index: int
    low: int
    high: int
    visual: Tensor
    position: int
    label: str | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class VideoTask:
    """The clips to be written of one video, in order; `total` counts all its clips.

    seed: of its random numbers (None: the settings').
    """

    id: str
    product: Product
    clips: Sequence[ClipTask]
    total: int
    seed: int | None = None


@dataclass(frozen=True)
class ClipResult:
    """What was written for a clip.

    raw: the narration as decoded; attempt: its try, from 0; flaws: what is wrong with it, see
    `generation.flaws`; score: mean log-likelihood of a token (None where the length is only asked for).
    """

    index: int
    label: str
    text: str
    raw: str
    attempt: int
    seed: int
    flaws: tuple[str, ...] = ()
    score: float | None = None
