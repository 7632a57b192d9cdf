"""Annotations, split lists and sample lists: read, checked with clear messages, written back."""

import json
import logging
import re

import pytest

from data_process.annotations import (
    read_annotations,
    read_sample_list,
    read_split,
    write_annotations,
    write_split,
)
from videonarrator.prompt import inputs_text
from videonarrator.schema import Clip, NarratorError, Product, Video
from videonarrator.timeline import frame_numbers


def clip(**fields):
    return {"time": [0, 5], "label": "产品推荐", "new_text": "看。"} | fields


def video(**fields):
    return {"p_name": "杯", "p_info": "外观：白", "type": "杯", "link": "", "frames": [clip()]} | fields


def without(value, field):
    return {key: entry for key, entry in value.items() if key != field}


def read(tmp_path, data):
    path = tmp_path / "annotations.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data, ensure_ascii=False), "utf-8")
    return read_annotations(path)


def test_fixture_is_read_and_written_back(upstream, tmp_path):
    videos = read_annotations(upstream / "all_video_data.json")
    write_annotations(tmp_path / "new" / "again.json", videos.values())
    original = json.loads((upstream / "all_video_data.json").read_text("utf-8"))
    assert [f"{video_id}.mp4" for video_id in videos] == list(original)
    assert [clip.text for video in videos.values() for clip in video.clips] == [
        clip.get("new_text") for video in original.values() for clip in video["frames"]
    ]
    assert json.loads((tmp_path / "new" / "again.json").read_text("utf-8")) == original
    assert read_annotations(tmp_path / "new" / "again.json") == videos
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["again.json"]


