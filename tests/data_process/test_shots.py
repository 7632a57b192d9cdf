"""Clips from hard cuts, clip lengths, and cut lists."""

import json
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from video_helpers import real_footage, shots, write_video

from data_process.shots import cut_settings, detect_clips, fit_shots, read_cuts, write_cuts
from data_process.video_file import probe
from videonarrator.schema import Clip, NarratorError


def starts(clips):
    return [clip.start for clip in clips]


def covers(clips, duration):
    return (
        clips[0].start == 0
        and clips[-1].end == duration
        and all(a.end == b.start for a, b in pairwise(clips))
    )


# -------------------- detection


@pytest.mark.parametrize("detector", ["adaptive", "content"])
def test_real_footage(detector):
    clips = detect_clips(real_footage("bikes.mp4"), detector=detector)
    assert covers(clips, 10.0)
    assert starts(clips) == pytest.approx([0, 1.2, 3.0, 5.5, 7.5], abs=0.2)


def test_real_footage_without_a_cut():
    for name, duration in [("carphone_pristine.mp4", 4.004), ("bigbuckbunny.mp4", 5.28)]:
        assert detect_clips(real_footage(name)) == [Clip(0.0, duration)]


@pytest.mark.parametrize("detector", ["adaptive", "content"])
@pytest.mark.parametrize("fps", [10, 25, Fraction(30000, 1001)])
def test_every_hard_cut_of_plain_shots(tmp_path, detector, fps):
    lengths = [1.4, 2.0, 1.2, 3.0, 1.0, 2.4]
    video = write_video(tmp_path / "plain.mp4", shots(lengths, 10 if fps == 10 else 25), fps=fps)
    stretch = 1 if fps == 10 else 25 / fps
    clips = detect_clips(video, detector=detector, min_seconds=0.8)
    assert covers(clips, probe(video).duration_s)
    expected = [float(t * stretch) for t in np.cumsum([0, *lengths[:-1]])]
    assert starts(clips) == pytest.approx(expected, abs=0.0011)


def test_cuts_between_scenes_that_differ_little(tmp_path):
    """The same backdrop before and after, only the thing in front of it changes."""
    pictures = []
    for colour in [(214, 40, 44), (36, 92, 208), (246, 208, 46)]:
        for step in range(40):
            picture = np.full((120, 160, 3), (196, 232, 255), np.uint8)
            picture[20:100, 40 + step // 4 : 120 + step // 4] = colour
            pictures.append(picture)
    clips = detect_clips(write_video(tmp_path / "alike.mp4", pictures))
    assert starts(clips) == pytest.approx([0, 1.6, 3.2])


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_variable_rate_and_single_picture_shots(tmp_path, ending):
    """Cuts stand at the time stamps, and a slide that is one long picture is a shot like any other."""
    times, pictures = [], []
    plain = shots([0.04] * 5)
    for shot, (start, steps) in enumerate([(0, 30), (1.5, 1), (4, 12), (6.3, 1), (8.1, 1)]):
        length = [1.5, 2.5, 2.3, 1.8, 2.0][shot]
        times += [start + length * (i / steps) ** 2 for i in range(steps)]
        pictures += [plain[shot]] * steps
    video = write_video(tmp_path / f"slides.{ending}", pictures, times=times, end=10.1, b_frames=0)
    clips = detect_clips(video)
    assert starts(clips) == pytest.approx([0, 1.5, 4.0, 6.3, 8.1], abs=0.002)
    assert clips[-1].end == pytest.approx(10.1, abs=0.002)


def test_without_a_cut_and_shorter_than_a_second(tmp_path):
    still = write_video(tmp_path / "still.mp4", shots([4.0]))
    assert detect_clips(still) == [Clip(0.0, 4.0)]
    assert detect_clips(still, max_seconds=1.5) == [Clip(0.0, 1.333), Clip(1.333, 2.667), Clip(2.667, 4.0)]
    assert detect_clips(write_video(tmp_path / "short.mp4", shots([0.6]))) == [Clip(0.0, 0.6)]
    assert detect_clips(write_video(tmp_path / "two.mp4", shots([0.2, 0.4]))) == [Clip(0.0, 0.6)]
    assert detect_clips(write_video(tmp_path / "one.mp4", shots([0.04]))) == [Clip(0.0, 0.04)]
    portrait = write_video(tmp_path / "portrait.mp4", shots([1.2, 1.2], width=90, height=160), rotation=90)
    assert starts(detect_clips(portrait)) == [0, 1.2]


def test_detection_refuses(tmp_path):
    video = write_video(tmp_path / "v.mp4", shots([0.4]))
    with pytest.raises(NarratorError, match="unknown detector 'hash'; known: adaptive, content"):
        detect_clips(video, detector="hash")  # type: ignore[arg-type]
    with pytest.raises(NarratorError, match="min_seconds=3 and max_seconds=2"):
        detect_clips(video, min_seconds=3, max_seconds=2)
    with pytest.raises(NarratorError, match="there is no video"):
        detect_clips(tmp_path / "none.mp4")
    data = write_video(tmp_path / "w.mp4", shots([2.0]), faststart=True).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[:-40])
    with pytest.raises(NarratorError, match="was cut off"):
        detect_clips(tmp_path / "cut.mp4")


