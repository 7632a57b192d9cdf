"""One line while it is written: its prompt, how its tokens are chosen, and what it says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from videonarrator.generation.prompts import Prompt


class Guide:
    """What may be written in a line, and when it is done: here anything, without end.

    judged: groups of ids whose log-likelihood is wanted before every token.
    """

    judged: tuple[tuple[int, ...], ...] = ()

    def only(self, written: Sequence[int]) -> Sequence[int] | None:
        """The ids that may come next; None: see `never`."""
        return None

    def never(self, written: Sequence[int]) -> Tensor | None:
        """[vocabulary] of bool: ids that may not come next; None: all may."""
        return None

    def back(self, written: Sequence[int], judged: Sequence[float]) -> bool:
        """Whether the last of `written` is to be taken back, and another one taken in its place.

        judged: the log-likelihoods of the groups behind it.
        """
        return False

    def done(self, written: Sequence[int]) -> bool:
        """Whether the line is complete after `written`, the last of which was just chosen."""
        return False


@dataclass(eq=False)
class Line:
    """temperature: 0 takes the likeliest token. penalty: repetition penalty over all prompt ids (patches
    included) and the output, what was taken back too (paper's decoding). generator: for drawing.

    written: the ids so far, the one that ended the line not among them; ended: whether one did. judged: of
    the guide's groups, the log-likelihoods before each token, the ending one's included; own: the
    log-likelihood of each token that was taken.
    """

    prompt: Prompt
    guide: Guide
    stops: Sequence[int]
    temperature: float
    penalty: float
    generator: torch.Generator
    written: list[int] = field(default_factory=list)
    ended: bool = False
    judged: list[list[float]] = field(default_factory=list)
    own: list[float] = field(default_factory=list)

    def take(self, token: int) -> bool:
        """Write `token`, or take the one before it back, and say whether the line is done."""
        if self.judged and self.guide.back(self.written, self.judged[-1]):
            last = len(self.written) - 1
            del self.written[last:], self.judged[last:], self.own[last:]
            return False
        if token in self.stops:
            self.ended = True
            return True
        self.written.append(token)
        return self.guide.done(self.written)
