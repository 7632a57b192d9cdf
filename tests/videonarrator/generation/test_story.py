"""A video's lines: their prompts are the training samples, and what was written is told of later."""

import re
from dataclasses import replace

import pytest
import torch
from scripted import ASKED, encode_all, play
from tiny_narrator import WIDTH, clip_samples, clip_tokens

from data_process.prepare import video_story
from videonarrator.checkpoint import load_checkpoint
from videonarrator.clip_inputs import IGNORED, encode, generation_inputs, training_inputs
from videonarrator.generation.engine import narrate_video
from videonarrator.generation.jobs import ClipTask
from videonarrator.generation.prompts import common_length, stop_ids
from videonarrator.prompt import Segment
from videonarrator.schema import NarratorError, Product
from videonarrator.settings import DecodingSettings


@pytest.fixture(scope="session")
def checkpoint(lora_run):
    return load_checkpoint(lora_run[0] / "checkpoint")


def tasks_of(video, zh, number=None, label=None):
    story = video_story(video, range(len(video.clips)), zh)
    shots = clip_samples(video, zh)
    return [
        ClipTask(index, clip.low, clip.high, clip_tokens(video.id, index), shot["shot_pos"], label)
        for index, (clip, shot) in enumerate(zip(story.clips, shots, strict=True))
    ][:number]


# -------------------- prompts


def test_prompts_are_the_training_samples_up_to_their_targets(sample_videos, zh, checkpoint):
    """Token for token, for every clip of every sample video; the labels are exactly what is to be written."""
    tokenizer, clips = checkpoint.tokenizer, 0
    for video in sample_videos.values():
        story = video_story(video, range(len(video.clips)), zh)
        for index, shot in enumerate(clip_samples(video, zh)):
            visual, clip = clip_tokens(video.id, index), story.clips[index]
            sample = training_inputs(shot, visual, zh)
            ids, labels = encode(sample.segments, tokenizer, len(visual))
            start = next(place for place, label in enumerate(labels) if label != IGNORED)
            empty = replace(clip, label="", text="")  # what is to be written is not looked at
            prompt = generation_inputs(
                video.product, story.clips[:index], empty, story.total, visual, sample.positions[0], zh
            )
            assert encode(prompt.segments, tokenizer, len(visual))[0] == ids[:start]
            learnt = [label for label in labels if label != IGNORED]
            assert tokenizer.decode(learnt) == f"{clip.label}\n{clip.number}.{clip.text}\n"
            assert ids[start : start + len(learnt)] == learnt
            clips += 1
    assert len(sample_videos) >= 60 and clips > 200


def test_narrating_asks_with_the_training_samples_ids(sample_videos, zh, checkpoint):
    """Where it writes what the annotation says, its prompts are the samples it was trained on."""
    tokenizer = checkpoint.tokenizer
    newline = stop_ids(tokenizer)[0]
    for video in list(sample_videos.values())[:12]:
        texts = [text for clip in video.clips for text in (clip.label, clip.text)]
        results, asked = play(checkpoint, video.product, tasks_of(video, zh), len(video.clips), texts)
        assert [text for result in results for text in (result.label, result.text)] == texts
        for index, shot in enumerate(clip_samples(video, zh)):
            label, narration = asked[2 * index : 2 * index + 2]
            visual = clip_tokens(video.id, index)
            ids, labels = encode(training_inputs(shot, visual, zh).segments, tokenizer, len(visual))
            start = next(place for place, label in enumerate(labels) if label != IGNORED)
            assert label.prompt.ids == ids[:start]
            length = len(encode_all(video.clips[index].text, tokenizer))
            end = next(p for p, label in enumerate([*labels[start:], IGNORED]) if label == IGNORED) + start
            assert ids[end - 1] == newline
            assert narration.prompt.ids == ids[: end - 1 - length]
            for line in (label, narration):
                prompt = line.prompt
                assert prompt.visual.equal(visual) and set(prompt.positions) == {shot["shot_pos"]}
            assert (label.penalty, narration.penalty) == (1.0, 1.1)


