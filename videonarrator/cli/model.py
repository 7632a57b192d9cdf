"""The verbs with a language model: train and infer."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from data_process.annotations import read_annotations, read_split
from data_process.feature_store import ClipStore, FeatureStore
from data_process.files import read_json, write_json
from data_process.prepare import clips_past_end
from videonarrator.cli import FAILED, PARTLY, check_writable, say
from videonarrator.cli.devices import device_and_dtype
from videonarrator.config import load_config, save_config
from videonarrator.schema import NarratorError, Script, ScriptLine, Video, output_entry, output_key
from videonarrator.settings import DecodingSettings, TrainConfig


def train(config: str, overrides: list[str]) -> None:
    settings = load_config(TrainConfig, config, overrides)
    samples = read_json(Path(settings.data.samples))
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        raise NarratorError(
            f"{settings.data.samples} is no sample list: expected the JSON array train_shots.json"
        )
    store = ClipStore.open(settings.data.clips)
    from videonarrator.training import train as run

    features = {**store.settings["features"], "threshold": store.settings["threshold"]}
    print(run(settings, samples, store.read, features))


def infer(
    annotations: Path,
    ids: Path,
    features: Path,
    checkpoint: Path,
    out: Path,
    offered_label: bool,
    config: str | None,
    backbone: str | None,
    device: str,
    precision: str,
    overrides: list[str],
) -> None:
    settings = load_config(DecodingSettings, config, overrides)
    place, dtype = device_and_dtype(device, precision)
    videos = read_annotations(annotations)
    wanted = read_split(ids, videos)
    store = FeatureStore.open(features)
    from videonarrator.checkpoint import load_checkpoint, read_info
    from videonarrator.environment import write_environment

    info = read_info(checkpoint)
    check_features(info.features, store.settings, str(features), str(checkpoint))
    digest = _digest(asdict(settings), offered_label, precision, checkpoint)
    check_writable(out)
    log = out / ("generations_label.jsonl" if offered_label else "generations.jsonl")
    done = _finished(log, digest, videos, store)
    waiting = [video_id for video_id in wanted if video_id not in done]
    failed = _unusable([videos[video_id] for video_id in waiting], store, offered_label)
    for reason in failed.values():
        say(f"failed: {reason}")
    waiting = [video_id for video_id in waiting if video_id not in failed]
    if waiting:
        loaded = load_checkpoint(checkpoint, backbone=backbone, device=place, dtype=dtype)
        write_environment(out)
        save_config(settings, out / "decoding.yaml")
    for number, video_id in enumerate(waiting, 1):
        try:
            done[video_id] = _narrate_annotated(loaded, videos[video_id], store, settings, offered_label)
            _append(log, {"digest": digest, "source": _source(videos[video_id], store), **done[video_id]})
        except NarratorError as error:
            failed[video_id] = f"video {video_id}: {error}"
            say(f"failed: {failed[video_id]}")
        say(f"narrated {number}/{len(waiting)} videos")
    if len(failed) == len(wanted):
        raise typer.Exit(FAILED)
    output: dict[str, Any] = {}
    for video_id in filter(done.__contains__, wanted):
        for line in done[video_id]["lines"]:
            clip = videos[video_id].clips[line["clip"]]
            entry = output_entry(clip.text, clip.label, line["label"], line["text"])
            output[output_key(video_id, line["clip"])] = entry
        _write_video_script(videos[video_id], done[video_id], out / "scripts" / video_id)
    target = out / ("output_label.json" if offered_label else "output.json")
    write_json(target, output)
    skipped = {v: done[v]["skipped"] for v in done if done[v]["skipped"]}
    result = {
        "output": str(target),
        "videos": len(wanted),
        "clips": len(output),
        "skipped": skipped,
        "failed": failed,
    }
    print(json.dumps(result, ensure_ascii=False))
    if failed:
        raise typer.Exit(PARTLY)


def _unusable(videos: Sequence[Video], store: FeatureStore, offered_label: bool) -> dict[str, str]:
    """Of the videos that cannot be narrated, id -> reason; found before the model is loaded."""
    failed: dict[str, str] = {}
    for video in videos:
        try:
            numbers, _ = store.read(video.id)
            mistakes = clips_past_end(video, numbers)
        except NarratorError as error:
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


def check_features(trained: dict[str, Any], given: dict[str, Any], features: str, checkpoint: str) -> None:
    """Features must come from the encoder the checkpoint was trained with."""
    for name in ("encoder_sha256", "width", "preprocessing"):
        if name in trained and trained[name] != given.get(name):
            raise NarratorError(
                f"the features in {features} were not made like those of checkpoint {checkpoint}: {name} is "
                f"{given.get(name)!r}, the checkpoint was trained with {trained[name]!r} (encoder "
                f"{trained.get('encoder')}): run `videonarrator extract` with that encoder"
            )


def _narrate_annotated(
    loaded: Any, video: Video, store: FeatureStore, settings: DecodingSettings, offered_label: bool
) -> dict[str, Any]:
    from videonarrator.generation import narrate_video
    from videonarrator.tasks import annotated_tasks, script_of

    frames = [store.frames_of(video.id, clip.start, clip.end) for clip in video.clips]
    language = loaded.template.language
    threshold = loaded.info.features.get("threshold", 0.9)
    tasks = annotated_tasks(video, frames, threshold, offered_label=offered_label, language=language)
    results = narrate_video(loaded, video.product, tasks, len(video.clips), settings)
    script = script_of(video, tasks, results, language)
    raw = {str(result.index): result.raw for result in results}
    skipped = {str(index): reason for index, reason in script.skipped.items()}
    return {
        "video": video.id,
        "seed": settings.seed,
        "lines": [asdict(line) for line in script.lines],
        "raw": raw,
        "skipped": skipped,
    }


def _write_video_script(video: Video, written: dict[str, Any], folder: Path) -> None:
    from videonarrator.export.script import write_script

    lines = tuple(ScriptLine(**line) for line in written["lines"])
    skipped = {int(index): reason for index, reason in written["skipped"].items()}
    write_script(Script(video.id, video.product, lines, skipped), folder)


def _digest(settings: dict[str, Any], offered_label: bool, precision: str, checkpoint: Path) -> str:
    """What a finished video must have been made with to be reused."""
    described = hashlib.sha256((checkpoint / "narrator.json").read_bytes()).hexdigest()
    made_with = json.dumps([settings, offered_label, precision, described], sort_keys=True)
    return hashlib.sha256(made_with.encode()).hexdigest()


def _source(video: Video, store: FeatureStore) -> str:
    """A checksum of what a video's narration depends on besides the model."""
    facts = json.dumps([asdict(video), store.checksum(video.id)], ensure_ascii=False)
    return hashlib.sha256(facts.encode()).hexdigest()


def _finished(log: Path, digest: str, videos: dict[str, Video], store: FeatureStore) -> dict[str, Any]:
    """Videos an earlier run finished with the same settings, model, annotation and features."""
    done: dict[str, Any] = {}
    if not log.is_file():
        return done
    for line in log.read_bytes().split(b"\n"):
        try:
            entry = json.loads(line)
        except ValueError:  # a line (or a character) cut off by a kill: its video is narrated again
            continue
        video_id, source = entry.get("video"), entry.pop("source", None)
        known = video_id in videos and video_id in store.ids
        if known and entry.get("digest") == digest and source == _source(videos[video_id], store):
            done[video_id] = entry
    return done


def _append(log: Path, entry: dict[str, Any]) -> None:
    with log.open("a+b") as stream:
        if stream.tell() and stream.seek(-1, os.SEEK_END) >= 0 and stream.read(1) != b"\n":
            stream.write(b"\n")  # ends a line that a kill cut off
        stream.write((json.dumps(entry, ensure_ascii=False) + "\n").encode())
        stream.flush()
        os.fsync(stream.fileno())
