"""The verb `train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from data_process.feature_store import ClipStore
from data_process.files import read_json
from videonarrator.config import load_config
from videonarrator.schema import NarratorError
from videonarrator.settings import TrainConfig


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
