"""Narration: its prompts are the training samples, its decoding is the plain procedure."""

from dataclasses import replace

import pytest
import torch
from tiny_narrator import WIDTH, clip_samples, clip_tokens
from transformers import RepetitionPenaltyLogitsProcessor

import videonarrator.generation as generation
from data_process.prepare import video_story
from videonarrator.checkpoint import load_checkpoint
from videonarrator.clip_inputs import IGNORED, encode, generation_inputs, training_inputs
from videonarrator.decoding import choose, penalised, write_line
from videonarrator.generation import ClipTask, clause_ends, narrate_video, stop_ids
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


class Scripted:
    """Stands in for `write_line`: gives prepared texts, and keeps what it was asked."""

    def __init__(self, monkeypatch, tokenizer, texts):
        self.texts, self.tokenizer, self.asked = iter(texts), tokenizer, []
        monkeypatch.setattr(generation, "write_line", self)

    def __call__(self, narrator, ids, visual, position, stops, **settings):
        del narrator, stops
        self.asked.append({"ids": list(ids), "visual": visual, "positions": position, **settings})
        return self.tokenizer.encode(next(self.texts), add_special_tokens=False, split_special_tokens=True)


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


def test_narrating_asks_with_the_training_samples_ids(sample_videos, zh, checkpoint, monkeypatch):
    """Where it writes what the annotation says, its prompts are the samples it was trained on."""
    tokenizer = checkpoint.tokenizer
    newline = stop_ids(tokenizer)[0]
    for video in list(sample_videos.values())[:12]:
        texts = [text for clip in video.clips for text in (clip.label, clip.text)]
        scripted = Scripted(monkeypatch, tokenizer, texts)
        results = narrate_video(
            checkpoint, video.product, tasks_of(video, zh), len(video.clips), DecodingSettings()
        )
        assert [text for result in results for text in (result.label, result.text)] == texts
        for index, shot in enumerate(clip_samples(video, zh)):
            asked = scripted.asked[2 * index : 2 * index + 2]
            visual = clip_tokens(video.id, index)
            ids, labels = encode(training_inputs(shot, visual, zh).segments, tokenizer, len(visual))
            start = next(place for place, label in enumerate(labels) if label != IGNORED)
            assert asked[0]["ids"] == ids[:start]
            narration = len(encode_all(video.clips[index].text, tokenizer))
            end = next(p for p, label in enumerate([*labels[start:], IGNORED]) if label == IGNORED) + start
            assert ids[end - 1] == newline
            assert asked[1]["ids"] == ids[: end - 1 - narration]
            for one in asked:
                assert one["visual"].equal(visual) and set(one["positions"]) == {shot["shot_pos"]}
            assert (asked[0]["penalty"], asked[1]["penalty"]) == (1.0, 1.1)


def encode_all(text, tokenizer):
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def test_what_was_written_enters_later_prompts_as_text(sample_videos, zh, checkpoint, monkeypatch):
    video = sample_videos["sample01"]
    texts = [" 产品推荐 ", " 看这里<s>。 ", "产品功效\n第二行", "好。"]
    scripted = Scripted(monkeypatch, checkpoint.tokenizer, texts)
    results = narrate_video(
        checkpoint, video.product, tasks_of(video, zh, 2), len(video.clips), DecodingSettings()
    )
    assert [result.label for result in results] == ["产品推荐", "产品功效"]  # a label is its first line
    assert [result.text for result in results] == ["看这里<s>。", "好。"]
    assert results[0].raw == " 看这里<s>。 "
    told = checkpoint.tokenizer.decode(scripted.asked[2]["ids"])
    assert "剧本类型：产品推荐\n1.看这里<s>。\n镜头2/" in told
    assert told.count("<vid_start>") == 1 and video.clips[0].text not in told
    assert checkpoint.tokenizer.decode(scripted.asked[3]["ids"]).endswith("剧本类型：产品功效\n2.")
    assert scripted.asked[2]["ids"].count(checkpoint.tokenizer.bos_token_id) == 1


def test_token_rules_are_the_checkpoint_s(sample_videos, zh, checkpoint, monkeypatch):
    video = sample_videos["sample01"]
    asked = []
    for changes in ({}, {"bos": False}, {"strip_around_added_tokens": True}):
        info = replace(checkpoint.info, **changes)
        scripted = Scripted(monkeypatch, checkpoint.tokenizer, ["产品推荐", "好。"])
        narrate_video(
            replace(checkpoint, info=info), video.product, tasks_of(video, zh, 1), 6, DecodingSettings()
        )
        asked.append(scripted.asked[0]["ids"])
    plain, without, stripped = asked
    assert plain[0] == checkpoint.tokenizer.bos_token_id and without == plain[1:]
    end = plain.index(checkpoint.tokenizer.convert_tokens_to_ids("<vid_end>"))
    assert plain[end + 1] == stop_ids(checkpoint.tokenizer)[0] and stripped == [
        *plain[: end + 1],
        *plain[end + 2 :],
    ]


# -------------------- decoding


