"""EMScore: the published numbers clip by clip, small cases by hand, which words and characters count."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_clips import DIM, encode, halves, random_clips, tagged, vector
from safetensors.numpy import load_file

from metrics.emscore import ClipParts, clip_parts, emscore, emscore_ref
from metrics.encoders.clip import ClipEncoder
from metrics.words.segment import jieba_segmenter

GOLDEN_NAMES = {
    "figr_P": "precision",
    "figr_R": "recall",
    "figr_F": "fine",
    "cogr": "coarse",
    "full_F": "value",
}


@dataclass(frozen=True)
class Clips:
    """The fixture's clips that the published code scores, in its order, and its parts."""

    narrations: list[str]
    references: list[str]
    frames: list[np.ndarray]
    parts: ClipParts


@pytest.fixture(scope="module")
def clips(fixture_folder: Path, golden: dict[str, Any], clip_encoder: ClipEncoder) -> Clips:
    output = json.loads((fixture_folder / "data" / "output.json").read_text(encoding="utf-8"))
    features = load_file(fixture_folder / "data" / "frame_features.safetensors")
    keys = golden["per_sample"]["emscore"]["keys"]
    narrations, references = ([output[key][field] for key in keys] for field in ("0.1", "gt"))
    frames, calls = [features[key] for key in keys], []

    def encode(texts: Sequence[str]) -> np.ndarray:
        calls.append(len(texts))
        assert len({*texts}) == len(texts)
        return clip_encoder.encode_texts(texts)

    tagged = jieba_segmenter().tagged
    parts = clip_parts(narrations, frames, tagged, encode, references, normalize=False)
    assert len(calls) == 1  # one pass serves both metrics, padded or not
    return Clips(narrations, references, frames, parts)


@pytest.mark.parametrize("kind", ["EMScore(X,V)", "EMScore(X,X*)", "EMScore(X,V,X*)"])
def test_published_numbers(clips: Clips, golden: dict[str, Any], kind: str) -> None:
    """Every clip, and the means."""
    scores = halves(clips.parts, padding=True)[kind]
    for theirs, ours in GOLDEN_NAMES.items():
        tolerance = 1e-5 if theirs == "figr_P" else 2e-6
        expected = golden["per_sample"]["emscore"][kind][theirs]
        np.testing.assert_allclose(scores[ours], expected, rtol=0, atol=tolerance)
        final = golden["final"][f"{kind} {theirs} x100"]
        assert 100 * scores[ours].mean() == pytest.approx(final, rel=1e-5)
    for side, name in (("precision", "full_P"), ("recall", "full_R")):
        final = golden["final"][f"{kind} {name} x100"]
        assert 50 * (scores[side] + scores["coarse"]).mean() == pytest.approx(final, rel=1e-5)


@pytest.mark.parametrize(
    ("variant", "padding", "suffix"),
    [
        ("EMScore: upstream", True, ""),
        ("EMScore: P = mean over words", True, "_normalized"),
        ("EMScore: no zero padding in max", False, ""),
        ("EMScore: P = mean and no zero padding", False, "_normalized"),
    ],
)
def test_corrections(clips: Clips, golden: dict[str, Any], variant: str, padding: bool, suffix: str) -> None:
    expected = golden["variants"][variant]
    alone, paired = clips.parts.emscore(padding), clips.parts.emscore_ref(padding)
    found = {
        "EMScore(X,V) figr_F": alone.components["fine" + suffix],
        "EMScore(X,V) cogr": alone.components["coarse"],
        "EMScore(X,X*) full_F": paired.components["reference_value" + suffix],
        "EMScore(X,X*) figr_F": paired.components["reference_fine" + suffix],
        "EMScore(X,X*) cogr": paired.components["reference_coarse"],
        "EMScore(X,V,X*) figr_F": paired.components["fine" + suffix],
        "EMScore(X,V,X*) cogr": paired.components["coarse"],
        "EMScore(X,V) full_F": alone.components["value_normalized"] if suffix else alone.value,
        "EMScore(X,V,X*) full_F": paired.components["value_normalized"] if suffix else paired.value,
    }
    assert found == pytest.approx(expected, rel=1e-5)


def test_frames_are_sampled_at_truncated_positions(
    clips: Clips, golden: dict[str, Any], clip_encoder: ClipEncoder
) -> None:
    """Negative control: rounded positions give another known number. The frames are not normalised twice."""
    rounded = [
        clip[np.linspace(0, len(clip) - 1, 10).round().astype(int)] if len(clip) > 10 else clip
        for clip in clips.frames
    ]
    tagged = jieba_segmenter().tagged
    measured = emscore(clips.narrations, rounded, tagged, clip_encoder.encode_texts, padding=True)
    expected = golden["variants"]["EMScore: linspace rounded instead of truncated"]
    assert measured.value == pytest.approx(expected["EMScore(X,V) full_F"], rel=1e-6)
    assert measured.components["coarse"] == pytest.approx(expected["EMScore(X,V) cogr"], rel=1e-6)
    assert measured.components["coarse"] != pytest.approx(golden["final"]["EMScore(X,V) cogr x100"], rel=1e-5)


