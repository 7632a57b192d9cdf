"""What is wrong with a narration is found, and nothing is found in narrations that people wrote."""

import json

import pytest
from tiny_narrator import ROOT

from videonarrator.generation.flaws import flaws_of
from videonarrator.prompt import parse_inputs


@pytest.mark.parametrize(
    ("text", "language", "flaws"),
    [
        ("", "zh", ("empty",)),
        (" 。，！ ", "zh", ("empty",)),
        ("...", "en", ("empty",)),
        ("。。。。。。。", "zh", ("empty", "repeats")),
        ("的的的的的的的", "zh", ("repeats",)),
        ("这款雨伞很好看很好看很好看很好看。", "zh", ("repeats",)),
        ("真的好用，真的好用，真的好用。", "zh", ("repeats",)),
        ("买它！买它！买它！买它！买它！", "zh", ("repeats",)),
        ("它能在家里用一整天也不累，它能在家里用一整天也不累。", "zh", ("repeats",)),
        ("好好用，，，，，，，", "zh", ("repeats",)),
        ("8888888888888888", "zh", ("repeats",)),
        ("the the the the the the mug", "en", ("repeats",)),
        ("It is warm, it is warm, IT IS warm.", "en", ("repeats",)),
        ("You can take it with you, you can take it with you.", "en", ("repeats",)),
        ("So goooooooood.", "en", ("repeats",)),
        ("很好\ufffd用。", "zh", ("unreadable",)),
        ("很好\x07用。", "zh", ("unreadable",)),
        ("很好用。\n很轻。", "zh", ("unreadable",)),
        ("很好用<vid_start>。", "zh", ("unreadable",)),
        ("镜头3/5：很好用。", "zh", ("unreadable",)),
        ("很好用，字数要求：10-16个字", "zh", ("unreadable",)),
        ("很好用</s>", "zh", ("unreadable",)),
        ("Video shot 3: it works.", "en", ("unreadable",)),
        ("Fine. Narrative 4: it works.", "en", ("unreadable",)),
    ],
)
def test_flaws_are_named(text, language, flaws):
    assert flaws_of(text, language) == flaws


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("哈哈哈，好好好，就是它。", "zh"),
        ("买它买它买它！", "zh"),
        ("闪耀闪耀闪耀，无论上班下午茶都很闪耀。", "zh"),
        ("618一定要囤，一定要囤，拍三发五。", "zh"),
        ("卖了1000000000件，每件99.9元……", "zh"),
        ("好！！！", "zh"),
        ("It is very, very, very good. No, no, no!", "en"),
        ("One shot, one narrative: 100 100 cups.", "en"),
        ("镜头里看得清清楚楚，3/5的人都选它。", "zh"),
        ("表情👩‍👩‍👧也很好看。", "zh"),
    ],
)
def test_what_people_say_is_in_order(text, language):
    assert flaws_of(text, language) == ()


@pytest.mark.parametrize(
    "unit",
    ["好", "好用", "很好用", "真的好用", "它能陪你一整天不累", "这款绿色的雨伞让你出门再也不会担心下雨"],
)
def test_a_loop_is_found_wherever_it_begins(unit):
    start = "先看一眼，"
    assert flaws_of(start + unit, "zh") == ()
    for tail in range(len(unit)):
        assert flaws_of(start + unit * 6 + unit[:tail], "zh") == ("repeats",)


def test_what_an_earlier_clip_said_is_found_apart_from_its_marks():
    earlier = ["先看看大小。", "双十一抢先购，预售开启！"]
    assert flaws_of("双十一抢先购预售开启。", "zh", earlier) == ("said before",)
    assert flaws_of("双十一抢先购预售了。", "zh", earlier) == ()
    assert flaws_of("先看看大小。", "zh", earlier) == ()  # so short a line may come back
    told = ["Take it home, today.", "Take it home with you today!"]
    assert flaws_of("Take it home: today.", "en", told) == ()
    assert flaws_of("take it home with you, today", "en", told) == ("said before",)


@pytest.mark.parametrize(("name", "language"), [("annotations", "zh"), ("annotations_en", "en")])
def test_the_sample_narrations_have_no_flaws(name, language):
    videos = json.loads((ROOT / f"data/sample/{name}.json").read_text("utf-8"))
    stories = [[clip["new_text"] for clip in video["frames"]] for video in videos.values()]
    assert sum(map(len, stories)) > 50
    assert flawed(stories, language) == []


def test_real_narrations_have_no_flaws(real_samples, zh):
    stories = [[clip.text for clip in parse_inputs(sample["inputs"], zh).clips] for sample in real_samples]
    assert sum(map(len, stories)) > 2000
    # one of the 300 videos does say a line of 17 characters twice
    assert flawed(stories, "zh") == [("10月24号20点，双十一抢先购预售开启。", ("said before",))]


def flawed(stories, language):
    found = [
        (text, flaws_of(text, language, story[:place]))
        for story in stories
        for place, text in enumerate(story)
    ]
    return [(text, flaws) for text, flaws in found if flaws]
