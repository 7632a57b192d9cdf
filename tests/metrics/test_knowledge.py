"""InfoSim and InfoDiverse: published numbers, plain reference implementations, properties, wrong input."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metrics.encoders.text import TextEncoder, load_text_encoder
from metrics.idf import product_key, read_idf
from metrics.knowledge import info_diverse, info_sim
from metrics.words.segment import Segmenter, jieba_segmenter

DIM = 4


class World:
    """The fixture's narrations, points and seconds."""

    def __init__(self, folder: Path) -> None:
        read = {
            name: json.loads((folder / f"{name}.json").read_text("utf-8"))
            for name in ("annotations", "output")
        }
        self.annotations, self.output = read["annotations"], read["output"]
        self.idf = read_idf(folder / "idf.json")

    def points(self, video: str) -> list[str]:
        return self.idf[product_key(self.annotations[f"{video}.mp4"]["p_name"])]

    def narrations(self, keys: Sequence[str]) -> tuple[list[str], list[list[str]]]:
        return [self.output[key]["0.1"] for key in keys], [self.points(key.split("_")[0]) for key in keys]

    def stories(self, videos: Sequence[str]) -> tuple[list[list[str]], list[list[str]], list[float]]:
        stories, seconds = [], []
        for video in videos:
            clips = enumerate(self.annotations[f"{video}.mp4"]["frames"])
            written = [(self.output.get(f"{video}_{i}", {}).get("0.1"), clip["time"]) for i, clip in clips]
            written = [(text, time) for text, time in written if text is not None]
            stories.append([text for text, _ in written])
            seconds.append(sum(abs(end - start) for _, (start, end) in written))
        return stories, [self.points(video) for video in videos], seconds


@pytest.fixture(scope="module")
def world(fixture_folder: Path) -> World:
    return World(fixture_folder / "data")


@pytest.fixture(scope="module")
def encoder(fixture_folder: Path) -> TextEncoder:
    return load_text_encoder(str(fixture_folder / "models" / "chinese-roberta"))


@pytest.fixture(scope="module")
def segmenter(shared: Path) -> Segmenter:
    return jieba_segmenter(shared / "data" / "jieba_knowledge_words.txt")


@pytest.fixture(scope="module")
def keys(golden: dict[str, Any]) -> list[str]:
    return golden["per_sample"]["info_sim"]["keys"]


@pytest.fixture(scope="module")
def videos(golden: dict[str, Any]) -> list[str]:
    return [name.removesuffix(".mp4") for name in golden["per_sample"]["info_diverse"]["ids"]]


def test_info_sim_of_every_narration(world, keys, golden, segmenter, encoder) -> None:
    measured = info_sim(*world.narrations(keys), segmenter.tagged, encoder.encode)
    expected = golden["per_sample"]["info_sim"]["values"]
    np.testing.assert_allclose(measured.per_item, expected, rtol=0, atol=1e-6)
    assert measured.value == pytest.approx(golden["final"]["info_sim"], rel=1e-5)
    assert measured.value == pytest.approx(
        golden["variants"]["info_sim: upstream (words.txt loaded)"], rel=1e-7
    )
    for name, part in (("sentence", "sentence part only"), ("words", "word part only")):
        assert measured.components[name] == pytest.approx(golden["variants"][f"info_sim: {part}"], rel=1e-6)


def test_info_sim_with_the_last_entry(world, golden, segmenter, encoder) -> None:
    """All 632 narrations; the published code never scores the last."""
    keys = [key for key, entry in world.output.items() if entry.get("0.1")]
    measured = info_sim(*world.narrations(keys), segmenter.tagged, encoder.encode)
    assert len(measured.per_item) == golden["variants"]["info_sim: n"]["with last"]
    assert measured.value == pytest.approx(golden["variants"]["info_sim: last caption kept"], rel=1e-6)


