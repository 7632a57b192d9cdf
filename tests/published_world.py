"""The small published system of the reference data, taken over by the project's own commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli_world import succeed

from data_process.annotations import read_annotations
from data_process.feature_store import ClipStore, FeatureStore
from data_process.prepare import prepare
from videonarrator.config import load_template, save_template
from videonarrator.published.baichuan import adds_bos
from videonarrator.published.importing import template_with
from videonarrator.settings import DataSettings, ModelSettings, OptimizationSettings, TrainConfig


@dataclass(frozen=True)
class PublishedWorld:
    """Folders: `upstream` is the reference data; checkpoint, backbone, features, prepared are made of it."""

    upstream: Path
    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def backbone(self) -> Path:
        return self.folder / "checkpoint-backbone"

    @property
    def features(self) -> Path:
        return self.folder / "features"

    @property
    def prepared(self) -> Path:
        return self.folder / "prepared"

    def json(self, name: str) -> Any:
        return json.loads((self.upstream / name).read_text("utf-8"))

    def ids_of(self, split: str) -> Path:
        """A split list of the videos of train.json or test.json, in their order."""
        file = self.folder / f"{split}_ids.txt"
        file.write_text("".join(f"{one['id']}.mp4\n" for one in self.json(f"{split}.json")), "utf-8")
        return file

    def train_config(self, **changes: Any) -> TrainConfig:
        """The settings of the published training, on the small base model."""
        adapter = self.json("checkpoint/adapter_config.json")
        template = self.folder / "prompt.yaml"
        save_template(template_with("zh", self.upstream / "instruction.txt", None), template)
        model: dict[str, Any] = {
            "bos": adds_bos(self.upstream / "base"),
            "rank": adapter["r"],
            "alpha": adapter["lora_alpha"],
            "dropout": 0.0,
        } | changes
        return TrainConfig(
            output=str(self.folder / "run"),
            data=DataSettings(samples="", clips=""),
            model=ModelSettings(
                backbone=str(self.backbone), template=str(template), compat="upstream", **model
            ),
            optimization=OptimizationSettings(),
        )

    def clip_store(self) -> ClipStore:
        return ClipStore.open(self.prepared / "clips")


def altered_copy(source: Path, folder: Path, change: Callable[[Path], object]) -> Path:
    """`folder`, a copy of `source` after `change`."""
    shutil.copytree(source, folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    change(folder)
    return folder


def take_over(upstream: Path, upstream_features: dict, folder: Path) -> PublishedWorld:
    """Import checkpoint and features, and prepare the lists as the published scripts do."""
    world = PublishedWorld(upstream, folder)
    succeed(
        "convert", "upstream", "--base", upstream / "base", "--adapter", upstream / "checkpoint",
        "--out", world.checkpoint, "--instruction", upstream / "instruction.txt",
    )  # fmt: skip
    width = next(iter(next(iter(upstream_features.values())).values())).shape[-1]
    settings = {"encoder": "published features", "encoder_sha256": "", "fps": 1, "preprocessing": ""}
    store = FeatureStore.create(world.features, settings | {"dtype": "float32", "width": width})
    import torch

    for video_id, frames in upstream_features.items():
        store.write(video_id, list(frames), torch.stack(list(frames.values())))
    videos = read_annotations(upstream / "all_video_data.json")
    test = [one["id"] for one in world.json("test.json")]
    prepare(videos, test, store, world.prepared, load_template("zh"), compat="upstream")
    return world