def test_what_is_legal(tmp_path):
    data = {
        "a_1.mp4": video(
            frames=[
                clip(label="其他"),
                clip(time=[5, 9.5], label="产品功效+外观设计", new_text="3.4折 “好”"),
                clip(time=[8, 12], new_text=None),  # clips may overlap
                without(without(clip(time=[12, 13]), "new_text"), "label"),
                clip(time=[13, 14], new_text=" "),
            ]
        ),
        "b.mp4": without(without(video(p_info="", asr="something of one's own"), "type"), "link"),
    }
    videos = read(tmp_path, data)
    assert list(videos) == ["a_1", "b"]
    assert [c.text for c in videos["a_1"].clips] == ["看。", "3.4折 “好”", None, None, None]
    assert videos["a_1"].clips[3] == Clip(12.0, 13.0)
    assert videos["b"] == Video("b", Product("杯", ""), (Clip(0.0, 5.0, "产品推荐", "看。"),))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            without(video(), "p_info"),
            'video v.mp4: no p_info; it has p_name, type, link, frames. Add "p_info"',
        ),
        (without(video(), "p_name"), "video v.mp4: no p_name"),
        (without(video(), "frames"), "video v.mp4: frames must be the list of its clips"),
        (video(p_name="杯\n子"), "video v.mp4: p_name must be one line"),
        (video(p_name=" "), "video v.mp4: p_name must be one line"),
        (video(p_info=None), "video v.mp4: p_info must be text, found null"),
        (video(link=5), "video v.mp4: link must be text, found a number"),
        (video(frames=[]), "frames must be the list of its clips"),
        (video(frames={"0": clip()}), "found an object"),
        (video(frames=[clip(), "5-9"]), "video v.mp4, clip 2: expected an object with time, label, new_text"),
        ([1], "video v.mp4: expected an object with p_name"),
        (
            video(frames=[clip(time=[5, 4])]),
            "video v.mp4, clip 1: time ends at 4 s, not after its start at 5 s",
        ),
        (video(frames=[clip(time=[5, 5])]), "clip 1: time ends at 5 s, not after its start at 5 s"),
        (video(frames=[clip(time=[-1, 5])]), "clip 1: time starts before the video does"),
        (video(frames=[clip(time=["0", 5])]), "clip 1: time must be two numbers of seconds, found '0'"),
        (video(frames=[clip(time=[True, 5])]), "clip 1: time must be two numbers of seconds, found True"),
        (
            video(frames=[clip(time=[0, float("nan")])]),
            "clip 1: time must be two numbers of seconds, found nan",
        ),
        (video(frames=[clip(time=[0, float("inf")])]), "found inf"),
        (video(frames=[clip(time=[0, 1, 2])]), "clip 1: time must be [start, end] in seconds"),
        (video(frames=[clip(time="0-5")]), "clip 1: time must be [start, end] in seconds"),
        (video(frames=[without(clip(), "time")]), "clip 1: no time; it has label, new_text. Add"),
        (
            video(frames=[clip(label="外观设汁")]),
            "clip 1: label: unknown script label '外观设汁' (did you mean 外观设计?)",
        ),
        (video(frames=[clip(label=["产品推荐"])]), "clip 1: label must be text, found an array"),
        (video(frames=[clip(label="产品推荐\n")]), "clip 1: label '产品推荐\\n' holds a line break"),
        (video(frames=[clip(new_text=5)]), "clip 1: new_text must be text, found a number"),
        (video(frames=[clip(new_text="看\n这")]), "clip 1: new_text holds a line break"),
        (video(frames=[without(clip(lable="产品推荐"), "label")]), "unknown field 'lable'; write 'label'"),
        (
            video(frames=[without(clip(newtext="看"), "new_text")]),
            "unknown field 'newtext'; write 'new_text'",
        ),
    ],
)
def test_mistakes_name_video_clip_and_field(tmp_path, broken, message):
    with pytest.raises(NarratorError) as error:
        read(tmp_path, {"good.mp4": video(), "v.mp4": broken})
    assert message in str(error.value)
    assert str(tmp_path / "annotations.json") in str(error.value) and "good.mp4" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("[]", "expected an object"),
        ('[{"inputs": ""}]', "for a sample list use read_sample_list"),
        ("{}", "holds no videos"),
        ("5", "found a number"),
        ('{"a.mp4": ', "is not JSON: Expecting value in line 1, column 11"),
        ({"a.mov": video()}, "video 'a.mov': the name must be <video id>.mp4"),
        ({".mp4": video()}, "the name must be <video id>.mp4"),
        ({"x/a.mp4": video()}, "without a folder"),
        ('{"a.mp4": 1, "a.mp4": 2}', "the file: 'a.mp4' stands there twice; keep one"),
        ('{"a.mp4": {"p_name": "x", "p_name": "y"}}', "video a.mp4: 'p_name' stands there twice"),
        (
            '{"a.mp4": {"frames": [{"time": [0, 1], "time": [1, 2]}]}}',
            "video a.mp4, clip 1: 'time' stands there twice",
        ),
    ],
)
def test_broken_files(tmp_path, data, message):
    with pytest.raises(NarratorError) as error:
        read(tmp_path, data)
    assert message in str(error.value)


def test_all_mistakes_are_told_together_the_first_twenty(tmp_path):
    clips = [clip(time=[5, 4], label="?") for _ in range(15)]
    with pytest.raises(NarratorError) as error:
        read(tmp_path, {"v.mp4": without(video(frames=clips), "p_info")})
    lines = str(error.value).split("\n")
    assert lines[0].endswith(": 31 mistakes") and len(lines) == 22 and lines[-1] == "  ... and 11 more"


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(NarratorError, match=r"cannot read .*none.json: No such file"):
        read_annotations(tmp_path / "none.json")
    (tmp_path / "film.json").write_bytes(b"\x00\xff\xfe")
    with pytest.raises(NarratorError, match="is not UTF-8 text"):
        read_annotations(tmp_path / "film.json")


def test_what_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NarratorError, match="cannot write"):
        write_annotations(tmp_path / "file" / "annotations.json", [])


# ---- split lists