# -------------------- clip lengths


@given(
    st.lists(st.floats(0.001, 40), min_size=1, max_size=30),
    st.floats(0, 5),
    st.floats(1, 6),
)
@example([0.3, 0.3, 0.3], 1.0, 15.0)
@example([1.0, 16.0], 1.0, 15.0)
@settings(deadline=None, max_examples=150)
def test_fit_shots_properties(lengths, low, ratio):
    low, high = round(low, 3), round(max(0.1, low * ratio), 3)
    bounds = [0.0, *np.cumsum(lengths).tolist()]
    ends = fit_shots(bounds, low, high)
    assert ends == [round(end, 3) for end in ends] == sorted(set(ends))
    total = round(bounds[-1], 3)
    assert ends[0] == 0 and ends[-1] == total
    found = [b - a for a, b in pairwise(ends)]
    assert max(found) <= high + 1e-6
    if high >= 2 * low and total >= low:
        assert min(found) >= low - 1e-6
    assert fit_shots(ends, low, high) == ends or high < 2 * low


def test_fit_shots_leaves_good_cuts_alone():
    assert fit_shots([0, 1.2, 3.04, 5.48, 7.48, 10.0]) == [0, 1.2, 3.04, 5.48, 7.48, 10.0]
    assert fit_shots([0, 1.2, 3.04, 5.48, 7.48, 9.68, 10.0]) == [0, 1.2, 3.04, 5.48, 7.48, 10.0]


def test_fit_shots_merges_into_the_shorter_neighbour():
    assert fit_shots([0, 4, 4.5, 6]) == [0, 4, 6]
    assert fit_shots([0, 2, 2.5, 6]) == [0, 2.5, 6]
    assert fit_shots([0, 2, 2.5, 4.5]) == [0, 2.5, 4.5]
    assert fit_shots([0, 0.5, 3]) == [0, 3]
    assert fit_shots([0, 0.4, 0.8, 1.2, 1.6, 2.0]) == [0, 2.0]
    assert fit_shots([0, 0.3, 0.6]) == [0, 0.6]


def test_fit_shots_splits_evenly_and_refuses_bad_limits():
    assert fit_shots([0, 31]) == [0, 10.333, 20.667, 31]
    assert fit_shots([0, 15, 30], 1, 15) == [0, 15, 30]
    assert fit_shots([0, 18], 10, 15) == [0, 9, 18]  # the upper limit goes first
    for low, high in [(2, 1), (-1, 5), (0, 0), (float("nan"), 3)]:
        with pytest.raises(NarratorError, match="expected 0 <= min_seconds <= max_seconds"):
            fit_shots([0, 3], low, high)


# -------------------- cut lists


def test_cut_lists_of_every_form(tmp_path):
    want = [Clip(0.0, 2.0), Clip(2.5, 5.0, "产品功效")]
    forms = {
        "pairs.json": json.dumps([[0, 2], [2.5, 5]]),
        "objects.json": json.dumps([{"start": 0, "end": 2}, {"start": 2.5, "end": 5, "label": "产品功效"}]),
        "own.json": json.dumps(
            {"clips": [{"start": 0, "end": 2}, {"start": 2.5, "end": 5, "label": "产品功效"}]}
        ),
        "table.csv": "start,end,label\n0,2,\n2.5,5,产品功效\n",
        "excel.csv": "\ufeffClip, Start, End, Label\r\n1, 0, 2,\r\n2, 2.5, 5, 产品功效\r\n",
        "plain.csv": "start,end\n0,2\n2.5,5\n",
    }
    for name, text in forms.items():
        (tmp_path / name).write_text(text, "utf-8")
        unlabelled = [replace(clip, label="") for clip in want]
        assert read_cuts(tmp_path / name, 5.0) == (
            unlabelled if name in ("pairs.json", "plain.csv") else want
        )


