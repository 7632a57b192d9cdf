"""EMScore: the published numbers clip by clip, a plain reference implementation, properties, wrong input."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from metrics.emscore import ClipParts, clip_parts, emscore, emscore_ref
from metrics.encoders.clip import ClipEncoder, load_clip_encoder
from metrics.words.segment import jieba_segmenter

DIM = 8
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
def encoder(fixture_folder: Path) -> ClipEncoder:
    return load_clip_encoder(str(fixture_folder / "models" / "chinese-clip"))


@pytest.fixture(scope="module")
def clips(fixture_folder: Path, golden: dict[str, Any], encoder: ClipEncoder) -> Clips:
    output = json.loads((fixture_folder / "data" / "output.json").read_text(encoding="utf-8"))
    features = load_file(fixture_folder / "data" / "frame_features.safetensors")
    keys = golden["per_sample"]["emscore"]["keys"]
    narrations, references = ([output[key][field] for key in keys] for field in ("0.1", "gt"))
    frames, calls = [features[key] for key in keys], []

    def encode(texts: Sequence[str]) -> np.ndarray:
        calls.append(len(texts))
        assert len({*texts}) == len(texts)
        return encoder.encode_texts(texts)

    tagged = jieba_segmenter().tagged
    parts = clip_parts(narrations, frames, tagged, encode, references, normalize=False)
    assert len(calls) == 1  # one pass serves both metrics, padded or not
    return Clips(narrations, references, frames, parts)


def halves(parts: ClipParts, padding: bool) -> dict[str, dict[str, np.ndarray]]:
    """Each clip's numbers by the published names of the three kinds."""
    assert parts.references is not None
    frames, references = parts.frames.scores(padding), parts.references.scores(padding)
    both = {name: (frames[name] + references[name]) / 2 for name in frames}
    return {"EMScore(X,V)": frames, "EMScore(X,X*)": references, "EMScore(X,V,X*)": both}


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
    clips: Clips, golden: dict[str, Any], encoder: ClipEncoder
) -> None:
    """Negative control: rounded positions give another known number. The frames are not normalised twice."""
    rounded = [
        clip[np.linspace(0, len(clip) - 1, 10).round().astype(int)] if len(clip) > 10 else clip
        for clip in clips.frames
    ]
    tagged = jieba_segmenter().tagged
    measured = emscore(clips.narrations, rounded, tagged, encoder.encode_texts, padding=True)
    expected = golden["variants"]["EMScore: linspace rounded instead of truncated"]
    assert measured.value == pytest.approx(expected["EMScore(X,V) full_F"], rel=1e-6)
    assert measured.components["coarse"] == pytest.approx(expected["EMScore(X,V) cogr"], rel=1e-6)
    assert measured.components["coarse"] != pytest.approx(golden["final"]["EMScore(X,V) cogr x100"], rel=1e-5)


def test_other_clips_narrations_score_worse(clips: Clips, encoder: ClipEncoder) -> None:
    """Negative control with real words: each narration under the next clip, against its reference."""
    many = 100
    narrations = [*clips.narrations[1:many], clips.narrations[0]]
    parts = clip_parts(
        narrations,
        clips.frames[:many],
        jieba_segmenter().tagged,
        encoder.encode_texts,
        clips.references[:many],
    )
    right, wrong = (halves(p, False)["EMScore(X,X*)"]["fine_normalized"] for p in (clips.parts, parts))
    assert wrong.mean() < right[:many].mean() - 0.02


# Below: texts are words between blanks, "x" is no content word, and a text's vector is a random one.


