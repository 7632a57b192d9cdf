"""InfoSim and InfoDiverse: the published numbers, narration by narration and story by story."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metrics.idf import product_key, read_idf
from metrics.knowledge import info_diverse, info_sim
from metrics.words.segment import jieba_segmenter


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
def keys(golden: dict[str, Any]) -> list[str]:
    return golden["per_sample"]["info_sim"]["keys"]


@pytest.fixture(scope="module")
def videos(golden: dict[str, Any]) -> list[str]:
    return [name.removesuffix(".mp4") for name in golden["per_sample"]["info_diverse"]["ids"]]


def test_info_sim_of_every_narration(world, keys, golden, knowledge_segmenter, text_encoder) -> None:
    measured = info_sim(*world.narrations(keys), knowledge_segmenter.tagged, text_encoder.encode)
    expected = golden["per_sample"]["info_sim"]["values"]
    np.testing.assert_allclose(measured.per_item, expected, rtol=0, atol=1e-6)
    assert measured.value == pytest.approx(golden["final"]["info_sim"], rel=1e-5)
    assert measured.value == pytest.approx(
        golden["variants"]["info_sim: upstream (words.txt loaded)"], rel=1e-7
    )
    for name, part in (("sentence", "sentence part only"), ("words", "word part only")):
        assert measured.components[name] == pytest.approx(golden["variants"][f"info_sim: {part}"], rel=1e-6)


def test_info_sim_with_the_last_entry(world, golden, knowledge_segmenter, text_encoder) -> None:
    """All 632 narrations; the published code never scores the last."""
    keys = [key for key, entry in world.output.items() if entry.get("0.1")]
    measured = info_sim(*world.narrations(keys), knowledge_segmenter.tagged, text_encoder.encode)
    assert len(measured.per_item) == golden["variants"]["info_sim: n"]["with last"]
    assert measured.value == pytest.approx(golden["variants"]["info_sim: last caption kept"], rel=1e-6)


def test_info_sim_variants(world, keys, golden, knowledge_segmenter, text_encoder) -> None:
    """Negative controls: what other points and words would give is known too."""
    variants = golden["variants"]
    texts, points = world.narrations(keys)
    unnamed = info_sim(
        texts, [["", *listed[1:]] for listed in points], knowledge_segmenter.tagged, text_encoder.encode
    )
    assert unnamed.value == pytest.approx(variants["info_sim: product name not a point"], rel=1e-6)
    tabs = [[point.replace(" ", "\t") for point in listed] for listed in points]  # not cut, encoded the same
    uncut = info_sim(texts, tabs, knowledge_segmenter.tagged, text_encoder.encode)
    assert uncut.value == pytest.approx(variants["info_sim: points not cut at the first space"], rel=1e-6)
    plain = info_sim(texts, points, jieba_segmenter().tagged, text_encoder.encode)
    expected = variants["info_sim: default jieba dictionary (no words.txt)"]
    assert plain.value == pytest.approx(expected, rel=1e-6)


def test_info_diverse_of_every_story(world, videos, golden, knowledge_segmenter, text_encoder) -> None:
    calls = []

    def encode(texts: Sequence[str]) -> np.ndarray:
        calls.append(texts)
        assert len({*texts}) == len(texts)
        return text_encoder.encode(texts)

    measured = info_diverse(*world.stories(videos), knowledge_segmenter.tagged, encode)
    near = {"rel": 0, "abs": 1e-12}
    assert len(calls) == 1
    assert measured.per_item == pytest.approx(golden["per_sample"]["info_diverse"]["per_second"], **near)
    assert measured.value == pytest.approx(golden["final"]["info_diverse"], **near)
    assert measured.components["per_word"] == pytest.approx(
        golden["final"]["info_diverse_per_word (upstream computes, does not print)"], **near
    )
    variant = golden["variants"]["info_diverse: upstream (words.txt loaded)"]
    assert measured.components["covered"] == variant["covered_points"]


def test_info_diverse_variants(world, videos, golden, knowledge_segmenter, text_encoder) -> None:
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
        ("product name also a point", (stories, named, seconds), knowledge_segmenter.tagged),
        ("points not cut at the first space", (stories, tabs, seconds), knowledge_segmenter.tagged),
        ("time of clips without prediction counted", (stories, points, every), knowledge_segmenter.tagged),
        ("default jieba dictionary (no words.txt)", (stories, points, seconds), plain),
    ):
        expected = golden["variants"][f"info_diverse: {variant}"]
        measured = info_diverse(*arguments, tagged, text_encoder.encode)
        assert measured.value == pytest.approx(expected["per_second"], rel=1e-9), variant
        assert measured.components["covered"] == expected["covered_points"], variant
        assert measured.components["per_word"] == pytest.approx(expected["per_word"], rel=1e-9), variant


def test_very_long_narration(knowledge_segmenter, text_encoder) -> None:
    """5,000 characters: the sentence part sees the first 77, the word part all."""
    text = "很轻薄，也保湿，" * 625 + "送玻璃杯子"
    points = [["面霜", "轻薄", "保湿"]]
    measured = info_sim([text], points, knowledge_segmenter.tagged, text_encoder.encode)
    short = info_sim([text[:400]], points, knowledge_segmenter.tagged, text_encoder.encode)
    assert measured.components["sentence"] == pytest.approx(short.components["sentence"], abs=1e-6)
    assert measured.components["words"] != short.components["words"]
    diverse = info_diverse([[text]], points, [100.0], knowledge_segmenter.tagged, text_encoder.encode)
    assert diverse.components["covered"] == 2 and diverse.value == 0.02
