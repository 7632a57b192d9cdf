"""Run by test_clip_backends.py in .venv-clip: one set of random weights, read by each package, must give the
same features. Not collected elsewhere, for cn_clip and open_clip want torchvision.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from random_models import DIM, WIDTH, save_chinese, save_english
from safetensors.torch import save_file
from torch import Tensor

from metrics.emscore import emscore
from metrics.encoders.clip import ClipEncoder, load_clip_encoder
from metrics.words.segment import jieba_segmenter
from videonarrator.schema import NarratorError

SAME = 1e-5

CHINESE = [
    "",
    "你好",
    "这款面霜质地轻薄不油腻。",
    "SK-II神仙水 75ml，只要299!",
    "“补水”～👍",
    "面" * 300,
    "面" * 700,
]
ENGLISH = ["", "hello", "A light cream, not greasy!", "It's 75ml for $299", "cream " * 60, "cream " * 100]

_torchvision = torch.library.Library("torchvision", "DEF")
"""The operators that torchvision looks for on import and that its build for another torch cannot bring."""


@pytest.fixture(scope="session", autouse=True)
def torchvision_operators() -> None:
    for name in ("nms", "qnms"):
        _torchvision.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    """Smooth and noisy pictures, wide, tall, square, smaller than the model's, grey and with alpha."""
    generator = np.random.default_rng(0)
    made = []
    for width, height in ((64, 48), (48, 64), (200, 120), (32, 32), (20, 28)):
        noise = generator.integers(0, 256, (height, width, 3), np.uint8)
        slope = np.linspace(0, 255, width)[None, :, None].repeat(height, 0).repeat(3, 2).astype(np.uint8)
        made += [Image.fromarray(noise), Image.fromarray(slope)]
    return [*made, made[0].convert("L"), made[1].convert("RGBA")]


@pytest.fixture(scope="session")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A Chinese CLIP's folder in transformers' layout, with cn_clip's vocabulary; its weights for cn_clip."""
    folder = tmp_path_factory.mktemp("chinese") / "model"
    return folder, save_chinese(folder)


