"""METEOR 1.5 over tokens, one reference each, through the jar that pycocoevalcap ships (paper, section 5.2).

The published numbers are taken on token ids joined by blanks, which METEOR reads as English words: `-l en
-norm`, with its default parameters. The jar is asked for each pair's sufficient statistics; the score of a
set of pairs is a function of their sums (Denkowski and Lavie, 2014, "Meteor Universal"), which `aggregate`
computes without the jar, so that a resampled score costs one sum.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Hashable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryFile
from threading import Thread
from typing import IO

import numpy as np
import pycocoevalcap

from metrics.base import Measured, check_pairs
from metrics.ngram import CHARS, Tokenize
from videonarrator.schema import NarratorError

FOLDER = Path(pycocoevalcap.__path__[0]) / "meteor"
# Started in FOLDER with relative names: the jar does not find its data below a folder whose name has a blank.
# The locale: in a German one METEOR prints 6.0 and then cannot read it. The serial collector: half the memory
# of the default one and a tenth to a quarter less time.
ARGUMENTS = (
    *("-Xmx2G", "-XX:+UseSerialGC", "-XX:+DisplayVMOutputToStderr"),
    *("-Duser.language=en", "-Duser.country=US", "-jar", "meteor-1.5.jar"),
    *("-", "-", "-stdio", "-l", "en", "-norm", "-a", "data/paraphrase-en.gz"),
)

COLUMNS = 23
"""Numbers in a pair's statistics; h: of the narration (hypothesis), r: of the reference.

0..3: words of h, of r, function words of h, of r. Four each for the matchers exact, stem, synonym and
paraphrase (4..7, 8..11, 12..15, 16..19): matched content words of h, of r, matched function words of h, of r.
20: chunks. 21, 22: matched words of h, of r.
"""

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
WEIGHTS = (1.0, 0.6, 0.8, 0.6)
"""METEOR 1.5's parameters for English, and the weights of its matchers in the order of `COLUMNS`."""

INSTALL = "apt-get install default-jre-headless, or conda install -c conda-forge openjdk"


