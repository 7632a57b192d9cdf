"""What a run tells: train_log.jsonl, lines on stderr, the loss curve as a picture, TensorBoard if wanted."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from videonarrator.schema import NarratorError

CURVE_SECONDS = 60
"""The loss curve is drawn anew at most that often."""


class Progress:
    """The log of a run in the folder `output`. Only the process that `writes` tells anything.

    steps: of the whole run; first: steps that were done before. Lines of steps that are taken again are
    dropped from the log first.
    """

    def __init__(self, output: Path, steps: int, first: int, *, tensorboard: bool, writes: bool) -> None:
        self.output, self.steps, self.first, self.writes = output, steps, first, writes
        self.log = output / "train_log.jsonl"
        self.began = self.told = time.monotonic()
        self.samples = self.tokens = 0
        self.drawn = -math.inf
        self.board = None
        if tensorboard and writes:
            purged = first + 1 if first else None
            self.board = tensorboard_writer()(str(output / "tensorboard"), purge_step=purged)
        if writes:
            kept = [line for line in read_log(output) if line["step"] <= first]
            with self._naming_log():
                partial = output / "train_log.partial"
                partial.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")
                partial.replace(self.log)

    def count(self, samples: int, tokens: int) -> None:
        """Note what a step computed."""
        self.samples += samples
        self.tokens += tokens

    def step(self, step: int, facts: dict[str, float]) -> None:
        """Log a step: loss, grad_norm, learning_rate, epoch; tokens and samples a second are added."""
        now = time.monotonic()
        passed = max(now - self.told, 1e-9)
        rates = {
            "samples_per_second": round(self.samples / passed, 3),
            "tokens_per_second": round(self.tokens / passed, 1),
        }
        self.told, self.samples, self.tokens = now, 0, 0
        self._write(step, {**facts, **rates})
        left = (now - self.began) / (step - self.first) * (self.steps - step)
        say_if(
            self.writes,
            f"step {step}/{self.steps}  loss {facts['loss']:.3f}  {rates['tokens_per_second']:.0f} tokens/s  "
            f"{rates['samples_per_second']:.1f} samples/s  {left:.0f} s left",
        )

    def evaluated(self, step: int, loss: float, best: bool) -> None:
        """Log the loss on the held-out samples."""
        self._write(step, {"eval_loss": loss, "best": best})
        say_if(self.writes, f"step {step}/{self.steps}  held-out loss {loss:.3f}{' (best)' if best else ''}")

    def stopped(self, step: int, reason: str) -> None:
        """Log that the run ends here, before its last step."""
        self._write(step, {"stopped": reason})
        say_if(self.writes, f"stopped after step {step}: {reason}")

    def draw(self, *, now: bool = False) -> None:
        """Draw loss_curve.png from the log, if the last one is old or `now`; no run ends for its sake."""
        if self.writes and (now or time.monotonic() - self.drawn > CURVE_SECONDS):
            try:
                draw_curve(self.output)
            except (OSError, MemoryError, ImportError) as error:  # the disk is full, or memory
                say_if(True, f"{self.output / 'loss_curve.png'} is not drawn: {error}")
            self.drawn = time.monotonic()

    def close(self) -> None:
        """Draw the curve a last time."""
        self.draw(now=True)
        if self.board is not None:
            self.board.close()

    def _write(self, step: int, facts: dict[str, Any]) -> None:
        if not self.writes:
            return
        with self._naming_log(), self.log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **facts}) + "\n")
        if self.board is not None:
            for name, value in facts.items():
                if not isinstance(value, str):
                    self.board.add_scalar(name, value, step)

    @contextmanager
    def _naming_log(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise NarratorError(
                f"cannot write to {self.log}: {error.strerror or error}: make room, and the same command "
                "goes on from the last state"
            ) from error


def read_log(output: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's train_log.jsonl (a kill may have cut the last one)."""
    log = output / "train_log.jsonl"
    lines = log.read_text("utf-8").splitlines(keepends=True) if log.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def draw_curve(output: Path) -> None:
    """Write loss_curve.png: the loss of each logged step and, where there is one, on held-out samples."""
    from matplotlib.figure import Figure

    lines = read_log(output)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, label in (("loss", "training"), ("eval_loss", "held out")):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 30 else None)
    axes.set(xlabel="step", ylabel="loss a token", title=output.name)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    partial = output / "loss_curve.partial"
    figure.savefig(partial, format="png", dpi=120)
    partial.replace(output / "loss_curve.png")


def tensorboard_writer() -> Any:
    """The class that writes TensorBoard's files; `NarratorError` where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise NarratorError(
            "optimization.tensorboard=true needs the package tensorboard: pip install tensorboard, or leave "
            "the setting out"
        ) from error
    return SummaryWriter


def say_if(wanted: bool, line: str) -> None:
    if wanted:
        print(line, file=sys.stderr, flush=True)
