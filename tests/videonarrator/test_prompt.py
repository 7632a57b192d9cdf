"""The prompt builder: exact wording, and what is written is read back."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videonarrator.prompt import (
    Segment,
    Story,
    StoryClip,
    inputs_text,
    opening,
    parse_inputs,
    prompt_segments,
    render,
    sample_segments,
    single_stops,
    story_of,
    with_answer,
)
from videonarrator.schema import Clip, NarratorError, Product, Video

CLIPS = (
    StoryClip(1, "产品推荐", "看这只杯子。", 3, 9),
    StoryClip(2, "产品功效+外观设计", "3.4折，蓝白两色。", 6, 12),
    StoryClip(4, "引导购买", "快来买！", 1, 7),
)
STORY = Story(Product("【新】保温杯", "外观：白、蓝\n质地：轻"), 4, CLIPS)

SAMPLE = """商品信息：
名称：【新】保温杯
外观：白、蓝
质地：轻

广告视频：
镜头1/4：
字数要求：3-9个字
剧本类型：产品推荐
1.看这只杯子。
镜头2/4：
场景：<vid_start><vid_patch><vid_patch><vid_end>
字数要求：6-12个字
剧本类型：产品功效+外观设计
2.3.4折，蓝白两色。
镜头4/4：
字数要求：1-7个字
剧本类型：引导购买
4.快来买！
"""


def test_wording(zh):
    segments = sample_segments(STORY, 2, zh)
    assert render(segments, 2) == zh.instruction + SAMPLE
    assert zh.instruction.endswith("\n\n")
    assert render([s for s in segments if s.target]) == "产品功效+外观设计\n2.3.4折，蓝白两色。\n"
    assert [s for s in segments if s.visual] == [Segment("", visual=True)]
    short = render(sample_segments(STORY, 2, zh, later=False), 2)
    assert zh.instruction + SAMPLE.split("镜头4/4")[0] == short


def test_wording_without_storyline(zh_nolabel):
    text = render(sample_segments(STORY, 4, zh_nolabel), 1)
    assert "剧本类型" not in text
    assert text.endswith("镜头4/4：\n场景：<vid_start><vid_patch><vid_end>\n字数要求：1-7个字\n4.快来买！\n")
    prompt = prompt_segments(STORY.product, STORY.clips[:2], STORY.clips[2], 4, zh_nolabel)
    assert text.startswith(render(prompt, 1)) and text.removeprefix(render(prompt, 1)) == "4.快来买！\n"
    assert parse_inputs(inputs_text(STORY, zh_nolabel), zh_nolabel).clips[0] == replace(CLIPS[0], label="")


def test_prompt_ends_where_the_answer_begins(zh):
    prompt = render(prompt_segments(STORY.product, CLIPS[:1], CLIPS[1], 4, zh), 2)
    assert prompt.endswith("字数要求：6-12个字\n剧本类型：")
    assert (zh.instruction + SAMPLE).startswith(prompt)
    unanswered = with_answer(CLIPS[1], "", "")
    assert prompt == render(prompt_segments(STORY.product, CLIPS[:1], unanswered, 4, zh), 2)
    assert with_answer(unanswered, CLIPS[1].label, CLIPS[1].text) == CLIPS[1]
    assert prompt.startswith(render([opening(STORY.product, zh)]))


def test_all_real_videos_are_given_back_unchanged(real_samples, zh):
    assert len(real_samples) == 300
    for sample in real_samples:
        story = parse_inputs(sample["inputs"], zh)
        assert inputs_text(story, zh) == sample["inputs"]
        assert story.product.info == sample["p_info"]
        last = story.clips[-1].number
        assert parse_inputs(inputs_text(story, zh, last), zh) == story


LINE = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=100)
@given(
    st.lists(st.tuples(LINE, LINE, st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=4),
    LINE,
    st.lists(LINE.filter(bool), max_size=3),
    st.integers(0, 4),
)
def test_any_story_is_read_back(zh, clips, name, info, visual):
    told = tuple(StoryClip(number, *clip) for number, clip in enumerate(clips, 1))
    story = Story(Product(name, "\n".join(info)), len(told), told)
    visual = visual if 1 <= visual <= len(told) else None
    assert parse_inputs(inputs_text(story, zh, visual), zh) == story


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("商品信息", "商品", "does not begin like"),
        ("字数要求：6-12个字", "字数要求：6到12个字", "breaks the template at character"),
        ("\n2.3.4", "\n3.3.4", "breaks the template at character"),
        ("快来买！", "快来\n买！", "breaks the template at character"),
        (
            "场景：<vid_start><vid_end>\n字数要求：6",
            "字数要求：6",
            r"stands in clips \[1, 4\] of \[1, 2, 4\]",
        ),
        ("镜头2/4", "镜头2/5", "not be given back unchanged"),
        ("镜头2/4", "镜头02/4", "breaks the template at character|not be given back"),
    ],
)
def test_other_texts_are_refused(zh, old, new, message):
    text = inputs_text(STORY, zh)
    assert parse_inputs(text, zh) == STORY and old in text
    with pytest.raises(NarratorError, match=message):
        parse_inputs(text.replace(old, new), zh)


def test_a_clip_that_is_not_told(zh):
    with pytest.raises(NarratorError, match=r"clip 3 is not in the story: it has \[1, 2, 4\]"):
        sample_segments(STORY, 3, zh)


def test_story_of_an_annotated_video():
    clips = (Clip(0, 2, "产品推荐", "看。。"), Clip(2, 4), Clip(4, 6, "引导购买", "买！"))
    story = story_of(Video("v", Product("杯"), clips), [0, 2], [(1, 5), (1, 5)])
    assert story == Story(
        Product("杯"), 3, (StoryClip(1, "产品推荐", "看。", 1, 5), StoryClip(3, "引导购买", "买！", 1, 5))
    )
    assert single_stops("好。。真。") == "好。真。"
