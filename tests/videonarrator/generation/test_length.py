"""Narrations of the asked length by a model that nothing was trained for: sample videos, real products."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_narrator import ROOT, WIDTH, clip_tokens, train_config

from data_process.annotations import read_sample_list
from data_process.prepare import video_story
from videonarrator.checkpoint import Checkpoint, CheckpointInfo
from videonarrator.clip_inputs import encode_text
from videonarrator.generation.endings import closed, may_end
from videonarrator.generation.guides import MOST_BARRED, WithinLength, vocabulary_of
from videonarrator.generation.jobs import ClipResult, ClipTask
from videonarrator.generation.prompts import stop_ids
from videonarrator.modeling.backbones import begins_with_bos
from videonarrator.training.building import build_narrator


@pytest.fixture(scope="module")
def length():
    """The module scripts/measure_length.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        import measure_length

        yield measure_length


@pytest.fixture(scope="module")
def checkpoint(zh):
    """The sample backbone as it is: it knows the prompt's form, but none of the visual tokens."""
    torch.manual_seed(3)
    config = train_config(ROOT / "data/sample/models/backbone", "", adapter="projector")
    narrator, tokenizer = build_narrator(config, WIDTH)
    info = CheckpointInfo("projector", WIDTH, bos=begins_with_bos(tokenizer))
    return Checkpoint(narrator.eval(), tokenizer, zh, info)


def asked_of(length, checkpoint, stories):
    """A clip of each (id, story), not always the first."""
    found = []
    for place, (name, story) in enumerate(stories):
        at = place % min(3, len(story.clips))
        task = ClipTask(at, 1, 1, clip_tokens(name, at), 10 * at)
        found.append(length.asked_of(checkpoint, story, at, task, name))
    return found


def assert_held(numbers):
    for share in ("in_range", "labels_valid", "closed"):
        assert numbers[share] == 1, share
    assert numbers["inside_word"] == 0


@pytest.fixture(scope="module")
def samples(length, checkpoint, sample_videos, zh):
    videos = list(sample_videos.values())[:10]
    stories = [(video.id, video_story(video, range(len(video.clips)), zh)) for video in videos]
    return asked_of(length, checkpoint, stories)


@pytest.fixture(scope="module")
def measured(length, checkpoint, samples):
    return length.measure(checkpoint, samples)


@pytest.mark.parametrize("mode", ["constrained", "best_of"])
def test_sample_videos_get_what_is_asked(measured, mode):
    assert_held(measured[0][mode])


def test_real_products_get_what_is_asked_and_only_where_it_is_held(length, checkpoint, shared):
    videos = read_sample_list(shared / "data/esyncvidstory_test_300.json", checkpoint.template)[:16]
    asked = asked_of(length, checkpoint, [(one.video.id, one.story) for one in videos])
    modes = {mode: length.MODES[mode] for mode in ("prompt", "constrained")}
    numbers, _ = length.measure(checkpoint, asked, modes)
    assert_held(numbers["constrained"])
    assert numbers["prompt"]["in_range"] < 0.9


def test_likelihoods_are_those_of_one_forward_pass(measured, checkpoint, samples):
    _, by_mode = measured
    for one in samples[:3]:
        written = by_mode["constrained"][one.video.id]
        prompt = one.prompt(checkpoint, written.result.label)
        target = encode_text(written.result.text + "\n", checkpoint.tokenizer)
        checkpoint.narrator.base.set_attn_implementation("sdpa")
        with torch.inference_mode():
            losses = checkpoint.narrator(
                torch.tensor([[*prompt.ids, *target]]),
                torch.tensor([[-100] * len(prompt.ids) + target]),
                prompt.visual,
                torch.tensor(prompt.positions),
            )["token_losses"]
        assert (-losses).tolist() == pytest.approx(written.likelihoods, abs=1e-3)


def test_perplexity_is_over_all_tokens(measured):
    numbers, by_mode = measured
    values = [value for one in by_mode["best_of"].values() for value in one.likelihoods]
    assert numbers["best_of"]["perplexity"] == pytest.approx(math.exp(-sum(values) / len(values)))


def test_what_ends_inside_a_word(length):
    assert length.ends_inside_word("来看产品功", "效很好", "zh")
    assert not length.ends_inside_word("来看产品功效", "，很好", "zh")
    assert length.ends_inside_word("It fold", "s flat", "en")
    assert not length.ends_inside_word("It folds", " flat", "en")
    result = ClipResult(0, "产品功效", "折叠方便。", "折叠方便，还省地方", 0, 0)
    assert length.without_added_mark(result) == "折叠方便"
    assert length.without_added_mark(replace(result, raw="折叠方便。还省地方")) == "折叠方便。"


def test_labels_are_script_labels_each_once(length):
    labels = ["产品功效", "产品功效+外观设计", "产品功效+产品功效", "产品", "", "其他"]
    assert [length.valid_label(label) for label in labels] == [True, True, False, False, False, False]


def test_an_end_before_the_lower_bound_is_taken_back(checkpoint):
    """The mark the line would end behind goes, and what is written in its place is no mark."""
    stops = stop_ids(checkpoint.tokenizer)
    rows = checkpoint.narrator.base.get_output_embeddings().weight.shape[0]
    vocabulary = vocabulary_of(checkpoint.tokenizer, stops, rows, "zh", torch.device("cpu"))

    def written(text, low, likelihood):
        guide = WithinLength(low, 20, "zh", checkpoint.tokenizer, vocabulary)
        ids = encode_text(text, checkpoint.tokenizer)
        return guide, ids, guide.back(ids, (likelihood, -9.0))

    guide, ids, back = written("折叠方便！", 9, -0.1)
    assert back and guide.never(ids[:-1])[list(vocabulary.closing)].all()
    assert not guide.never(ids)[list(vocabulary.closing)].any()
    assert not written("折叠方便！", 5, -0.1)[2]  # long enough
    assert not written("折叠方便！", 9, -1.0)[2]  # the line would rather go on
    guide, ids, back = written("折叠方", 9, -0.1)
    assert back and guide.never(ids[:-1])[ids[-1]]
    tries = 0
    while guide.back(ids, (-0.1, -9.0)):
        tries += 1
    assert tries == MOST_BARRED - 1  # then it goes on


def test_commas_before_a_closing_mark_are_left_out():
    assert [closed(text, "zh") for text in ("刚刚好，。", "刚刚好，！", "好，”。", "好。，")] == [
        "刚刚好。",
        "刚刚好！",
        "好，”。",
        "好。",
    ]
    assert closed("It works, .", "en") == "It works."
    assert not may_end("刚刚好，。", 5, 9, "zh")
