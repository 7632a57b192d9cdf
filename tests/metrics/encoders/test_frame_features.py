"""Frame features: read from a file, or computed from a folder of stills and kept."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_checks import assert_close
from PIL import Image
from safetensors.numpy import load_file, save_file

from metrics.encoders import frames as frames_module
from metrics.encoders.clip import ClipEncoder
from metrics.encoders.frames import FrameFeatures, frame_features_from_folder, read_frame_features
from videonarrator.schema import NarratorError


def test_reading_frames_needs_no_torch() -> None:
    code = "import sys, metrics.encoders.frames; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


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
