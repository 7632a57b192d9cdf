"""The verbs from raw video to sample lists: cut, extract, stills, prepare, sample render."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, cast

import typer

from data_process.annotations import read_annotations, read_split
from data_process.shots import Detector, cut_settings, detect_clips, write_cuts
from data_process.video_file import find_videos, probe
from videonarrator.cli import FAILED, PARTLY, check_writable, say
from videonarrator.config import CutConfig, load_template
from videonarrator.schema import NarratorError


def cut(
    videos: list[Path],
    out: Path,
    detector: str,
    threshold: float | None,
    min_seconds: float,
    max_seconds: float,
) -> None:
    if detector not in ("adaptive", "content"):
        raise NarratorError(f"unknown detector {detector!r}: adaptive or content")
    limits = CutConfig(detector=cast(Any, detector), min_seconds=min_seconds, max_seconds=max_seconds)
    settings = cut_settings(cast(Detector, detector), threshold, limits.min_seconds, limits.max_seconds)
    failed: dict[str, str] = {}
    found, clips_found, kept = find_videos(videos), 0, 0
    check_writable(out)
    logging.getLogger("pyscenedetect").setLevel(logging.ERROR)
    for done, path in enumerate(found, 1):
        target = out / f"{path.stem}.json"
        if _is_cut(target, settings, path):
            kept += 1
        else:
            try:
                clips = detect_clips(
                    path,
                    detector=cast(Detector, detector),
                    threshold=threshold,
                    min_seconds=min_seconds,
                    max_seconds=max_seconds,
                )
                info = probe(path)
                write_cuts(
                    clips, target, target.with_suffix(".csv"), video=path.name, info=info, settings=settings
                )
                clips_found += len(clips)
            except NarratorError as error:
                failed[str(path)] = str(error)
                say(f"failed: {error}")
        if done % 10 == 0 or done == len(found):
            say(f"cut {done - len(failed)}/{len(found)} videos")
    _finish({"out": str(out), "videos": len(found), "kept": kept, "clips": clips_found, "failed": failed})


def extract(
    videos: list[Path],
    encoder: str,
    out: Path,
    clip_model: str | None,
    batch_size: int,
    device: str,
    precision: str,
) -> None:
    from data_process.extract import extract as extract_features  # torch takes seconds, and `cut` needs none
    from videonarrator.cli.devices import device_and_dtype

    place, dtype = device_and_dtype(device, precision)
    found = find_videos(videos)
    check_writable(out)
    failed = extract_features(
        found,
        encoder,
        out,
        device=place,
        dtype=dtype,
        batch_size=batch_size,
        clip_source=clip_model,
        say=say,
    )
    _finish({"out": str(out), "videos": len(found), "failed": failed})


def stills(videos: list[Path], out: Path) -> None:
    from data_process.stills import save_stills

    found = find_videos(videos)
    check_writable(out)
    failed = save_stills(found, out, say=say)
    _finish({"out": str(out), "videos": len(found), "failed": failed})


def prepare(
    annotations: Path,
    test_ids: Path,
    features: Path,
    out: Path,
    template: str,
    threshold: float | None,
    memory: str,
    compress: bool,
    compat: str,
) -> None:
    if compat not in ("none", "upstream"):
        raise NarratorError(f"unknown --compat {compat!r}: none or upstream")
    if memory not in ("tokens", "clip"):
        raise NarratorError(f"unknown --memory {memory!r}: tokens or clip")
    if threshold is not None and not compress:
        raise NarratorError("--threshold is for compression: leave out it or --no-compress")
    from data_process.feature_store import FeatureStore
    from data_process.prepare import prepare as prepare_lists
    from videonarrator.visual_memory import THRESHOLD

    if compress and threshold is None:
        threshold = THRESHOLD
    videos = read_annotations(annotations)
    held_out = read_split(test_ids, videos)
    wording = load_template(template)
    store = FeatureStore.open(features)
    check_writable(out)
    summary = prepare_lists(
        videos, held_out, store, out, wording, threshold, memory=cast(Any, memory), compat=cast(Any, compat)
    )
    missing = summary["videos_left_out"]["no features"]
    failed = dict.fromkeys(missing, f"no features in {features}")
    for video_id in missing:
        say(f"left out: video {video_id} has no features in {features}")
    left_out, lacking = summary["clips_left_out"], summary["missing_frames"]
    if any(left_out.values()) or lacking:
        reasons = ", ".join(f"{number} with {reason}" for reason, number in left_out.items())
        say(
            f"clips left out: {reasons}; clips that lack frames: {sum(map(len, lacking.values()))} "
            f"(which: {out / 'prepare.json'})"
        )
    _finish({"out": str(out), "videos": len(videos), "samples": summary["samples"], "failed": failed})


def convert_features(source: Path, out: Path) -> None:
    from data_process.published_features import convert_features as convert

    check_writable(out)
    kind, count, failed = convert(source, out, say=say)
    _finish({"out": str(out), "kind": kind, "videos": count, "failed": failed})


def render(data: Path, out: Path, english: bool) -> None:
    from data_process.sample_world.render import read_scenes, render_all

    ending = "_en" if english else ""
    videos = read_annotations(data / f"annotations{ending}.json")
    scenes = read_scenes(data / f"scenes{ending}.json")
    check_writable(out)
    paths = render_all(list(videos.values()), scenes, out, say)
    _finish({"out": str(out), "videos": len(paths), "failed": {}})


def _is_cut(target: Path, settings: dict[str, Any], video: Path) -> bool:
    """Whether the video was cut with these settings since it last changed."""
    try:
        made = json.loads(target.read_text("utf-8"))
        newer = target.stat().st_mtime >= video.stat().st_mtime
        return newer and made["settings"] == settings and target.with_suffix(".csv").is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _finish(result: dict[str, Any]) -> None:
    """The result as one JSON object on stdout; exit code 3 where some videos failed, 2 where all did."""
    print(json.dumps(result, ensure_ascii=False))
    if result["failed"]:
        raise typer.Exit(PARTLY if len(result["failed"]) < result["videos"] else FAILED)
