"""How a run's samples lie in tensors: packed where the language model takes that, else padded."""

from __future__ import annotations

import math
from typing import Any

import torch

from videonarrator.dataset import ClipSamples
from videonarrator.modeling.narrator import Narrator
from videonarrator.settings import OptimizationSettings
from videonarrator.training.batches import Packed, Padded, StepBatches, padded_steps
from videonarrator.training.parallel import Processes
from videonarrator.training.plan import orders, padded_batches, whole_videos


def form_of(
    settings: OptimizationSettings, dataset: ClipSamples, pad_id: int, *, packed: bool, once: bool = False
) -> Packed | Padded:
    """How the samples lie in tensors, and which make a step. once: in one pass and in order, not shuffled."""
    if not packed and settings.order == "samples" and not once:
        epochs = orders(len(dataset), settings.epochs, settings.seed)
        return Padded(dataset, padded_batches(epochs, settings.batch_size, settings.samples_per_step), pad_id)
    videos = [[branch.sample for tree in video for branch in tree.branches] for video in dataset.trees]
    epochs = orders(len(videos), 1 if once else settings.epochs, settings.seed)
    if once:
        epochs = [sorted(epochs[0])]
    steps = whole_videos(epochs, [len(video) for video in videos], settings.samples_per_step)
    if packed:
        return Packed(dataset, dataset.trees, steps, settings.tokens_per_sequence)
    return Padded(dataset, padded_steps(dataset, videos, steps, settings.batch_size), pad_id)


@torch.no_grad()
def packing_holds(
    model: Any, narrator: Narrator, dataset: ClipSamples, pad_id: int, processes: Processes
) -> bool:
    """Whether this language model gives packed samples the losses they have alone; tried on a short video.

    It does not where attention ignores positions (ALiBi), or looks back over a window shorter than a sample.
    """
    window = getattr(narrator.base.config, "sliding_window", None)
    if window and window < max(dataset.lengths):
        return False
    trees = [tree for video in dataset.trees for tree in video]
    shared = [tree for tree in trees if len(tree.branches) > 1]
    tried = [min(shared, key=lambda tree: tree.length)] if shared else trees[:2]
    batches = [[branch.sample] for tree in tried for branch in tree.branches]
    training = model.training
    model.eval()
    together, alone = (
        _losses(model, StepBatches(form, dataset, narrator.patch_id, "token"), processes)
        for form in (Packed(dataset, [tried], [[0]], 10**9), Padded(dataset, [batches], pad_id))
    )
    model.train(training)
    far = [abs(a - b) for name in alone for a, b in zip(together[name], alone[name], strict=True)]
    if not all(map(math.isfinite, far)):
        return True  # for another reason, which the first step tells
    return sum(far) / len(far) < (1e-3 if processes.precision == "fp32" else 0.1)


def _losses(model: Any, batches: StepBatches, processes: Processes) -> dict[str, list[float]]:
    """The losses of each sample's learnt tokens, by the sample's name."""
    losses: dict[str, list[float]] = {}
    for micro_batch in batches[0]:
        made = processes.forward(model, micro_batch.tensors)["token_losses"].tolist()
        for owner, loss in zip(micro_batch.owners, made, strict=True):
            losses.setdefault(micro_batch.names[owner], []).append(loss)
    return losses
