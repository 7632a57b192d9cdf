"""The engine writes what the plain procedure writes, whatever else is in the batch."""

import re
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from plain_narration import narrate_plainly
from tiny_narrator import clip_samples, clip_tokens

import videonarrator.generation.engine as engine_module
from data_process.prepare import video_story
from videonarrator.checkpoint import load_checkpoint
from videonarrator.generation.engine import Engine, narrate_videos
from videonarrator.generation.jobs import ClipTask, VideoTask
from videonarrator.generation.memory import PlainMemory, SlotMemory
from videonarrator.generation.story import Writing
from videonarrator.settings import DecodingSettings


@pytest.fixture(scope="session")
def restless(lora_run):
    """A checkpoint in float64 whose weights are large and random: its choices are clear, and differ."""
    checkpoint = load_checkpoint(lora_run[0] / "checkpoint", dtype=torch.float64)
    torch.manual_seed(8)
    with torch.no_grad():
        for parameter in checkpoint.narrator.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, dtype=torch.float64)
    checkpoint.narrator.double()
    return checkpoint


def tasks_of(video, zh, labels=False):
    story = video_story(video, range(len(video.clips)), zh)
    shots = clip_samples(video, zh)
    return [
        ClipTask(
            index, clip.low, clip.high, clip_tokens(video.id, index).double(), shot["shot_pos"],
            clip.label if labels else None,
        )
        for index, (clip, shot) in enumerate(zip(story.clips, shots, strict=True))
    ]  # fmt: skip


def jobs_of(videos, zh, labels=False):
    """Of videos with one to three clips each."""
    return [
        VideoTask(v.id, v.product, tasks_of(v, zh, labels)[: 1 + index % 3], len(v.clips))
        for index, v in enumerate(videos)
    ]


def assert_same(made, expected):
    """Equal clip by clip, but for the last digits of the scores."""
    assert made.keys() == expected.keys()
    for video, results in expected.items():
        assert [replace(one, score=None) for one in made[video]] == [replace(r, score=None) for r in results]
        for one, result in zip(made[video], results, strict=True):
            assert one.score == (result.score and pytest.approx(result.score, abs=1e-9)), video


MODES = [
    DecodingSettings(length="prompt", free_labels=True, attempts=1, max_new_tokens=12),
    DecodingSettings(narration_penalty=1.3, attempts=2),
    DecodingSettings(greedy=False, temperature=1.0, seed=3, attempts=2, length="best_of", candidates=2),
]


@pytest.mark.parametrize(
    ("settings", "labels"), [(MODES[0], False), (MODES[0], True), (MODES[1], False), (MODES[2], True)]
)
def test_engine_is_the_plain_procedure(restless, sample_videos, zh, settings, labels):
    videos = list(sample_videos.values())[:8]
    jobs = jobs_of(videos, zh, labels)
    expected = {
        job.id: narrate_plainly(restless, job.product, job.clips, job.total, settings) for job in jobs
    }
    for batch in (1, 3, 8):
        made = dict(narrate_videos(restless, jobs, replace(settings, batch=batch)))
        assert_same(made, expected)


def test_every_order_of_the_videos(restless, sample_videos, zh):
    settings = DecodingSettings(attempts=1, batch=2)
    jobs = jobs_of(list(sample_videos.values())[1:4], zh)
    expected = {
        job.id: narrate_plainly(restless, job.product, job.clips, job.total, settings) for job in jobs
    }
    assert len({len(job.clips) for job in jobs}) == 3
    for order in permutations(jobs):
        made = list(narrate_videos(restless, order, settings))
        assert_same(dict(made), expected)
        assert len(made) == 3


def test_without_slots(restless, sample_videos, zh, monkeypatch):
    """A language model that slots do not suit: row by row, the same texts; rows begin at different times."""
    monkeypatch.setattr(
        engine_module, "memory_for", lambda narrator, rows, longest: PlainMemory(narrator, rows)
    )
    monkeypatch.setitem(engine_module.TOKENS_AT_ONCE, "cpu", 300)
    jobs = jobs_of(list(sample_videos.values())[:5], zh)
    settings = replace(MODES[0], batch=3)
    expected = {
        job.id: narrate_plainly(restless, job.product, job.clips, job.total, settings) for job in jobs
    }
    assert_same(dict(narrate_videos(restless, jobs, settings)), expected)


def test_a_video_s_own_seed(restless, sample_videos, zh):
    settings = DecodingSettings(greedy=False, temperature=1.0, attempts=1)
    *_, job = jobs_of(list(sample_videos.values())[:3], zh)
    jobs = [replace(job, id=str(seed), seed=seed) for seed in (1, 2, 1)]
    jobs[2] = replace(jobs[2], id="again")
    made = dict(narrate_videos(restless, jobs, settings))
    plain = narrate_plainly(restless, job.product, job.clips, job.total, settings, seed=2)
    assert_same({"v": made["2"]}, {"v": plain})
    assert_same({"v": made["again"]}, {"v": made["1"]})
    assert [one.text for one in made["1"]] != [one.text for one in made["2"]]