def java_missing() -> str | None:
    """Why METEOR cannot run here and what to type, or None where a working `java` is on the PATH."""
    java = shutil.which("java")
    if java is None:
        return f"METEOR needs Java, and there is no `java` program on the PATH; install it: {INSTALL}"
    try:
        done = subprocess.run(
            [java, "-version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"METEOR needs Java, and {java} does not work ({error}); install it: {INSTALL}"
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
        return f"METEOR needs Java, and {java} does not work ({said}); install it: {INSTALL}"
    return None


class MeteorProcess:
    """METEOR's Java process, from entering the context to leaving it in whatever way; one thread may use it.

    Starting takes about ten seconds (METEOR reads its paraphrases), which the first answer waits for.
    silence: seconds without an answer after which the process counts as hung. Entering raises `NarratorError`
    where there is no `java` program; afterwards `RuntimeError` says why the process died, hung or answered
    something else than numbers (it is ended then).
    """

    def __init__(self, silence: float = 300.0) -> None:
        self.silence = silence
        self._known: dict[tuple[str, str], list[float]] = {}

    def __enter__(self) -> MeteorProcess:
        java = shutil.which("java")
        if java is None:
            raise NarratorError(str(java_missing()))
        self._stderr = TemporaryFile()  # a file never blocks the process that writes it
        self._requests: SimpleQueue[bytes | None] = SimpleQueue()
        self._answers: SimpleQueue[bytes | None] = SimpleQueue()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._stderr}
        self._process = subprocess.Popen([java, *ARGUMENTS], cwd=FOLDER, **pipes)
        # each pipe has a thread that alone uses and closes it: neither a full nor a silent one can block us
        Thread(target=_write, args=(self._process.stdin, self._requests), daemon=True).start()
        Thread(target=_read, args=(self._process.stdout, self._answers), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._stderr.close()

    def end(self) -> None:
        """End the process; a thread that waits for its answer gets a `RuntimeError`."""
        self._requests.put(None)
        self._process.kill()
        self._process.wait()

    def statistics(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Statistics [pairs, 23] (`COLUMNS`), float64, of (narration, reference), words joined by blanks.

        Each distinct pair is sent once in the process's life. A side without words is served too. Line breaks
        and the separator `|||` must not occur (`joined` sees to it).
        """
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        lines = [f"SCORE ||| {reference} ||| {narration}" for narration, reference in new]
        self._known.update(zip(new, self._ask(lines, [COLUMNS] * len(lines)), strict=True))
        return np.array([self._known[pair] for pair in pairs], dtype=np.float64).reshape(-1, COLUMNS)

    def evaluate(self, statistics: np.ndarray) -> tuple[list[float], float]:
        """METEOR's scores (0..1) of pairs with these statistics [pairs, 23], pairs > 0, and of them all."""
        rows = (" ||| " + " ".join(map(repr, row)) for row in statistics.tolist())
        *segments, total = self._ask(["EVAL" + "".join(rows)], [1] * (len(statistics) + 1))
        return [score for (score,) in segments], total[0]

    def _ask(self, lines: list[str], expected: list[int]) -> list[list[float]]:
        """Send lines, return as many lines of numbers as `expected` has entries (how many numbers each)."""
        self._requests.put("".join(line + "\n" for line in lines).encode("utf-8", "replace"))
        try:
            return [self._answer(count) for count in expected]
        except BaseException:
            self._process.kill()
            self._answers = SimpleQueue()  # what it still had to say is no answer to another question
            self._answers.put(None)
            raise

    def _answer(self, count: int) -> list[float]:
        try:
            line = self._answers.get(timeout=self.silence)
        except Empty:
            reason = f"METEOR's Java process was silent for {self.silence:g} s{self._said()}"
            raise RuntimeError(reason) from None
        if line is None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            code = self._process.returncode
            raise RuntimeError(f"METEOR's Java process ended with exit code {code}{self._said()}")
        try:
            numbers = [float(word) for word in line.split()]
        except ValueError:
            numbers = []
        if len(numbers) != count:
            raise RuntimeError(f"METEOR answered {line.decode(errors='replace').strip()!r}{self._said()}")
        return numbers

    def _said(self) -> str:
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip()
        return f": {said[-2000:]}" if said else ""


def _write(pipe: IO[bytes], requests: SimpleQueue[bytes | None]) -> None:
    with suppress(OSError), pipe:  # a process that is gone is noticed by its answers
        while (data := requests.get()) is not None:
            pipe.write(data)
            pipe.flush()


def _read(pipe: IO[bytes], answers: SimpleQueue[bytes | None]) -> None:
    with pipe:
        for line in pipe:
            answers.put(line)
    answers.put(None)


def joined(tokens: Sequence[Hashable]) -> str:
    """Tokens as METEOR's input: joined by blanks, white space inside a token as _, `|||` as ¦¦¦."""
    return " ".join(re.sub(r"\s+", "_", str(token)).replace("|||", "¦¦¦") for token in tokens)


def summable(statistics: np.ndarray) -> np.ndarray:
    """A copy of statistics [..., 23] of single pairs for `aggregate`: a perfect pair counts no chunk.

    METEOR charges nothing for word order where all words of both sides match in one chunk, and leaves such a
    chunk out of its sums.
    """
    words, matched = statistics[..., [0, 1]], statistics[..., [21, 22]]
    perfect = (words == matched).all(-1) & (statistics[..., 20] == 1)
    statistics = statistics.copy()
    statistics[..., 20][perfect] = 0
    return statistics


def aggregate(sums: np.ndarray) -> np.ndarray:
    """METEOR [...] (0..1) from sums [..., 23] of `summable` statistics; NaN where neither side has a word.

    P and R: matched words, weighted by matcher, of all words; content words count delta, function words
    1 - delta. F = P R / (alpha P + (1 - alpha) R), METEOR = F (1 - gamma (chunks / matched words) ^ beta),
    matched words being the mean of both sides.
    """
    content, function = sums[..., [0, 1]] - sums[..., [2, 3]], sums[..., [2, 3]]
    length = DELTA * content + (1 - DELTA) * function
    by_matcher = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 4)
    content, function = np.split(np.einsum("...mk,m->...k", by_matcher, WEIGHTS), 2, axis=-1)
    matched = DELTA * content + (1 - DELTA) * function
    product = matched.prod(-1)
    below = ALPHA * matched[..., 0] * length[..., 1] + (1 - ALPHA) * matched[..., 1] * length[..., 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        f = np.where(product > 0, product / below, 0.0)
        fragmentation = np.where(product > 0, 2 * sums[..., 20] / (sums[..., 21] + sums[..., 22]), 0.0)
    return np.where(length.sum(-1) > 0, f * (1 - GAMMA * fragmentation**BETA), np.nan)


def meteor(
    narrations: Sequence[str],
    references: Sequence[str],
    tokenize: Tokenize = CHARS,
    process: MeteorProcess | None = None,
) -> Measured:
    """METEOR (0..1) of narrations against one reference each: METEOR's own aggregate, not the pairs' mean.

    An empty narration scores 0, and its reference's length counts in the aggregate. process: a running one
    (None: one is started and ended). Nothing outside the call is touched, so it may run in a thread. Raises
    `ValueError` where the lists differ in length or are empty, and what `MeteorProcess` raises.
    """
    check_pairs(narrations, references)
    pairs = [(joined(tokenize(n)), joined(tokenize(r))) for n, r in zip(narrations, references, strict=True)]
    with nullcontext(process) if process else MeteorProcess() as running:
        statistics = running.statistics(pairs)
        per_item, value = running.evaluate(statistics)
    return Measured(value, list(per_item), statistics=summable(statistics), aggregate=aggregate)
