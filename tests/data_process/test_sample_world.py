"""The sample data set: what it must contain, that it cannot be guessed, and that it renders alike."""

import json
import runpy
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_process.annotations import read_annotations, read_split
from data_process.frames import read_frames
from data_process.sample_world.drawing import draw_scene
from data_process.sample_world.grounding import grounding, names_rightly
from data_process.sample_world.phrases import KINDS
from data_process.sample_world.render import read_named, read_scenes, render_all, render_video
from data_process.sample_world.scenes import ATTRIBUTES, COLOURS, SCENE_KINDS, Scene
from data_process.sample_world.stories import HELD_OUT
from data_process.video_file import decode_pictures, probe
from videonarrator.schema import NarratorError

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data" / "sample"


@pytest.fixture(scope="module")
def videos():
    return read_annotations(DATA / "annotations.json")


@pytest.fixture(scope="module")
def scenes():
    return read_scenes(DATA / "scenes.json")


@pytest.fixture(scope="module")
def named():
    return read_named(DATA / "scenes.json")


def test_the_stored_files_are_what_the_script_makes(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["make_data.py", "--out", str(tmp_path)])
    runpy.run_path(str(ROOT / "scripts/sample/make_data.py"), run_name="__main__")
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (DATA / file.name).read_bytes(), file.name


def test_contents(videos, scenes):
    english = read_annotations(DATA / "annotations_en.json")
    held_out = read_split(DATA / "test_ids.txt", videos)
    assert len(videos) == 60 and len(english) == 12 and len(held_out) == 12
    for video in [*videos.values(), *english.values()]:
        assert 3 <= len(video.clips) <= 6
        assert 5 <= video.clips[-1].end <= 25
        assert video.product.info and video.product.name
        assert [c.start for c in video.clips[1:]] == [c.end for c in video.clips[:-1]]
    for video_id, video in videos.items():
        assert [scene.label for scene in scenes[video_id]] == [clip.label for clip in video.clips]
    assert {scene.kind for story in scenes.values() for scene in story} == set(SCENE_KINDS)


def test_held_out_videos_need_composition(videos, scenes):
    held_out = set(read_split(DATA / "test_ids.txt", videos))
    pairs = {
        video_id: {(scene.product, scene.colour) for scene in story} for video_id, story in scenes.items()
    }
    train = set().union(*(pairs[v] for v in videos if v not in held_out))
    test = set().union(*(pairs[v] for v in held_out))
    assert test == HELD_OUT and not train & test
    assert {kind for kind, _ in train} == set(KINDS) == {kind for kind, _ in test}
    assert {colour for _, colour in train} == set(COLOURS) == {colour for _, colour in test}


def test_what_must_be_seen_stands_in_no_fact_and_in_no_earlier_text(videos, named):
    for video_id, video in videos.items():
        facts = video.product.name + video.product.info
        for words in ATTRIBUTES.values():
            assert not [word for word in words if word in facts]
        for index, wanted in enumerate(named[video_id]):
            for attribute, value in wanted.items():
                assert names_rightly(video.clips[index].text, attribute, value)
                earlier = "".join(clip.text for clip in video.clips[:index])
                assert not [word for word in ATTRIBUTES[attribute] if word in earlier]


def test_gifts_are_named_where_only_memory_shows_them(scenes, named):
    found = 0
    for video_id, story in scenes.items():
        for index, wanted in enumerate(named[video_id]):
            if "gift" in wanted:
                found += 1
                assert not story[index].gift
                assert wanted["gift"] in [scene.gift for scene in story[:index]]
    assert found >= 20


def test_narrations_are_as_long_as_their_clips(videos):
    clips = [clip for video in videos.values() for clip in video.clips]
    lengths, seconds = np.array([[len(clip.text), clip.duration] for clip in clips]).T
    assert np.corrcoef(lengths, seconds)[0, 1] > 0.95
    assert 5 < lengths.sum() / seconds.sum() < 6.3
    texts = Counter(clip.text for clip in clips)
    assert max(texts.values()) <= 3  # next to no narration is said twice