def test_info_sim_variants(world, keys, golden, segmenter, encoder) -> None:
    """Negative controls: what other points and words would give is known too."""
    variants = golden["variants"]
    texts, points = world.narrations(keys)
    unnamed = info_sim(texts, [["", *listed[1:]] for listed in points], segmenter.tagged, encoder.encode)
    assert unnamed.value == pytest.approx(variants["info_sim: product name not a point"], rel=1e-6)
    tabs = [[point.replace(" ", "\t") for point in listed] for listed in points]  # not cut, encoded the same
    uncut = info_sim(texts, tabs, segmenter.tagged, encoder.encode)
    assert uncut.value == pytest.approx(variants["info_sim: points not cut at the first space"], rel=1e-6)
    plain = info_sim(texts, points, jieba_segmenter().tagged, encoder.encode)
    expected = variants["info_sim: default jieba dictionary (no words.txt)"]
    assert plain.value == pytest.approx(expected, rel=1e-6)


def test_info_diverse_of_every_story(world, videos, golden, segmenter, encoder) -> None:
    calls = []

    def encode(texts: Sequence[str]) -> np.ndarray:
        calls.append(texts)
        assert len({*texts}) == len(texts)
        return encoder.encode(texts)

    measured = info_diverse(*world.stories(videos), segmenter.tagged, encode)
    near = {"rel": 0, "abs": 1e-12}
    assert len(calls) == 1
    assert measured.per_item == pytest.approx(golden["per_sample"]["info_diverse"]["per_second"], **near)
    assert measured.value == pytest.approx(golden["final"]["info_diverse"], **near)
    assert measured.components["per_word"] == pytest.approx(
        golden["final"]["info_diverse_per_word (upstream computes, does not print)"], **near
    )
    variant = golden["variants"]["info_diverse: upstream (words.txt loaded)"]
    assert measured.components["covered"] == variant["covered_points"]


def test_info_diverse_variants(world, videos, golden, segmenter, encoder) -> None:
    stories, points, seconds = world.stories(videos)
    tabs = [[point.replace(" ", "\t") for point in listed] for listed in points]
    every = [
        sum(
            abs(end - start)
            for start, end in (c["time"] for c in world.annotations[f"{video}.mp4"]["frames"])
        )
        for video in videos
    ]
    named = [[listed[0], *listed] for listed in points]
    plain = jieba_segmenter().tagged
    for variant, arguments, tagged in (
        ("product name also a point", (stories, named, seconds), segmenter.tagged),
        ("points not cut at the first space", (stories, tabs, seconds), segmenter.tagged),
        ("time of clips without prediction counted", (stories, points, every), segmenter.tagged),
        ("default jieba dictionary (no words.txt)", (stories, points, seconds), plain),
    ):
        expected = golden["variants"][f"info_diverse: {variant}"]
        measured = info_diverse(*arguments, tagged, encoder.encode)
        assert measured.value == pytest.approx(expected["per_second"], rel=1e-9), variant
        assert measured.components["covered"] == expected["covered_points"], variant
        assert measured.components["per_word"] == pytest.approx(expected["per_word"], rel=1e-9), variant


# Below: texts are words between blanks, and a text's vector is a random one of four numbers.


def vector(text: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    drawn = np.random.default_rng(seed).standard_normal(DIM)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


def encode(texts: Sequence[str]) -> np.ndarray:
    return np.stack([vector(text) for text in texts])


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


def test_very_long_narration(segmenter, encoder) -> None:
    """5,000 characters: the sentence part sees the first 77, the word part all."""
    text = "很轻薄，也保湿，" * 625 + "送玻璃杯子"
    points = [["面霜", "轻薄", "保湿"]]
    measured = info_sim([text], points, segmenter.tagged, encoder.encode)
    short = info_sim([text[:400]], points, segmenter.tagged, encoder.encode)
    assert measured.components["sentence"] == pytest.approx(short.components["sentence"], abs=1e-6)
    assert measured.components["words"] != short.components["words"]
    diverse = info_diverse([[text]], points, [100.0], segmenter.tagged, encoder.encode)
    assert diverse.components["covered"] == 2 and diverse.value == 0.02