class Careless(Engine):
    """Negative control: takes what a row holds for what is wanted, as far as it reaches."""

    def _part(self, index, row):
        part = super()._part(index, row)
        return replace(part, kept=min(len(row.held), len(part.ids) - 1))


def test_a_cache_that_holds_another_text_is_seen(restless, sample_videos, zh):
    settings = MODES[0]
    jobs = jobs_of(list(sample_videos.values())[:3], zh)[2:]
    expected = narrate_plainly(restless, jobs[0].product, jobs[0].clips, jobs[0].total, settings)
    made = dict(Careless(Writing(restless, settings)).run(jobs))
    assert [one.raw for one in made[jobs[0].id]] != [one.raw for one in expected]


# -------------------- what goes wrong


def test_out_of_memory_goes_on_with_half(restless, sample_videos, zh, monkeypatch, caplog):
    """At random moments; rows that are put aside go on where they were."""
    settings = DecodingSettings(greedy=False, temperature=1.0, attempts=1, batch=8)
    jobs = jobs_of(list(sample_videos.values())[:8], zh)
    expected = dict(narrate_videos(restless, jobs, settings))
    real, calls = engine_module.memory_for, []

    def small(narrator, rows, longest):
        memory = real(narrator, rows, longest)
        extend = memory.extend

        def limited(parts):
            calls.append(rows)
            if len(calls) in (5, 40, 60):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return extend(parts)

        memory.extend = limited
        return memory

    monkeypatch.setattr(engine_module, "memory_for", small)
    assert_same(dict(narrate_videos(restless, jobs, settings)), expected)
    assert list(dict.fromkeys(calls)) == [8, 4, 2, 1]
    assert sum("out of memory: going on with" in record.getMessage() for record in caplog.records) == 3


def test_a_video_that_is_too_large_by_itself_is_named(restless, sample_videos, zh, monkeypatch):
    """The others are done; an error that is another's is not taken for memory's."""
    settings = DecodingSettings(attempts=1, batch=4)
    jobs = jobs_of(list(sample_videos.values())[:4], zh)
    expected = dict(narrate_videos(restless, jobs, settings))
    longest = max(jobs, key=lambda job: len(job.product.info))
    large = replace(longest, product=replace(longest.product, info=longest.product.info * 12))
    room = 800

    real = SlotMemory.extend

    def small(memory, parts):
        if max(len(part.ids) for part in parts) > room:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return real(memory, parts)

    monkeypatch.setattr(SlotMemory, "extend", small)
    made = dict(narrate_videos(restless, [large if job is longest else job for job in jobs], settings))
    assert re.match(r"out of memory on a prompt of \d{4} tokens", str(made.pop(longest.id)))
    del expected[longest.id]
    assert_same(made, expected)

    def broken(memory, parts):
        if len(parts[0].ids) > 50:  # not when it is tried out
            raise RuntimeError("shapes do not match")
        return real(memory, parts)

    monkeypatch.setattr(SlotMemory, "extend", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        dict(narrate_videos(restless, jobs, settings))


def test_numbers_that_are_none_stay_with_their_video(restless, sample_videos, zh):
    settings = DecodingSettings(attempts=1, batch=4)
    jobs = jobs_of(list(sample_videos.values())[:6], zh)
    expected = dict(narrate_videos(restless, jobs, settings))
    for damage, message in (
        (1e307, "the language model gave values that are no numbers"),
        (torch.nan, "clip 2: its visual tokens hold values that are no numbers"),
    ):
        clips = list(jobs[2].clips)
        clips[1] = replace(clips[1], visual=clips[1].visual.sign() * 17 * damage)
        faulty = [*jobs[:2], replace(jobs[2], clips=clips), *jobs[3:]]
        made = dict(narrate_videos(restless, faulty, settings))
        assert message in str(made.pop(jobs[2].id))
        assert_same(made, {job.id: expected[job.id] for job in jobs if job is not jobs[2]})


def test_how_many_videos_at_a_time(restless, monkeypatch):
    engine = Engine(Writing(restless, DecodingSettings()))
    assert engine.limit == engine_module.ROWS["cpu"]
    monkeypatch.setattr(engine_module, "free_bytes", lambda device: 0)
    assert Engine(Writing(restless, DecodingSettings())).limit == 1
    row = engine_module.slot_bytes(restless.narrator) * 2048
    monkeypatch.setattr(engine_module, "free_bytes", lambda device: 2 * 3 * row + 1)
    assert Engine(Writing(restless, DecodingSettings())).limit == 3
    assert Engine(Writing(restless, DecodingSettings(batch=5))).limit == 5


def test_prompts_are_read_as_far_as_they_differ(restless, sample_videos, zh):
    """Of each token only what is new; the plain procedure reads all prompts whole."""
    settings = replace(MODES[0], batch=2)
    jobs = jobs_of(list(sample_videos.values())[:4], zh)
    lines = []
    for job in jobs:
        narrate_plainly(restless, job.product, job.clips, job.total, settings, lines=lines)
    engine = Engine(Writing(restless, settings))
    dict(engine.run(jobs))
    assert engine.prefilled < sum(len(line.prompt.ids) for line in lines) / 2
    assert engine.decoded <= sum(len(line.written) for line in lines)