def test_what_was_written_enters_later_prompts_as_text(sample_videos, zh, checkpoint):
    video = sample_videos["sample01"]
    texts = [" 产品推荐 ", " 看这里<s>。 ", "产品功效", "好。"]
    results, asked = play(checkpoint, video.product, tasks_of(video, zh, 2), len(video.clips), texts)
    assert [result.label for result in results] == ["产品推荐", "产品功效"]
    assert [result.text for result in results] == ["看这里<s>。", "好。"]
    assert results[0].raw == " 看这里<s>。 "
    told = checkpoint.tokenizer.decode(asked[2].prompt.ids)
    assert "剧本类型：产品推荐\n1.看这里<s>。\n镜头2/" in told
    assert told.count("<vid_start>") == 1 and video.clips[0].text not in told
    assert checkpoint.tokenizer.decode(asked[3].prompt.ids).endswith("剧本类型：产品功效\n2.")
    assert asked[2].prompt.ids.count(checkpoint.tokenizer.bos_token_id) == 1


def test_token_rules_are_the_checkpoint_s(sample_videos, zh, checkpoint):
    video = sample_videos["sample01"]
    asked = []
    for changes in ({}, {"bos": False}, {"strip_around_added_tokens": True}):
        changed = replace(checkpoint, info=replace(checkpoint.info, **changes))
        _, lines = play(changed, video.product, tasks_of(video, zh, 1), 6, ["产品推荐", "好。"])
        asked.append(lines[0].prompt.ids)
    plain, without, stripped = asked
    assert plain[0] == checkpoint.tokenizer.bos_token_id and without == plain[1:]
    end = plain.index(checkpoint.tokenizer.convert_tokens_to_ids("<vid_end>"))
    assert plain[end + 1] == stop_ids(checkpoint.tokenizer)[0] and stripped == [
        *plain[: end + 1],
        *plain[end + 2 :],
    ]


def test_keys_tell_where_two_prompts_part(sample_videos, zh, checkpoint):
    """Two clips' visual tokens have different keys; one clip's label and narration share their prompt."""
    video = sample_videos["sample01"]
    texts = ["产品推荐", "好。", "产品功效", "行。"]
    _, asked = play(checkpoint, video.product, tasks_of(video, zh, 2), len(video.clips), texts)
    first, told, second, _ = (line.prompt for line in asked)
    assert common_length(first.keys, told.keys) == len(first.keys) < len(told.keys)
    opening = encode([Segment(zh.instruction)], checkpoint.tokenizer, 0)[0]
    shared = common_length(told.keys, second.keys)
    assert len(opening) < shared < first.ids.index(checkpoint.narrator.patch_id)
    patches = [[key for key in prompt.keys if key < 0] for prompt in (first, second)]
    assert [len(keys) for keys in patches] == [len(clip_tokens(video.id, index)) for index in (0, 1)]
    assert not set(patches[0]) & set(patches[1]) and len(set(patches[0])) == len(patches[0])


def test_stops_are_the_line_break_and_the_end(checkpoint):
    newline, end, as_byte = stop_ids(checkpoint.tokenizer)
    assert checkpoint.tokenizer.decode([newline]) == "\n" and end == checkpoint.tokenizer.eos_token_id
    assert checkpoint.tokenizer.convert_ids_to_tokens(as_byte) == "<0x0A>"

    class Other:
        eos_token_id = 2
        unk_token_id = 0

        def __len__(self):
            return 9

        def encode(self, text, **rules):
            return [7, 8]

    with pytest.raises(NarratorError, match="no piece of its own for the line break"):
        stop_ids(Other())


# -------------------- settings


def words(results):
    return [(result.label, result.text) for result in results]


def test_sampling_depends_on_the_seed_alone(checkpoint, sample_videos, zh):
    video = sample_videos["sample01"]
    sampled = DecodingSettings(greedy=False, temperature=1.0, max_new_tokens=8, seed=5)
    tasks = tasks_of(video, zh, 2)
    first = narrate_video(checkpoint, video.product, tasks, 6, sampled)
    torch.manual_seed(99)
    assert narrate_video(checkpoint, video.product, tasks, 6, sampled) == first
    assert narrate_video(checkpoint, video.product, tasks, 6, replace(sampled, seed=0), seed=5) == first
    other = narrate_video(checkpoint, video.product, tasks, 6, replace(sampled, seed=6))
    assert words(other) != words(first)
    assert {result.seed for result in first} == {5} and {result.seed for result in other} == {6}
    greedy = [DecodingSettings(max_new_tokens=8, seed=seed) for seed in (1, 2)]
    lines = [words(narrate_video(checkpoint, video.product, tasks, 6, settings)) for settings in greedy]
    assert lines[0] == lines[1]


