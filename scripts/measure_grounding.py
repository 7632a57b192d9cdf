"""Measures on the held-out sample videos whether narrations say what is seen: true features against shuffled
ones.

Three conditions in one run, same model, same decoding (greedy, one attempt, length by prompt alone):
  true      each clip with its own features
  shuffled  each video with the features of another held-out video (several rotations, averaged)
  memory    own features, but the memory frame of another video: what an EARLIER clip showed must get lost

    python scripts/measure_grounding.py --checkpoint runs/sample/train/checkpoint --features
    runs/sample/features
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from torch import Tensor

from data_process.annotations import read_annotations, read_split
from data_process.feature_store import FeatureStore
from data_process.sample_world.grounding import grounding
from data_process.sample_world.render import read_named
from videonarrator.checkpoint import Checkpoint, load_checkpoint
from videonarrator.generation.engine import narrate_video
from videonarrator.generation.jobs import ClipTask
from videonarrator.length import count_units, range_for_reference
from videonarrator.schema import NarratorError, Video
from videonarrator.settings import DecodingSettings
from videonarrator.storyline import label_parts
from videonarrator.timeline import clip_positions
from videonarrator.visual_memory import clip_tokens

Tokens = Callable[[Video, int], Tensor]


def narrate_all(
    checkpoint: Checkpoint, videos: Sequence[Video], tokens_of: Tokens
) -> dict[str, dict[int, Any]]:
    """Video id -> clip index -> what was written."""
    written = {}
    for video in videos:
        positions = clip_positions([clip.duration for clip in video.clips], range(len(video.clips)))
        tasks = [
            ClipTask(index, *range_for_reference(clip.text or ""), tokens_of(video, index), positions[index])
            for index, clip in enumerate(video.clips)
        ]
        results = narrate_video(checkpoint, video.product, tasks, len(video.clips), DecodingSettings())
        written[video.id] = {result.index: result for result in results}
    return written


def scores(written: dict[str, dict[int, Any]], videos: Sequence[Video], named: Any) -> dict[str, Any]:
    clips = [(video.clips[index], result) for video in videos for index, result in written[video.id].items()]
    inside = [
        low <= count_units(result.text) <= high
        for clip, result in clips
        for low, high in [range_for_reference(clip.text or "")]
    ]
    labels = [label_parts(clip.label) == label_parts(result.label) for clip, result in clips]
    texts = {video_id: {i: r.text for i, r in results.items()} for video_id, results in written.items()}
    return {
        "grounding": grounding(texts, {video.id: named[video.id] for video in videos}),
        "label_accuracy": mean(labels),
        "length_in_range": mean(inside),
        "clips": len(clips),
    }


def averaged(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    shares = {
        name: {"right": mean(r["grounding"][name]["right"] for r in rounds), "of": first["of"]}
        for name, first in rounds[0]["grounding"].items()
    }
    means = {name: mean(r[name] for r in rounds) for name in ("label_accuracy", "length_in_range")}
    return {"grounding": shares, **means, "rounds": len(rounds)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("data/sample"))
    parser.add_argument("--ids", type=Path, help="videos to measure on (default: the held-out ones)")
    parser.add_argument("--rotations", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file for the numbers and every narration")
    options = parser.parse_args()
    annotated = read_annotations(options.data / "annotations.json")
    videos = [annotated[v] for v in read_split(options.ids or options.data / "test_ids.txt", annotated)]
    named = read_named(options.data / "scenes.json")
    store = FeatureStore.open(options.features)
    checkpoint = load_checkpoint(options.checkpoint)
    threshold = checkpoint.info.features["threshold"]
    frames = {v.id: [store.frames_of(v.id, clip.start, clip.end) for clip in v.clips] for v in videos}

    def tokens(own: str, memory: str, index: int, of: int) -> Tensor:
        """Clip `index` of `of`: frames of video `own`, memory of what came before it in video `memory`."""
        shown, before = frames[own], frames[memory]
        here = min(index * len(shown) // of, len(shown) - 1)
        there = 0 if index == 0 else max(1, min(index * len(before) // of, len(before) - 1))
        return clip_tokens(before[:there], shown[here], threshold)

    def true(video: Video, index: int) -> Tensor:
        return tokens(video.id, video.id, index, len(video.clips))

    def other(video: Video, shift: int) -> str:
        return videos[(videos.index(video) + shift) % len(videos)].id

    results: dict[str, Any] = {}
    written = {"true": narrate_all(checkpoint, videos, true)}
    results["true"] = scores(written["true"], videos, named)
    print("true features measured", file=sys.stderr)
    for condition in ("shuffled", "memory"):
        rounds = []
        for shift in range(1, options.rotations + 1):

            def swapped(video: Video, index: int, shift: int = shift, condition: str = condition) -> Tensor:
                elsewhere = other(video, shift)
                own = elsewhere if condition == "shuffled" else video.id
                return tokens(own, elsewhere, index, len(video.clips))

            written[condition] = narrate_all(checkpoint, videos, swapped)
            rounds.append(scores(written[condition], videos, named))
            print(f"{condition}, rotation {shift} measured", file=sys.stderr)
        results[condition] = averaged(rounds)
    if options.out:
        texts = {
            c: {v: {str(i): [r.label, r.text] for i, r in clips.items()} for v, clips in w.items()}
            for c, w in written.items()
        }
        everything = {**results, "narrations": texts}
        options.out.write_text(json.dumps(everything, ensure_ascii=False, indent=1), "utf-8")
    print(json.dumps(results, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    try:
        main()
    except NarratorError as error:
        sys.exit(f"error: {error}")
