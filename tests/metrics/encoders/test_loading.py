"""Model folders: their names, layouts that are read, and what cannot be used and says why."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_checks import TEXTS, assert_close
from safetensors.numpy import load_file, save_file

from metrics.encoders.clip import ClipEncoder, load_clip_encoder
from metrics.encoders.text import TextEncoder, load_text_encoder
from videonarrator.schema import NarratorError


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


def test_published_weights_are_read_without_running_them(model_copy: Callable[..., Path]) -> None:
    """The hub's chinese-roberta and Chinese CLIP are pytorch_model.bin: tensors are read, code is refused."""
    folder = model_copy("chinese-roberta")
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
