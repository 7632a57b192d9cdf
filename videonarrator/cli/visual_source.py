"""What `infer` takes its visual tokens from: frame features or clip tensors, checked against the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data_process.feature_store import MANIFEST, ClipStore, FeatureStore, select_frames
from data_process.files import read_json
from data_process.prepare import clips_past_end
from videonarrator.schema import NarratorError, Video

Store = FeatureStore | ClipStore

STEP = 10
"""How many read tokens take as long as a written character or word, roughly: those are read together."""


def open_features(folder: Path) -> Store:
    """Frame features, or clip tensors, which are taken as they are."""
    if (folder / MANIFEST).is_file():
        manifest = read_json(folder / MANIFEST)
        if isinstance(manifest, dict) and manifest.get("kind") == ClipStore.what:
            return ClipStore.open(folder)
    return FeatureStore.open(folder)


def check_features(trained: dict[str, Any], given: dict[str, Any], features: str, checkpoint: str) -> None:
    """Features must come from the encoder the checkpoint was trained with, and from its CLIP, if any."""
    if trained.get("memory") == "clip":
        clip, wanted = given.get("clip", {}), trained["clip"]
        if clip.get("sha256") != wanted["sha256"]:
            found = f"those given are of {clip['model']}" if clip else f"{features} holds none"
            raise NarratorError(
                f"checkpoint {checkpoint} merges its memory by features of the CLIP {wanted['model']}; "
                f"{found}: give that CLIP with --clip-model (to `videonarrator extract`, for a feature store)"
            )
    for name in ("encoder_sha256", "width", "preprocessing"):
        unknown = "" in (trained.get(name), given.get(name))  # of published features
        if name in trained and not unknown and trained[name] != given.get(name):
            raise NarratorError(
                f"the features in {features} were not made like those of checkpoint {checkpoint}: {name} is "
                f"{given.get(name)!r}, the checkpoint was trained with {trained[name]!r} (encoder "
                f"{trained.get('encoder')}): run `videonarrator extract` with that encoder"
            )


def unusable(videos: Sequence[Video], store: Store, offered_label: bool) -> dict[str, str]:
    """Of the videos that cannot be narrated, id -> reason; found before the model is loaded."""
    failed: dict[str, str] = {}
    for video in videos:
        try:
            mistakes = _misfits(video, store)
        except (NarratorError, OSError) as error:
            mistakes = [str(error)]
        if offered_label:
            mistakes += [
                f"video {video.id}, clip {number}, has no label to be offered"
                for number, clip in enumerate(video.clips, 1)
                if clip.text is not None and not clip.label
            ]
        if mistakes:
            failed[video.id] = "; ".join(mistakes)
    return failed


def _misfits(video: Video, store: Store) -> list[str]:
    """What of the video's features does not fit its annotation."""
    if isinstance(store, ClipStore):
        clips = store.clips(video.id)
        store.read(video.id, clips[0])  # whole?
        return [
            f"video {video.id}: {store.folder} holds a tensor of clip {index + 1}, the annotations have "
            f"{len(video.clips)} clips"
            for index in clips
            if index >= len(video.clips)
        ]
    numbers, _ = store.read(video.id)
    # published features may lack a video's last frames
    return clips_past_end(video, numbers) if store.settings["encoder_sha256"] else []


def tasks_of(loaded: Any, video: Video, store: Store, offered_label: bool) -> list[Any]:
    """What is to be written of a video: its visual tokens made of frame features, or read where they are.

    loaded: a `checkpoint.Checkpoint`. The result is a list of `generation.jobs.ClipTask`.
    """
    from videonarrator.tasks import annotated_tasks, shown_tasks

    trained = loaded.info.features
    how = {
        "offered_label": offered_label,
        "language": loaded.template.language,
        "published": loaded.info.published,
    }
    if isinstance(store, ClipStore):
        stored = store.clips(video.id)
        numbered = range(len(video.clips))
        visual = [store.read(video.id, index) if index in stored else None for index in numbered]
        return shown_tasks(video, visual, **how)
    frames = [store.frames_of(video.id, clip.start, clip.end) for clip in video.clips]
    threshold, keys = trained.get("threshold", 0.9), None
    if trained.get("memory") == "clip":
        numbers, clip = store.read(video.id)[0], store.read_clip(video.id)
        keys = [select_frames(numbers, clip, own.start, own.end)[0] for own in video.clips]
    return annotated_tasks(video, frames, threshold, keys=keys, **how)


def work_of(video: Video, store: Store) -> int:
    """How long a video takes, in read tokens, roughly: its visual tokens, and what is to be written."""
    file = store.file(video.id)
    stored = file.stat().st_size if file.is_file() else 0
    token = store.settings["width"] * getattr(torch, store.settings["dtype"]).itemsize
    return stored // token + STEP * sum(len(clip.text or "") for clip in video.clips)
