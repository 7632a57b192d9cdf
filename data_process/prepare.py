"""Annotations and frame features to clip tensors, splits and sample lists, in the published JSON formats.

Clips keep their annotation number everywhere: in the prompt (clip 4 of 7), in names (`<id>_3.pkl`) and in
`shot_loc`. A clip without text or without frames is left out and counted.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from data_process.annotations import SHOWN, clip_file, image_file, once, write_split
from data_process.feature_store import ClipStore, FeatureStore, select_frames
from data_process.files import write_json
from data_process.published_lists import check_template, published_lists
from videonarrator.length import range_for_reference
from videonarrator.prompt import Story, Template, inputs_text, single_stops, story_of
from videonarrator.schema import NarratorError, Video
from videonarrator.timeline import clip_positions, frame_numbers
from videonarrator.visual_memory import THRESHOLD, video_clip_tokens

CLIPS_FOLDER = "clips"
"""Folder of the clip tensors inside the prepared folder."""

Memory = Literal["tokens", "clip"]
"""By what the memory is merged: the frames' mean visual tokens, or their CLIP features."""

Compat = Literal["none", "upstream"]
"""How sample lists are written: as they should be, or as the published scripts do (`published_lists`)."""

NO_TEXT, NO_FRAMES = "no text", "no frames"
"""Reasons for which a clip is left out."""


@dataclass(frozen=True)
class Prepared:
    """A video with what is kept of it.

    kept: clip indices; left_out: clip index -> reason; missing_frames: clip index -> numbers of frames that
    the clip owns but the store has not.
    """

    video: Video
    kept: tuple[int, ...]
    left_out: dict[int, str]
    missing_frames: dict[int, list[int]]


def prepare(
    videos: Mapping[str, Video],
    test_ids: Sequence[str],
    store: FeatureStore,
    out: str | Path,
    template: Template,
    threshold: float | None = THRESHOLD,
    track: Callable[[Sequence[Video]], Iterable[Video]] = iter,
    memory: Memory = "tokens",
    compat: Compat = "none",
) -> dict[str, Any]:
    """Write all that training and inference read into the folder `out`; the summary returned is prepare.json.

    Written: clips/ (a `ClipStore`), test_ids.txt, train_ids.txt, training_data.json (every video), train.json
    and test.json (with images), train_shots.json and test_shots.json (one entry a clip).
    test_ids: the videos of the test split; all others are for training. threshold: see
    `visual_memory.compress`. track: wraps the list of videos to show progress. memory: "clip" needs a store
    with CLIP features. Clip tensors that are there, made from the same features, clips and settings, are
    kept. A video without features is left out and counted. Raises `NarratorError` where that is all of them,
    where an id of test_ids is unknown, where the template asks for labels that a clip lacks, or where a clip
    reaches past its video's end (no list is written then). Ends are not known of published features, which
    may lack a video's last frames, and are not looked at under compat "upstream".
    """
    out = Path(out)
    _check(videos, test_ids, store, template)
    if compat == "upstream":
        check_template(template)
    if memory == "clip":
        store.check_clip()
    test = set(once(test_ids, "test split"))
    settings = {"threshold": threshold, "memory": memory}
    settings |= {field: store.settings[field] for field in ("dtype", "width")}
    clip_store = ClipStore.create(out / CLIPS_FOLDER, settings | {"features": store.settings})
    stored = set(store.ids)
    ends_known = bool(store.settings["encoder_sha256"]) and compat == "none"
    prepared: list[Prepared] = []
    mistakes: list[str] = []
    for video in track([video for video in videos.values() if video.id in stored]):
        numbers, frames = store.read(video.id)
        found = clips_past_end(video, numbers) if ends_known else []
        mistakes += found
        if not found:
            prepared.append(_prepare_video(video, numbers, frames, store, clip_store))
    if mistakes:
        more = [f"... and {len(mistakes) - SHOWN} more"] if len(mistakes) > SHOWN else []
        raise NarratorError("\n  ".join(["clips past the end of their video:", *mistakes[:SHOWN], *more]))
    for split in ("train", "test"):
        ids = [video_id for video_id in videos if (video_id in test) == (split == "test")]
        write_split(out / f"{split}_ids.txt", ids)
    told = [one for one in prepared if one.kept]
    if compat == "upstream":
        lists = published_lists([(one.video, one.kept) for one in told], test, template)
    else:
        lists = _lists(told, test, template)
    for name, samples in lists.items():
        write_json(out / f"{name}.json", samples)
    summary = _summary(videos, prepared, lists, clip_store) | {"compat": compat}
    write_json(out / "prepare.json", summary)
    return summary


def clips_past_end(video: Video, numbers: Tensor) -> list[str]:
    """The clips that end more than a second after their video's last frame, one message each.

    numbers: of the video's frames. Frame k is at second k-1, so that a video whose last frame is k lasts k
    seconds at most. A frame that lacks inside a clip is no mistake here: published features lack single ones.
    """
    last = int(numbers[-1])
    return [
        f"video {video.id}, clip {number}, is {clip.start:g}-{clip.end:g} s, but by its features the video "
        f"lasts at most {last} s: mend the clip's time, or extract the features from the right video"
        for number, clip in enumerate(video.clips, 1)
        if clip.end > last
    ]


def video_story(video: Video, kept: Sequence[int], template: Template) -> Story:
    """The story of an annotated video, its length ranges around the references."""
    texts = [single_stops(video.clips[index].text or "") for index in kept]
    return story_of(video, kept, [range_for_reference(text, template.language) for text in texts])


