"""The verb `narrate`: one new video and its product facts in, a script out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_process.feature_store import select_frames
from data_process.files import read_text
from data_process.product_file import read_product
from data_process.shots import detect_clips, read_cuts
from data_process.video_file import probe
from videonarrator.cli import check_writable, say
from videonarrator.cli.devices import device_and_dtype
from videonarrator.cli.visual_source import check_features
from videonarrator.config import load_config, load_template, save_config
from videonarrator.export.script import script_table, write_script
from videonarrator.schema import Clip, NarratorError, Video
from videonarrator.settings import DecodingSettings
from videonarrator.speech import read_rate, save_rate
from videonarrator.storyline import SCRIPT_LABELS, read_storyline


def narrate(
    video: Path,
    product: Path,
    checkpoint: Path,
    out: Path,
    cuts: Path | None,
    storyline: Path | None,
    rate: str | None,
    encoder: str | None,
    clip_model: str | None,
    config: str,
    backbone: str | None,
    device: str,
    precision: str,
    overrides: list[str],
) -> None:
    settings = load_config(DecodingSettings, config, overrides)
    place, dtype = device_and_dtype(device, precision)
    facts = read_product(product)
    info = probe(video)
    clips = read_cuts(cuts, info.duration_s) if cuts else None
    known = settings.labels or SCRIPT_LABELS
    labels = _labels_of(storyline, known) if storyline else None
    if clips and labels and len(clips) != len(labels):
        raise NarratorError(
            f"{storyline} has {len(labels)} labels, {cuts} has {len(clips)} clips: one label a clip"
        )
    from data_process.extract import video_features
    from videonarrator.checkpoint import load_checkpoint, read_info
    from videonarrator.environment import write_environment
    from videonarrator.generation.engine import narrate_video
    from videonarrator.tasks import new_tasks, script_of

    described = read_info(checkpoint).features
    language = load_template(checkpoint / "prompt.yaml").language
    speaking = read_rate(rate, language)
    check_writable(out)
    encoder_source = encoder or _encoder_of(described, checkpoint)
    if clips is None:
        logging.getLogger("pyscenedetect").setLevel(logging.ERROR)
        clips = detect_clips(video)
        say(f"cut {video.name} into {len(clips)} clips")
    if labels and len(labels) != len(clips):
        raise NarratorError(
            f"{storyline} has {len(labels)} labels, the video was cut into {len(clips)} clips "
            f"({_spans(clips)}): give one label a clip, or your own --cuts"
        )
    with _naming("--encoder", encoder, checkpoint):
        eye, made_with = _load_eye(encoder_source, place, dtype)
    clip = None
    if described.get("memory") == "clip":
        with _naming("--clip-model", clip_model, checkpoint):
            clip, made_with["clip"] = _load_clip(clip_model or described["clip"]["model"], place, dtype)
    check_features(described, made_with, encoder_source, str(checkpoint))
    loaded = load_checkpoint(checkpoint, backbone=backbone, device=place, dtype=dtype)
    numbers, features, clip_features = video_features(eye, video, 8, clip)
    say(f"looked at {len(numbers)} frames")
    frames = [_clip_frames(numbers, features, own) for own in clips]
    keys = None if clip_features is None else [_clip_frames(numbers, clip_features, own) for own in clips]
    threshold = described.get("threshold", 0.9)
    tasks = new_tasks(
        clips, frames, threshold, keys=keys, storyline=labels, known=known, rate=speaking, language=language
    )
    results = narrate_video(loaded, facts, tasks, len(clips), settings, rate=speaking)
    script = script_of(Video(video.stem, facts, tuple(clips)), tasks, results, language, speaking)
    write_environment(out)
    save_config(settings, out / "decoding.yaml")
    save_rate(speaking, out / "speaking_rate.yaml")
    _, readable = write_script(script, out)
    print(script_table(script))
    print(readable)


def _load_eye(source: str, device: str, dtype: Any) -> tuple[Any, dict[str, Any]]:
    """The encoder, and the settings of its features."""
    from data_process.extract import feature_settings
    from data_process.qformer import load_encoder

    eye = load_encoder(source, device=device, dtype=dtype)
    return eye, feature_settings(source, eye, dtype)


def _load_clip(source: str, device: str, dtype: Any) -> tuple[Any, dict[str, Any]]:
    """The CLIP of the memory, and the settings of its features."""
    from data_process.clip_features import clip_settings, load_clip

    clip = load_clip(source, device=device, dtype=dtype)
    return clip, clip_settings(source, clip)


@contextmanager
def _naming(option: str, given: str | None, checkpoint: Path) -> Iterator[None]:
    """Adds to a `NarratorError` that the checkpoint named the model, where the user did not."""
    try:
        yield
    except NarratorError as error:
        hint = "" if given else f" (checkpoint {checkpoint} names it; if it was moved, give {option})"
        raise NarratorError(f"{error}{hint}") from error


def _clip_frames(numbers: list[int], features: Any, clip: Clip) -> Any:
    """A clip's frames; a last clip too short to own one looks at the last there is."""
    import torch

    found, _ = select_frames(torch.tensor(numbers), features, clip.start, clip.end)
    return found if len(found) else features[-1:]


def _encoder_of(described: dict[str, Any], checkpoint: Path) -> str:
    source = described.get("encoder")
    if not source:
        raise NarratorError(
            f"checkpoint {checkpoint} does not say what encoder it was trained with: give --encoder"
        )
    return source


def _labels_of(storyline: Path, known: Sequence[str]) -> list[str]:
    text = read_text(storyline)
    try:
        labels = read_storyline(text, known)
    except NarratorError as error:
        raise NarratorError(f"{storyline}, {error}") from error
    if not labels:
        raise NarratorError(f"{storyline} holds no label: give one script label a clip, each on its own line")
    return labels


def _spans(clips: list[Clip]) -> str:
    return ", ".join(f"{clip.start:.1f}-{clip.end:.1f}" for clip in clips)