def test_other_clips_narrations_score_worse(clips: Clips, clip_encoder: ClipEncoder) -> None:
    """Negative control with real words: each narration under the next clip, against its reference."""
    many = 100
    narrations = [*clips.narrations[1:many], clips.narrations[0]]
    parts = clip_parts(
        narrations,
        clips.frames[:many],
        jieba_segmenter().tagged,
        clip_encoder.encode_texts,
        clips.references[:many],
    )
    right, wrong = (halves(p, False)["EMScore(X,X*)"]["fine_normalized"] for p in (clips.parts, parts))
    assert wrong.mean() < right[:many].mean() - 0.02


def axes(**directions: list[float]) -> Callable[[Sequence[str]], np.ndarray]:
    return lambda texts: np.array([directions[text.replace(" ", "_")] for text in texts], dtype=np.float32)


def test_by_hand() -> None:
    """Two frames, a word said twice: P = 1 + 1 + 0.6, R = (1 + 0.8) / 2; the mean frame is the diagonal."""
    encode = axes(a=[1, 0], b=[0.6, -0.8], a_b_a=[0, 1])
    frames = [np.array([[1, 0], [0.8, 0.6]])]
    measured = emscore(["a b a"], frames, tagged, encode)
    p, r, coarse = 2.6, 0.9, 0.6 / np.sqrt(1.8**2 + 0.6**2)
    fine, normalized = 2 * p * r / (p + r), 2 * (p / 3) * r / (p / 3 + r)
    assert measured.value == measured.per_item[0] == pytest.approx(50 * (fine + coarse), rel=1e-6)
    assert measured.components == pytest.approx(
        {
            "precision": 100 * p,
            "recall": 100 * r,
            "fine": 100 * fine,
            "coarse": 100 * coarse,
            "fine_normalized": 100 * normalized,
            "value_normalized": 50 * (normalized + coarse),
        },
        rel=1e-6,
    )


def test_nothing_in_common_is_zero() -> None:
    """Published: 0 / 0, and the mean over all clips is NaN."""
    frames = [np.array([[0.0, 1.0]])]
    measured = emscore(["a"], frames, tagged, axes(a=[1, 0]))
    assert measured.value == 0 and measured.components["fine"] == 0
    opposed = [-np.ones((1, DIM)) * vector("a"), random_clips(1)[2][0][:5]]
    padded = emscore(["a", "a b"], opposed, tagged, encode, padding=True)
    assert padded.per_item[0] == pytest.approx(-50)  # fine: both maxima are the padding's 0; coarse: -1
    plain = emscore(["a", "a b"], opposed, tagged, encode)
    assert plain.per_item[0] == pytest.approx(-100)


def test_no_content_word() -> None:
    """The first word stands for them; where there is none either, the text itself."""
    frames = random_clips(1)[2]

    def recall(text: str, words: list[tuple[str, str]]) -> float:
        return emscore([text], frames, lambda _: words, encode).components["recall"]

    assert recall("x y", [("x", "u"), ("y", "u")]) == pytest.approx(recall("x y", [("x", "n")]))
    assert recall("x y", []) == pytest.approx(recall("x y", [("x y", "n")]))
    assert recall("x y", [("x", "u"), ("y", "n")]) == pytest.approx(recall("x y", [("y", "n")]))


def test_tags_are_exact() -> None:
    """ "ng" begins with n and "vd" with v, but neither is one of the ten."""
    texts: list[str] = []

    def collect(given: Sequence[str]) -> np.ndarray:
        texts.extend(given)
        return encode(given)

    tags = ("n", "ng", "nr", "ns", "nt", "nw", "nz", "v", "vd", "vn", "a", "ad", "s", "l", "x", "N", "")
    emscore(["t"], random_clips(1)[2], lambda text: [(tag + "!", tag) for tag in tags], collect)
    kept = ("n", "nr", "ns", "nt", "nw", "nz", "v", "vn", "a", "s")
    assert texts == ["t", *(tag + "!" for tag in kept)]


def test_references_are_cut_and_narrations_are_not() -> None:
    frames, start = random_clips(1)[2], "a " * 38 + "b"  # 77 characters

    def value(narration: str, reference: str) -> float:
        return emscore_ref([narration], [reference], frames, tagged, encode).value

    assert value("a b", start + " c d") == value("a b", start)
    assert value("a b", start) != value("a b", start[:-1])
    assert value(start + " c d", "a b") != value(start, "a b")
    assert np.isfinite(value("a b", " " * 77 + "a b"))  # blank after the cut only


def test_very_long_narration(clip_encoder: ClipEncoder) -> None:
    """5,000 characters of real text: 2,500 words, each encoded alone."""
    text = "轻薄水润" * 1250
    words = [word for word, tag in jieba_segmenter().tagged(text) if tag in ("a", "n", "v", "vn")]
    frames = [np.ones((3, DIM))]
    measured = emscore([text], frames, jieba_segmenter().tagged, encode)
    assert len(words) > 1000 and np.isfinite(measured.value)
    bound = 100 * max(float(vector(word) @ vector(word)) for word in words)
    assert measured.components["precision"] / len(words) <= bound
    frames = [np.ones((3, clip_encoder.encode_texts(["a"]).shape[1]))]
    real = emscore([text], frames, jieba_segmenter().tagged, clip_encoder.encode_texts)
    assert np.isfinite(real.value) and real.components["fine_normalized"] <= 100