def test_rendering_gives_the_same_pixels_every_time(tmp_path, videos, scenes):
    video = min(videos.values(), key=lambda v: v.clips[-1].end)
    for name in ("a", "b"):
        render_video(video, scenes[video.id], tmp_path / f"{name}.mp4")
    pictures = [
        [picture.to_ndarray(format="yuv420p") for _, picture in decode_pictures(tmp_path / f"{name}.mp4")]
        for name in ("a", "b")
    ]
    assert len(pictures[0]) == len(pictures[1]) == round(video.clips[-1].end * 10)
    assert all((one == two).all() for one, two in zip(*pictures, strict=True))
    info = probe(tmp_path / "a.mp4")
    assert info.duration_s == video.clips[-1].end and (info.width, info.height) == (320, 240)


def test_a_rendered_still_is_the_drawn_scene(tmp_path, videos, scenes):
    video = videos["sample01"]
    (path,) = render_all([video], scenes, tmp_path / "videos", workers=1)
    number = int(video.clips[1].start) + 1
    still = read_frames(path, [number])[number].astype(int)
    own, other = (np.asarray(draw_scene(scenes[video.id][k], 0.0, 0)).astype(int) for k in (1, 0))
    assert abs(still - own).mean() < abs(still - other).mean() / 2


def test_render_all_keeps_what_is_there_and_makes_what_is_not(tmp_path, videos, scenes):
    some = sorted(videos.values(), key=lambda v: v.clips[-1].end)[:2]
    first = tmp_path / f"{some[0].id}.mp4"
    first.write_bytes(b"kept")
    (tmp_path / f"{some[1].id}.mp4.partial").write_bytes(b"left by a kill")
    render_all(some, scenes, tmp_path, workers=1)
    assert first.read_bytes() == b"kept"
    assert probe(tmp_path / f"{some[1].id}.mp4").duration_s == some[1].clips[-1].end
    assert not list(tmp_path.glob("*.partial"))
    with pytest.raises(NarratorError, match="no scenes described"):
        render_all(some, {}, tmp_path)


def test_scenes_look_different_in_everything_that_is_named():
    base = {"product": "雨伞", "colour": "红色", "place": "海边"}
    for attribute, kind in [
        ("colour", "hero"), ("count", "display"), ("motion", "use"), ("price", "price"), ("place", "hero"),
        ("gift", "hero"),
    ]:  # fmt: skip
        facts = {"price": {"price": "19"}}.get(kind, {})
        stills = [
            np.asarray(draw_scene(Scene(kind=kind, **{**base, **facts, attribute: value}), 0.5, 0))
            for value in ATTRIBUTES[attribute]
        ]
        for index, one in enumerate(stills):
            for two in stills[index + 1 :]:
                assert (abs(one.astype(int) - two.astype(int)).max(axis=2) > 40).mean() > 0.002, attribute


def test_a_scene_with_an_unknown_word_is_refused():
    with pytest.raises(NarratorError, match="unknown colour"):
        Scene(kind="hero", product="雨伞", colour="金色", place="海边")
    with pytest.raises(NarratorError, match="unknown scene kind"):
        Scene(kind="heros", product="雨伞", colour="红色", place="海边")


def test_broken_scene_descriptions_are_named(tmp_path):
    file = tmp_path / "scenes.json"
    file.write_text(json.dumps({"a.mp4": {"scenes": [{"kind": "hero"}]}}), "utf-8")
    with pytest.raises(NarratorError, match=r"scenes\.json"):
        read_scenes(file)


def test_grounding_counts_the_right_value_alone():
    assert names_rightly("到手价19元", "price", "19")
    assert not names_rightly("到手价199元", "price", "19")
    assert not names_rightly("红色和蓝色都有", "colour", "红色")
    assert not names_rightly("真好看", "colour", "红色")
    named = {"v": [{"colour": "红色"}, {}, {"price": "19", "gift": "星星"}]}
    perfect = {"v": {0: "红色雨伞", 1: "好", 2: "19元，开头的星星也送你"}}
    assert grounding(perfect, named)["all"] == {"right": 1.0, "of": 3}
    missing = grounding({"v": {0: "蓝色雨伞", 2: "19元"}}, named)
    assert missing["all"]["right"] == pytest.approx(1 / 3)
    assert missing["gift"] == {"right": 0.0, "of": 1} and missing["price"]["right"] == 1.0


def test_references_are_grounded_themselves(videos, named):
    texts = {v: {i: clip.text for i, clip in enumerate(video.clips)} for v, video in videos.items()}
    assert grounding(texts, named)["all"]["right"] == 1.0
    swapped = dict(zip(texts, [*list(texts.values())[1:], texts["sample01"]], strict=True))
    assert grounding(swapped, named)["all"]["right"] < 0.4
