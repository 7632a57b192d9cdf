"""The steps of a training run: forward and backward of micro-batches, one update, and what may go wrong."""

from __future__ import annotations

import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from videonarrator.schema import NarratorError
from videonarrator.training.batches import MicroBatch, StepBatches
from videonarrator.training.parallel import Processes
from videonarrator.training.progress import Progress
from videonarrator.training.schedule import rate_factor


class Stopped(KeyboardInterrupt):
    """The run was asked to stop, and its state is written."""


class Loop:
    """Optimisation steps over `batches`.

    model: as `processes.prepare` gave it, with its optimizer, whose groups have their full learning rates.
    schedule, warmup_steps: see `schedule.rate_factor`. workers: processes that prepare
    micro-batches.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        batches: StepBatches,
        processes: Processes,
        *,
        schedule: str,
        warmup_steps: int,
        clip_norm: float,
        seed: int,
        workers: int = 0,
    ) -> None:
        self.model, self.optimizer, self.batches, self.processes = model, optimizer, batches, processes
        self.schedule, self.warmup_steps, self.clip_norm = schedule, warmup_steps, clip_norm
        self.seed, self.workers = seed, workers
        self.steps = len(batches)
        self.samples_done = list(accumulate(batches.samples(step) for step in range(self.steps)))
        self.rates = [group["lr"] for group in optimizer.param_groups]

    def run(
        self,
        progress: Progress,
        *,
        first: int = 0,
        log_steps: int = 1,
        after_step: Callable[[int, bool], bool] = lambda step, stopping: False,
    ) -> None:
        """Take the steps from `first` (from 0) on.

        after_step(steps done, whether the run is asked to stop): saves and evaluates; True ends the run. On
        SIGINT or SIGTERM the step at work is finished and `Stopped` raised after `after_step`.
        """
        loader: DataLoader[list[MicroBatch]] = DataLoader(
            self.batches, batch_size=None, sampler=range(first, self.steps), num_workers=self.workers
        )
        losses: list[float] = []
        self.model.train()
        with asked_to_stop() as asked:
            for step, micro_batches in enumerate(loader, first):
                loss, norm, stopping = self.step(step, micro_batches, bool(asked))
                losses.append(loss)
                progress.count(self.batches.samples(step), sum(one.tokens for one in micro_batches))
                if (step + 1) % log_steps == 0 or step + 1 == self.steps:
                    progress.step(
                        step + 1,
                        {
                            "loss": sum(losses) / len(losses),
                            "grad_norm": norm,
                            "learning_rate": self.rates[0] * self._factor(step),
                            "epoch": round(self.samples_done[step] / len(self.batches.dataset), 4),
                        },
                    )
                    losses = []
                enough = after_step(step + 1, stopping)
                if stopping and step + 1 < self.steps:
                    raise Stopped(f"stopped after step {step + 1}")
                if enough:
                    return

    def step(
        self, step: int, micro_batches: Sequence[MicroBatch], asked: bool = False
    ) -> tuple[float, float, bool]:
        """One update: the step's loss and gradient norm, and whether any process was asked to stop."""
        processes = self.processes
        torch.manual_seed(hash((self.seed, step, processes.index)) & 0x7FFFFFFF)  # dropout
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self._factor(step)
        kept: list[Tensor] = []
        total = torch.zeros((), dtype=torch.float64, device=processes.device)
        for number, micro_batch in enumerate(micro_batches, 1):
            with naming_memory(micro_batch):
                made = processes.accumulate(
                    self.model, micro_batch.tensors, last=number == len(micro_batches)
                )
            total += made["loss"].detach()
            kept.append(made["token_losses"])
        # loss (weighted for the mean over processes), processes that are asked to stop
        told = torch.stack([total / processes.number, torch.tensor(float(asked)).to(total)])
        loss, stops = processes.total(told).tolist()
        if not math.isfinite(loss):
            raise NarratorError(f"step {step + 1}: the loss is {loss}. {culprits(micro_batches, kept)}")
        with naming_memory(max(micro_batches, key=lambda one: one.tokens)):
            norm = processes.clip(self.model, self.optimizer, self.clip_norm)
            if not math.isfinite(norm) and processes.precision != "fp16":  # there the scaler passes it over
                raise NarratorError(
                    f"step {step + 1}: the gradient's norm is {norm}, the loss {loss:.3f}: the weights are "
                    "about to diverge. Lower optimization.learning_rate"
                )
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss, norm, stops > 0

    def _factor(self, step: int) -> float:
        return rate_factor(self.schedule, step, self.steps, self.warmup_steps)


def culprits(micro_batches: Sequence[MicroBatch], kept: Sequence[Tensor]) -> str:
    """Which samples have losses that are no numbers."""
    every: set[str] = set()
    wrong: dict[str, None] = {}
    for micro_batch, losses in zip(micro_batches, kept, strict=True):
        every |= set(micro_batch.names)
        for owner, loss in zip(micro_batch.owners, losses.tolist(), strict=True):
            if not math.isfinite(loss):
                wrong[micro_batch.names[owner]] = None
    names = list(wrong)
    if not names:
        return "Another process names the sample"
    if len(names) == len(every) > 1:
        return (
            f"That of every sample of the step is (the first: {names[0]}): the weights have diverged. Lower "
            "optimization.learning_rate, or take precision bf16 or fp32 in place of fp16"
        )
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"It comes from {'; '.join(names[:3])}{more}: look at its features and its text"


@contextmanager
def naming_memory(micro_batch: MicroBatch) -> Iterator[None]:
    """Where memory runs out, say which samples were at work and what to set."""
    try:
        yield
    except RuntimeError as error:
        told = str(error).lower()
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in told:
            raise
        shape = list(micro_batch.tensors["input_ids"].shape)
        others = f" and {len(micro_batch.names) - 1} more" if len(micro_batch.names) > 1 else ""
        raise NarratorError(
            f"out of memory on {micro_batch.names[0]}{others}: {shape[0]} x {shape[1]} tokens at once. Lower "
            "optimization.tokens_per_sequence (packed) or optimization.batch_size (not packed), set "
            "optimization.gradient_checkpointing=true, or take precision bf16; what was saved is kept"
        ) from error


@contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM are noted in; a second one stops at once."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        print("stopping after this step; once more to stop at once", file=sys.stderr, flush=True)

    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