def test_at_most_so_many_clips_in_a_prompt(checkpoint, sample_videos, zh):
    """A longer video goes on with a quarter of them; as published, its other clips are left out."""
    video = sample_videos["sample01"]
    tasks = [replace(task, index=index) for index, task in enumerate([*tasks_of(video, zh)] * 5)][:27]
    texts = ["产品推荐", "好。"] * 30
    results, _ = play(checkpoint, video.product, tasks, 27, texts)
    assert len(results) == 20
    assert len(play(checkpoint, video.product, tasks, 27, texts, replace(ASKED, max_clips=3))[0]) == 3
    windows = replace(ASKED, windows=True, max_clips=8)
    results, asked = play(checkpoint, video.product, tasks, 27, texts, windows)
    assert [result.index for result in results] == list(range(27))
    told = [
        re.findall("镜头([0-9]+)/27：", checkpoint.tokenizer.decode(line.prompt.ids)) for line in asked[1::2]
    ]
    assert [len(clips) for clips in told[:9]] == [*range(1, 9), 3]
    assert told[8] == ["7", "8", "9"] and told[14] == ["13", "14", "15"] and told[-1][-1] == "27"
    assert max(map(len, told)) == 8


def test_an_offered_label_is_taken_as_it_is(checkpoint, sample_videos, zh):
    video = sample_videos["sample01"]
    tasks = tasks_of(video, zh, 2, label="产品试用+产品功效")
    results, asked = play(checkpoint, video.product, tasks, 6, ["好。", "行。"])
    assert words(results) == [("产品试用+产品功效", "好。"), ("产品试用+产品功效", "行。")]
    told = checkpoint.tokenizer.decode(asked[1].prompt.ids)
    assert told.count("剧本类型：产品试用+产品功效\n") == 2 and told.endswith("产品功效\n2.")


LOOP = "好" * 7 + "。"


@pytest.mark.parametrize(
    ("texts", "chosen", "attempt", "flaws"),
    [
        (["一二三四五六。"], "一二三四五六。", 0, ()),
        (["一二三四，"], "一二三四。", 0, ()),  # ended in range, but not with a mark
        (["", LOOP, "一二三四五。"], "一二三四五。", 2, ()),
        ([LOOP, "", "。。。。。"], LOOP, 0, ("repeats",)),  # anything rather than nothing
        (["", " ", "！"], "！", 2, ("empty", "length")),
    ],
)
def test_flawed_narrations_are_written_again(
    checkpoint, sample_videos, texts, chosen, attempt, flaws, caplog
):
    video = sample_videos["sample01"]
    task = ClipTask(0, 5, 8, clip_tokens(video.id, 0), 0, "产品推荐")
    settings = DecodingSettings(attempts=3, retry_temperature=0.6)
    (result,), asked = play(checkpoint, video.product, [task], 1, texts, settings)
    assert (result.text, result.attempt, result.flaws) == (chosen, attempt, flaws)
    assert len(asked) == len(texts)
    assert [line.temperature for line in asked] == [0.0, 0.6, 0.6][: len(texts)]
    assert len({line.generator.initial_seed() for line in asked}) == len(texts)
    assert [", ".join(flaws) in record.getMessage() for record in caplog.records] == [True] * bool(flaws)


def test_an_empty_narration_does_not_stop_the_story(checkpoint, sample_videos, zh):
    video = sample_videos["sample01"]
    texts = ["", "", "产品功效", "好。"]
    results, asked = play(checkpoint, video.product, tasks_of(video, zh, 2), 6, texts)
    assert words(results) == [("", ""), ("产品功效", "好。")] and results[0].flaws == ("empty",)
    assert "剧本类型：\n1.\n镜头2/" in checkpoint.tokenizer.decode(asked[2].prompt.ids)


