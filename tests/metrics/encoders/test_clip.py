"""CLIP's features of texts and pictures: the definitions written out, Chinese and English."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_checks import TEXTS, assert_close, unit
from PIL import Image

from metrics.encoders.clip import ClipEncoder, load_clip_encoder


def test_clip_text_features_are_projected_first_states(
    clip_encoder: ClipEncoder, models: Path, real_texts: list[str]
) -> None:
    from transformers import BertTokenizer, ChineseCLIPModel

    folder = models / "chinese-clip"
    model, tokenizer = ChineseCLIPModel.from_pretrained(folder).eval(), BertTokenizer.from_pretrained(folder)
    texts = TEXTS + real_texts
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        first = model.text_model(**inputs).last_hidden_state[:, 0]
        features = first @ model.text_projection.weight.T
    assert_close(clip_encoder.encode_texts(texts), unit(features))
    assert clip_encoder.dim == 32 and clip_encoder.encode_texts([]).shape == (0, 32)


def pixel_values(picture: Image.Image) -> np.ndarray:
    mean, deviation = np.array([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])
    return (np.asarray(picture) / 255 - mean) / deviation


def test_chinese_clip_image_features(
    clip_encoder: ClipEncoder, models: Path, pictures: list[Image.Image]
) -> None:
    """Bicubic to the model's square, the aspect not kept, then CLIP's mean and deviation."""
    from transformers import ChineseCLIPModel

    model = ChineseCLIPModel.from_pretrained(models / "chinese-clip").eval()
    small = [p.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC) for p in pictures]
    pixels = torch.from_numpy(np.stack([pixel_values(p) for p in small])).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        hidden = model.vision_model(pixel_values=pixels).last_hidden_state[:, 0]
        features = model.visual_projection(model.vision_model.post_layernorm(hidden))
    assert_close(clip_encoder.encode_images(pictures), unit(features))
    many = clip_encoder.encode_images(pictures * 10)
    assert_close(many, np.tile(clip_encoder.encode_images(pictures), (10, 1)))
    assert clip_encoder.encode_images([]).shape == (0, 32)


@pytest.fixture(scope="module")
def english_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with a vocabulary of single bytes."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPConfig, CLIPModel

    signs = sorted(ByteLevel.alphabet())
    tokens = [*signs, *(f"{sign}</w>" for sign in signs), "<|startoftext|>", "<|endoftext|>"]
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    ends = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1}
    text = {**sizes, **ends, "vocab_size": len(tokens), "max_position_embeddings": 20}
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    folder = tmp_path_factory.mktemp("english") / "clip"
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_english_clip(english_clip: Path, pictures: list[Image.Image]) -> None:
    """CLIP's text feature is the end-of-text token's, whatever pads it; its pictures keep their aspect."""
    from transformers import CLIPModel, CLIPTokenizer

    encoder, model = load_clip_encoder(str(english_clip)), CLIPModel.from_pretrained(english_clip).eval()
    tokenizer = CLIPTokenizer.from_pretrained(english_clip)
    texts = ["", "Hello", "it's 75 ml!", "a b c d e f g h i"]
    inputs = tokenizer(texts, padding="max_length", max_length=20, return_tensors="pt")
    ends = inputs["attention_mask"].sum(1) - 1
    picture = pictures[2].resize((32, 53), Image.Resampling.BICUBIC).crop((0, 10, 32, 42))
    pixels = torch.from_numpy(pixel_values(picture)[None]).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        states = model.text_model(**inputs).last_hidden_state
        text_features = model.text_projection(states[torch.arange(len(texts)), ends])
        image_features = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    assert_close(encoder.encode_texts(texts), unit(text_features))
    assert_close(encoder.encode_images(pictures[2:3]), unit(image_features))
    assert encoder.name.endswith(" max-tokens:20")
    long = encoder.encode_texts(["a b c d e f g h i j k l m n o p q r s t u v w x y z"])
    assert encoder.truncated == 1
    assert_close(long, encoder.encode_texts(["a b c d e f g h i j k l m n o p q r"]))


def test_convolutions_do_not_round_to_tf32(
    clip_encoder: ClipEncoder, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = clip_encoder._model.image_features

    def image_features(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(torch.backends.cudnn.allow_tf32)
        return real(pixels)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    model = type(clip_encoder._model)(**vars(clip_encoder._model) | {"image_features": image_features})
    ClipEncoder(model, "cpu").encode_images(pictures)
    assert seen == [False] and torch.backends.cudnn.allow_tf32
