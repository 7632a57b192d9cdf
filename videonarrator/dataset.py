"""Training samples, one a clip or one a video; their trees; and the collator that pads them to a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
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
from videonarrator.packing import VideoTree, lone_tree, video_tree
from videonarrator.prompt import EMPTY_SLOT, Story, Template, parse_inputs
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
        self.tokenizer, self.template, self.rules = tokenizer, template, rules
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
            targets = sum(label != IGNORED for label in labels[1:])
            if not targets:
                raise NarratorError(
                    f"{name}: nothing in it is to be learnt, it has no label and no narration"
                )
            self.items.append(
                {
                    "name": name,
                    "targets": targets,
                    "id": sample["id"],
                    "clip": clips[0],
                    "clips": clips if inputs.counts else [],
                    "ids": ids,
                    "labels": labels,
                    "positions": inputs.positions,
                    "counts": inputs.counts,
                    "inputs": sample["inputs"],
                }
            )

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sample, visual ones included."""
        return [len(item["ids"]) for item in self.items]

    @cached_property
    def trees(self) -> list[list[VideoTree]]:
        """The samples of each video as trees (see `video_trees`)."""
        return video_trees(self)

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


def video_trees(dataset: ClipSamples) -> list[list[VideoTree]]:
    """Of each video, in the order of the list, the trees of its samples (indices into `dataset.items`).

    Samples of one video that tell the same story share a tree. A sample stands alone where it is a whole
    video's, one of the published kind (whose texts are tokenised at once), or where the tokenizer joins its
    text across the place where it would leave the trunk.
    """
    videos: dict[str, dict[str, list[int]]] = {}
    for index, item in enumerate(dataset.items):
        story = item["inputs"].replace(_slot(dataset.template), "")
        videos.setdefault(item["id"], {}).setdefault(story, []).append(index)
    return [
        [tree for indices in stories.values() for tree in _trees(dataset, indices)]
        for stories in videos.values()
    ]


def _slot(template: Template) -> str:
    return template.scene + EMPTY_SLOT + template.scene_end


def _trees(dataset: ClipSamples, indices: Sequence[int]) -> list[VideoTree]:
    """The trees of samples that tell the same story."""
    items = dataset.items
    if dataset.whole_video_tokens or dataset.rules.published:
        return [lone_tree(index, items[index]["ids"], items[index]["labels"]) for index in indices]
    story: Story = parse_inputs(items[indices[0]]["inputs"], dataset.template)
    learnt: dict[int, tuple[int, int]] = {}
    again = []
    for index in indices:
        number = items[index]["clip"] + 1
        if number in learnt:
            again.append(index)
        else:
            learnt[number] = (index, items[index]["counts"][0])
    tree = video_tree(story, learnt, dataset.template, dataset.tokenizer, dataset.rules)
    for branch in tree.branches:
        alone = items[branch.sample]["ids"]  # may go on with later clips
        if tree.trunk[: branch.start] + branch.ids != alone[: branch.length]:
            return [lone_tree(index, items[index]["ids"], items[index]["labels"]) for index in indices]
    return [tree, *(_trees(dataset, again) if again else [])]


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

    Returns input_ids, labels and attention_mask [batch, tokens]; visual and positions as `shown` gives them.
    """
    ids = [torch.tensor(item["ids"]) for item in items]
    labels = [torch.tensor(item["labels"]) for item in items]
    lengths = torch.tensor([len(row) for row in ids])
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        "attention_mask": (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long(),
        **shown(items),
    }


def shown(items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """What samples see: visual [patches, width], the visual tokens of all of them one after the other, and
    positions [patches], the relative position each of these belongs to.
    """
    places = [place for item in items for place in item["positions"]]
    counts = [count for item in items for count in item["counts"]]
    return {
        "visual": torch.cat([item["visual"] for item in items]),
        "positions": torch.repeat_interleave(
            torch.tensor(places, dtype=torch.long), torch.tensor(counts, dtype=torch.long)
        ),
    }