def _check(
    videos: Mapping[str, Video], test_ids: Sequence[str], store: FeatureStore, template: Template
) -> None:
    unknown = sorted(set(test_ids) - set(videos))
    if unknown:
        raise NarratorError(f"test split: {len(unknown)} ids are not in the annotations: {unknown[:20]}")
    if not set(videos) & set(store.ids):
        raise NarratorError(
            f"{store.folder} holds features of none of the {len(videos)} annotated videos, but of "
            f"{store.ids[:5]}...: run `videonarrator extract` on these videos, or name their folder"
        )
    unlabelled = [
        f"video {video.id}, clip {number}"
        for video in videos.values()
        for number, clip in enumerate(video.clips, 1)
        if clip.text is not None and not clip.label
    ]
    if template.label and unlabelled:
        raise NarratorError(
            f"{len(unlabelled)} clips have a text but no label, first {', '.join(unlabelled[:5])}: "
            "add labels, or take a prompt template without storyline (zh_nolabel)"
        )


def _prepare_video(
    video: Video,
    numbers: Tensor,
    frames: Tensor,
    store: FeatureStore,
    clip_store: ClipStore,
) -> Prepared:
    left_out: dict[int, str] = {}
    missing_frames: dict[int, list[int]] = {}
    by_clip: list[Tensor | None] = []
    for index, clip in enumerate(video.clips):
        own, missing = select_frames(numbers, frames, clip.start, clip.end)
        if missing:
            missing_frames[index] = missing
        if clip.text is None or not len(own):
            left_out[index] = NO_TEXT if clip.text is None else NO_FRAMES
            by_clip.append(None)
        else:
            by_clip.append(own)
    kept = tuple(index for index, own in enumerate(by_clip) if own is not None)
    spans = [[index, video.clips[index].start, video.clips[index].end] for index in kept]
    source = json.dumps([store.checksum(video.id), spans])
    source = hashlib.sha256(source.encode()).hexdigest()
    if kept and not clip_store.has_from(video.id, source):
        keys = None
        if clip_store.settings["memory"] == "clip":
            clip = store.read_clip(video.id)
            keys = [select_frames(numbers, clip, own.start, own.end)[0] for own in video.clips]
        tokens = video_clip_tokens(by_clip, clip_store.settings["threshold"], keys)
        clip_store.write(
            video.id, {index: clip for index, clip in enumerate(tokens) if clip is not None}, source
        )
    return Prepared(video, kept, left_out, missing_frames)


def _lists(told: Sequence[Prepared], test: Collection[str], template: Template) -> dict[str, list[Any]]:
    """The sample lists by name; told: the videos that have clips, in order."""
    whole = [_video_sample(one, template) for one in told]
    fields = ("inputs", "id", "frames")
    lists: dict[str, list[Any]] = {"training_data": [{name: one[name] for name in fields} for one in whole]}
    for split in ("train", "test"):
        lists[split] = [sample for sample in whole if (sample["id"] in test) == (split == "test")]
        lists[f"{split}_shots"] = [
            sample
            for one in told
            if (one.video.id in test) == (split == "test")
            for sample in _clip_samples(one, template)
        ]
    return lists


def _video_sample(one: Prepared, template: Template) -> dict[str, Any]:
    """An entry of train.json or test.json: the whole video with every slot; `frames` and `images` in step."""
    video = one.video
    return {
        "inputs": inputs_text(video_story(video, one.kept, template), template),
        "id": video.id,
        "frames": [clip_file(video.id, index) for index in one.kept],
        "images": [_images(video, index) for index in one.kept],
        "link": video.link,
        "p_info": video.product.info,
    }


def _clip_samples(one: Prepared, template: Template) -> list[dict[str, Any]]:
    """A video's entries of train_shots.json or test_shots.json, one a kept clip."""
    video, story = one.video, video_story(one.video, one.kept, template)
    positions = clip_positions([clip.duration for clip in video.clips], one.kept)
    return [
        {
            "shot_pos": position,
            "shot_loc": index + 1,
            "inputs": inputs_text(story, template, index + 1),
            "id": video.id,
            "frames": [clip_file(video.id, index)],
            "images": [_images(video, index)],
        }
        for index, position in zip(one.kept, positions, strict=True)
    ]


def _images(video: Video, index: int) -> list[str]:
    clip = video.clips[index]
    return [image_file(video.id, number) for number in frame_numbers(clip.start, clip.end)]


def _summary(
    videos: Mapping[str, Video],
    prepared: Sequence[Prepared],
    lists: Mapping[str, list[Any]],
    clip_store: ClipStore,
) -> dict[str, Any]:
    """What was written and what was left out, by reason; clips and frames are named by number from 1."""
    reasons = Counter(reason for one in prepared for reason in one.left_out.values())
    have_features = {one.video.id for one in prepared}
    return {
        "threshold": clip_store.settings["threshold"],
        "memory": clip_store.settings["memory"],
        "features": clip_store.settings["features"],
        "videos": len(videos),
        "clips": sum(len(video.clips) for video in videos.values()),
        "samples": {name: len(samples) for name, samples in lists.items()},
        "visual_tokens": sum(
            clip_store.tokens(one.video.id, index) for one in prepared for index in one.kept
        ),
        "videos_left_out": {
            "no features": [video_id for video_id in videos if video_id not in have_features],
            "no clip left": [one.video.id for one in prepared if not one.kept],
        },
        "clips_left_out": {NO_TEXT: reasons[NO_TEXT], NO_FRAMES: reasons[NO_FRAMES]},
        "left_out": {
            one.video.id: {str(index + 1): reason for index, reason in one.left_out.items()}
            for one in prepared
            if one.left_out
        },
        "missing_frames": {
            one.video.id: {str(index + 1): numbers for index, numbers in one.missing_frames.items()}
            for one in prepared
            if one.missing_frames
        },
    }
