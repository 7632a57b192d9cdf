"""What all tests share."""

import hashlib
import importlib.util
import json
import os
from pathlib import Path

import pytest
import yaml

from videonarrator.prompt import ADDED_TOKENS, Template

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest first, for the sake of several workers."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data that is not part of the project ($VIDEONARRATOR_SHARED, or ../shared)."""
    folder = Path(os.environ.get("VIDEONARRATOR_SHARED") or ROOT.parent / "shared")
    if not (folder / "data").is_dir():
        reason = f"no reference data in {folder}: set VIDEONARRATOR_SHARED to the folder that holds data/"
        if os.environ.get("VIDEONARRATOR_REQUIRE_SHARED"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def upstream(shared) -> Path:
    """What the published code gave at small size."""
    return shared / "data" / "upstream_fixture"


@pytest.fixture(scope="session")
def real_samples(shared) -> list[dict]:
    """300 real videos in sample-list form."""
    return json.loads((shared / "data" / "esyncvidstory_test_300.json").read_text("utf-8"))


@pytest.fixture(scope="session")
def zh() -> Template:
    return Template(**yaml.safe_load((ROOT / "configs/prompts/zh.yaml").read_text("utf-8")))


@pytest.fixture(scope="session")
def zh_nolabel() -> Template:
    return Template(**yaml.safe_load((ROOT / "configs/prompts/zh_nolabel.yaml").read_text("utf-8")))


@pytest.fixture(scope="session")
def tokenizer(upstream):
    """A tokenizer of Baichuan's kind: SentencePiece BPE, byte fallback, the line break a piece of its own."""
    from transformers import LlamaTokenizer

    tokenizer = LlamaTokenizer.from_pretrained(
        upstream / "base", add_prefix_space=False, local_files_only=True
    )
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens(list(ADDED_TOKENS), special_tokens=True)
    return tokenizer


@pytest.fixture(scope="session")
def upstream_features(upstream) -> dict:
    """Of each video of the small fixture: frame number -> frame [32, 768]; missing ones are left out."""
    import torch

    spec = importlib.util.spec_from_file_location("make_features", upstream / "make_features.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    recipe = json.loads((upstream / "features.json").read_text("utf-8"))
    features = {}
    for video in recipe["videos"]:
        frames = module.features(recipe["seed"], video["video_index"], video["n_frames"])
        assert [hashlib.sha256(frame.tobytes()).hexdigest()[:16] for frame in frames] == video["sha256"]
        features[video["id"]] = {
            number: torch.from_numpy(frame)
            for number, frame in enumerate(frames, 1)
            if number not in video["missing"]
        }
    return features
