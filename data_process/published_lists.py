"""The sample lists as the published scripts write them, mistakes included (`prepare --compat upstream`).

What differs from `data_process.prepare`, all of it here:

- the lists of whole videos keep a doubled full stop, and the range around a text may begin below 1;
- in all lists but training_data.json, "场景描述" in a text has become "场景";
- `images` names the stills of every clip that has a text, so it is out of step with `frames` where such a
  clip has no frames, and a per-clip sample can get those of another clip;
- per-clip samples: a doubled full stop becomes one in all but the last clip, and lowers the range of the
  NEXT clip (in the product's facts: of the first);
- `shot_loc` numbers the clips that are left, and the position is that of the clip with this number among all
  that are annotated (`timeline.clip_positions_by_rank`); a single clip is taken for the last one;
- where a clip of the video is left out, none of its samples has a slot for the picture.

An empty `new_text` counts as none here, too (there as a text of length 0); where the scripts stop with an
error, as they do for ids with "_", these lists go on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from data_process.annotations import clip_file, image_file
from videonarrator.length import REFERENCE_MARGIN, count_units
from videonarrator.prompt import (
    Story,
    StoryClip,
    Template,
    inputs_text,
    published_wording,
    single_stops,
    story_of,
)
from videonarrator.schema import NarratorError, Product, Video
from videonarrator.timeline import clip_positions_by_rank, frame_numbers

NO_SLOT = 0
"""A number no clip has: `inputs_text` then keeps no slot."""

MOVED_STARTS = {"411766054621": 5.0}
"""A video whose first clip is taken to start at this second, for its positions only."""


def published_lists(
    told: Iterable[tuple[Video, Sequence[int]]], test: Collection[str], template: Template
) -> dict[str, list[dict[str, Any]]]:
    """The lists of `prepare`, by name. told: videos in order, with the indices of the clips that are left.

    test: ids of the test split. The published scripts make no test_shots.json; here it is made like
    train_shots.json.
    """
    lists: dict[str, list[dict[str, Any]]] = {"training_data": []}
    for split in ("train", "test"):
        lists[split], lists[f"{split}_shots"] = [], []
    for video, kept in told:
        story = _story(video, kept, template)
        split = "test" if video.id in test else "train"
        names = [clip_file(video.id, index) for index in kept]
        images = [_images(video, index) for index, clip in enumerate(video.clips) if clip.text is not None]
        whole = {"inputs": inputs_text(story, template), "id": video.id, "frames": names}
        lists["training_data"].append(whole)
        more = {"images": images, "link": video.link, "p_info": video.product.info}
        lists[split].append(whole | {"inputs": published_wording(whole["inputs"])} | more)
        lists[f"{split}_shots"] += _clip_samples(video, story, names, images, template)
    return lists


def check_template(template: Template) -> None:
    """Raise `NarratorError` for a template of a language in which these scripts do not write."""
    if template.language != "zh":
        raise NarratorError(
            f"the published lists are Chinese, the template is for {template.language!r}: "
            "leave --compat out, or take a Chinese template (zh)"
        )


def _story(video: Video, kept: Sequence[int], template: Template) -> Story:
    """The video's story as training_data.json has it: texts unchanged, ranges around them without a floor."""
    margin = REFERENCE_MARGIN[template.language]
    texts = [video.clips[index].text or "" for index in kept]
    lengths = [count_units(text, template.language) for text in texts]
    story = story_of(video, kept, [(length - margin, length + margin) for length in lengths])
    return replace(
        story, clips=tuple(replace(clip, text=text) for clip, text in zip(story.clips, texts, strict=True))
    )


def _clip_samples(
    video: Video, story: Story, names: Sequence[str], images: Sequence[list[str]], template: Template
) -> list[dict[str, Any]]:
    told = _lowered(story)
    whole = len(told.clips) == told.total
    durations = [clip.duration for clip in video.clips]
    if video.id in MOVED_STARTS:
        durations[0] = video.clips[0].end - MOVED_STARTS[video.id]
    positions = clip_positions_by_rank(durations, len(names))
    return [
        {
            "shot_pos": position,
            "shot_loc": rank,
            "inputs": published_wording(inputs_text(told, template, rank if whole else NO_SLOT)),
            "id": video.id,
            "frames": [name],
            "images": [shown],
        }
        for rank, (name, position, shown) in enumerate(zip(names, positions, images, strict=False), 1)
    ]


def _lowered(story: Story) -> Story:
    """Doubled full stops made single in all but the last text, each of them off the range that follows."""
    product = Product(single_stops(story.product.name), single_stops(story.product.info))
    doubled = _doubled(story.product.name) + _doubled(story.product.info)
    clips: list[StoryClip] = []
    for rank, clip in enumerate(story.clips, 1):
        text = clip.text if rank == len(story.clips) else single_stops(clip.text)
        clips.append(replace(clip, low=clip.low - doubled, high=clip.high - doubled, text=text))
        doubled = _doubled(clip.text)
    return replace(story, product=product, clips=tuple(clips))


def _doubled(text: str) -> int:
    return text.count("。。")


def _images(video: Video, index: int) -> list[str]:
    clip = video.clips[index]
    return [image_file(video.id, number) for number in frame_numbers(clip.start, clip.end)]
