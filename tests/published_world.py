"""The small published system of the reference data, taken over by the project's own commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli_world import succeed
from safetensors.torch import load_file

from data_process.annotations import read_annotations
from data_process.feature_store import ClipStore, FeatureStore
from data_process.prepare import prepare
from videonarrator.clip_inputs import TokenRules
from videonarrator.config import load_template, save_template
from videonarrator.dataset import ClipSamples
from videonarrator.modeling.lora import projector_tensors
from videonarrator.modeling.narrator import Narrator
from videonarrator.prompt import Template
from videonarrator.published.baichuan import adds_bos
from videonarrator.published.importing import template_with
from videonarrator.settings import DataSettings, ModelSettings, OptimizationSettings, TrainConfig
from videonarrator.training.building import build_narrator, token_rules


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


def samples_of(
    published: PublishedWorld, tokenizer: Any, template: Template, rules: TokenRules
) -> ClipSamples:
    """The published training samples, from lists and clip tensors that our own code made."""
    store = published.clip_store()
    shots = json.loads((published.prepared / "train_shots.json").read_text("utf-8"))
    width = store.settings["width"]
    return ClipSamples(shots, store.read, tokenizer, template, width, later_clips=True, rules=rules)


def before_training(published: PublishedWorld) -> tuple[Narrator, ClipSamples, Any]:
    """The published model before its training (base folder, and what it drew at random), and its samples."""
    import torch

    config = published.train_config()
    narrator, tokenizer = build_narrator(config, published.clip_store().settings["width"])
    drawn = load_file(published.upstream / "train/init_state.safetensors")
    first_halves = load_file(published.upstream / "train/init_lora_A.safetensors")
    own_base = load_file(published.backbone / "projector.safetensors")
    parameters = dict(narrator.language_model.named_parameters())
    with torch.no_grad():
        base = narrator.base
        for name, module in (
            ("embed_tokens", base.get_input_embeddings()),
            ("lm_head", base.get_output_embeddings()),
        ):
            rows = drawn[f"{name}.new_rows"]
            module.weight[-len(rows) :] = rows
        visual = projector_tensors(narrator.projector)
        visual["position.weight"].copy_(drawn["frame_position_embedding.weight"])
        for part in ("weight", "bias"):
            visual[f"linear.{part}"].copy_(own_base[f"linear.{part}"])
        for name, tensor in first_halves.items():
            if "mm_projector" in name:
                visual["linear.lora_A.weight"].copy_(tensor)
            else:
                parameters[name.replace(".weight", ".default.weight")].copy_(tensor)
    rules = token_rules(config, tokenizer)
    assert rules == TokenRules(adds_bos(published.upstream / "base"), True, True)
    return narrator, samples_of(published, tokenizer, load_template(config.model.template), rules), tokenizer


def published_name(name: str) -> str:
    """What the published code calls a parameter of the narrator that is trained."""
    own = name.removeprefix("language_model.").replace(
        "projector.linear.", "base_model.model.model.mm_projector."
    )
    return own.replace("projector.position.", "base_model.model.model.frame_position_embedding.")