def vector(text: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    drawn = np.random.default_rng(seed).standard_normal(DIM)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


def encode(texts: Sequence[str]) -> np.ndarray:
    return np.stack([vector(text) for text in texts])


def encode_positive(texts: Sequence[str]) -> np.ndarray:
    return np.abs(encode(texts))


def tagged(text: str) -> list[tuple[str, str]]:
    return [(word, "x" if word == "x" else "vn" if len(word) % 2 else "n") for word in text.split()]


def random_clips(number: int, seed: int = 0) -> tuple[list[str], list[str], list[np.ndarray]]:
    rng = np.random.default_rng(seed)

    def texts() -> list[str]:
        return [" ".join(rng.choice(list("abcdefx"), rng.integers(1, 7))) for _ in range(number)]

    narrations, references = texts(), texts()
    frames = [rng.standard_normal((rng.integers(1, 25), DIM)).astype(np.float32) for _ in range(number)]
    return narrations, references, frames


def plain_cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def plain_unit(values: Sequence[float]) -> list[float]:
    length = sum(value * value for value in values) ** 0.5
    return [value / length for value in values]


def plain_scores(
    narrations: list[str], others: list[list[list[float]]], wholes: list[list[float]], padding: bool
) -> list[dict[str, float]]:
    """Precision, recall, fine and value of each clip, number by number; `others` are vectors."""
    words = [[w for w in text.split() if w != "x"] or text.split()[:1] for text in narrations]
    scores = []
    for i, text in enumerate(narrations):
        batch = range(i // 64 * 64, min(i // 64 * 64 + 64, len(narrations)))
        rows = [[plain_cosine(vector(word), other) for other in others[i]] for word in words[i]]
        zeros = max(len(others[j]) for j in batch) - len(others[i]) if padding else 0
        zero_rows = max(len(words[j]) for j in batch) - len(words[i]) if padding else 0
        best_of_words = [max(row + [0.0] * zeros) for row in rows]
        columns = [[row[k] for row in rows] + [0.0] * zero_rows for k in range(len(others[i]))]
        p, r = sum(best_of_words), sum(max(column) for column in columns) / len(columns)
        fine = 2 * p * r / (p + r) if p + r else 0.0
        coarse = plain_cosine(vector(text), wholes[i])
        scores.append(
            {"precision": p, "recall": r, "fine": fine, "coarse": coarse, "value": (fine + coarse) / 2}
        )
    return scores


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_against_plain_loops(padding: bool, normalize: bool) -> None:
    """Three batches of random clips, negative cosines included."""
    narrations, references, frames = random_clips(150)
    parts = clip_parts(narrations, frames, tagged, encode, references, normalize=normalize)
    pictures = []
    for clip in frames:
        count = len(clip)
        kept = range(count) if count <= 10 else [int((count - 1) * k / 9 + 1e-9) for k in range(10)]
        pictures.append([plain_unit(clip[k]) if normalize else [float(x) for x in clip[k]] for k in kept])
    means = [plain_unit([sum(column) for column in zip(*clip, strict=True)]) for clip in pictures]
    reference_words = [[w for w in text.split() if w != "x"] or text.split()[:1] for text in references]
    expected = {
        "EMScore(X,V)": plain_scores(narrations, pictures, means, padding),
        "EMScore(X,X*)": plain_scores(
            narrations,
            [[list(map(float, vector(word))) for word in words] for words in reference_words],
            [list(map(float, vector(text))) for text in references],
            padding,
        ),
    }
    found = halves(parts, padding)
    for kind, scores in expected.items():
        for name in scores[0]:
            np.testing.assert_allclose(
                found[kind][name], [score[name] for score in scores], rtol=1e-3, atol=2e-6, err_msg=name
            )
    alone = emscore(narrations, frames, tagged, encode, padding=padding, normalize=normalize)
    paired = emscore_ref(narrations, references, frames, tagged, encode, padding=padding, normalize=normalize)
    for measured, kind in ((alone, "EMScore(X,V)"), (paired, "EMScore(X,V,X*)")):
        assert measured.per_item == pytest.approx((100 * found[kind]["value"]).tolist(), rel=1e-12)
        assert measured.value == pytest.approx(100 * found[kind]["value"].mean(), rel=1e-12)


def test_padding_shows_where_cosines_are_negative_only() -> None:
    narrations, references, frames = random_clips(100)
    positive = clip_parts(narrations, [np.abs(clip) for clip in frames], tagged, encode_positive, references)
    assert positive.emscore(padding=True) == positive.emscore()
    assert positive.emscore_ref(padding=True) == positive.emscore_ref()
    mixed = clip_parts(narrations, frames, tagged, encode, references)
    moved = mixed.frames.scores(True)["precision"] != mixed.frames.scores()["precision"]
    ends = np.cumsum(mixed.frames.word_counts)[:-1]
    negative = np.array([clip.min() < 0 for clip in np.split(mixed.frames.words, ends)])
    assert moved.any() and not (moved & ~negative).any()


@pytest.mark.parametrize("i", [0, 1, 63, 64])
def test_a_clip_alone_scores_as_in_a_list(i: int) -> None:
    """The list has 65 clips, which the published code cannot score (nor can it one)."""
    narrations, references, frames = random_clips(65)
    listed = emscore_ref(narrations, references, frames, tagged, encode)
    alone = emscore_ref([narrations[i]], [references[i]], [frames[i]], tagged, encode)
    assert alone.value == alone.per_item[0] == pytest.approx(listed.per_item[i], rel=1e-12)


def test_order_of_clips_does_not_matter() -> None:
    narrations, references, frames = random_clips(130)
    order = np.random.default_rng(1).permutation(130)
    measured = emscore_ref(narrations, references, frames, tagged, encode)
    moved = emscore_ref(
        *([items[i] for i in order] for items in (narrations, references, frames)),
        tagged,
        encode,
    )
    assert moved.per_item == pytest.approx([measured.per_item[i] for i in order], rel=1e-12)
    assert moved.components == pytest.approx(measured.components, rel=1e-9)


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


def test_equal_texts_are_perfect_where_precision_is_normalised() -> None:
    narrations, _, frames = random_clips(20)
    components = emscore_ref(narrations, narrations, frames, tagged, encode).components
    for name in ("reference_value_normalized", "reference_coarse", "reference_recall"):
        assert components[name] == pytest.approx(100, abs=1e-4)
    assert components["reference_value"] > 105  # the sum over words passes 100


def test_frame_lengths_count_only_where_asked() -> None:
    narrations, _, frames = random_clips(10)
    scaled = [clip * np.float32(3) for clip in frames]
    values = [
        emscore(narrations, clips, tagged, encode, normalize=normalize).components
        for normalize in (True, False)
        for clips in (frames, scaled)
    ]
    assert values[1] == pytest.approx(values[0], rel=1e-5)
    assert values[3]["recall"] == pytest.approx(3 * values[2]["recall"], rel=1e-5)


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


def test_very_long_narration(encoder: ClipEncoder) -> None:
    """5,000 characters of real text: 2,500 words, each encoded alone."""
    text = "轻薄水润" * 1250
    words = [word for word, tag in jieba_segmenter().tagged(text) if tag in ("a", "n", "v", "vn")]
    frames = [np.ones((3, DIM))]
    measured = emscore([text], frames, jieba_segmenter().tagged, encode)
    assert len(words) > 1000 and np.isfinite(measured.value)
    bound = 100 * max(float(vector(word) @ vector(word)) for word in words)
    assert measured.components["precision"] / len(words) <= bound
    frames = [np.ones((3, encoder.encode_texts(["a"]).shape[1]))]
    real = emscore([text], frames, jieba_segmenter().tagged, encoder.encode_texts)
    assert np.isfinite(real.value) and real.components["fine_normalized"] <= 100


@pytest.mark.parametrize("blank", ["", " \n", "\u3000"])
def test_blank_texts_are_refused(blank: str) -> None:
    narrations, references, frames = random_clips(2)
    with pytest.raises(ValueError, match="blank"):
        emscore([narrations[0], blank], frames, tagged, encode)
    with pytest.raises(ValueError, match="blank"):
        emscore_ref(narrations, [blank, references[0]], frames, tagged, encode)


def test_lists_of_other_lengths_are_refused() -> None:
    narrations, references, frames = random_clips(3)
    with pytest.raises(ValueError, match="3 narrations and frames of 2 clips"):
        emscore(narrations, frames[:2], tagged, encode)
    with pytest.raises(ValueError, match="3 narrations and 2 references"):
        emscore_ref(narrations, references[:2], frames, tagged, encode)
    with pytest.raises(ValueError, match="and some"):
        emscore([], [], tagged, encode)
    with pytest.raises(ValueError, match="needs references"):
        clip_parts(narrations, frames, tagged, encode).emscore_ref()


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (np.ones((3, 512)), r"clip 1: shape \(3, 512\); expected \[frames, 8\]"),
        (np.ones((0, DIM)), r"clip 1: shape \(0, 8\)"),
        (np.ones(DIM), r"clip 1: shape \(8,\)"),
        (np.full((2, DIM), np.nan), "clip 1: a feature is not a finite number"),
    ],
)
def test_frames_that_do_not_fit_are_refused(clip: np.ndarray, message: str) -> None:
    narrations, _, frames = random_clips(2)
    with pytest.raises(ValueError, match=message):
        emscore(narrations, [frames[0], clip], tagged, encode)


def test_vectors_that_are_not_finite_are_refused() -> None:
    narrations, _, frames = random_clips(2)
    for broken in (lambda texts: encode(texts) * np.nan, lambda texts: encode(texts)[1:]):
        with pytest.raises(ValueError, match="encoder returned"):
            emscore(narrations, frames, tagged, broken)


def test_frames_of_zeros_have_nothing_in_common_with_anything() -> None:
    measured = emscore(["a b"], [np.zeros((3, DIM))], tagged, encode)
    assert measured.value == 0 and measured.components["recall"] == 0