@pytest.fixture(scope="session")
def english(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A CLIP's folder in transformers' layout, and the same in open_clip's, with CLIP's own vocabulary."""
    folder = tmp_path_factory.mktemp("english")
    save_english(folder / "transformers", folder / "open_clip")
    return folder / "transformers", folder / "open_clip"


def assert_same(one: ClipEncoder, other: ClipEncoder, texts: list[str], images: list[Image.Image]) -> None:
    for first, second in (
        (one.encode_texts(texts), other.encode_texts(texts)),
        (one.encode_images(images), other.encode_images(images)),
    ):
        assert first.shape == second.shape and first.shape[1] == DIM
        cosines = first @ first.T
        assert np.median(cosines[~np.eye(len(first), dtype=bool)]) < 0.98  # the features tell inputs apart
        print(f"largest difference {np.abs(first - second).max():.1e}")
        np.testing.assert_allclose(first, second, rtol=0, atol=SAME)
    assert one.truncated == other.truncated == 1


@pytest.mark.parametrize("layout", ["pt", "training.pt", "safetensors"])
def test_cn_clip(
    chinese: tuple[Path, dict[str, Tensor]], images: list[Image.Image], layout: str, tmp_path: Path
) -> None:
    folder, weights = chinese
    file = tmp_path / f"clip.{layout}"
    if layout == "pt":
        torch.save({"state_dict": weights}, file)
    elif layout == "training.pt":
        content = {f"module.{name}": tensor for name, tensor in weights.items()}
        content["module.bert.pooler.dense.weight"] = torch.zeros(2)
        torch.save({"epoch": 3, "name": "run", "state_dict": content}, file)
    else:
        save_file(weights, file)
    encoder = load_clip_encoder(str(file), "cn_clip")
    assert_same(load_clip_encoder(str(folder)), encoder, CHINESE, images)
    assert encoder.name.startswith("cn_clip-1.6.0 sha256:") and encoder.name.endswith(" max-tokens:512")


def test_the_emscore_is_the_same(
    chinese: tuple[Path, dict[str, Tensor]],
    images: list[Image.Image],
    output_texts: list[str],
    tmp_path: Path,
) -> None:
    torch.save({"state_dict": chinese[1]}, tmp_path / "clip.pt")
    narrations = [text for text in output_texts if len(text) > 3][:60]
    scores = []
    for source, backend in ((chinese[0], "transformers"), (tmp_path / "clip.pt", "cn_clip")):
        encoder = load_clip_encoder(str(source), backend)
        # of a random model, pictures made like their texts: cosines above 0, where F is well conditioned
        sentences = encoder.encode_texts(narrations)
        frames = [encoder.encode_images(images[i % 9 :]) + sentence for i, sentence in enumerate(sentences)]
        tagged = jieba_segmenter().tagged
        scores.append(emscore(narrations, frames, tagged, encoder.encode_texts))
    one, other = scores
    print(f"largest difference {np.abs(np.subtract(one.per_item, other.per_item)).max():.1e} of {one.value}")
    np.testing.assert_allclose(one.per_item, other.per_item, rtol=0, atol=100 * SAME)
    assert np.std(np.array(one.per_item, float)) > 1


def test_half_precision_weights_are_computed_with_in_float32(
    chinese: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    """Published cn_clip checkpoints may be stored in half precision."""
    halves = {name: tensor.half() for name, tensor in chinese[1].items()}
    torch.save({"state_dict": halves}, tmp_path / "half.pt")
    torch.save(
        {"state_dict": {name: tensor.float() for name, tensor in halves.items()}}, tmp_path / "whole.pt"
    )
    one, other = (load_clip_encoder(str(tmp_path / f"{name}.pt"), "cn_clip") for name in ("half", "whole"))
    np.testing.assert_array_equal(one.encode_texts(CHINESE), other.encode_texts(CHINESE))


def test_cn_clip_tokens_are_those_of_transformers(
    chinese: tuple[Path, dict[str, Tensor]], output_texts: list[str], tmp_path: Path
) -> None:
    """On the real narrations and their words."""
    import cn_clip.clip
    from transformers import BertTokenizer

    ours, theirs = BertTokenizer.from_pretrained(chinese[0]), cn_clip.clip._tokenizer
    for text in output_texts:
        assert ours(text)["input_ids"][1:-1] == theirs.convert_tokens_to_ids(theirs.tokenize(text)), text


@pytest.fixture
def output_texts(fixture_folder: Path) -> list[str]:
    output = json.loads((fixture_folder / "data" / "output.json").read_text("utf-8"))
    texts = [value[field] for value in output.values() for field in ("gt", "0.1") if field in value]
    assert len(texts) > 1000
    return texts


def bad_code(file: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return (Path(file.with_name("ran")).touch, ())  # type: ignore[return-value]

    torch.save({"state_dict": Payload()}, file)


def less(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in weights.items() if key != name}


def test_cn_clip_files_that_are_none(chinese: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    folder, weights = chinese

    def refused(path: Path, match: str) -> None:
        with pytest.raises(NarratorError, match=match):
            load_clip_encoder(str(path), "cn_clip")

    refused(tmp_path / "none.pt", "no such file; the back end cn_clip takes")
    refused(folder, "a folder of .*vocab.txt")
    bad_code(tmp_path / "bad.pt")
    refused(tmp_path / "bad.pt", "not a checkpoint of tensors alone")
    assert not (tmp_path / "ran").exists()
    for name, content in (("garbage.pt", b"garbage"), ("garbage.safetensors", b"garbage"), ("none.pt", b"")):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "not a checkpoint of tensors alone")
    torch.save([1, 2], tmp_path / "list.pt")
    refused(tmp_path / "list.pt", "not a Chinese CLIP .*visual.conv1.weight")
    save_file(less(weights, "text_projection"), tmp_path / "less.safetensors")
    refused(tmp_path / "less.safetensors", "text_projection")
    save_file(less(weights, "visual.ln_post.bias"), tmp_path / "less.safetensors")
    refused(tmp_path / "less.safetensors", "not whole.*visual.ln_post.bias")
    few = {"bert.embeddings.word_embeddings.weight": torch.zeros(100, WIDTH)}
    save_file(weights | few, tmp_path / "few.safetensors")
    refused(tmp_path / "few.safetensors", "made for 100 tokens, but cn_clip's vocabulary has 21128")


def test_open_clip(english: tuple[Path, Path], images: list[Image.Image]) -> None:
    """Where the margins beside the central square sum to 3 more than a multiple of 4 pixels, the two packages
    cut one pixel apart: no such picture here.
    """
    folder, other = english
    encoder = load_clip_encoder(str(other), "open_clip")
    assert_same(load_clip_encoder(str(folder)), encoder, ENGLISH, images)
    assert encoder.name.startswith("open_clip-3.3.0 sha256:") and encoder.name.endswith(" max-tokens:77")


def test_open_clip_weights_in_a_pickle(english: tuple[Path, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    shutil.copy(english[1] / "open_clip_config.json", tmp_path)
    weights = load_file(english[1] / "open_clip_model.safetensors")
    torch.save(weights, tmp_path / "open_clip_pytorch_model.bin")
    one, other = (load_clip_encoder(str(folder), "open_clip") for folder in (english[1], tmp_path))
    np.testing.assert_array_equal(one.encode_texts(ENGLISH), other.encode_texts(ENGLISH))

    bad_code(tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(NarratorError, match="open_clip cannot load it"):
        load_clip_encoder(str(tmp_path), "open_clip")
    assert not (tmp_path / "ran").exists()


def test_open_clip_folders_that_are_none(english: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(NarratorError, match=r"no open_clip_config.json, but config.json, .*transformers"):
        load_clip_encoder(str(english[0]), "open_clip")
    shutil.copy(english[1] / "open_clip_config.json", tmp_path)
    with pytest.raises(NarratorError, match=r"open_clip cannot load it: .*could not be loaded"):
        load_clip_encoder(str(tmp_path), "open_clip")
    with pytest.raises(NarratorError, match="no such folder, and the hub does not give it"):
        load_clip_encoder("nobody/nothing", "open_clip")


def test_loading_leaves_the_random_numbers_alone(
    chinese: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    torch.save({"state_dict": chinese[1]}, tmp_path / "clip.pt")
    states = random.getstate(), torch.get_rng_state()
    load_clip_encoder(str(tmp_path / "clip.pt"), "cn_clip")
    load_clip_encoder(str(chinese[0]))
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