def test_the_best_of_several_candidates(checkpoint, sample_videos):
    video = sample_videos["sample01"]
    task = ClipTask(0, 5, 8, clip_tokens(video.id, 0), 0, "产品推荐")
    settings = DecodingSettings(length="best_of", candidates=3, attempts=5)
    texts = ["", "一二三四五。", LOOP, "一二三四六。", "一二三四七。"]
    (result,), asked = play(checkpoint, video.product, [task], 1, texts, settings)
    assert len(asked) == 5  # until three are without a flaw
    assert result.text == "一二三四五。" and result.attempt == 1  # all are equally likely: the first
    short = replace(task, high=9, seconds=1.5)
    texts = ["只要19998元。", "只要一九九元。", "只要19997元。"]  # what takes longest to say, first
    for one, chosen in ((short, texts[1]), (replace(short, seconds=None), texts[0])):
        (result,), _ = play(checkpoint, video.product, [one], 1, texts, settings)
        assert result.text == chosen
    (result,), _ = play(checkpoint, video.product, [short], 1, texts, replace(settings, length="constrained"))
    assert result.text == texts[0]


def test_a_template_without_storyline(checkpoint, sample_videos, zh_nolabel):
    video = sample_videos["sample01"]
    plain = replace(checkpoint, template=zh_nolabel)
    tasks = tasks_of(video, zh_nolabel, 2)
    results = narrate_video(plain, video.product, tasks, 6, replace(ASKED, max_new_tokens=6))
    assert [result.label for result in results] == ["", ""]
    results, asked = play(plain, video.product, tasks, 6, ["好。", "行。"])
    assert words(results) == [("", "好。"), ("", "行。")]
    told = checkpoint.tokenizer.decode(asked[1].prompt.ids)
    assert "剧本类型" not in told and told.endswith("个字\n2.") and "个字\n1.好。\n镜头2/" in told
    shot = clip_samples(video, zh_nolabel)[0]
    segments = training_inputs(shot, tasks[0].visual, zh_nolabel).segments
    _, labels = encode(segments, checkpoint.tokenizer, 1)
    assert checkpoint.tokenizer.decode([i for i in labels if i != IGNORED]) == f"1.{video.clips[0].text}\n"


def test_a_prompt_that_is_too_long_loses_its_oldest_clips(checkpoint, sample_videos, zh, caplog):
    """Whole clips, oldest first, no more than needed; the log says which."""
    video = sample_videos["sample01"]
    tasks = [replace(task, index=index) for index, task in enumerate([*tasks_of(video, zh)] * 9)][:40]
    texts = ["产品推荐", "这一句说得很长很长。" * 4] * 40
    settings = replace(ASKED, windows=True, max_clips=40)
    _, asked = play(checkpoint, video.product, tasks, 40, texts, settings)
    told = []
    for line in asked[1::2]:
        text = checkpoint.tokenizer.decode(line.prompt.ids)
        clips = [int(number) for number in re.findall("镜头([0-9]+)/40：", text)]
        assert clips == list(range(clips[0], clips[-1] + 1)) and text.startswith("<s>" + zh.instruction)
        assert len(line.prompt.ids) + 100 <= 2048
        told.append(clips)
    dropped = [first for first, *_ in told]
    assert dropped[0] == 1 and dropped == sorted(dropped) and dropped[-1] > 3
    says = [record.getMessage() for record in caplog.records if "too long" in record.getMessage()]
    assert len(says) == dropped[-1] - 1 and "clip 1 is told of no more" in says[0]
    room = [len(line.prompt.ids) for line in asked[1::2] if line.prompt.ids]
    assert max(room) > 2048 - 100 - 2 * (room[1] - room[0])


def test_faulty_clips_and_long_prompts_are_named(checkpoint, sample_videos, zh):
    video = sample_videos["sample01"]
    first, second = tasks_of(video, zh, 2)
    settings = DecodingSettings(max_new_tokens=2)
    for visual, message in (
        (second.visual * torch.nan, "clip 2: its visual tokens hold values that are no numbers"),
        (second.visual[:, :8], rf"clip 2: its visual tokens have shape .*expected \[tokens, {WIDTH}\]"),
        (second.visual[:0], r"clip 2: its visual tokens have shape \[0, 16\]"),
    ):
        with pytest.raises(NarratorError, match=message):
            narrate_video(checkpoint, video.product, [first, replace(second, visual=visual)], 6, settings)
    long = Product(video.product.name, video.product.info * 40)
    with pytest.raises(NarratorError, match=r"clip 1: the prompt has \d+ tokens, the model takes 2048"):
        narrate_video(checkpoint, long, [first], 6, settings)
