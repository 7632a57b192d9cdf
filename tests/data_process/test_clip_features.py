"""CLIP features of frames: those of transformers' own CLIP, from every file layout, and errors by name."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_clip import CLIP_WIDTH, save_tiny_clip
from transformers.models.chinese_clip.image_processing_pil_chinese_clip import ChineseCLIPImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from data_process.clip_features import clip_fingerprint, clip_settings, load_clip
from videonarrator.schema import NarratorError


def stills():
    generator = np.random.default_rng(0)
    sizes = [(48, 64), (64, 40), (32, 32), (100, 30), (30, 90)]
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def own_features(model, processor, pictures):
    pixels = processor([Image.fromarray(picture) for picture in pictures], return_tensors="pt")
    with torch.inference_mode():
        return model.get_image_features(pixel_values=pixels["pixel_values"]).pooler_output


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return folder, save_tiny_clip(folder)


@pytest.fixture
def copy(clip, tmp_path):
    """A copy of the CLIP's folder that a test may spoil."""
    for file in clip[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_features_are_those_of_transformers(clip):
    folder, model = clip
    expected = own_features(model, CLIPImageProcessorPil.from_pretrained(folder), stills())
    encoder = load_clip(str(folder))
    features = encoder.encode(stills(), batch_size=2)
    assert features.dtype == torch.float32 and features.shape == (5, CLIP_WIDTH)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(features.norm(dim=1), torch.ones(5), atol=0.1)  # as the model gives them
    assert encoder.encode([]).shape == (0, CLIP_WIDTH)
    other = save_tiny_clip(folder.with_name("other"), seed=1)
    assert not torch.allclose(own_features(other, encoder.processor, stills()), expected, atol=0.1)


def test_a_chinese_clip(tmp_path):
    model = save_tiny_clip(tmp_path, chinese=True)
    expected = own_features(model, ChineseCLIPImageProcessorPil.from_pretrained(tmp_path), stills())
    torch.testing.assert_close(load_clip(str(tmp_path)).encode(stills()), expected, rtol=1e-5, atol=1e-6)


def test_pickled_weights_and_position_numbers_of_old_files(clip, copy):
    tensors = load_file(copy / "model.safetensors")
    tensors["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    (copy / "model.safetensors").unlink()
    torch.save(tensors, copy / "pytorch_model.bin")
    same = load_clip(str(clip[0])).encode(stills())
    assert torch.equal(load_clip(str(copy)).encode(stills()), same)
    before = clip_fingerprint(str(copy))
    tensors["visual_projection.weight"][0, 0] += 1
    torch.save(tensors, copy / "pytorch_model.bin")
    assert clip_fingerprint(str(copy)) != before


def test_half_precision_is_used(clip):
    encoder = load_clip(str(clip[0]), dtype=torch.bfloat16)
    rough, exact = encoder.encode(stills()), load_clip(str(clip[0])).encode(stills())
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.2)


def test_settings_name_the_model_and_its_files(clip, copy):
    settings = clip_settings(str(copy), load_clip(str(copy)))
    assert settings == {
        "model": str(copy), "sha256": clip_fingerprint(str(clip[0])), "dtype": "float32", "width": CLIP_WIDTH,
    }  # fmt: skip
    preprocessor = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps(preprocessor | {"resample": 2}))
    assert clip_fingerprint(str(copy)) != settings["sha256"]


def spoil_type(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "siglip"}))


def spoil_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["vision_model.post_layernorm.bias"]
    save_file(tensors, folder / "model.safetensors")


def spoil_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"projection_dim": CLIP_WIDTH + 1}))


def spoil_pickle(folder):
    class Payload:
        def __reduce__(self):
            return (folder.joinpath("executed").touch, ())

    (folder / "model.safetensors").unlink()
    torch.save({"visual_projection.weight": Payload()}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_type, "holds a model of type 'siglip', not a CLIP"),
        (spoil_weights, r"image half whole: missing \['vision_model.post_layernorm.bias'\]"),
        (spoil_shape, r"visual_projection.weight is \[6, 16\], by its config.json it should be \[7, 16\]"),
        (spoil_pickle, "holds more than tensors and is refused"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"cut"),
            "cannot be read: it is cut short",
        ),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "has no preprocessor_config.json"),
        (lambda folder: (folder / "preprocessor_config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
    ],
)
def test_a_folder_that_will_not_do(copy, spoil, message):
    spoil(copy)
    with pytest.raises(NarratorError, match=message):
        load_clip(str(copy))
    assert not (copy / "executed").exists()
