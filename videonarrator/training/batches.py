"""A step's micro-batches as tensors: packed sequences or padded samples, each token's loss with its weight.

A step's loss is a weighted sum over its learnt tokens, whatever micro-batches and processes it is divided
into. The weights carry the kind of mean that is wanted:

    token        1 / learnt tokens of the step
    sample       1 / (samples of the step x learnt tokens of the sample)
    microbatch   1 / (micro-batches of the step x learnt tokens of the micro-batch), as published
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from videonarrator.clip_inputs import IGNORED
from videonarrator.dataset import ClipSamples, collate, shown
from videonarrator.packing import VideoTree, divided, filled, packed
from videonarrator.training.plan import batches_of, shares


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the model at once.

    tensors: the arguments of `Narrator.forward`. names: of its samples; owners: of each learnt token, in
    order, the index of its sample among them. tokens: computed, without padding.
    """

    tensors: dict[str, Tensor]
    names: list[str]
    owners: list[int]
    tokens: int


class Form(Protocol):
    """How samples lie in tensors. Groups are what becomes one micro-batch."""

    def samples_of_step(self, step: int) -> list[int]: ...

    def tokens_of_step(self, step: int) -> int: ...

    def groups(self, step: int, processes: int) -> list[list[Any]]: ...

    def samples(self, group: Any) -> list[int]: ...

    def tensors(self, group: Any) -> tuple[dict[str, Tensor], Tensor]: ...


class Packed:
    """Steps of whole videos, packed into sequences of at most `longest` tokens.

    videos: the trees of each (`dataset.video_trees`), which are divided here where they are longer than that.
    steps: of each, which videos. The videos of a step are shared out among processes by their tokens.
    """

    def __init__(
        self,
        dataset: ClipSamples,
        videos: Sequence[Sequence[VideoTree]],
        steps: Sequence[Sequence[int]],
        longest: int,
    ) -> None:
        self.dataset, self.steps, self.longest = dataset, steps, longest
        self.videos = [[part for tree in trees for part in divided(tree, longest)] for trees in videos]

    def __len__(self) -> int:
        return len(self.steps)

    def samples_of_step(self, step: int) -> list[int]:
        return self.samples(self._parts(step))

    def tokens_of_step(self, step: int) -> int:
        return sum(part.length for part in self._parts(step))

    def _parts(self, step: int) -> list[VideoTree]:
        return [part for video in self.steps[step] for part in self.videos[video]]

    def groups(self, step: int, processes: int) -> list[list[list[VideoTree]]]:
        parts = self._parts(step)
        given = shares([part.length for part in parts], processes)
        return [filled([parts[index] for index in indices], self.longest) for indices in given]

    def samples(self, group: Sequence[VideoTree]) -> list[int]:
        return [branch.sample for tree in group for branch in tree.branches]

    def tensors(self, group: Sequence[VideoTree]) -> tuple[dict[str, Tensor], Tensor]:
        sequence = packed(group)
        tree = torch.tensor([sequence.videos, sequence.branches, sequence.limits, sequence.positions])
        return {
            "input_ids": torch.tensor([sequence.ids]),
            "labels": torch.tensor([sequence.labels]),
            "tree": tree,
            **shown([self.dataset[sample] for sample in sequence.samples]),
        }, torch.tensor([0, *sequence.samples])[tree[1]][None]