def test_split_lists(tmp_path, caplog):
    path = tmp_path / "ids.txt"
    write_split(path, ["a", "b_1"])
    assert path.read_text() == "a.mp4\nb_1.mp4\n" and read_split(path) == ["a", "b_1"]
    path.write_text("b.mp4\n\na.mp4\r\nb.mp4\nc\n")
    with caplog.at_level(logging.WARNING):
        assert read_split(path, {"a", "b", "c"}) == ["b", "a", "c"]
    assert "1 ids stand there more than once, counted once: b" in caplog.text
    with pytest.raises(NarratorError, match="2 of 3 ids are not in the annotations: a, c"):
        read_split(path, {"b"})
    path.write_text("\n")
    with pytest.raises(NarratorError, match="names no videos"):
        read_split(path)


# ---- sample lists


def test_all_real_videos_are_imported(shared, real_samples, zh):
    imported = read_sample_list(shared / "data" / "esyncvidstory_test_300.json", zh)
    assert len(imported) == 300
    for one, sample in zip(imported, real_samples, strict=True):
        assert one.timed and one.video.id == sample["id"]
        assert inputs_text(one.story, zh) == sample["inputs"]
        assert [c.text for c in one.video.clips] == [c.text for c in one.story.clips]
        numbers = [list(frame_numbers(c.start, c.end)) for c in one.video.clips]
        assert numbers == [[int(name[-7:-4]) for name in names] for names in sample["images"]]


def test_left_out_clips_of_the_published_lists(upstream, zh):
    annotated = read_annotations(upstream / "all_video_data.json")
    filled = 0
    for name in ("train", "test"):
        for one in read_sample_list(upstream / f"{name}.json", zh):
            clips = annotated[one.video.id].clips
            assert one.timed and len(one.video.clips) == len(clips) == one.story.total
            assert one.video.link == annotated[one.video.id].link
            for found, true in zip(one.video.clips, clips, strict=True):
                assert frame_numbers(found.start, found.end) == frame_numbers(true.start, true.end)
            told = {clip.number - 1 for clip in one.story.clips}
            for index, found in enumerate(one.video.clips):
                if clips[index].text is None and {index - 1, index + 1} <= told:
                    # left out for want of text, no images: it fills the gap between its neighbours
                    before, after = one.video.clips[index - 1], one.video.clips[index + 1]
                    assert found == Clip(before.end, after.start)
                    filled += 1
    assert filled > 0
    untimed = read_sample_list(upstream / "training_data.json", zh)
    assert len(untimed) == len(annotated) and not any(one.timed for one in untimed)
    assert {c.duration for one in untimed for c in one.video.clips} == {0.0}


def test_sample_list_mistakes(upstream, zh, tmp_path, caplog):
    path = tmp_path / "list.json"
    good = json.loads((upstream / "train.json").read_text("utf-8"))

    def check(entries, message):
        path.write_text(json.dumps(entries), "utf-8")
        with pytest.raises(NarratorError) as error:
            read_sample_list(path, zh)
        assert message in str(error.value)

    check({}, "expected an array of")
    check([without(good[0], "inputs")], f"entry 1 (video {good[0]['id']}): no inputs; it has id")
    check([good[0] | {"inputs": "?"}], "does not begin like")
    check([good[0] | {"frames": good[0]["frames"][1:]}], "but inputs tell of")
    check(
        [good[0] | {"images": [["a.jpg"]] * len(good[0]["frames"])}],
        "images: 'a.jpg' is not named <video id>_<number>.jpg",
    )
    check(
        [good[0] | {"inputs": re.sub("剧本类型：.*", "剧本类型：产品", good[0]["inputs"], count=1)}],
        "clip 1: unknown script label",
    )
    check([good[0], "x", good[1] | {"id": 5}], "2 mistakes")
    check([good[0], good[0] | {"link": "other"}], "an earlier entry says something else")
    path.write_text(json.dumps([good[0], good[1], good[0]]), "utf-8")
    assert [one.video.id for one in read_sample_list(path, zh)] == [good[0]["id"], good[1]["id"]]
    assert f"counted once: {good[0]['id']}" in caplog.text
