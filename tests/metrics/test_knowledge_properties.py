"""InfoSim and InfoDiverse against plain reference implementations; small cases by hand; wrong calls."""

import math
from functools import partial

import made_up_clips
import numpy as np
import pytest

from metrics.knowledge import info_diverse, info_sim

# Texts are words between blanks, and a text's vector is a random one of four numbers.
vector, encode = partial(made_up_clips.vector, dim=4), partial(made_up_clips.encode, dim=4)


def tagged(text: str) -> list[tuple[str, str]]:
    return [(word, {"v": "v", "d": "d"}.get(word[0], "n")) for word in text.removesuffix("。").split()]


def random_text(rng: np.random.Generator, words: int) -> str:
    return " ".join("".join(rng.choice(list("abvd"), rng.integers(1, 4))) for _ in range(words))


def random_points(rng: np.random.Generator) -> list[str]:
    listed = ["".join(rng.choice(list("abvd】 "), rng.integers(1, 6))) for _ in range(rng.integers(1, 12))]
    return ["name", *listed, *listed[:1]]


def plain_cosine(a: str, b: str) -> float:
    return sum(float(x) * float(y) for x, y in zip(vector(a), vector(b), strict=True))


def plain_cut(point: str) -> str:
    if "】" in point:
        point = point.split("】")[1]
    return point[: point.index(" ")] if " " in point else point


def test_info_sim_against_plain_loops() -> None:
    rng = np.random.default_rng(0)
    products = [random_points(rng) for _ in range(5)]
    texts = [random_text(rng, rng.integers(1, 60)) + rng.choice(["", "。"]) for _ in range(40)]
    chosen = [products[rng.integers(5)] for _ in texts]
    measured = info_sim(texts, chosen, tagged, encode)
    expected = []
    for text, points in zip(texts, chosen, strict=True):
        points = [plain_cut(point) for point in points]
        points = [point for point in points if len(point) > 1]
        ended = text if text[-1] == "。" else text + "。"
        words = [word for word in ended[:-1].split() if word[0] not in "vd"] or [ended[:77]]
        sentence, *best = [max(plain_cosine(s, p) for p in points) for s in [ended[:77], *words]]
        expected.append((sentence + sum(best) / len(best)) / 2)
    assert measured.per_item == pytest.approx(expected, abs=1e-6)
    assert measured.value == pytest.approx(sum(expected) / len(expected), abs=1e-6)


def test_info_diverse_against_plain_loops() -> None:
    rng = np.random.default_rng(1)
    stories = [[random_text(rng, rng.integers(0, 12)) for _ in range(rng.integers(1, 5))] for _ in range(40)]
    points = [random_points(rng) for _ in stories]
    seconds = rng.uniform(1, 90, len(stories)).tolist()
    measured = info_diverse(stories, points, seconds, tagged, encode)
    expected, total, ratios = [], 0, []
    for story, listed, time in zip(stories, points, seconds, strict=True):
        strings, words = [], 0
        for text in story:
            new = []
            for word in text.split():
                if len(word) > 1:
                    words += 1
                    if word not in strings and word not in new:
                        new.append(word)
            strings += new or [text]
        used: set[str] = set()
        for point in (plain_cut(point) for point in listed[1:]):
            if not point:
                continue
            best = max(strings, key=lambda s: plain_cosine(s, point))
            if plain_cosine(best, point) > 0.9 and best not in used:
                used.add(best)
        expected.append(len(used) / time if any(map(plain_cut, listed[1:])) else None)
        total += len(used)
        if words and expected[-1] is not None:
            ratios.append(len(used) / words)
    assert measured.per_item == pytest.approx(expected, rel=1e-12)
    assert measured.components["covered"] == total > 20
    assert measured.components["per_word"] == pytest.approx(sum(ratios) / len(ratios), rel=1e-12)


def test_narrations_and_stories_are_scored_independently() -> None:
    rng = np.random.default_rng(2)
    texts, points = [random_text(rng, 8) for _ in range(20)], [random_points(rng) for _ in range(20)]
    stories, seconds = [texts[i:] for i in range(20)], [float(i + 1) for i in range(20)]
    similar = info_sim(texts, points, tagged, encode).per_item
    diverse = info_diverse(stories, points, seconds, tagged, encode).per_item
    for i in rng.permutation(20):
        one = [texts[i]], [points[i]]
        assert info_sim(*one, tagged, encode).per_item == pytest.approx([similar[i]], rel=1e-12)
        if diverse[i] is not None:
            one = [stories[i]], [points[i]], [seconds[i]]
            assert info_diverse(*one, tagged, encode).per_item == pytest.approx([diverse[i]], rel=1e-12)
    backwards = info_sim(texts[::-1], points[::-1], tagged, encode).per_item
    assert backwards == pytest.approx(similar[::-1], rel=1e-12)


