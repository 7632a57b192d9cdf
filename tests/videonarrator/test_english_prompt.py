"""The English prompts: exact wording, what is written is read back, words keep their tokens."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import save_tiny_tokenizer

from videonarrator.clip_inputs import cuts_hold, encode, training_inputs
from videonarrator.config import load_config, load_template
from videonarrator.length import count_units, range_for_duration, range_for_reference
from videonarrator.prompt import (
    ADDED_TOKENS,
    Story,
    StoryClip,
    inputs_text,
    parse_inputs,
    prompt_segments,
    render,
    sample_segments,
)
from videonarrator.schema import NarratorError, Product
from videonarrator.settings import TrainConfig

CLIPS = (
    StoryClip(1, "", "We walk along the beach.", 1, 10),
    StoryClip(3, "", "The sun sets, 3: at last!", 1, 11),
    StoryClip(4, "", "We go home.", 1, 8),
)
STORY = Story(Product("Pine umbrella", "Material：carbon fibre ribs\nQuality：it folds very small"), 5, CLIPS)

SHOTS = """Video shot 1:
word count requirement: 1-10 words
Narrative 1: We walk along the beach.
Video shot 3:
visual scene: <vid_start><vid_patch><vid_patch><vid_end>
word count requirement: 1-11 words
Narrative 3: The sun sets, 3: at last!
Video shot 4:
word count requirement: 1-8 words
Narrative 4: We go home.
"""

PRODUCT = """Product information:
Name: Pine umbrella
Material：carbon fibre ribs
Quality：it folds very small

Product video:
"""

INSTRUCTIONS = {
    "en": "You are writing the story of a video, shot by shot. The shots are given in order; each comes with "
    "what can be seen and the number of words wanted. Write the narrative of the current shot: it should "
    "tell what is seen, carry on the story so far, and keep to the word count.\n\n",
    "en_product": "You are writing the voice-over of a product video, shot by shot. First come the facts "
    "about the product, then the shots in order; each comes with what can be seen and the number of words "
    "wanted. Write the narrative of the current shot: it should fit what is seen, carry on the story so far, "
    "use the facts that suit it, and keep to the word count.\n\n",
}
WHOLE = {"en": INSTRUCTIONS["en"] + SHOTS, "en_product": INSTRUCTIONS["en_product"] + PRODUCT + SHOTS}
NAMES = sorted(WHOLE)


@pytest.fixture(scope="module", params=NAMES)
def english(request):
    return load_template(request.param)


def known_to(template, story):
    """The story as the template tells it: without product, and with the total that can be seen."""
    product = story.product if template.product else Product("")
    return replace(story, product=product, total=max(clip.number for clip in story.clips))


@pytest.mark.parametrize("name", NAMES)
def test_wording(name):
    template = load_template(name)
    segments = sample_segments(STORY, 3, template)
    assert render(segments, 2).encode() == WHOLE[name].encode()
    assert render([s for s in segments if s.target]) == "Narrative 3: The sun sets, 3: at last!\n"
    assert render(sample_segments(STORY, 3, template, later=False), 2) == WHOLE[name].split("Video shot 4")[0]


def test_prompt_ends_before_the_blank(english):
    """The narration's first word is written with the blank before it, as in running text."""
    prompt = prompt_segments(STORY.product, CLIPS[:1], CLIPS[1], 5, english)
    asked = render(prompt, 2)
    assert asked.endswith("word count requirement: 1-11 words\n")
    assert render(sample_segments(STORY, 3, english), 2).startswith(asked + "Narrative 3: The sun")
    texts = [segment.text for segment in sample_segments(STORY, 3, english) if segment.target]
    assert texts == ["Narrative 3:", " The sun sets, 3: at last!\n"]
    assert english.narration.format(i=3) == texts[0]  # what generation puts behind the prompt


