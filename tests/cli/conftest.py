"""A tiny world, made end to end with the real commands: videos, features, a trained narrator, its output."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read on import: a name that is no folder is asked of no hub

from cli_world import PRODUCT, Made, World, read, succeed, write_sample
from tiny_models import save_tiny_backbone, save_tiny_encoder


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    world = World(tmp_path_factory.mktemp("world"))
    write_sample(world.data)
    save_tiny_encoder(world.encoder)
    annotated = read(world.annotations)
    texts = [video["p_info"] for video in annotated.values()]
    texts += [clip["new_text"] for video in annotated.values() for clip in video["frames"]]
    save_tiny_backbone(world.backbone, texts)
    world.config.write_text(
        f"output: {world.training}\n"
        f"data: {{samples: {world.prepared}/train_shots.json, clips: {world.prepared}/clips}}\n"
        f"model: {{backbone: {world.backbone}, rank: 2, alpha: 4}}\n"
        "optimization: {epochs: 1, samples_per_step: 8, learning_rate: 1e-3, log_steps: 1}\n",
        "utf-8",
    )
    world.product.write_text(PRODUCT, "utf-8")
    runs = {
        "render": succeed("sample", "render", "--data", world.data, "--out", world.videos),
        "cut": succeed("cut", world.videos, "--out", world.cuts),
        "extract": succeed("extract", world.videos, "--encoder", world.encoder, "--out", world.features),
        "prepare": succeed(*world.prepare(world.prepared)),
        "train": succeed("train", "--config", world.config),
        "infer": succeed(*world.infer(world.inferred)),
        "narrate": succeed(*world.narrate(world.videos / "sample53.mp4", world.narrated)),
    }
    return Made(world, runs)


@pytest.fixture(scope="session")
def world(made: Made) -> World:
    return made.world


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder that is not there yet."""
    return tmp_path / "out"
