"""Training samples, one a clip, and the collator that pads them to a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from videonarrator.clip_inputs import IGNORED, check_sample, check_visual, encode, training_inputs
from videonarrator.prompt import Template
from videonarrator.schema import NarratorError

VisualSource = Callable[[str, int], Tensor]
"""(video id, clip index from 0) -> its visual tokens [tokens, width]; `NarratorError` if it has none."""


class ClipSamples(Dataset[dict[str, Any]]):
    """Per-clip samples (train_shots.json) as ids, labels, visual tokens and position.

    All samples are encoded when the data set is made, so that a faulty one is named before anything expensive
    starts. width: of the visual tokens.
    """

    def __init__(
        self,
        samples: Sequence[Mapping[str, Any]],
        visual_of: VisualSource,
        tokenizer: Any,
        template: Template,
        width: int,
        *,
        later_clips: bool = False,
        bos: bool = True,
        strip_around_added_tokens: bool = False,
    ) -> None:
        if not samples:
            raise NarratorError("the list of training samples is empty: run `videonarrator prepare` first")
        self.items: list[dict[str, Any]] = []
        self.visual_of = visual_of
        for sample in samples:
            check_sample(sample)
            clip = sample["shot_loc"] - 1
            name = f"sample of video {sample['id']}, clip {clip + 1}"
            tokens = visual_of(sample["id"], clip)
            check_visual(tokens, width, name)
            inputs = training_inputs(sample, tokens, template, later=later_clips)
            try:
                ids, labels = encode(
                    inputs.segments,
                    tokenizer,
                    len(tokens),
                    bos=bos,
                    strip_around_added_tokens=strip_around_added_tokens,
                )
            except ValueError as error:
                raise NarratorError(f"{name}: {error}") from error
            self.items.append(
                {"id": sample["id"], "clip": clip, "ids": ids, "labels": labels, "position": inputs.position}
            )

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sample, visual ones included."""
        return [len(item["ids"]) for item in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.items[index]
        return item | {"visual": self.visual_of(item["id"], item["clip"])}


def collate(items: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """Samples to one batch, padded on the right.

    Returns input_ids, labels and attention_mask [batch, tokens]; visual [patches, width], the visual tokens
    of all samples one after the other; positions [patches], the relative position each of these belongs to.
    """
    ids = [torch.tensor(item["ids"]) for item in items]
    labels = [torch.tensor(item["labels"]) for item in items]
    visual = [item["visual"] for item in items]
    lengths = torch.tensor([len(row) for row in ids])
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        "attention_mask": (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long(),
        "visual": torch.cat(visual),
        "positions": torch.cat(
            [torch.full((len(v),), i["position"]) for v, i in zip(visual, items, strict=True)]
        ),
    }