def test_read_back(english):
    for visual in (None, 1, 3, 4):
        text = inputs_text(STORY, english, visual)
        story = parse_inputs(text, english)
        assert story == known_to(english, STORY)
        assert inputs_text(story, english, visual) == text
    assert parse_inputs(inputs_text(STORY, english), english).total == 4  # of 5: the last one is not told of


LINE = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=20)


@given(
    st.lists(st.tuples(LINE, st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=4),
    st.lists(st.integers(1, 40), min_size=4, max_size=4, unique=True),
    LINE,
    st.lists(LINE.filter(bool), max_size=3),
    st.integers(0, 4),
)
def test_any_story_is_read_back(english, clips, numbers, name, info, visual):
    told = tuple(StoryClip(n, "", *clip) for n, clip in zip(sorted(numbers), clips, strict=False))
    story = Story(Product(name, "\n".join(info)), 40, told)
    slot = told[visual - 1].number if 1 <= visual <= len(told) else None
    assert parse_inputs(inputs_text(story, english, slot), english) == known_to(english, story)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Video shot 3", "Video clip 3", "breaks the template at character"),
        ("1-11 words", "1-11 word", "breaks the template at character"),
        ("Narrative 3: The", "Narrative 4: The", "breaks the template at character"),
        ("Narrative 3: The", "Narrative 3:The", "breaks the template at character"),
        ("go home", "go\nhome", "breaks the template at character"),
        ("Video shot 3", "Video shot 03", "breaks the template at character|not be given back"),
        ("visual scene: <vid_start><vid_end>\nword count requirement: 1-8", "word count requirement: 1-8",
         r"stands in clips \[1, 3\] of \[1, 3, 4\]"),
    ],
)  # fmt: skip
def test_other_texts_are_refused(english, old, new, message):
    text = inputs_text(STORY, english)
    assert old in text
    with pytest.raises(NarratorError, match=message):
        parse_inputs(text.replace(old, new), english)


def test_a_text_without_clips_is_refused(english):
    with pytest.raises(NarratorError, match=r"tells of no clip|does not begin like"):
        parse_inputs(PRODUCT if english.product else "", english)


def test_words_keep_their_tokens(english, tmp_path_factory):
    """Cut where the template's blank is, ids are those of the whole text; cut behind it they are not."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = save_tiny_tokenizer(folder, [f" {clip.text}" for clip in CLIPS] * 20)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens(list(ADDED_TOKENS), special_tokens=True)
    segments = sample_segments(STORY, 3, english)
    assert cuts_hold(segments, tokenizer)
    behind = replace(english, language="zh", narration=english.narration + " ")
    others = sample_segments(STORY, 3, behind)
    assert render(others, 2) == render(segments, 2) and not cuts_hold(others, tokenizer)
    ids, labels = encode(segments, tokenizer, 2)
    assert tokenizer.decode([i for i in labels if i != -100]) == "Narrative 3: The sun sets, 3: at last!\n"
    sample = {"id": "v", "shot_loc": 3, "shot_pos": 50, "inputs": inputs_text(STORY, english, 3)}
    inputs = training_inputs(sample, torch.zeros(2, 4), english)
    assert encode(inputs.segments, tokenizer, 2) == (ids, labels)


def test_lengths_are_in_words():
    assert count_units("We  walk\talong the beach.", "en") == 5
    assert range_for_reference("We walk along the beach, hand in hand.", "en") == (3, 13)
    assert range_for_reference("We go.", "en") == (1, 7)
    low, high = range_for_duration(10, 2.5, "en")
    assert (low, high) == (15, 25) and range_for_duration(2, 2.5, "en") == (1, 5)


def test_training_settings_are_those_of_the_chinese_ones():
    english, chinese = load_config(TrainConfig, "train_en"), load_config(TrainConfig, "train_zh")
    assert english.model.template == "en" and "llama" in english.model.backbone
    model = replace(english.model, template=chinese.model.template, backbone=chinese.model.backbone)
    assert model == chinese.model and english.optimization == chinese.optimization
