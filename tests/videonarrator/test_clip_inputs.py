"""Training sample and generation prompt are one thing; ids and labels are the published code's."""

import json
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from videonarrator.clip_inputs import (
    IGNORED,
    TokenRules,
    cuts_hold,
    encode,
    encode_text,
    generation_inputs,
    slipped_labels,
    training_inputs,
)
from videonarrator.prompt import (
    ADDED_TOKENS,
    Segment,
    StoryClip,
    inputs_text,
    parse_inputs,
    prompt_segments,
    render,
    sample_segments,
)
from videonarrator.schema import NarratorError, Product

VISUAL = ("visual", "tokens")  # stands for a tensor: it is counted and passed through
STRIPPED = TokenRules(strip_around_added_tokens=True)
PUBLISHED = TokenRules(strip_around_added_tokens=True, published=True)


def first_target(labels):
    return next(index for index, label in enumerate(labels) if label != IGNORED)


def test_prompt_is_the_training_sample_up_to_its_target_for_all_real_videos(real_samples, zh, tokenizer):
    compared = 0
    for number, sample in enumerate(real_samples):
        story = parse_inputs(sample["inputs"], zh)
        assert cuts_hold(sample_segments(story, story.clips[-1].number, zh), tokenizer)
        for rank, clip in enumerate(story.clips):
            trained = sample_segments(story, clip.number, zh)
            prompt = prompt_segments(story.product, story.clips[:rank], clip, story.total, zh)
            # segments are tokenised one by one: equal segments are equal ids
            cut = next(index for index, segment in enumerate(trained) if segment.target)
            assert trained[:cut] == prompt
            assert render([s for s in trained if s.target]) == f"{clip.label}\n{clip.number}.{clip.text}\n"
            if (number + rank) % 5 == 0:
                ids, labels = encode(trained, tokenizer, 3)
                prompt_ids, prompt_labels = encode(prompt, tokenizer, 3)
                assert ids[: first_target(labels)] == prompt_ids
                assert set(prompt_labels) == {IGNORED}
                learnt = [label for label in labels if label != IGNORED]
                assert tokenizer.decode(learnt) == f"{clip.label}\n{clip.number}.{clip.text}\n"
                assert [i for i, label in zip(ids, labels, strict=True) if label != IGNORED] == learnt
                compared += 1
    assert compared > 300


def test_ids_and_labels_equal_the_published_samples(upstream, zh, tokenizer):
    """All of them, those that the published code trains without any picture, too."""
    template = replace(zh, instruction=(upstream / "instruction.txt").read_text("utf-8"))
    shots = json.loads((upstream / "train_shots.json").read_text("utf-8"))
    facts = json.loads((upstream / "train" / "samples.json").read_text("utf-8"))
    stored = load_file(upstream / "train" / "samples.safetensors")
    without_bos = load_file(upstream / "train" / "samples_nobos.safetensors")
    assert len(shots) == len(facts) and without_bos
    for index, (sample, fact) in enumerate(zip(shots, facts, strict=True)):
        visual = VISUAL * (fact["n_vid_patch"] // len(VISUAL))
        inputs = training_inputs(sample, visual, template, published=True)
        seen = "<vid_start>" in sample["inputs"]
        assert inputs.visual == visual and inputs.positions == (sample["shot_pos"],) * seen
        ids, labels = encode(inputs.segments, tokenizer, inputs.counts, PUBLISHED)
        assert ids == stored[f"{index}.input_ids"].tolist()
        assert labels == stored[f"{index}.labels"].tolist()
        if f"{index}.labels" in without_bos:
            ids, labels = encode(inputs.segments, tokenizer, inputs.counts, replace(PUBLISHED, bos=False))
            assert ids == without_bos[f"{index}.input_ids"].tolist()
            wanted = without_bos[f"{index}.labels"].tolist()
            assert slipped_labels(ids, labels, sample["shot_loc"]) == wanted != labels
        if not seen:  # the published code's mistake: a left-out clip costs the whole video its picture
            with pytest.raises(NarratorError, match=rf"{sample['id']}, clip \d: .*stands in clips \[\]"):
                training_inputs(sample, VISUAL, template)


def test_prompt_ids_equal_the_published_prompts(upstream, zh, tokenizer):
    """The prompts of the published inference, for videos without left-out clips, as their history grew."""
    template = replace(zh, instruction=(upstream / "instruction.txt").read_text("utf-8"))
    prompts = load_file(upstream / "infer" / "prompts.safetensors")
    tokens = json.loads((upstream / "infer" / "train_output_tokens.json").read_text("utf-8"))
    written = json.loads((upstream / "infer" / "train_output.json").read_text("utf-8"))
    compared = 0
    for sample in json.loads((upstream / "train.json").read_text("utf-8")):
        story = parse_inputs(sample["inputs"], template)
        if f"train.output.{sample['id']}_0.label" not in prompts:
            continue
        history = []
        for rank, clip in enumerate(story.clips):
            key = f"{sample['id']}_{rank}"
            stored = prompts[f"train.output.{key}.label"].tolist()
            patches = stored.count(tokenizer.convert_tokens_to_ids("<vid_patch>"))
            inputs = generation_inputs(story.product, history, clip, story.total, VISUAL, 0, template)
            ids, _ = encode(inputs.segments, tokenizer, patches, STRIPPED)
            assert ids == stored
            out = written[key]
            history.append(StoryClip(clip.number, out["out_label"], out["0.1"], clip.low, clip.high))
            compared += 1
    assert compared == len(tokens) > 0


def test_texts_that_look_like_tokens_stay_texts(zh, tokenizer):
    text = "看<vid_patch>这<vid_start></s>里<s>。"
    clip = StoryClip(1, "产品推荐", text, 1, 9)
    product = Product("杯<vid_end>子", "外观：<unk>白")
    inputs = generation_inputs(product, [clip], replace(clip, number=2), 2, VISUAL, 5, zh)
    ids, _ = encode(inputs.segments, tokenizer, 4)
    added = [tokenizer.convert_tokens_to_ids(token) for token in ADDED_TOKENS]
    assert [ids.count(index) for index in added] == [4, 1, 1]
    assert ids.count(tokenizer.bos_token_id) == 1 and tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids[1:]) == render(inputs.segments, 4)