class Padded:
    """Steps of samples, padded to batches. steps: of each, its batches (indices of samples)."""

    def __init__(self, dataset: ClipSamples, steps: Sequence[Sequence[Sequence[int]]], pad_id: int) -> None:
        self.dataset, self.steps, self.pad_id = dataset, steps, pad_id

    def __len__(self) -> int:
        return len(self.steps)

    def samples_of_step(self, step: int) -> list[int]:
        return [sample for batch in self.steps[step] for sample in batch]

    def tokens_of_step(self, step: int) -> int:
        return sum(len(self.dataset.items[sample]["ids"]) for sample in self.samples_of_step(step))

    def groups(self, step: int, processes: int) -> list[list[Sequence[int]]]:
        batches = self.steps[step]
        lengths = self.dataset.lengths
        given = shares([len(batch) * max(lengths[one] for one in batch) for batch in batches], processes)
        return [[batches[index] for index in indices] for indices in given]

    def samples(self, group: Sequence[int]) -> list[int]:
        return list(group)

    def tensors(self, group: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
        batch = collate([self.dataset[sample] for sample in group], self.pad_id)
        return batch, torch.tensor(group)[:, None].expand_as(batch["labels"])


def padded_steps(
    dataset: ClipSamples, videos: Sequence[Sequence[int]], steps: Sequence[Sequence[int]], batch_size: int
) -> list[list[list[int]]]:
    """Steps of whole videos as padded batches. videos: the samples of each; steps: of each, which videos."""
    return [
        batches_of([one for video in step for one in videos[video]], dataset.lengths, batch_size)
        for step in steps
    ]


class StepBatches(Dataset[list[MicroBatch]]):
    """The micro-batches of each step that one of several processes computes.

    All processes get equally many: one that has less to do gets idle ones, whose loss counts nothing.
    """

    def __init__(
        self,
        form: Packed | Padded,
        dataset: ClipSamples,
        patch_id: int,
        loss_weighting: str,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.form, self.dataset, self.patch_id = form, dataset, patch_id
        self.loss_weighting, self.process, self.processes = loss_weighting, process, processes
        self.targets = torch.tensor([item["targets"] for item in dataset.items])

    def __len__(self) -> int:
        return len(self.form)

    def samples(self, step: int) -> int:
        """Samples of a step, all processes together."""
        return len(self.form.samples_of_step(step))

    def tokens(self, step: int) -> int:
        """Tokens of a step, all processes together, without padding."""
        return self.form.tokens_of_step(step)

    def step_samples(self, step: int) -> list[int]:
        """Indices of a step's samples, each once."""
        return list(dict.fromkeys(self.form.samples_of_step(step)))

    def alone(self, samples: Sequence[int]) -> StepBatches:
        """One step in which each of these samples is a micro-batch, for the same processes."""
        form = Padded(self.dataset, [[[sample] for sample in samples]], 0)
        return StepBatches(form, self.dataset, self.patch_id, "token", self.process, self.processes)

    def __getitem__(self, step: int) -> list[MicroBatch]:
        groups = self.form.groups(step, self.processes)
        everything = self._samples(groups)
        numbers = {
            "token": int(self.targets[everything].sum()),
            "sample": len(everything),
            "microbatch": sum(map(len, groups)),
        }
        # gradients are averaged over processes
        share = self.processes / numbers[self.loss_weighting]
        made = [self._micro_batch(group, share) for group in groups[self.process]]
        idle = max(map(len, groups)) - len(made)
        return made + [self._idle()] * idle

    def _samples(self, groups: Sequence[Sequence[Any]]) -> list[int]:
        form: Form = self.form
        return [sample for given in groups for group in given for sample in form.samples(group)]

    def _micro_batch(self, group: Any, share: float) -> MicroBatch:
        form: Form = self.form
        samples = form.samples(group)
        tensors, owner = form.tensors(group)
        learnt = tensors["labels"] != IGNORED
        learnt[:, 0] = False  # nothing stands before it
        weights = torch.zeros(owner.shape, dtype=torch.float64)
        counts = {"token": 1, "sample": self.targets[owner], "microbatch": self.targets[samples].sum()}
        weights[learnt] = (share / torch.as_tensor(counts[self.loss_weighting]).expand_as(owner)).double()[
            learnt
        ]
        place = {sample: index for index, sample in enumerate(samples)}
        real = tensors["attention_mask"].sum() if "attention_mask" in tensors else owner.numel()
        return MicroBatch(
            tensors | {"weights": weights.float()},
            [self.dataset.items[sample]["name"] for sample in samples],
            [place[sample] for sample in owner[learnt].tolist()],
            int(real),
        )

    def _idle(self) -> MicroBatch:
        """The smallest micro-batch that every parameter has a part in; its loss counts nothing."""
        rule = {"attention_mask": torch.ones(1, 2, dtype=torch.long)}
        if isinstance(self.form, Packed):
            rule = {"tree": torch.tensor([[0, 0], [1, 1], [0, 0], [0, 1]])}
        ids = torch.tensor([[self.patch_id, 0]])
        tensors = {
            "input_ids": ids,
            "labels": torch.tensor([[IGNORED, 0]]),
            "weights": torch.zeros(1, 2),
            "visual": torch.zeros(1, self.dataset.width),
            "positions": torch.zeros(1, dtype=torch.long),
            **rule,
        }
        return MicroBatch(tensors, ["an idle micro-batch"], [0], 0)
