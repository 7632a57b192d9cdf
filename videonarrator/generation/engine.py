"""Many videos at a time: each has a row of the cache and a line in work; a row that is done takes another.

What the next forward pass must compute of a row is what its line's prompt and written tokens have more than
the row holds, be it a whole prompt, a clip behind the common beginning of two prompts, or one token. So
nothing has to be remembered about why: another attempt, a text that is tokenised otherwise than it was
written, a history that lost its oldest clip, or a row that was put aside when memory ran out.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from videonarrator.checkpoint import Checkpoint
from videonarrator.generation.choice import draw, log_shares, penalised
from videonarrator.generation.jobs import ClipResult, ClipTask, VideoTask
from videonarrator.generation.line import Line
from videonarrator.generation.memory import Memory, Part, memory_for, slot_bytes
from videonarrator.generation.prompts import common_length
from videonarrator.generation.story import Lines, Writing
from videonarrator.modeling.device_memory import free_bytes, is_out_of_memory
from videonarrator.schema import NarratorError, Product
from videonarrator.settings import DecodingSettings
from videonarrator.speech import SpeakingRate

log = logging.getLogger(__name__)

TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}
"""New tokens of one forward pass, at most, unless a single row has more."""

ROWS = {"cpu": 8, "cuda": 64}
"""Videos at a time where memory allows it; more make a step longer without making it cheaper by much."""

USUAL_TOKENS = 2048
"""Of a video's longest prompt, for the number of rows before any is seen (E-SyncVidStory: some 2000)."""

Outcome = tuple[str, list[ClipResult] | NarratorError]
"""A video's id, and its clips or why there are none."""


@dataclass(eq=False)
class Row:
    """A video in work. held: keys of the tokens in the cache; seen [vocabulary]: ids the penalty covers."""

    id: str
    lines: Lines
    line: Line
    held: list[int] = field(default_factory=list)
    seen: Tensor | None = None


def narrate_videos(
    checkpoint: Checkpoint,
    videos: Iterable[VideoTask],
    settings: DecodingSettings,
    rate: SpeakingRate | None = None,
) -> Iterator[Outcome]:
    """Write many videos, and give each as soon as it is done; one that cannot be written gives its error.

    `videos` are taken one by one as there is room. What is written of a video does not depend on the others,
    up to rounding. rate: by which candidates are judged (None: the language's default).
    """
    yield from Engine(Writing(checkpoint, settings, rate)).run(videos)


def narrate_video(
    checkpoint: Checkpoint,
    product: Product,
    tasks: Sequence[ClipTask],
    total: int,
    settings: DecodingSettings,
    seed: int | None = None,
    rate: SpeakingRate | None = None,
) -> list[ClipResult]:
    """Write the clips of one video in order; `total` counts all its clips. Raises `NarratorError`."""
    video = VideoTask("", product, tasks, total, seed)
    ((_, results),) = narrate_videos(checkpoint, [video], settings, rate)
    if isinstance(results, NarratorError):
        raise results
    return results


