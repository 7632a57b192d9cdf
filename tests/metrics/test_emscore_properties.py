"""EMScore against a plain reference implementation; its properties; wrong input."""

from collections.abc import Sequence

import numpy as np
import pytest
from made_up_clips import DIM, encode, halves, random_clips, tagged, vector

from metrics.emscore import clip_parts, emscore, emscore_ref


def encode_positive(texts: Sequence[str]) -> np.ndarray:
    return np.abs(encode(texts))


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
