"""Training samples, one a clip or one a video, and the collator that pads them to a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from videonarrator.clip_inputs import (
    DEFAULT_RULES,
    IGNORED,
    TokenRules,
    check_sample,
    check_visual,
    encode,
    slipped_labels,
    training_inputs,
    whole_video_inputs,
)
from videonarrator.prompt import Template, parse_inputs
from videonarrator.schema import NarratorError
from videonarrator.visual_memory import fit_tokens

VisualSource = Callable[[str, int], Tensor]
"""(video id, clip index from 0) -> its visual tokens [tokens, width]; `NarratorError` if it has none."""


class ClipSamples(Dataset[dict[str, Any]]):
    """The samples of a list as ids, labels, visual tokens and positions.

    All samples are encoded when the data set is made, so that a faulty one is named before anything expensive
    starts. samples: one a clip (train_shots.json) or, where `whole_video_tokens` is not 0, one a video
    (train.json), in which every clip has that many visual tokens. width: of the visual tokens.
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
        rules: TokenRules = DEFAULT_RULES,
        whole_video_tokens: int = 0,
    ) -> None:
        if not samples:
            raise NarratorError("the list of training samples is empty: run `videonarrator prepare` first")
        self.items: list[dict[str, Any]] = []
        self.visual_of, self.width, self.whole_video_tokens = visual_of, width, whole_video_tokens
        for sample in samples:
            check_sample(sample, whole_video=bool(whole_video_tokens))
            clips = clips_of(sample, template, rules, whole_video=bool(whole_video_tokens))
            name = f"sample of video {sample['id']}, clip {', '.join(str(clip + 1) for clip in clips)}"
            visual = self._visual(sample["id"], clips, width, name)
            if whole_video_tokens:
                inputs = whole_video_inputs(sample, visual, template)
            else:
                inputs = training_inputs(
                    sample, visual, template, later=later_clips, published=rules.published
                )
            try:
                ids, labels = encode(inputs.segments, tokenizer, inputs.counts, rules)
            except ValueError as error:
                raise NarratorError(f"{name}: {error}") from error
            if rules.published and not rules.bos and not whole_video_tokens:
                labels = slipped_labels(ids, labels, sample["shot_loc"])
            self.items.append(
                {
                    "id": sample["id"],
                    "clip": clips[0],
                    "clips": clips if inputs.counts else [],
                    "ids": ids,
                    "labels": labels,
                    "positions": inputs.positions,
                    "counts": inputs.counts,
                }
            )

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sample, visual ones included."""
        return [len(item["ids"]) for item in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.items[index]
        return item | {"visual": self._visual(item["id"], item["clips"])}

    def _visual(
        self, video_id: str, clips: Sequence[int], width: int | None = None, name: str = ""
    ) -> Tensor:
        """The visual tokens of clips, one after the other; checked where their width is given."""
        found = [self.visual_of(video_id, clip) for clip in clips]
        if width is not None:
            for tokens in found:
                check_visual(tokens, width, name)
        if self.whole_video_tokens:
            found = [fit_tokens(tokens, self.whole_video_tokens) for tokens in found]
        return torch.cat(found) if found else torch.zeros(0, self.width)


def clips_of(
    sample: Mapping[str, Any], template: Template, rules: TokenRules, *, whole_video: bool
) -> list[int]:
    """Indices (from 0) of the clips whose visual tokens a sample takes."""
    if whole_video:
        return [clip.number - 1 for clip in parse_inputs(sample["inputs"], template).clips]
    if rules.published:  # shot_loc counts the kept clips; the file's name tells which one it is
        return [int(str(sample["frames"][0]).rpartition(".")[0].rpartition("_")[2])]
    return [sample["shot_loc"] - 1]


def collate(items: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """Samples to one batch, padded on the right.

    Returns input_ids, labels and attention_mask [batch, tokens]; visual [patches, width], the visual tokens
    of all samples one after the other; positions [patches], the relative position each of these belongs to.
    """
    ids = [torch.tensor(item["ids"]) for item in items]
    labels = [torch.tensor(item["labels"]) for item in items]
    lengths = torch.tensor([len(row) for row in ids])
    places = [place for item in items for place in item["positions"]]
    counts = [count for item in items for count in item["counts"]]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        "attention_mask": (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long(),
        "visual": torch.cat([item["visual"] for item in items]),
        "positions": torch.repeat_interleave(
            torch.tensor(places, dtype=torch.long), torch.tensor(counts, dtype=torch.long)
        ),
    }
