"""Bootstrap over videos: against the plain slow way, at its edges, and on a known distribution."""

import random

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu

from metrics import bleu
from metrics.base import ratio
from metrics.scoring.confidence import by_video, interval, paired_test, resample_counts

CHARACTERS = "这款面霜质地轻薄不油腻每天早晚各用一次就够了"


def texts(seed: int) -> tuple[list[str], list[str], list[str]]:
    """Videos, narrations and references of 100 clips of 40 videos; a narration may be short or empty."""
    rng = random.Random(seed)
    videos = [f"v{rng.randrange(40)}" for _ in range(100)]
    references = ["".join(rng.choices(CHARACTERS, k=rng.randrange(1, 25))) for _ in videos]
    narrations = [text[rng.randrange(4) :] + rng.choice(CHARACTERS) * rng.randrange(3) for text in references]
    return videos, narrations, references


def pycocoevalcap(narrations: list[str], references: list[str]) -> list[float]:
    def side(rows: list[str]) -> dict[int, list[str]]:
        return {i: [" ".join(row)] for i, row in enumerate(rows)}

    return Bleu(4).compute_score(side(references), side(narrations), verbose=0)[0]


@pytest.mark.parametrize("seed", range(3))
def test_bleu_from_weighted_sums(seed: int) -> None:
    """Videos drawn with replacement: the sums' BLEU is pycocoevalcap's on the clips literally repeated."""
    videos, narrations, references = texts(seed)
    measured = bleu(narrations, references)
    order = sorted(set(videos))
    counts = resample_counts(len(order), 10, seed)
    everything = np.ones((1, len(order)), dtype=int)
    for drawn in (*everything, *counts):
        weight = dict(zip(order, drawn, strict=True))
        chosen = [i for i, video in enumerate(videos) for _ in range(weight[video])]
        expected = pycocoevalcap([narrations[i] for i in chosen], [references[i] for i in chosen])
        for n in range(1, 5):
            result = measured[f"bleu_{n}"]
            assert result.statistics is not None
            value = result.aggregate(drawn @ by_video(result.statistics, videos, order))
            assert value == pytest.approx(expected[n - 1], rel=1e-12)
    for result in measured.values():
        assert result.statistics is not None
        assert result.aggregate(result.statistics) == pytest.approx(result.per_item, rel=1e-12, abs=1e-300)
        assert result.aggregate(result.statistics.sum(0)) == pytest.approx(result.value, rel=1e-12)


def test_nothing_summed_is_no_value() -> None:
    for result in bleu(["好"], ["好"]).values():
        assert np.isnan(result.aggregate(np.zeros(10)))


def test_interval_against_repeated_videos() -> None:
    """The plain way: draw the videos, repeat their clips' values, take the mean; percentiles of that."""
    rng = np.random.default_rng(0)
    videos = [f"v{i}" for i in rng.integers(0, 15, 60)]
    values = rng.normal(size=60)
    order = sorted(set(videos))
    counts = resample_counts(len(order), 200, seed=5)
    means = []
    for drawn in counts:
        weight = dict(zip(order, drawn, strict=True))
        means.append(np.mean([values[i] for i, video in enumerate(videos) for _ in range(weight[video])]))
    statistics = by_video(np.stack([values, np.ones(60)], 1), videos, order)
    assert interval(statistics, ratio, counts) == pytest.approx(np.percentile(means, [2.5, 97.5]), rel=1e-9)
    low, high = interval(statistics, ratio, counts, level=0.5)
    assert (low, high) == pytest.approx(np.percentile(means, [25, 75]), rel=1e-9)


def test_counts() -> None:
    counts = resample_counts(7, 1000, seed=1)
    assert counts.shape == (1000, 7) and (counts.sum(1) == 7).all()
    assert counts.mean(0) == pytest.approx(np.ones(7), abs=0.15)
    assert (counts == resample_counts(7, 1000, seed=1)).all()
    assert (counts != resample_counts(7, 1000, seed=2)).any()
    assert (resample_counts(1, 5, seed=0) == 1).all()


