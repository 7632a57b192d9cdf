"""Encoders: the definitions written out, independence of company, wrong files; and frame features."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from metrics.encoders import frames as frames_module
from metrics.encoders.batching import TOKENS, TextFeatures, fitting_threads
from metrics.encoders.clip import ClipEncoder, load_clip_encoder
from metrics.encoders.frames import (
    FrameFeatures,
    frame_features_from_folder,
    read_frame_features,
)
from metrics.encoders.text import TextEncoder, load_text_encoder
from videonarrator.schema import NarratorError

ROUNDING = 1e-6
TEXTS = ["", "你好", "这款面霜质地轻薄不油腻。", "SK-II神仙水 75ml，只要299!", "“补水”～👍", " ", "面" * 60]


@pytest.fixture(scope="module")
def models(fixture_folder: Path) -> Path:
    return fixture_folder / "models"


@pytest.fixture(scope="module")
def text_encoder(models: Path) -> TextEncoder:
    return load_text_encoder(str(models / "chinese-roberta"))


@pytest.fixture(scope="module")
def clip_encoder(models: Path) -> ClipEncoder:
    return load_clip_encoder(str(models / "chinese-clip"))


@pytest.fixture(scope="module")
def real_texts(fixture_folder: Path) -> list[str]:
    output = json.loads((fixture_folder / "data" / "output.json").read_text("utf-8"))
    texts = [value["0.1"] for value in output.values() if "0.1" in value]
    return [*texts[:100], *sorted({*"".join(texts)})[::5]]


@pytest.fixture
def model_copy(models: Path, tmp_path: Path) -> Callable[..., Path]:
    def copy(name: str, *left_out: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(models / name, folder, ignore=shutil.ignore_patterns(*left_out))
        for path in (folder, *folder.iterdir()):
            path.chmod(0o755)
        return folder

    return copy


def unit(rows: torch.Tensor) -> np.ndarray:
    return (rows / rows.norm(dim=-1, keepdim=True)).numpy()


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=ROUNDING)


def test_text_features_are_masked_means(
    text_encoder: TextEncoder, models: Path, real_texts: list[str]
) -> None:
    """The published way: padded batches with an attention mask, all tokens averaged but the padding."""
    from transformers import BertModel, BertTokenizer

    folder = models / "chinese-roberta"
    model, tokenizer = BertModel.from_pretrained(folder).eval(), BertTokenizer.from_pretrained(folder)
    texts = TEXTS + real_texts
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    assert_close(text_encoder.encode(texts), unit((hidden * mask).sum(1) / mask.sum(1)))
    assert text_encoder.dim == 64 and text_encoder.encode([]).shape == (0, 64)


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


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Noise, wide, tall, square and smaller than the model's pictures; grey, with alpha, with a palette."""
    generator = np.random.default_rng(0)
    sizes = ((64, 48), (48, 65), (120, 201), (32, 32), (20, 28))
    made = [Image.fromarray(generator.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]
    return [*made, made[0].convert("L"), made[1].convert("RGBA"), made[2].convert("P")]


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


def test_company_does_not_matter(models: Path, real_texts: list[str]) -> None:
    """Alone, in a crowd, in another order: the same but for rounding; again: the same to the bit."""
    crowd = load_text_encoder(str(models / "chinese-roberta"))
    alone = load_text_encoder(str(models / "chinese-roberta"))
    together = crowd.encode(real_texts)
    assert_close(np.concatenate([alone.encode([text]) for text in real_texts]), together)
    np.testing.assert_array_equal(crowd.encode(real_texts[::-1]), together[::-1])
    first = real_texts[0]
    np.testing.assert_array_equal(crowd.encode([first, "新的", first])[[0, 2]], together[[0, 0]])


def test_each_text_is_encoded_once_and_nothing_is_padded() -> None:
    seen: list[list[int]] = []

    def forward(ids: torch.Tensor) -> torch.Tensor:
        assert ids.numel() <= max(TOKENS, ids.shape[1])
        seen.extend(ids.tolist())
        return torch.stack([ids.sum(1), ids[:, -1]], dim=1).double()

    def tokenize(texts: list[str]) -> list[list[int]]:
        return [[7, *map(ord, text), 9] for text in texts]

    features = TextFeatures(tokenize, forward, dim=2, max_tokens=5, device="cpu")
    texts = [chr(97 + i % 26) * (i % 3) for i in range(5000)] + [chr(1000 + i) for i in range(3000)]
    texts += ["abc", "abcd", "abce"]
    rows = features(texts)
    assert sorted(seen) == sorted(tokenize(sorted({*texts} - {"abcd", "abce"})) + [[7, 97, 98, 99, 9]] * 2)
    for text, row in zip(texts, rows, strict=True):
        total = np.array([16 + sum(map(ord, text[:3])), 9.0])
        np.testing.assert_allclose(row, total / np.linalg.norm(total), rtol=1e-6)
    assert features.truncated == 2
    features(texts)
    assert features.truncated == 2 and len(seen) == len({*texts})


def test_small_networks_take_one_thread(
    clip_encoder: ClipEncoder, text_encoder: TextEncoder, pictures: list[Image.Image]
) -> None:
    small, large = torch.nn.Linear(10, 10), torch.nn.Linear(10_000, 2_000, device="meta")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with fitting_threads(small):
            assert torch.get_num_threads() == 1
        with fitting_threads(large):
            assert torch.get_num_threads() == 2
        text_encoder.encode(["线程"])
        clip_encoder.encode_texts(["线程"])
        clip_encoder.encode_images(pictures)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_long_texts_are_cut_and_counted(models: Path) -> None:
    for encode, encoder in (
        ((text := load_text_encoder(str(models / "chinese-roberta"))).encode, text),
        ((clip := load_clip_encoder(str(models / "chinese-clip"))).encode_texts, clip),
    ):
        longest = encode(["面" * 510])
        assert encoder.truncated == 0
        assert_close(encode(["面" * 510 + "霜" * 90]), longest)
        assert encoder.truncated == 1
        assert encoder.name.endswith(" max-tokens:512")


def test_names_say_which_model(
    text_encoder: TextEncoder, clip_encoder: ClipEncoder, models: Path, model_copy: Callable[..., Path]
) -> None:
    """The folder's name and what else lies in it are no part of it; weights and tokenizer are."""
    folder = model_copy("chinese-roberta")
    (folder / "README.md").write_text("notes")
    names = [load_text_encoder(str(folder)).name]
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.LayerNorm.bias"][0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    names.append(load_text_encoder(str(folder)).name)
    (folder / "vocab.txt").write_text((folder / "vocab.txt").read_text("utf-8") + "\n", "utf-8")
    names.append(load_text_encoder(str(folder)).name)
    assert names[0] == text_encoder.name and len({*names}) == 3
    assert text_encoder.name.startswith("BertModel sha256:")
    assert clip_encoder.name.startswith("ChineseCLIPModel sha256:")


def test_a_folder_with_only_a_vocabulary(
    clip_encoder: ClipEncoder, text_encoder: TextEncoder, model_copy: Callable[..., Path]
) -> None:
    """The published models' folders: no tokenizer.json, no longest length but the position table's."""
    files = ("tokenizer.json", "tokenizer_config.json")
    clip = load_clip_encoder(str(model_copy("chinese-clip", *files)))
    text = load_text_encoder(str(model_copy("chinese-roberta", *files)))
    assert_close(clip.encode_texts(TEXTS), clip_encoder.encode_texts(TEXTS))
    assert_close(text.encode(TEXTS), text_encoder.encode(TEXTS))
    assert text.name.endswith(" max-tokens:512")


def test_a_folder_made_for_pretraining(text_encoder: TextEncoder, model_copy: Callable[..., Path]) -> None:
    """chinese-roberta-wwm-ext's files: names begin with bert., a head that is not needed, no pooler."""
    folder = model_copy("chinese-roberta")
    weights = load_file(folder / "model.safetensors")
    renamed = {f"bert.{name}": value for name, value in weights.items() if not name.startswith("pooler")}
    renamed["cls.predictions.bias"] = np.zeros(2898, np.float32)
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"architectures": ["BertForMaskedLM"]}))
    assert_close(load_text_encoder(str(folder)).encode(TEXTS), text_encoder.encode(TEXTS))


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