def near(*angles: tuple[str, float]):
    """An encoder of texts at given angles (degrees) on a circle."""
    known = {text: (math.cos(math.radians(a)), math.sin(math.radians(a))) for text, a in angles}
    return lambda texts: np.array([known[text] for text in texts], dtype=np.float32)


def test_a_string_covers_one_point() -> None:
    """Both points are nearest to "aa"; the second gets no second best, though "bb" would do."""
    at = near(("aa", 0), ("bb", 20), ("one", 1), ("two", 5), ("three", 21), ("far", 90))
    measured = info_diverse([["aa bb aa"]], [["name", "one", "two"]], [4], tagged, at)
    assert measured.per_item == [0.25]
    assert measured.components == pytest.approx({"covered": 1, "points": 2, "per_word": 1 / 3})
    measured = info_diverse([["aa bb"]], [["name", "two", "far", "three", "【x】one y"]], [4], tagged, at)
    assert measured.components["covered"] == 2 and measured.components["points"] == 4


def test_a_cosine_of_nine_tenths_is_the_limit() -> None:
    limit = math.degrees(math.acos(0.9))
    for angle, covered in ((limit - 0.01, 1), (limit + 0.01, 0)):
        at = near(("aa", 0), ("point", angle))
        assert info_diverse([["aa"]], [["name", "point"]], [1], tagged, at).value == covered


def test_product_name_is_a_point_of_info_sim_only() -> None:
    at = near(("aa", 0), ("aa。", 0), ("name", 0), ("point", 60))
    assert info_sim(["aa"], [["name", "point"]], tagged, at).value == pytest.approx(1)
    assert info_diverse([["aa"]], [["name", "point"]], [1], tagged, at).value == 0


def test_repeated_words_count_each_time_in_info_sim() -> None:
    at = near(("aa", 0), ("bb", 60), ("aa aa bb。", 90), ("point", 0))
    measured = info_sim(["aa aa bb。"], [["point"]], tagged, at)
    assert measured.components == pytest.approx({"sentence": 0, "words": 2.5 / 3}, abs=1e-6)


def test_narration_without_words_stands_for_itself() -> None:
    at = near(("vv。", 60), ("point", 0), ("v", 0), ("a b", 10), ("", 80))
    assert info_sim(["vv"], [["point"]], tagged, at).components == pytest.approx(
        {"sentence": 0.5, "words": 0.5}
    )
    measured = info_diverse([["a b", "", ""]], [["name", "point"]], [2], tagged, at)
    assert measured.per_item == [0.5] and "per_word" not in measured.components


def test_narrations_without_points_take_no_part() -> None:
    at = near(("aa", 0), ("aa。", 0), ("point", 0))
    measured = info_sim(["aa", "aa"], [["p", " point"], ["point"]], tagged, at)
    assert measured.per_item == pytest.approx([None, 1]) and measured.value == pytest.approx(1)
    with pytest.raises(ValueError, match="no narration's product"):
        info_sim(["aa"], [["p"]], tagged, at)


def test_stories_that_cannot_be_scored_take_no_part() -> None:
    at = near(("aa", 0), ("point", 0))
    stories, points = [["aa"], [], ["aa"], ["aa"]], [["name", "point"]] * 3 + [["point", " x"]]
    measured = info_diverse(stories, points, [2, 2, 0, 2], tagged, at)
    assert measured.per_item == [0.5, None, None, None] and measured.value == 0.5
    with pytest.raises(ValueError, match="no story"):
        info_diverse([["aa"]], [["name", "point"]], [0], tagged, at)


def test_wrong_calls() -> None:
    with pytest.raises(ValueError, match="blank"):
        info_sim(["aa", " "], [["name"]] * 2, tagged, encode)
    with pytest.raises(ValueError, match="need as many"):
        info_sim(["aa"], [], tagged, encode)
    with pytest.raises(ValueError, match="need as many"):
        info_diverse([], [], [], tagged, encode)
    for seconds in ([1.0], [1.0, -1.0], [1.0, math.nan], [math.inf, 1.0]):
        with pytest.raises(ValueError, match="finite number of seconds"):
            info_diverse([["aa"]] * 2, [["name", "point"]] * 2, seconds, tagged, encode)