def test_a_little_past_the_video_is_cut_to_it(tmp_path):
    (tmp_path / "c.json").write_text("[[-0.05, 2], [2, 5.08]]")
    assert read_cuts(tmp_path / "c.json", 5.0) == [Clip(0.0, 2.0), Clip(2.0, 5.0)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[[0, 2], [3, 2]]", r"a\.json, clip 2: end 2 is not after start 3"),
        ("a.json", "[[0, 2], [2, 2]]", "clip 2: end 2 is not after start 2"),
        ("a.json", "[[0, 2], [2, 7]]", r"clip 2: end 7 lies outside the video \(0 to 5 s\)"),
        ("a.json", "[[-1, 2]]", "clip 1: start -1 lies outside"),
        ("a.json", "[[5.02, 5.09]]", "clip 1: end 5 is not after start 5"),
        ("a.json", "[[0, 3], [2, 4]]", "clip 2: start 2 lies before the end 3 of clip 1"),
        ("a.json", "[[2, 4], [0, 1]]", "clip 2: start 0 lies before the end 4 of clip 1"),
        ("a.json", '[["x", 2]]', "clip 1: start 'x' is not a number"),
        ("a.json", "[[NaN, 2]]", "clip 1: start nan is not a number"),
        ("a.json", "[[true, 2]]", "clip 1: start True is not a number"),
        ("a.json", "[[null, 2]]", "clip 1: start None is not a number"),
        ("a.json", '[{"start": 1}]', "clip 1: end is missing"),
        ("a.json", '[{"start": 0, "end": 1, "label": "功效"}]', "clip 1, label: unknown script label"),
        ("a.json", '[{"start": 0, "end": 1, "label": 7}]', "clip 1, label: unknown script label"),
        ("a.json", "[3]", r"clip 1: expected \[start, end\] or an object"),
        ("a.json", "[[1, 2, 3]]", r"clip 1: expected \[start, end\] or an object"),
        ("a.json", "[]", "holds no clip"),
        ("a.json", '{"cuts": []}', "is no cut list"),
        ("a.json", "[[0, 2]", "is not JSON"),
        ("a.csv", "from,to\n0,1\n", r"must name the columns start,end\[,label\], not from,to"),
        ("a.csv", "", "must name the columns"),
        ("a.csv", "start,end\n", "holds no clip"),
        ("a.csv", "start,end\n0,1\n1,\n", "clip 2: end '' is not a number"),
        ("a.csv", "start,end\n0\n", "clip 1: end '' is not a number"),
    ],
)
def test_bad_cut_lists_name_file_clip_and_field(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(NarratorError, match=message):
        read_cuts(tmp_path / name, 5.0)


def test_a_missing_cut_list(tmp_path):
    with pytest.raises(NarratorError, match="cannot read"):
        read_cuts(tmp_path / "none.csv", 5.0)


def test_written_cuts_are_read_back(tmp_path):
    video = write_video(tmp_path / "v.mp4", shots([1.2, 1.6, 2.0]))
    clips = detect_clips(video)
    clips = [clips[0], replace(clips[1], label="产品试用+产品功效"), clips[2]]
    info, out = probe(video), tmp_path / "new"
    write_cuts(clips, out / "c.json", out / "c.csv", video=video.name, info=info, settings=cut_settings())
    assert sorted(path.name for path in out.iterdir()) == ["c.csv", "c.json"]
    assert read_cuts(out / "c.json", info.duration_s) == read_cuts(out / "c.csv", info.duration_s) == clips
    stored = json.loads((out / "c.json").read_text("utf-8"))
    assert stored["video"] == "v.mp4" and stored["duration"] == 4.8 and stored["width"] == 128
    assert stored["settings"]["detector"] == "adaptive" and stored["settings"]["threshold"] == 3.0
    assert (out / "c.csv").read_text("utf-8").splitlines()[:2] == ["clip,start,end,label", "1,0.0,1.2,"]


def test_nothing_half_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    info = probe(write_video(tmp_path / "v.mp4", shots([0.4])))
    with pytest.raises(NarratorError, match="cannot write"):
        write_cuts(
            [Clip(0, 1)], tmp_path / "c.json", tmp_path / "file" / "c.csv", video="v", info=info, settings={}
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "v.mp4"]