def without(folder: Path, name: str) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def pickle_with(folder: Path, content: object) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")


class Payload:
    """What a pickle could do while it is read: here, leave a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_published_weights_are_read_without_running_them(fixture_folder: Path, tmp_path: Path) -> None:
    """The hub's chinese-roberta and Chinese CLIP are pytorch_model.bin: tensors are read, code is refused."""
    folder = tmp_path / "model"
    shutil.copytree(fixture_folder / "models" / "chinese-roberta", folder)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    expected = load_text_encoder(str(folder)).encode(["轻薄", ""])
    weights = load_file(folder / "model.safetensors")
    pickle_with(folder, {name: torch.from_numpy(weight) for name, weight in weights.items()})
    assert_close(load_text_encoder(str(folder)).encode(["轻薄", ""]), expected)
    torch.save({"weights": Payload(folder / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(NarratorError, match="transformers cannot load it"):
        load_text_encoder(str(folder))
    assert not (folder / "ran").exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)  # the control: it would have run
    assert (folder / "ran").exists()


def grow_vocabulary(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with (folder / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("\n新词\n")


def configure(folder: Path, **settings: Any) -> None:
    old = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(old | settings))


@pytest.mark.parametrize(
    ("model", "spoil", "message"),
    [
        ("chinese-roberta", lambda f: (f / "config.json").unlink(), "no config.json, but model.safetensors"),
        (
            "chinese-roberta",
            lambda f: (f / "model.safetensors").rename(f / "weights.pt"),
            "no weights, but config.json",
        ),
        (
            "chinese-roberta",
            lambda f: pickle_with(f, {"a": Payload(f / "ran")}),
            "transformers cannot load it",
        ),
        (
            "chinese-roberta",
            lambda f: without(f, "encoder.layer.1.output.dense.bias"),
            "1 are missing, first encoder.layer.1.output.dense.bias",
        ),
        (
            "chinese-clip",
            lambda f: without(f, "text_projection.weight"),
            "1 are missing, first text_projection.weight",
        ),
        (
            "chinese-roberta",
            lambda f: (f / "model.safetensors").write_bytes(b"garbage" * 99),
            "transformers cannot load it",
        ),
        ("chinese-roberta", lambda f: configure(f, hidden_size=32), "transformers cannot load it"),
        ("chinese-roberta", lambda f: configure(f, model_type="nonsense"), "does not recognize"),
        (
            "chinese-clip",
            lambda f: configure(f, model_type="bert"),
            "type 'bert'; there is: chinese_clip, cl",
        ),
        (
            "chinese-clip",
            lambda f: [path.unlink() for path in (*f.glob("vocab.txt"), *f.glob("tokenizer*"))],
            r"no tokenizer; copy the model's own there \(tokenizer.json, vocab.txt\)",
        ),
        (
            "chinese-roberta",
            lambda f: [path.unlink() for path in (*f.glob("vocab.txt"), *f.glob("tokenizer*"))],
            "no tokenizer; copy the model's own",
        ),
        ("chinese-clip", lambda f: (f / "config.json").write_text("{"), "its config.json cannot be read"),
        ("chinese-roberta", lambda f: (f / "config.json").write_text("{"), "transformers cannot load it"),
        ("chinese-roberta", grow_vocabulary, r"29\d\d tokens and its weights are for 2898"),
        ("chinese-clip", lambda f: (f / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
    ],
)
def test_folders_that_cannot_be_used(
    model: str, spoil: Callable[[Path], Any], message: str, model_copy: Callable[..., Path]
) -> None:
    folder = model_copy(model)
    spoil(folder)
    load = load_text_encoder if model == "chinese-roberta" else load_clip_encoder
    with pytest.raises(NarratorError, match=message) as raised:
        load(str(folder))
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize("load", [load_text_encoder, load_clip_encoder])
def test_a_name_that_is_no_folder_is_asked_of_no_hub(
    load: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NarratorError, match="'nobody/nothing': no such folder, and the hub does not give it"):
        load("nobody/nothing")


def test_a_model_in_the_hubs_cache(
    models: Path, text_encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "models--hfl--chinese-roberta"
    shutil.copytree(models / "chinese-roberta", cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load_text_encoder("hfl/chinese-roberta").name == text_encoder.name


@pytest.mark.parametrize("load", [load_text_encoder, load_clip_encoder])
def test_a_device_that_is_not_there_is_named(load: Callable[..., object]) -> None:
    for device in ("nonsense", "cuda:99"):
        with pytest.raises(NarratorError, match=f"device '{device}': .*; type cpu"):
            load("anything", device=device)


def test_an_unknown_back_end_is_named() -> None:
    with pytest.raises(NarratorError, match="'onnx'; there is: transformers, cn_clip, open_clip"):
        load_clip_encoder("anything", "onnx")


def test_reading_frames_needs_no_torch() -> None:
    code = "import sys, metrics.encoders.frames; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# Frame features


def test_frame_features_are_read_by_key(fixture_folder: Path) -> None:
    path = fixture_folder / "data" / "frame_features.safetensors"
    features, stored = read_frame_features(path), load_file(path)
    assert [*features] == [*stored] and len(features) == len(stored) > 500
    for key, frames in stored.items():
        np.testing.assert_array_equal(features[key], frames)
    assert features.get("nobody_0") is None and "nobody_0" not in features


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    halves = np.array([[0.5, np.nan], [1, 2]], np.float16)
    save_file({"a_0": halves, "b_0": np.ones((0, 2), np.float16)}, tmp_path / "half.safetensors")
    features = read_frame_features(tmp_path / "half.safetensors")
    assert features["a_0"].dtype == np.float32 and features["b_0"].shape == (0, 2)
    np.testing.assert_array_equal(features["a_0"], halves)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a_0": np.ones((2, 3), np.float32), "a_1": np.ones(3, np.float32)}, r"'a_1' is F32 \[3\]"),
        ({"a_0": np.ones((2, 3), np.int64)}, r"'a_0' is I64 \[2, 3\]; expected \[frames, dim\]"),
        (
            {"a_0": np.ones((2, 3), np.float32), "a_1": np.ones((2, 4), np.float32)},
            r"widths differ: 3 \('a_0'\), 4 \('a_1'\)",
        ),
        ({}, "no features; expected keys"),
        (b"garbage" * 9, "not a safetensors file"),
        (b"", "not a safetensors file"),
        (None, "no such file"),
    ],
)
def test_files_that_are_no_frame_features(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "features.safetensors"
    if isinstance(content, dict):
        save_file(content, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(NarratorError, match=message) as raised:
        read_frame_features(path)
    assert str(path) in str(raised.value)


def test_the_remedy_for_pickled_frame_features_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "features.pt"
    both = torch.randn(3, 4)
    torch.save({"a_0": both[:2], "a_1": both.T}, path)
    with pytest.raises(NarratorError, match="a pickle of PyTorch") as raised:
        read_frame_features(path)
    code = str(raised.value).split('python -c "')[1].removesuffix('"')
    monkeypatch.chdir(tmp_path)
    torch.save({"a_0": both[:2], "a_1": torch.randn(4, 3).T}, path)
    exec(code, {})
    np.testing.assert_array_equal(read_frame_features(tmp_path / "NEW.safetensors")["a_0"], both[:2])


class MeanColour:
    """An encoder whose feature is the picture's mean colour; it counts its pictures."""

    def __init__(self, name: str = "mean colour", most: int = 10**9) -> None:
        self.name, self.most, self.encoded = name, most, 0

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        if self.encoded + len(images) > self.most:
            raise KeyboardInterrupt
        self.encoded += len(images)
        rows = [np.asarray(image, np.float32).mean((0, 1)) for image in images]
        return np.stack(rows) if rows else np.zeros((0, 3), np.float32)


def paint(path: Path, colour: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (colour, 0, 1)).save(path)


@pytest.fixture
def stills(tmp_path: Path) -> Path:
    """Videos a (flat, png) and b (in a folder): still k has colour k, or 100 + k."""
    for k in range(1, 8):
        paint(tmp_path / "stills" / f"a_{k:03d}.png", k)
        paint(tmp_path / "stills" / "b" / f"b_{k:03d}.png", 100 + k)
    return tmp_path / "stills"


CLIPS = {"a_0": ("a", 0.0, 2.4), "a_1": ("a", 2.4, 5.9), "a_2": ("a", 5.9, 6.0), "b_0": ("b", 0.0, 7.0)}


def colours(features: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
    return {key: frames[:, 0].astype(int).tolist() for key, frames in features.items()}


def compute(
    stills: Path, encoder: MeanColour, cache: Path | None = None, clips: Any = CLIPS, **more: Any
) -> tuple[Mapping[str, np.ndarray], dict[str, str]]:
    return frame_features_from_folder(stills, clips, encoder, cache, **more)  # type: ignore[arg-type]


def test_a_clips_frames_are_its_seconds_stills(stills: Path) -> None:
    """Frame k is the still at second k-1; a clip shorter than a second has one; shared stills count once."""
    encoder = MeanColour()
    features, reasons = compute(stills, encoder)
    expected = {"a_0": [1, 2], "a_1": [3, 4, 5], "a_2": [6], "b_0": list(range(101, 108))}
    assert (colours(features), reasons, encoder.encoded) == (expected, {}, 13)
    clips = {"a_0": ("a", 0.0, 3.0), "a_1": ("a", 2.0, 2.5), "a_2": ("a", 0.0, 7.0)}
    again, _ = compute(stills, encoder := MeanColour(), clips=clips)
    assert colours(again) == {"a_0": [1, 2, 3], "a_1": [3], "a_2": [*range(1, 8)]} and encoder.encoded == 7


def test_the_real_encoder_on_stills(stills: Path, clip_encoder: ClipEncoder, tmp_path: Path) -> None:
    cache = tmp_path / "new" / "cache.safetensors"
    features, _ = frame_features_from_folder(stills, CLIPS, clip_encoder, cache)
    pictures = [Image.open(stills / f"a_{k:03d}.png") for k in (3, 4, 5)]
    assert_close(features["a_1"], clip_encoder.encode_images(pictures))
    stored = read_frame_features(cache)
    assert {*stored} == {*CLIPS} and stored.metadata["encoder"] == clip_encoder.name
    np.testing.assert_array_equal(stored["a_1"], features["a_1"])


def test_missing_and_unreadable_stills_are_reported(stills: Path, tmp_path: Path) -> None:
    (stills / "a_002.png").unlink()
    (stills / "a_004.png").write_bytes((stills / "a_004.png").read_bytes()[:40])
    (stills / "a_006.png").write_bytes(b"no picture")
    said: list[str] = []
    cache = tmp_path / "cache.safetensors"
    features, reasons = compute(stills, MeanColour(), cache, say=said.append)
    assert [*features] == ["b_0"]
    assert reasons == {"a_0": "still_missing", "a_1": "still_unreadable", "a_2": "still_unreadable"}
    assert "a_002.jpg" in said[0] and "a_004.png" in said[1] and "a_006.png" in said[2]
    paint(stills / "a_004.png", 4)
    features, reasons = compute(stills, encoder := MeanColour(), cache)
    assert colours(features)["a_1"] == [3, 4, 5] and [*reasons] == ["a_0", "a_2"]
    assert encoder.encoded == 3


def test_the_cache_is_used_where_nothing_changed(stills: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache.safetensors"
    first, _ = compute(stills, MeanColour(), cache)
    written = cache.stat().st_mtime_ns
    moved = stills.rename(tmp_path / "moved")
    second, _ = compute(moved, encoder := MeanColour(), cache)
    assert (colours(second), encoder.encoded) == (colours(first), 0) and cache.stat().st_mtime_ns == written

    paint(moved / "a_004.png", 44)
    third, _ = compute(moved, encoder := MeanColour(), cache)
    assert colours(third) == colours(first) | {"a_1": [3, 44, 5]} and encoder.encoded == 3

    moved_clip = CLIPS | {"a_0": ("a", 1.0, 3.0)}
    fourth, _ = compute(moved, encoder := MeanColour(), cache, moved_clip)
    assert colours(fourth)["a_0"] == [2, 3] and encoder.encoded == 2

    _, _ = compute(moved, encoder := MeanColour("another"), cache, moved_clip)
    assert encoder.encoded == 12  # a's stills 2 to 6, b's seven
    assert {path.name for path in tmp_path.iterdir()} == {"moved", "cache.safetensors"}


def test_an_interrupted_computation_goes_on(
    stills: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames_module, "SAVE_SECONDS", 0)
    monkeypatch.setattr(frames_module, "STILLS", 3)
    cache, said = tmp_path / "cache.safetensors", []
    with pytest.raises(KeyboardInterrupt):
        compute(stills, MeanColour(most=6), cache, say=said.append)
    assert [*FrameFeatures(cache)] == ["a_0", "a_1", "a_2"] and said[0].startswith("features of 3/13 stills")
    features, _ = compute(stills, encoder := MeanColour(), cache)
    assert encoder.encoded == 7 and [*features] == [*CLIPS]


def test_folders_and_caches_that_cannot_be_used(stills: Path, tmp_path: Path) -> None:
    with pytest.raises(NarratorError, match="no such folder"):
        compute(tmp_path / "nothing", MeanColour())
    with pytest.raises(NarratorError, match=r"none of the 1 clips .* expected <video id>_001.jpg.*a_001.png"):
        compute(stills, MeanColour(), clips={"c_0": ("c", 0.0, 1.0)})
    save_file({"a_0": np.ones((1, 3), np.float32)}, tmp_path / "own.safetensors")
    before = (tmp_path / "own.safetensors").read_bytes()
    with pytest.raises(NarratorError, match="other features stand there; give another name"):
        compute(stills, MeanColour(), tmp_path / "own.safetensors")
    assert (tmp_path / "own.safetensors").read_bytes() == before
    assert compute(stills, MeanColour(), clips={}) == ({}, {})
