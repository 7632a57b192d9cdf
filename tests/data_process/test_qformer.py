"""The frame encoder: BLIP-2's parts as transformers has them, strictly loaded, batch-independent, and shipped
small.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from data_process.extract import extract, feature_settings
from data_process.feature_store import FeatureStore
from data_process.qformer import encoder_fingerprint, load_encoder, preprocess
from data_process.sample_world.drawing import draw_scene
from data_process.sample_world.scenes import COLOURS, Scene
from data_process.video_file import find_videos
from videonarrator.fingerprint import fingerprint
from videonarrator.schema import NarratorError

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "data" / "sample" / "models"
BLIP2 = str(MODELS / "blip2")


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(BLIP2)


@pytest.fixture(scope="module")
def stills():
    scenes = [Scene("hero", "雨伞", colour, "海边") for colour in COLOURS]
    return [np.asarray(draw_scene(scene, 0.0, 1)) for scene in scenes]


@pytest.fixture
def copied(tmp_path):
    """A copy of the sample encoder that a test may spoil."""
    return Path(shutil.copytree(BLIP2, tmp_path / "blip2"))


def test_shipped_models_are_small_and_safe():
    files = [file for file in MODELS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 40 * 2**20
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".model"}


def test_features_do_not_depend_on_the_batch(encoder, stills):
    together = encoder.encode(stills, batch_size=8)
    assert together.shape == (8, 32, encoder.width) and together.dtype == torch.float32
    alone = torch.cat([encoder.encode([still]) for still in stills])
    assert (together - alone).abs().max() < 5e-5
    assert torch.equal(together, encoder.encode(stills, batch_size=8))
    assert encoder.encode([]).shape == (0, 32, encoder.width)


def test_features_see(encoder, stills):
    """Other colours are other features, by far more than another moment of the same scene."""
    features = encoder.encode(stills).flatten(1)
    moved = np.asarray(draw_scene(Scene("hero", "雨伞", "红色", "海边"), 0.9, 1))
    again = encoder.encode([moved]).flatten(1)
    assert (features[0] - again[0]).norm() * 2 < (features[0] - features[4]).norm()


def test_preprocessing_is_lavis_evaluation_transform():
    rng = np.random.default_rng(0)
    still = rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
    resized = Image.fromarray(still).resize((112, 112), Image.Resampling.BICUBIC)
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    deviation = np.array([0.26862954, 0.26130258, 0.27577711])
    expected = (np.asarray(resized) / 255 - mean) / deviation
    given = preprocess([still], 112)
    assert given.shape == (1, 3, 112, 112)
    assert np.abs(given[0].permute(1, 2, 0).numpy() - expected).max() < 1e-6


def test_pixels_equal_those_of_lavis(shared):
    """Preprocessing of the real thing, on pictures of mixed sizes."""
    io = load_file(shared / "data" / "lavis_fixture" / "io.safetensors")
    count, _, _, size = io["pixel_values"].shape
    pictures = [io[f"raw_image_{number}"].numpy() for number in range(count)]
    assert (preprocess(pictures, size) - io["pixel_values"]).abs().max() < 1e-5


def test_what_the_store_says_of_the_sample_encoder(encoder):
    """Other words here would make all stores of the sample data another encoder's."""
    settings = feature_settings(BLIP2, encoder, torch.float32)
    assert settings["preprocessing"] == "bicubic 112x112, CLIP mean and deviation"
    assert settings["encoder_sha256"] == fingerprint(Path(BLIP2)) == encoder_fingerprint(BLIP2)


def test_pictures_of_another_size_are_refused(encoder):
    with pytest.raises(ValueError, match="given to an encoder"):
        encoder(torch.zeros(1, 3, 56, 56))


def test_missing_weights_are_an_error(copied):
    tensors = load_file(copied / "model.safetensors")
    tensors.pop("query_tokens")
    save_file(tensors, copied / "model.safetensors")
    with pytest.raises(NarratorError, match=r"missing \['query_tokens'\]"):
        load_encoder(str(copied))


def test_other_models_and_folders_are_refused(copied, tmp_path):
    settings = json.loads((copied / "config.json").read_text("utf-8"))
    (copied / "config.json").write_text(json.dumps(settings | {"model_type": "llama"}), "utf-8")
    with pytest.raises(NarratorError, match="'llama', not a BLIP-2"):
        load_encoder(str(copied))
    (tmp_path / "empty").mkdir()
    with pytest.raises(NarratorError, match=r"no config\.json"):
        load_encoder(str(tmp_path / "empty"))


def test_a_hub_name_that_is_not_to_be_had(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NarratorError, match="no folder 'Nobody/no-such-blip2'"):
        load_encoder("Nobody/no-such-blip2")


def test_the_fingerprint_follows_the_weights(copied):
    before = encoder_fingerprint(str(copied))
    assert before == encoder_fingerprint(BLIP2)
    tensors = load_file(copied / "model.safetensors")
    tensors["query_tokens"][0, 0, 0] += 1
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    assert encoder_fingerprint(str(copied)) != before


def test_half_precision_is_near(encoder, stills):
    half = load_encoder(BLIP2, dtype=torch.bfloat16).encode(stills)
    whole = encoder.encode(stills)
    assert half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(half, whole, dim=-1).min() > 0.99


def test_extract_keeps_what_is_there_and_reports_what_fails(tmp_path):
    from video_helpers import write_video

    folder = tmp_path / "videos"
    folder.mkdir()
    pictures = [np.full((64, 64, 3), 8 * k, np.uint8) for k in range(25)]
    write_video(folder / "good.mp4", pictures, fps=10)
    (folder / "bad.mp4").write_text("no video")
    videos = find_videos([folder])
    failed = extract(videos, BLIP2, tmp_path / "features")
    assert list(failed) == [str(folder / "bad.mp4")]
    store = FeatureStore.open(tmp_path / "features")
    numbers, frames = store.read("good")
    assert numbers.tolist() == [1, 2, 3] and frames.shape == (3, 32, 128)
    written = store.file("good").stat().st_mtime_ns
    extract(videos, BLIP2, tmp_path / "features")
    assert store.file("good").stat().st_mtime_ns == written


def test_two_videos_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "v.mp4").write_bytes(b"")
    with pytest.raises(NarratorError, match="same id 'v'"):
        find_videos([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "c").mkdir()
    with pytest.raises(NarratorError, match="holds no video"):
        find_videos([tmp_path / "c"])