@torch.no_grad()
def plain_line(narrator, ids, visual, position, stops, penalty, number):
    """The procedure word for word: the whole sequence through the model for each token, and no cache."""
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    model, projector = narrator.base, narrator.projector
    sequence, margins = list(ids), []
    while len(sequence) < len(ids) + number:
        embeddings = model.get_input_embeddings()(torch.tensor(sequence)).clone()
        place = projector.linear(projector.position.weight[position])
        slots = [slot for slot, index in enumerate(ids) if index == narrator.patch_id]
        for slot, vector in zip(slots, visual, strict=True):
            embeddings[slot] = projector.linear(vector) + place
        scores = model(inputs_embeds=embeddings[None]).logits[:, -1].float()
        scores = processor(torch.tensor([sequence]), scores)[0]
        best = scores.topk(2).values
        margins.append((best[0] - best[1]).item())
        if int(scores.argmax()) in stops:
            break
        sequence.append(int(scores.argmax()))
    return sequence[len(ids) :], min(margins)


@pytest.fixture(scope="session")
def restless(backbone):
    """A narrator with large random weights: it repeats itself, and its choices are clear."""
    from videonarrator.modeling.backbones import add_tokens, load_backbone, load_tokenizer
    from videonarrator.modeling.narrator import Narrator
    from videonarrator.modeling.projector import VisualProjector
    from videonarrator.prompt import ADDED_TOKENS

    torch.manual_seed(8)
    model, tokenizer = load_backbone(str(backbone)), load_tokenizer(str(backbone))
    add_tokens(model, tokenizer, ADDED_TOKENS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    patch = tokenizer.convert_tokens_to_ids("<vid_patch>")
    return Narrator(model, VisualProjector(WIDTH, 32), patch).eval(), tokenizer


def test_greedy_decoding_with_cache_is_the_plain_procedure(restless, sample_videos, zh):
    narrator, tokenizer = restless
    differ, stopped = 0, 0
    for video in list(sample_videos.values())[:3]:
        shots = clip_samples(video, zh)
        visual, position = clip_tokens(video.id, 1), shots[1]["shot_pos"]
        ids, labels = encode(training_inputs(shots[1], visual, zh).segments, tokenizer, len(visual))
        ids = ids[: next(place for place, label in enumerate(labels) if label != IGNORED)]
        lines = []
        for penalty in (1.0, 1.1, 2.0):
            asked = {"temperature": 0.0, "penalty": penalty, "max_new_tokens": 20}
            expected, margin = plain_line(narrator, ids, visual, position, [], penalty, 20)
            assert margin > 1e-4  # else rounding could decide
            assert write_line(narrator, ids, visual, [position] * len(visual), [], **asked) == expected
            assert len(expected) == 20
            lines.append(expected)
            stop = expected[7]
            short = write_line(narrator, ids, visual, [position] * len(visual), [stop], **asked)
            assert short == expected[: expected.index(stop)]
            assert short == plain_line(narrator, ids, visual, position, [stop], penalty, 20)[0]
            stopped += len(short) < 8
        differ += (lines[0] != lines[1]) + (lines[1] != lines[2])
        elsewhere = write_line(narrator, ids, visual + 1, [position] * len(visual), [], **asked)
        differ += elsewhere != lines[2]  # the picture matters
    assert differ >= 6 and stopped == 9


def test_penalty_covers_the_patches_of_the_prompt(restless):
    """A model that would write the patch token next: it stands nowhere else in what is penalised."""
    narrator, _ = restless
    visual = clip_tokens("v", 1)
    others = [5, 9, 14]
    probe = [others[0], *[narrator.patch_id] * len(visual), *others[1:]]
    asked = {"temperature": 0.0, "max_new_tokens": 1}
    (likeliest,) = write_line(narrator, probe, visual, [3] * len(visual), [], penalty=1.0, **asked)
    assert likeliest not in probe
    other = type(narrator)(narrator.language_model, narrator.projector, likeliest)
    ids = [likeliest if index == narrator.patch_id else index for index in probe]
    assert write_line(other, ids, visual, [3] * len(visual), [], penalty=1.0, **asked) == [likeliest]
    (penalised_choice,) = write_line(other, ids, visual, [3] * len(visual), [], penalty=5.0, **asked)
    assert penalised_choice != likeliest
    assert plain_line(other, ids, visual, 3, [], 5.0, 1)[0] == [penalised_choice]


def test_penalty_is_transformers_own():
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(50, generator=generator)
    ids = torch.randint(0, 50, (1, 30), generator=generator)
    seen = torch.zeros(50, dtype=torch.bool)
    seen[ids[0]] = True
    for penalty in (1.0, 1.1, 3.0):
        theirs = RepetitionPenaltyLogitsProcessor(penalty)(ids, scores[None].clone())[0]
        assert penalised(scores, seen, penalty).equal(theirs)
    assert not penalised(scores, seen, 1.1).equal(scores)


def test_choice_is_the_softmax_s():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    assert choose(logits, 0) == choose(logits, 0.01, torch.Generator().manual_seed(1)) == 2
    generator = torch.Generator().manual_seed(2)
    drawn = torch.tensor([choose(logits, 0.7, generator) for _ in range(4000)])
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert (shares - torch.softmax(logits / 0.7, 0)).abs().max() < 0.03


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


def test_at_most_so_many_clips(checkpoint, sample_videos, zh, monkeypatch):
    video = sample_videos["sample01"]
    Scripted(monkeypatch, checkpoint.tokenizer, ["产品推荐", "好。"] * 30)
    tasks = [task for _ in range(20) for task in tasks_of(video, zh)][:30]
    results = narrate_video(checkpoint, video.product, tasks, 30, DecodingSettings())
    assert len(tasks) == 30 and len(results) == 20
    assert len(narrate_video(checkpoint, video.product, tasks, 30, DecodingSettings(max_clips=3))) == 3


def test_an_offered_label_is_taken_as_it_is(checkpoint, sample_videos, zh, monkeypatch):
    video = sample_videos["sample01"]
    scripted = Scripted(monkeypatch, checkpoint.tokenizer, ["好。", "行。"])
    tasks = tasks_of(video, zh, 2, label="产品试用+产品功效")
    results = narrate_video(checkpoint, video.product, tasks, 6, DecodingSettings())
    assert words(results) == [("产品试用+产品功效", "好。"), ("产品试用+产品功效", "行。")]
    told = checkpoint.tokenizer.decode(scripted.asked[1]["ids"])
    assert told.count("剧本类型：产品试用+产品功效\n") == 2 and told.endswith("产品功效\n2.")


@pytest.mark.parametrize(
    ("texts", "chosen", "attempt"),
    [
        (["一二三四五六"], "一二三四五六", 0),  # in range: no second attempt
        (["一", "一二三四五"], "一二三四五", 1),
        (["一", "一二三", "一二三四五六七八九十十一"], "一二三", 1),  # none in range: the nearest
        (["一二三", "一", "一二"], "一二三", 0),
        (["", "一二三四五六七八九十" * 4, ""], "一二三四五六七八九十" * 4, 1),  # anything rather than nothing
        (["", " ", ""], "", 0),
    ],
)
def test_attempts_take_the_first_in_range_or_the_nearest(
    checkpoint, sample_videos, monkeypatch, texts, chosen, attempt
):
    video = sample_videos["sample01"]
    scripted = Scripted(monkeypatch, checkpoint.tokenizer, texts)
    task = ClipTask(0, 5, 8, clip_tokens(video.id, 0), 0, "产品推荐")
    settings = DecodingSettings(attempts=3, retry_temperature=0.6)
    (result,) = narrate_video(checkpoint, video.product, [task], 1, settings)
    assert (result.text, result.attempt) == (chosen, attempt)
    assert len(scripted.asked) == len(texts)
    assert [one["temperature"] for one in scripted.asked] == [0.0, 0.6, 0.6][: len(texts)]
    seeds = {one["generator"].initial_seed() for one in scripted.asked}
    assert len(seeds) == len(texts)


def test_an_empty_narration_does_not_stop_the_story(checkpoint, sample_videos, zh, monkeypatch):
    video = sample_videos["sample01"]
    scripted = Scripted(monkeypatch, checkpoint.tokenizer, ["", "", "产品功效", "好。"])
    results = narrate_video(checkpoint, video.product, tasks_of(video, zh, 2), 6, DecodingSettings())
    assert words(results) == [("", ""), ("产品功效", "好。")]
    assert "剧本类型：\n1.\n镜头2/" in checkpoint.tokenizer.decode(scripted.asked[2]["ids"])


def test_a_template_without_storyline(checkpoint, sample_videos, zh_nolabel, monkeypatch):
    video = sample_videos["sample01"]
    plain = replace(checkpoint, template=zh_nolabel)
    tasks = tasks_of(video, zh_nolabel, 2)
    results = narrate_video(plain, video.product, tasks, 6, DecodingSettings(max_new_tokens=6))
    assert [result.label for result in results] == ["", ""]
    scripted = Scripted(monkeypatch, checkpoint.tokenizer, ["好。", "行。"])
    results = narrate_video(plain, video.product, tasks, 6, DecodingSettings())
    assert words(results) == [("", "好。"), ("", "行。")]
    told = checkpoint.tokenizer.decode(scripted.asked[1]["ids"])
    assert "剧本类型" not in told and told.endswith("个字\n2.") and "个字\n1.好。\n镜头2/" in told
    shot = clip_samples(video, zh_nolabel)[0]
    segments = training_inputs(shot, tasks[0].visual, zh_nolabel).segments
    _, labels = encode(segments, checkpoint.tokenizer, 1)
    assert checkpoint.tokenizer.decode([i for i in labels if i != IGNORED]) == f"1.{video.clips[0].text}\n"


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


def test_a_text_is_ended_after_whole_clauses_only():
    assert clause_ends("现价3.4折，很轻，很稳！") == ["现价3.4折，很轻。", "现价3.4折。"]
    assert clause_ends("Only 1,200 left, so hurry. Now!", "en") == [
        "Only 1,200 left, so hurry.",
        "Only 1,200 left.",
    ]
    assert clause_ends("没有停顿。") == [] and clause_ends("") == []
