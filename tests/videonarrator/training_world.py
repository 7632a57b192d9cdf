"""Training through the command `videonarrator train`: a store of clip tensors, sample lists and settings."""

import json
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import yaml
from tiny_narrator import WIDTH, clip_tokens, train_config

from data_process.feature_store import ClipStore
from videonarrator.training.progress import Progress


def write_store(folder, samples):
    """The clip tensors of the samples' videos."""
    features = {"encoder": "tiny", "encoder_sha256": "", "preprocessing": "", "width": WIDTH}
    settings = {"threshold": 0.9, "dtype": "float32", "width": WIDTH, "features": features}
    store = ClipStore.create(folder, settings)
    clips = {}
    for sample in samples:
        clips.setdefault(sample["id"], set()).add(sample["shot_loc"] - 1)
    for video, numbers in clips.items():
        store.write(video, {number: clip_tokens(video, number) for number in sorted(numbers)}, "tiny")
    return store


def write_settings(folder, backbone, samples, held_out=(), **changes):
    """Settings of a run in `folder / "run"`, their sample lists and store; the words of the command."""
    folder.mkdir(parents=True, exist_ok=True)
    write_store(folder / "clips", [*samples, *held_out])
    settings = asdict(train_config(backbone, folder / "run", **changes))
    settings["data"] = {"samples": str(folder / "samples.json"), "clips": str(folder / "clips")}
    (folder / "samples.json").write_text(json.dumps(samples), "utf-8")
    if held_out:
        settings["data"]["held_out"] = str(folder / "held_out.json")
        (folder / "held_out.json").write_text(json.dumps(held_out), "utf-8")
    (folder / "train.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    return "train", "--config", folder / "train.yaml"


def after_step(monkeypatch, step, act):
    """Have `act()` called when that step of a run (from 1, counted in this process) is done."""
    done = []

    def count(self, samples, tokens):
        real(self, samples, tokens)
        done.append(samples)
        if len(done) == step:
            act()

    real = Progress.count
    monkeypatch.setattr(Progress, "count", count)


@contextmanager
def small_files(largest):
    """While this lasts no file can grow beyond so many bytes: writing fails as on a full disk."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder: Path):
    """Every file below a folder, by its path."""
    return {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
