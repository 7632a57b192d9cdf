"""The steps of a training run: forward and backward of micro-batches, one update, and what may go wrong."""

from __future__ import annotations

import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from videonarrator.modeling.device_memory import is_out_of_memory
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
        self.losses: list[float] = []  # of the steps since the last that was logged
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
        loader: DataLoader[list[MicroBatch] | NarratorError] = DataLoader(
            Prepared(self.batches),
            batch_size=None,
            sampler=range(first, self.steps),
            num_workers=self.workers,
            worker_init_fn=pass_over_signals,
        )
        self.model.train()
        with asked_to_stop(tells=self.processes.first_here) as asked:
            for step, micro_batches in enumerate(loader, first):
                if isinstance(micro_batches, NarratorError):
                    raise micro_batches
                stop = bool(asked) or self.processes.orphaned
                loss, norm, stopping = self.step(step, micro_batches, stop)
                self.losses.append(loss)
                progress.count(self.batches.samples(step), self.batches.tokens(step))
                if (step + 1) % log_steps == 0 or step + 1 == self.steps:
                    progress.step(
                        step + 1,
                        {
                            "loss": sum(self.losses) / len(self.losses),
                            "grad_norm": norm,
                            "learning_rate": self.rates[0] * self._factor(step),
                            "epoch": round(self.samples_done[step] / len(self.batches.dataset), 4),
                        },
                    )
                    self.losses = []
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
        total = torch.zeros((), dtype=torch.float64, device=processes.device)
        for number, micro_batch in enumerate(micro_batches, 1):
            with naming_memory(micro_batch):
                made = processes.accumulate(
                    self.model, micro_batch.tensors, last=number == len(micro_batches)
                )
            total += made["loss"].detach()
        # loss (weighted for the mean over processes), processes that are asked to stop
        told = torch.stack([total / processes.number, torch.tensor(float(asked)).to(total)])
        loss, stops = processes.total(told).tolist()
        if not math.isfinite(loss):
            found = culprits(self.model, self.batches, step, processes)
            raise NarratorError(f"step {step + 1}: the loss is {loss}. {found}")
        with naming_memory(max(micro_batches, key=lambda one: one.tokens)):
            norm = processes.clip(self.model, self.optimizer, self.clip_norm)
            if not math.isfinite(norm) and processes.precision != "fp16":  # there the scaler passes it over
                found = culprits(self.model, self.batches, step, processes, gradients=True)
                raise NarratorError(
                    f"step {step + 1}: the gradient's norm is {norm}, the loss {loss:.3f}. {found}"
                )
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss, norm, stops > 0

    def _factor(self, step: int) -> float:
        return rate_factor(self.schedule, step, self.steps, self.warmup_steps)


class Prepared(Dataset[Any]):
    """A step's micro-batches, or the error that the user is to see, whichever process prepares them."""

    def __init__(self, batches: StepBatches) -> None:
        self.batches = batches

    def __getitem__(self, step: int) -> list[MicroBatch] | NarratorError:
        try:
            return self.batches[step]
        except (NarratorError, OSError) as error:  # OSError: a file of features that has gone
            return NarratorError(f"step {step + 1}: {error}")


WITNESSES = 4
"""Samples of other steps that the suspects are compared with."""


def culprits(
    model: Any, batches: StepBatches, step: int, processes: Processes, *, gradients: bool = False
) -> str:
    """Which samples of a step have a loss (or gradient) that is no number, in words. All processes call this.

    Each sample is tried alone: in attention a NaN spreads over its whole sequence, masked or not. Where
    samples of other steps fail as well, the weights are to blame.
    """
    suspects = batches.step_samples(step)
    known = set(suspects)
    others = [sample for sample in range(len(batches.dataset)) if sample not in known][:WITNESSES]
    alone = batches.alone([*suspects, *others])
    gradients = gradients and not (processes.sharded or processes.deepspeed)  # theirs are all processes'
    model.eval()
    found: list[str] = gather_object(
        [
            one.names[0]
            for one in alone[0]
            if not _finite(model, one.tensors, processes, gradients=gradients) and one.tokens
        ]
    )
    if len(found) == len(suspects) + len(others) > 1:
        half = ", or take precision bf16 or fp32" if processes.precision == "fp16" else ""
        return f"Every sample has that: the weights have diverged. Lower optimization.learning_rate{half}"
    if not found:
        shown = "; ".join(batches.dataset.items[sample]["name"] for sample in suspects[:3])
        return (
            f"No sample alone explains it (the step's first: {shown}): lower optimization.learning_rate, or "
            "set optimization.packed=false"
        )
    wrong = [item["name"] for item in batches.dataset.items if item["name"] in found]
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    only = ", or lower optimization.learning_rate: there is no other" if len(suspects + others) == 1 else ""
    return f"It comes from {'; '.join(wrong[:3])}{more}: look at its features and its text{only}"


def _finite(model: Any, tensors: Mapping[str, Tensor], processes: Processes, *, gradients: bool) -> bool:
    """Whether the losses, and the gradients if these are asked for, are numbers."""
    if not gradients:
        with torch.no_grad():
            return bool(processes.forward(model, tensors)["token_losses"].isfinite().all())
    model.zero_grad(set_to_none=True)
    processes.accumulate(model, tensors, last=False)
    norms = [one.grad.norm() for one in model.parameters() if one.grad is not None]
    return bool(torch.stack(norms).norm().isfinite())


@contextmanager
def naming_memory(micro_batch: MicroBatch) -> Iterator[None]:
    """Where memory runs out, say which samples were at work and what to set."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        shape = list(micro_batch.tensors["input_ids"].shape)
        others = f" and {len(micro_batch.names) - 1} more" if len(micro_batch.names) > 1 else ""
        raise NarratorError(
            f"out of memory on {micro_batch.names[0]}{others}: {shape[0]} x {shape[1]} tokens at once. Lower "
            "optimization.tokens_per_sequence (packed) or optimization.batch_size (not packed), set "
            "optimization.gradient_checkpointing=true, or take precision bf16; what was saved is kept"
        ) from error


def pass_over_signals(worker: int) -> None:
    """In a process that prepares micro-batches: what is sent to all processes at once is not for it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def asked_to_stop(*, tells: bool = True) -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM are noted in; a second one stops at once. tells: say so on stderr."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        if tells:
            print("stopping after this step; once more to stop at once", file=sys.stderr, flush=True)

    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
