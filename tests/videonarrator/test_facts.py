"""The facts: schema, storyline, timeline, length."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videonarrator.length import (
    count_units,
    length_gap,
    range_for_duration,
    range_for_reference,
)
from videonarrator.schema import (
    Clip,
    NarratorError,
    Product,
    ScriptLine,
    Video,
    output_entry,
    output_key,
    split_output_key,
)
from videonarrator.storyline import (
    SCRIPT_LABELS,
    check_label,
    label_parts,
    read_storyline,
    unknown_parts,
)
from videonarrator.timeline import POSITIONS, clip_positions, clip_positions_by_rank, frame_numbers

# ---- schema


def test_product_points():
    product = Product("杯", "外观：白、蓝\n质地：轻\n好用、耐用\n外观：圆")
    assert product.points == {"外观": ["白", "蓝", "圆"], "质地": ["轻"], "": ["好用", "耐用"]}
    assert Product("杯").points == {}


def test_durations():
    clips = (Clip(0.5, 2.0), Clip(4.0, 5.0))
    assert [clip.duration for clip in clips] == [1.5, 1.0]
    assert Video("v", Product("杯"), clips).duration == 2.5


@given(st.text(min_size=1), st.integers(0, 10**6))
def test_output_keys_come_apart_again(video_id, index):
    assert split_output_key(output_key(video_id, index)) == (video_id, index)


@pytest.mark.parametrize("key", ["", "v", "_1", "v_", "v_x", "v_-1", "v_01", "v_１", "v_1.0"])
def test_other_keys_are_refused(key):
    with pytest.raises(NarratorError, match="is not a key of an output"):
        split_output_key(key)


def test_output_entries():
    assert output_entry("甲", "a", "b", "乙") == {"gt": "甲", "label": "a", "out_label": "b", "0.1": "乙"}
    assert "gt" not in output_entry(None, "a", "b", "乙")


def test_script_line_range():
    assert ScriptLine(0, 0.0, 1.0, "a", "b", 3, 5, 5).in_range
    assert not ScriptLine(0, 0.0, 1.0, "a", "b", 3, 5, 6).in_range


# ---- storyline


def test_labels():
    assert len(SCRIPT_LABELS) == len(set(SCRIPT_LABELS)) == 12
    assert label_parts("产品功效+外观设计") == label_parts("外观设计 + 产品功效")
    assert label_parts("其他") == label_parts("其他/通用卖点")
    assert check_label("其他") == "其他"  # written so in real data; left as it is
    assert check_label("质地/成分/材质+其他") == "质地/成分/材质+其他"
    assert unknown_parts("") == [""] and unknown_parts("产品推荐") == []


@pytest.mark.parametrize("label", ["产品推件", "产品推荐+外观设汁", "", "+", "产品推荐、外观设计"])
def test_unknown_labels_are_refused(label):
    with pytest.raises(NarratorError, match=r"unknown script label .*known: 产品推荐、"):
        check_label(label)


def test_the_nearest_label_is_suggested():
    with pytest.raises(NarratorError, match=r"'外观设汁' \(did you mean 外观设计\?\)"):
        check_label("产品推荐+外观设汁")


def test_storyline_file():
    own = ["开场", "收尾"]
    assert read_storyline("开场\n收尾+开场\n", own) == ["开场", "收尾+开场"]
    with pytest.raises(NarratorError, match=r"line 1: unknown script label '产品推荐'.*known: 开场、收尾"):
        read_storyline("产品推荐\n", own)
    assert read_storyline("# 开头\n产品推荐\n\n 产品功效+外观设计 \n") == ["产品推荐", "产品功效+外观设计"]
    with pytest.raises(NarratorError, match="line 2: unknown script label"):
        read_storyline("产品推荐\n产品\n")


# ---- timeline


@pytest.mark.parametrize(
    ("start", "end", "numbers"),
    [
        (0, 5, [1, 2, 3, 4, 5]),
        (0.37, 2.58, [1, 2]),
        (5.37, 5.9, [6]),
        (5, 6, [6]),
        (5.9, 6.0, [6]),
        (5.9, 6.1, [6]),
        (5.9, 7.1, [6, 7]),
        (0, 0.2, [1]),
    ],
)
def test_frame_numbers(start, end, numbers):
    assert list(frame_numbers(start, end)) == numbers


@given(st.floats(0, 1000), st.floats(0.01, 100))
def test_a_clip_owns_at_least_one_frame_and_whole_seconds_share_none(start, length):
    numbers = frame_numbers(start, start + length)
    assert len(numbers) >= 1 and numbers[0] == int(start) + 1
    whole = int(start)
    assert set(frame_numbers(whole, whole + 3)).isdisjoint(frame_numbers(whole + 3, whole + 5))


def test_positions():
    assert clip_positions([5.0], [0]) == [0]
    assert clip_positions([5, 5, 10], [0, 1, 2]) == [0, 37, 99]
    assert clip_positions([5, 5, 10, 20], [1, 2, 3]) == [0, 37, 99]
    assert clip_positions([5, 5, 10, 20], [2]) == [0]
    assert clip_positions([5, 5], []) == []


@given(st.lists(st.floats(0.1, 60), min_size=1, max_size=20))
def test_positions_lie_in_the_table_and_ascend(durations):
    positions = clip_positions(durations, range(len(durations)))
    assert positions == sorted(positions) and set(positions) <= set(range(POSITIONS))


def test_positions_are_the_published_ones(upstream):
    annotations = json.loads((upstream / "all_video_data.json").read_text("utf-8"))
    shots = json.loads((upstream / "train_shots.json").read_text("utf-8"))
    whole = 0
    for video_id in {shot["id"] for shot in shots}:
        clips = annotations[f"{video_id}.mp4"]["frames"]
        durations = [end - start for start, end in (clip["time"] for clip in clips)]
        published = [shot["shot_pos"] for shot in shots if shot["id"] == video_id]
        assert clip_positions_by_rank(durations, len(published)) == published
        if len(published) == len(clips) > 1:  # without left-out clips ours are the same
            assert clip_positions(durations, range(len(clips))) == published
            whole += 1
    assert whole > 0
    # the published code takes the r-th annotated clip for the r-th kept one
    assert clip_positions([2, 2, 4, 2], [0, 2, 3]) == [0, 60, 99]
    assert clip_positions_by_rank([2, 2, 4, 2], 3) == [0, 30, 99]


# ---- length


def test_lengths():
    assert count_units("看，这里。") == 5
    assert count_units("look  at this.", "en") == 3
    assert range_for_reference("看" * 31) == (28, 34)
    assert range_for_reference("看，") == (1, 5)
    assert range_for_reference("a b c d e f g h", "en") == (3, 13)


def test_range_for_duration():
    assert range_for_duration(5.0) == (24, 30)
    assert range_for_duration(0.3, 10) == (1, 3)  # 0.3 * 10 is a little under 3 in binary
    assert range_for_duration(0.01) == (1, 1)
    assert range_for_duration(10, language="en") == (15, 25)


@given(st.floats(0.5, 60), st.floats(2, 10))
def test_a_text_in_range_never_overruns_its_clip(seconds, rate):
    low, high = range_for_duration(seconds, rate)
    assert 1 <= low <= high <= rate * seconds + 1e-6


def test_length_gap():
    assert [length_gap(length, 3, 6) for length in (1, 3, 5, 6, 9)] == [2, 0, 0, 0, 3]