def test_a_tokenizer_that_would_take_text_for_a_token_is_refused(upstream):
    from transformers import LlamaTokenizer

    tokenizer = LlamaTokenizer.from_pretrained(
        upstream / "base", add_prefix_space=False, local_files_only=True
    )
    segments = [Segment("看<vid_patch>"), Segment("", visual=True)]
    with pytest.raises(ValueError, match="does not know <vid_patch>"):
        encode(segments, tokenizer, 1)
    tokenizer.add_tokens(list(ADDED_TOKENS))
    with pytest.raises(ValueError, match="special_tokens=True"):
        encode(segments, tokenizer, 1)


def test_white_space_is_stripped_only_next_to_the_slot_and_only_on_request(tokenizer):
    segments = [
        Segment("甲 \n"),
        Segment(" 场景： \n"),
        Segment("", visual=True),
        Segment("\n 字数\n"),
        Segment("\n"),
    ]
    kept, _ = encode(segments, tokenizer, 1, TokenRules(bos=False))
    assert tokenizer.decode(kept) == "甲 \n 场景： \n<vid_start><vid_patch><vid_end>\n 字数\n\n"
    stripped, _ = encode(segments, tokenizer, 1, TokenRules(False, strip_around_added_tokens=True))
    assert tokenizer.decode(stripped) == "甲 \n 场景：<vid_start><vid_patch><vid_end>字数\n\n"


def test_bos_and_empty_slots(tokenizer):
    ids, labels = encode([Segment("好\n", target=True)], tokenizer, 0)
    assert ids[0] == tokenizer.bos_token_id and labels == [IGNORED, *ids[1:]]
    assert encode([Segment("好\n", target=True)], tokenizer, 0, TokenRules(bos=False)) == (ids[1:], ids[1:])
    with pytest.raises(ValueError, match="need visual tokens"):
        encode([Segment("", visual=True)], tokenizer, 0)


def test_cuts_that_do_not_hold_are_seen(tokenizer):
    joined = encode_text("产品推荐", tokenizer)
    assert joined != [
        i for c in "产品推荐" for i in encode_text(c, tokenizer)
    ]  # else this test shows nothing
    assert not cuts_hold([Segment(c) for c in "产品推荐"], tokenizer)
    assert cuts_hold([Segment("产品推荐\n"), Segment("", visual=True), Segment("1.")], tokenizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shot_loc": 9}, r"video v, clip 9: clip 9 is not in the story: it has \[1, 2\]"),
        ({"shot_loc": 1}, "video v, clip 1: the slot .* is not"),
        ({"shot_pos": 100}, "video v, clip 2: shot_pos is 100, expected 0 to 99"),
        ({"shot_pos": None}, "shot_pos is None"),
        ({"inputs": "once upon a time"}, "video v, clip 2: sample text does not begin like"),
    ],
)
def test_samples_of_another_form_are_named(change, message, zh):
    clips = [StoryClip(1, "产品推荐", "看。", 1, 5), StoryClip(2, "产品功效", "好。", 1, 5)]
    story = replace(parse_inputs(EMPTY_STORY, zh), total=2, clips=tuple(clips))
    sample = {"id": "v", "shot_loc": 2, "shot_pos": 99, "inputs": inputs_text(story, zh, 2)}
    assert training_inputs(sample, VISUAL, zh).positions == (99,)
    short = training_inputs(sample | {"shot_loc": 2}, VISUAL, zh, later=False).segments
    assert short == training_inputs(sample, VISUAL, zh).segments  # the last clip has no later ones
    with pytest.raises(NarratorError, match=message):
        training_inputs(sample | change, VISUAL, zh)


def test_a_whole_video_sample_is_told_apart(zh):
    with pytest.raises(
        NarratorError, match=r"video v: no shot_loc, shot_pos; it has id, inputs.*train_shots"
    ):
        training_inputs({"id": "v", "inputs": EMPTY_STORY}, VISUAL, zh)


EMPTY_STORY = (
    "商品信息：\n名称：杯子\n外观：白\n\n广告视频：\n"
    "镜头1/1：\n场景：<vid_start><vid_end>\n字数要求：1-5个字\n剧本类型：产品推荐\n1.看。"
)
