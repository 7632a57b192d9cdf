"""Loss on held-out samples, the best weights so far, and when to stop."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from videonarrator.schema import NarratorError
from videonarrator.training.batches import StepBatches
from videonarrator.training.loop import culprits, naming_memory
from videonarrator.training.parallel import Processes


@torch.no_grad()
def held_out_loss(model: Any, batches: StepBatches, processes: Processes) -> float:
    """Mean loss a learnt token over all held-out samples, dropout off; the mode is as before afterwards.

    Raises `NarratorError` naming the sample where it is no number.
    """
    training = model.training
    model.eval()
    totals = torch.zeros(len(batches), 2, dtype=torch.float64, device=processes.device)
    for step in range(len(batches)):
        for micro_batch in batches[step]:
            with naming_memory(micro_batch):
                losses = processes.forward(model, micro_batch.tensors)["token_losses"].double()
            if micro_batch.tokens:  # else an idle one
                totals[step] += torch.stack([losses.sum(), losses.new_tensor(len(losses))])
    totals = processes.total(totals)
    for step in torch.nonzero(~totals[:, 0].isfinite()).flatten().tolist()[:1]:
        found = culprits(model, batches, step, processes)
        raise NarratorError(f"the loss of the held-out samples is no number. {found}")
    model.train(training)
    return float(totals[:, 0].sum() / totals[:, 1].sum())


@dataclass
class Best:
    """The best held-out loss so far, and for how many evaluations there has been no better one.

    patience: stop after that many (0: never).
    """

    patience: int = 0
    loss: float | None = None
    step: int = 0
    since: int = 0

    def is_better(self, loss: float, step: int) -> bool:
        """Take note of an evaluation; whether it is the best so far."""
        better = self.loss is None or loss < self.loss
        if better:
            self.loss, self.step, self.since = loss, step, 0
        else:
            self.since += 1
        return better

    @property
    def enough(self) -> bool:
        return 0 < self.patience <= self.since

    def facts(self) -> dict[str, Any]:
        return asdict(self)