def test_interval_of_a_constant_is_a_point() -> None:
    sizes = np.arange(1, 21)
    statistics = np.stack([0.3 * sizes, sizes], 1)  # unequally many clips, each worth 0.3
    counts = resample_counts(20, 300, seed=0)
    assert interval(statistics, ratio, counts) == pytest.approx((0.3, 0.3), rel=1e-12)


def test_interval_covers_the_mean() -> None:
    """Of 400 samples of 60 videos from a skewed distribution, about 95 % of the intervals hold its mean."""
    rng, held = np.random.default_rng(7), 0
    for seed in range(400):
        statistics = np.stack([rng.exponential(size=60), np.ones(60)], 1)
        low, high = interval(statistics, ratio, resample_counts(60, 400, seed))
        held += low <= 1 <= high
    assert 0.90 <= held / 400 <= 0.97  # percentile intervals of skewed values are a little short


def test_resamples_without_value_are_left_out() -> None:
    """One of two videos has nothing to sum: a quarter of the resamples draw it alone."""
    statistics, counts = np.array([[3.0, 2.0], [0.0, 0.0]]), resample_counts(2, 100, seed=0)
    assert np.isnan(ratio(counts @ statistics)).any()
    assert interval(statistics, ratio, counts) == (1.5, 1.5)
    assert paired_test(statistics, statistics, ratio, ratio, counts).p_value == 1
    with pytest.raises(ValueError, match="no resample has a value"):
        interval(np.zeros((2, 2)), ratio, counts)


def test_a_file_against_itself_and_a_corrupted_copy() -> None:
    videos, narrations, references = texts(4)
    rng, order = random.Random(0), sorted(set(videos))
    worse = ["".join(rng.sample(text, len(text))) for text in narrations]  # characters in another order
    counts = resample_counts(len(order), 1000, seed=0)
    first, second = bleu(narrations, references)["bleu_4"], bleu(worse, references)["bleu_4"]
    assert first.statistics is not None and second.statistics is not None
    a, b = by_video(first.statistics, videos, order), by_video(second.statistics, videos, order)
    same = paired_test(a, a, first.aggregate, first.aggregate, counts)
    assert (same.difference, same.p_value, same.ci95) == (0, 1, (0, 0))
    found = paired_test(a, b, first.aggregate, second.aggregate, counts)
    assert found.difference == pytest.approx(first.value - second.value, rel=1e-12)
    assert found.p_value == 2 / 1001 and 0 < found.ci95[0] < found.difference < found.ci95[1]
    turned = paired_test(b, a, second.aggregate, first.aggregate, counts)
    assert turned.p_value == found.p_value and turned.difference == -found.difference
    with pytest.raises(ValueError, match="the same videos"):
        paired_test(a, b[1:], first.aggregate, second.aggregate, counts)


def test_p_value_of_equally_good_files() -> None:
    """Two noisy copies of the same quality: p < 0.05 in about 5 % of the cases, as ci95 has it."""
    rng, below = np.random.default_rng(3), 0
    counts = resample_counts(50, 400, seed=0)
    for _ in range(400):
        shared = rng.normal(size=50)
        a, b = (np.stack([shared + rng.normal(size=50), np.ones(50)], 1) for _ in range(2))
        result = paired_test(a, b, ratio, ratio, counts)
        below += result.p_value < 0.05
        outside = result.ci95[0] > 0 or result.ci95[1] < 0
        assert outside if result.p_value < 0.04 else not outside or result.p_value < 0.06
    assert 0.02 <= below / 400 <= 0.10


def test_by_video() -> None:
    rows = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    assert by_video(rows, ["b", "a", "b"], ["a", "c", "b"]).tolist() == [[2, 20], [0, 0], [5, 50]]
    with pytest.raises(ValueError, match="no video in the order, the first of 'b'"):
        by_video(rows, ["b", "a", "b"], ["a"])
