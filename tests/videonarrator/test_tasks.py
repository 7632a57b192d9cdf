"""What the narrator is asked to write: which clips, how long, seeing what; and what a script says."""

import re
from dataclasses import replace

import pytest
import torch

from videonarrator.generation.jobs import ClipResult
from videonarrator.schema import Clip, NarratorError, Product, Video
from videonarrator.speech import default_rate, read_rate, spoken_seconds
from videonarrator.tasks import annotated_tasks, new_tasks, script_of
from videonarrator.visual_memory import clip_tokens

WIDTH = 16


def some_frames(number, seed):
    return torch.randn(number, 4, WIDTH, generator=torch.Generator().manual_seed(seed))


CLIPS = (
    Clip(0.0, 2.0, "产品推荐", "看这个杯子。"),
    Clip(2.0, 3.0, "产品功效", None),
    Clip(3.0, 7.0, "产品试用", "装满水，倒过来也不漏。。"),
    Clip(7.0, 10.0, "引导购买", "快来买！"),
    Clip(10.0, 12.0, "其他", "再见。"),
)
VIDEO = Video("v", Product("杯子", "外观：白"), CLIPS)
FRAMES = [some_frames(number, seed) for seed, number in enumerate((2, 1, 4, 0, 2))]


def test_tasks_of_an_annotated_video():
    tasks = annotated_tasks(VIDEO, FRAMES, 0.9)
    assert [task.index for task in tasks] == [0, 2, 4]  # clip 2 has no text, clip 4 no frames
    assert [(task.low, task.high) for task in tasks] == [(3, 9), (8, 14), (1, 6)]  # 。。 counts as one
    assert [task.position for task in tasks] == [0, 41, 99]  # (3 + 4/2) of 12 seconds
    assert [task.label for task in tasks] == [None] * 3
    shown = [FRAMES[0], FRAMES[2], FRAMES[4]]  # what is left out adds nothing to the memory
    for rank, task in enumerate(tasks):
        assert task.visual.equal(clip_tokens(shown[:rank], shown[rank], 0.9))
    offered = annotated_tasks(VIDEO, FRAMES, 0.9, offered_label=True)
    assert [task.label for task in offered] == ["产品推荐", "产品试用", "其他"]
    unlabelled = replace(VIDEO, clips=(*CLIPS[:2], replace(CLIPS[2], label=""), *CLIPS[3:]))
    assert len(annotated_tasks(unlabelled, FRAMES, 0.9)) == 3
    with pytest.raises(NarratorError, match="video v, clip 3 has no label in the annotations"):
        annotated_tasks(unlabelled, FRAMES, 0.9, offered_label=True)


def test_the_memory_is_merged_by_the_keys_and_nothing_compressed():
    keys = [torch.randn(len(own), 3, generator=torch.Generator().manual_seed(9)) for own in FRAMES]
    tasks = annotated_tasks(VIDEO, FRAMES, None, keys=keys)
    shown = [0, 2, 4]
    for rank, task in enumerate(tasks):
        earlier = [FRAMES[index] for index in shown[:rank]]
        own = [keys[index] for index in shown[:rank]]
        assert task.visual.equal(clip_tokens(earlier, FRAMES[shown[rank]], None, own))
    assert not tasks[2].visual.equal(annotated_tasks(VIDEO, FRAMES, None)[2].visual)
    clips = [Clip(0.0, 2.0), Clip(2.0, 6.0), Clip(6.0, 8.0)]
    new = new_tasks(clips, [FRAMES[index] for index in shown], None, keys=[keys[index] for index in shown])
    assert all(one.visual.equal(task.visual) for one, task in zip(new, tasks, strict=True))


def test_tasks_of_a_new_video():
    clips = [Clip(0.0, 2.0), Clip(2.0, 2.4), Clip(2.4, 6.0)]
    frames = FRAMES[:3]
    tasks = new_tasks(clips, frames, 0.9, rate=read_rate("5", "zh"))
    assert [(task.low, task.high) for task in tasks] == [(4, 10), (1, 2), (12, 18)]
    assert [task.position for task in tasks] == [0, 36, 99]
    assert [task.label for task in tasks] == [None] * 3
    assert tasks[2].visual.equal(clip_tokens(frames[:2], frames[2], 0.9))
    assert new_tasks(clips, frames, 0.9)[0].high == 12  # 6 characters a second
    english = new_tasks(clips, frames, 0.9, rate=read_rate("2.5", "en"), language="en")
    assert [(task.low, task.high) for task in english] == [(1, 5), (1, 1), (1, 9)]
    labels = ["产品推荐", "", "产品试用+产品功效"]
    given = new_tasks(clips, frames, 0.9, storyline=labels)
    assert [task.label for task in given] == ["产品推荐", None, "产品试用+产品功效"]
    own = [replace(clip, label=label) for clip, label in zip(clips, labels, strict=True)]
    assert [task.label for task in new_tasks(own, frames, 0.9)] == ["产品推荐", None, "产品试用+产品功效"]
    for storyline, message in (
        (["产品推荐"], "the storyline has 1 labels, the video 3 clips"),
        (["产品推荐", "产品功郊", "产品试用"], re.escape("'产品功郊' (did you mean 产品功效?)")),
    ):
        with pytest.raises(NarratorError, match=message):
            new_tasks(clips, frames, 0.9, storyline=storyline)
    with pytest.raises(NarratorError, match="clip 2: no frame of the video"):
        new_tasks(clips, [frames[0], frames[1][:0], frames[2]], 0.9)


def test_script_says_what_was_asked_and_what_was_left_out():
    tasks = annotated_tasks(VIDEO, FRAMES, 0.9)
    results = [ClipResult(0, "产品推荐", "看这个杯子。", "看这个杯子。", 0, 0)]
    results.append(ClipResult(2, "产品试用", "不漏。", "不漏。", 0, 0))
    script = script_of(VIDEO, tasks, results)
    assert [(line.clip, line.low, line.high, line.written, line.in_range) for line in script.lines] == [
        (0, 3, 9, 6, True),
        (2, 8, 14, 3, False),
    ]
    assert (script.lines[1].start, script.lines[1].end) == (3.0, 7.0)
    slow = script_of(VIDEO, tasks, results, rate=read_rate("1.2", "zh"))
    assert [line.fit for line in script.lines] == ["comfortable", "comfortable"]
    assert [line.fit for line in slow.lines] == ["over", "fast"]
    for line, slower in zip(script.lines, slow.lines, strict=True):
        assert line.seconds == pytest.approx(spoken_seconds(line.text, default_rate("zh")), abs=0.005)
        assert slower.seconds == pytest.approx(5 * line.seconds, abs=0.05)
    missing = "no frames, or no reference narration"
    assert script.skipped == {1: missing, 3: missing, 4: "over the limit of clips a video"}