class Engine:
    """Rows of one memory, and the videos that wait for one."""

    def __init__(self, writing: Writing) -> None:
        self.writing = writing
        self.narrator = writing.checkpoint.narrator
        self.kind = "cuda" if self.narrator.device.type == "cuda" else "cpu"
        self.limit = writing.settings.batch or self._fitting_rows()
        self.memory = self._new_memory()
        self.rows: list[Row] = []
        self.aside: deque[Row] = deque()
        self.prefilled = self.decoded = 0
        """Tokens read of prompts, and tokens written."""

    def run(self, videos: Iterable[VideoTask]) -> Iterator[Outcome]:
        """See `narrate_videos`."""
        waiting = iter(videos)
        while True:
            yield from self._fill(waiting)
            if not self.rows:
                return
            yield from self._step()

    # -------------------- rows

    def _fill(self, waiting: Iterator[VideoTask]) -> Iterator[Outcome]:
        """Take videos into work while there is room."""
        while len(self.rows) < self.limit:
            if self.aside:
                self.rows.append(self.aside.popleft())
                continue
            video = next(waiting, None)
            if video is None:
                return
            lines = self.writing.lines(video)
            try:
                row = Row(video.id, lines, next(lines))
            except StopIteration as done:  # a video without clips
                yield video.id, done.value
            except NarratorError as error:
                yield video.id, error
            else:
                self._begin(row)
                self.rows.append(row)

    def _begin(self, row: Row) -> None:
        """Make ready for a new line: what the penalty covers is its prompt."""
        if row.seen is None:
            width = self.narrator.base.get_output_embeddings().weight.shape[0]
            row.seen = torch.zeros(width, dtype=torch.bool, device=self.narrator.device)
        row.seen.zero_()
        row.seen[torch.tensor(row.line.prompt.ids, device=self.narrator.device)] = True

    def _leave(self, row: Row) -> None:
        """Take a row out; the last one takes its place."""
        at = self.rows.index(row)
        last = self.rows.pop()
        if last is not row:
            self.memory.move(len(self.rows), at, len(last.held))
            self.rows[at] = last

    # -------------------- steps

    def _step(self) -> Iterator[Outcome]:
        """One forward pass, and the next token of every row that took part."""
        parts = self._parts()
        try:
            logits = self.memory.extend(parts)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            logits = None
        if logits is None:
            yield from self._halve()
            return
        rows = [self.rows[part.row] for part in parts]
        for row, part in zip(rows, parts, strict=True):
            row.held = [*row.line.prompt.keys, *row.line.written]
            new = len(part.ids) - part.kept
            self.decoded += bool(row.line.written)
            self.prefilled += new - bool(row.line.written)
        finite = logits.isfinite().all(-1).tolist()
        for row, token in zip(rows, self._choose(rows, logits), strict=True):
            if not finite[rows.index(row)]:
                yield (
                    row.id,
                    NarratorError(
                        "the language model gave values that are no numbers (NaN or infinite): look at the "
                        "video's features, or take another precision"
                    ),
                )
                self.memory.clear(self.rows.index(row))
                self._leave(row)
            elif row.line.take(token):
                yield from self._next_line(row)
            elif row.seen is not None:
                row.seen[token] = True

    def _next_line(self, row: Row) -> Iterator[Outcome]:
        try:
            row.line = next(row.lines)
        except StopIteration as done:
            yield row.id, done.value
        except NarratorError as error:
            yield row.id, error
        else:
            self._begin(row)
            return
        self._leave(row)

    def _parts(self) -> list[Part]:
        """What the next forward pass computes: single tokens all together, prompts as many as are allowed.

        On a GPU, prompts wait while most rows write: a step of single tokens alone is captured, and quick.
        """
        parts = [self._part(index, row) for index, row in enumerate(self.rows)]
        single = [part for part in parts if len(part.ids) == part.kept + 1]
        several = [part for part in parts if len(part.ids) > part.kept + 1]
        if self.kind == "cuda" and 4 * len(several) < len(single):
            return single
        chosen, room = single, TOKENS_AT_ONCE[self.kind] - len(single)
        for part in several:
            room -= len(part.ids) - part.kept
            if chosen and room < 0:
                break
            chosen.append(part)
        return chosen

    def _part(self, index: int, row: Row) -> Part:
        prompt, written = row.line.prompt, row.line.written
        whole, held = [*prompt.keys, *written], row.held
        common = len(held) if whole[: len(held)] == held else common_length(held, whole)
        kept = min(common, len(whole) - 1)  # the last token is always read (again), for what follows it
        return Part(index, kept, [*prompt.ids, *written], prompt.visual, prompt.positions)

    @torch.inference_mode()
    def _choose(self, rows: Sequence[Row], logits: Tensor) -> list[int]:
        """Each row's next token; its log-likelihood and those that its guide asks for are noted."""
        lines = [row.line for row in rows]
        penalties = torch.tensor([[line.penalty] for line in lines], dtype=logits.dtype, device=logits.device)
        seen = torch.stack([row.seen for row in rows if row.seen is not None])
        scores = penalised(logits, seen, penalties)
        for index, line in enumerate(lines):
            only, never = line.guide.only(line.written), line.guide.never(line.written)
            if only is not None:
                allowed = torch.tensor(list(only), dtype=torch.long, device=scores.device)
                left = scores[index, allowed]
                scores[index] = -torch.inf
                scores[index, allowed] = left
            elif never is not None:
                scores[index].masked_fill_(never.to(scores.device), -torch.inf)
        tokens = scores.argmax(-1).tolist()
        for index, line in enumerate(lines):
            if line.temperature:
                tokens[index] = draw(scores[index], line.temperature, line.generator)
        for judged in {line.guide.judged for line in lines if line.guide.judged}:
            own = [index for index, line in enumerate(lines) if line.guide.judged == judged]
            chosen = logits[own]
            shares = log_shares(chosen, judged).tolist()
            taken = chosen.log_softmax(-1)[range(len(own)), [tokens[index] for index in own]].tolist()
            for index, share, likelihood in zip(own, shares, taken, strict=True):
                lines[index].judged.append(share)
                lines[index].own.append(likelihood)
        return tokens

    # -------------------- memory

    def _fitting_rows(self) -> int:
        """How many rows fit into half of the memory that is free."""
        bytes_of_row = slot_bytes(self.narrator) * min(USUAL_TOKENS, self.writing.longest or USUAL_TOKENS)
        return max(1, min(ROWS[self.kind], free_bytes(self.narrator.device) // 2 // bytes_of_row))

    def _new_memory(self) -> Memory:
        return memory_for(self.narrator, self.limit, self.writing.longest)

    def _halve(self) -> Iterator[Outcome]:
        """Memory ran out: go on with half of the rows; the others wait, what they have written is kept."""
        del self.memory
        if self.kind == "cuda":
            torch.cuda.empty_cache()
        if len(self.rows) == 1:
            row = self.rows.pop()
            length = len(row.line.prompt.ids)
            yield (
                row.id,
                NarratorError(
                    f"out of memory on a prompt of {length} tokens, with no other video beside it: take "
                    "precision bfloat16, or a device with more memory"
                ),
            )
        self.limit = max(1, len(self.rows) // 2)
        self.aside.extendleft(reversed(self.rows[self.limit :]))
        del self.rows[self.limit :]
        for row in [*self.rows, *self.aside]:
            row.held = []
        log.warning("out of memory: going on with %d videos at a time", self.limit)
        self.memory = self._new_memory()
