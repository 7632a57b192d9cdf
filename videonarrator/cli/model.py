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
from data_process.feature_store import MANIFEST, ClipStore, FeatureStore, select_frames
from data_process.files import read_json, write_json
from data_process.prepare import clips_past_end
from videonarrator.cli import FAILED, PARTLY, check_writable, say
from videonarrator.cli.devices import device_and_dtype
from videonarrator.config import load_config, save_config
from videonarrator.export.published_output import published_output
from videonarrator.schema import NarratorError, Script, ScriptLine, Video, output_entry, output_key
from videonarrator.settings import DecodingSettings, TrainConfig

Store = FeatureStore | ClipStore
"""What `infer` can take its visual tokens from."""


def train(config: str, overrides: list[str]) -> None:
    settings = load_config(TrainConfig, config, overrides)
    samples = _sample_list(settings.data.samples)
    held_out = _sample_list(settings.data.held_out) if settings.data.held_out else []
    if settings.data.held_out and not held_out:
        raise NarratorError(f"{settings.data.held_out} is empty: give another data.held_out, or leave it out")
    store = ClipStore.open(settings.data.clips)
    from videonarrator.training.run import train as run

    made_with = {"threshold": store.settings["threshold"], "memory": store.settings.get("memory", "tokens")}
    features = {**store.settings["features"], **made_with}
    checkpoint = run(settings, samples, store.read, features, held_out)
    if int(os.environ.get("RANK", "0")) == 0:  # of processes that train together, one tells
        print(checkpoint)


def _sample_list(file: str) -> list[dict[str, Any]]:
    samples = read_json(Path(file))
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        raise NarratorError(f"{file} is no sample list: expected the JSON array train_shots.json")
    return samples


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
    compat: str,
    overrides: list[str],
) -> None:
    if compat not in ("none", "upstream"):
        raise NarratorError(f"unknown --compat {compat!r}: none or upstream")
    settings = load_config(DecodingSettings, config, overrides)
    place, dtype = device_and_dtype(device, precision)
    videos = read_annotations(annotations)
    wanted = read_split(ids, videos)
    store = _open_features(features)
    from videonarrator.checkpoint import load_checkpoint, read_info
    from videonarrator.environment import write_environment

    info = read_info(checkpoint)
    made_from = store.settings["features"] if isinstance(store, ClipStore) else store.settings
    check_features(info.features, made_from, str(features), str(checkpoint))
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
    if compat == "upstream":
        finished = [videos[video_id] for video_id in wanted if video_id in done]
        lines = {video.id: [ScriptLine(**line) for line in done[video.id]["lines"]] for video in finished}
        output = published_output(finished, lines)
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


def _open_features(folder: Path) -> Store:
    """Frame features, or clip tensors, which are taken as they are."""
    if (folder / MANIFEST).is_file():
        manifest = read_json(folder / MANIFEST)
        if isinstance(manifest, dict) and manifest.get("kind") == ClipStore.what:
            return ClipStore.open(folder)
    return FeatureStore.open(folder)


def _unusable(videos: Sequence[Video], store: Store, offered_label: bool) -> dict[str, str]:
    """Of the videos that cannot be narrated, id -> reason; found before the model is loaded."""
    failed: dict[str, str] = {}
    for video in videos:
        try:
            mistakes = _misfits(video, store)
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


def _narrate_annotated(
    loaded: Any, video: Video, store: Store, settings: DecodingSettings, offered_label: bool
) -> dict[str, Any]:
    from videonarrator.generation import narrate_video
    from videonarrator.tasks import script_of

    tasks = _tasks_of(loaded, video, store, offered_label)
    results = narrate_video(loaded, video.product, tasks, len(video.clips), settings)
    script = script_of(video, tasks, results, loaded.template.language)
    raw = {str(result.index): result.raw for result in results}
    skipped = {str(index): reason for index, reason in script.skipped.items()}
    return {
        "video": video.id,
        "seed": settings.seed,
        "lines": [asdict(line) for line in script.lines],
        "raw": raw,
        "skipped": skipped,
    }


def _tasks_of(loaded: Any, video: Video, store: Store, offered_label: bool) -> list[Any]:
    """What is to be written of a video: its visual tokens made of frame features, or read where they are."""
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


def _source(video: Video, store: Store) -> str:
    """A checksum of what a video's narration depends on besides the model."""
    facts = json.dumps([asdict(video), store.checksum(video.id)], ensure_ascii=False)
    return hashlib.sha256(facts.encode()).hexdigest()


def _finished(log: Path, digest: str, videos: dict[str, Video], store: Store) -> dict[str, Any]:
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
