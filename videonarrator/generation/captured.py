"""On a GPU: the step that adds one token to every row, captured once and replayed (CUDA graph).

A step of one token is bound by reading the weights; launched kernel by kernel it waits for the processor
instead. A captured step has fixed shapes: all rows up to a power of two take part (those that have nothing to
add write into a slot behind their last, which is written over later) and look back over a multiple of
`REACH_STEP` slots.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from videonarrator.modeling.narrator import Narrator
from videonarrator.modeling.slots import SlotCache, SlotStep, single_mask

log = logging.getLogger(__name__)

REACH_STEP = 256


class StaticStep:
    """One token for each of the first `rows` rows, looking back over `reach` slots, in tensors that stay."""

    def __init__(self, narrator: Narrator, cache: SlotCache, rows: int, reach: int) -> None:
        device = narrator.device
        self.narrator, self.cache, self.reach = narrator, cache, reach
        self.ids = torch.zeros(rows, dtype=torch.long, device=device)
        self.slots = torch.zeros(rows, dtype=torch.long, device=device)
        self.all = torch.arange(rows, device=device)
        self.taken = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)

    def run(self) -> Tensor:
        """Logits [rows, vocabulary] after `ids` at `slots`."""
        base = self.narrator.base
        mask = single_mask(len(self.all), self.reach, self.all, self.slots)
        step = SlotStep(self.cache, self.all, self.slots, mask, True, ())
        embeddings = base.get_input_embeddings()(self.ids)[None]
        hidden = base.model(
            inputs_embeds=embeddings.to(base.dtype),
            position_ids=self.slots[None],
            attention_mask=self.taken,
            use_cache=False,
            slots=step,
        ).last_hidden_state[0]
        return base.get_output_embeddings()(hidden)


class CapturedSteps:
    """Captured steps by their shapes; where capturing fails, that is said once and nothing is captured."""

    def __init__(self, narrator: Narrator, cache: SlotCache) -> None:
        self.narrator, self.cache = narrator, cache
        self.works = True
        self._steps: dict[tuple[int, int], tuple[StaticStep, torch.cuda.CUDAGraph, Tensor]] = {}

    def forget(self) -> None:
        """The cache lies elsewhere now."""
        self._steps.clear()

    def __call__(self, tokens: Sequence[tuple[int, int, int]], lengths: Sequence[int]) -> Tensor | None:
        """Logits [tokens, vocabulary] after each (row, id, slot); None where it is not captured.

        lengths: of each row, how many slots hold something that is still wanted, at most.
        """
        if not self.works or not self.cache.layers:
            return None
        rows, reach = self.shape(tokens)
        try:
            if (rows, reach) not in self._steps:
                self._steps[rows, reach] = self._capture(reach, lengths[:rows])
        except RuntimeError as error:
            log.warning("the step is not captured: %s", str(error).partition("\n")[0])
            self.works = False
            self.forget()
            return None
        step, graph, logits = self._steps[rows, reach]
        fill(step, tokens, lengths[:rows])
        graph.replay()
        return logits[[row for row, _, _ in tokens]]

    def shape(self, tokens: Sequence[tuple[int, int, int]]) -> tuple[int, int]:
        """Rows and slots of the captured step for these tokens: few shapes for many."""
        rows = min(self.cache.rows, 1 << max(row for row, _, _ in tokens).bit_length())
        last = max(slot for _, _, slot in tokens)
        return rows, min(self.cache.capacity, (last // REACH_STEP + 1) * REACH_STEP)

    def _capture(self, reach: int, lengths: Sequence[int]) -> tuple[StaticStep, torch.cuda.CUDAGraph, Tensor]:
        step = StaticStep(self.narrator, self.cache, len(lengths), reach)
        fill(step, (), lengths)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                step.run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = step.run()
        return step, graph, logits


def fill(step: StaticStep, tokens: Sequence[tuple[int, int, int]], lengths: Sequence[int]) -> None:
    """Put (row, id, slot) of each token into the step; other rows write behind what they hold."""
    ids, slots = [0] * len(lengths), list(lengths)
    for row, token, slot in tokens:
        ids[row], slots[row] = token, slot
    step.ids.copy_(torch.tensor(ids))
    step.slots.copy_(torch.tensor(slots))
