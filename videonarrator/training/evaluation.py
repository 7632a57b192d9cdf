"""Loss on held-out samples, the best weights so far, and when to stop."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from videonarrator.training.batches import StepBatches
from videonarrator.training.parallel import Processes


@torch.no_grad()
def held_out_loss(model: Any, batches: StepBatches, processes: Processes) -> float:
    """Mean loss a learnt token over all held-out samples, dropout off; the mode is as before afterwards."""
    training = model.training
    model.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=processes.device)
    for step in range(len(batches)):
        for micro_batch in batches[step]:
            losses = processes.forward(model, micro_batch.tensors)["token_losses"].double()
            counted = float(micro_batch.tokens > 0)  # an idle one is not
            totals += counted * torch.stack([losses.sum(), torch.tensor(float(len(losses))).to(losses)])
    model.train(training)
    total, number = processes.total(totals).tolist()
    return total / number


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
