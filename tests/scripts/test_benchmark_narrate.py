"""scripts/benchmark.py narrate: what it counts and times, and that it tells no ratio of sides that differ."""

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from videonarrator.generation.engine import Engine
from videonarrator.generation.memory import SlotMemory
from videonarrator.schema import NarratorError

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--shape", "tiny", "--videos", "2", "--runs", "1", "--batch", "1,2", "--threads", "0"]
ENGINE = ["engine fp32 x1", "engine fp32 x2"]


@pytest.fixture(scope="module")
def narrate():
    """The module scripts/benchmarks/narrate.py; what it runs, it runs in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        from benchmarks import narrate

        patch.setattr(narrate, "apart", narrate.carry_out)
        yield narrate


def measured(narrate, *words, data=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int)
    narrate.add_arguments(parser)
    return narrate.run(parser.parse_args([*SMALL, *words]), data)


@pytest.fixture(scope="module")
def told(narrate):
    """What is told of the sample data set."""
    return json.loads(json.dumps(measured(narrate)))


def test_of_the_real_videos_prompts_a_fifth_is_read(narrate, shared):
    told = measured(narrate, "--parts", "tokens", data=shared / "data")
    assert told["data"] == "E-SyncVidStory"
    assert (told["tokens"]["videos"], told["tokens"]["clips"]) == (300, 2161)
    assert told["tokens"]["upstream / engine"] >= 5


def test_the_sides_write_the_same_and_are_timed(told):
    assert told["data"] == "data/sample"
    runs = told["runs"]
    assert [*runs["sides"]] == ["upstream fp32", *ENGINE]
    for side in runs["sides"].values():
        assert side["videos"] == 2 and side["tokens written"] > 0
        numbers = [*side.values(), *side["steps"].values()]
        assert all(math.isfinite(one) and one >= 0 for one in numbers if not isinstance(one, dict))
    assert {*runs["ratios"]} == {f"upstream fp32 / {side}" for side in ENGINE}
    for ratio in runs["ratios"].values():
        assert {*ratio} == {"seconds", "cpu seconds", "tokens read of prompts", "peak memory"}
        assert all(one > 0 for one in ratio.values()) and ratio["tokens read of prompts"] > 1
    assert {*runs["likelihoods apart by"]} == {f"upstream fp32 and {side}" for side in ENGINE}
    assert runs["left out"] == {}


def test_forward_passes(told):
    upstream, alone, together = (told["runs"]["sides"][side] for side in ("upstream fp32", *ENGINE))
    assert upstream["tokens written"] == alone["tokens written"] == together["tokens written"]
    assert upstream["forward passes"] == alone["forward passes"]
    assert alone["forward passes"] / 2 <= together["forward passes"] < alone["forward passes"]
    assert alone["tokens read of prompts"] == together["tokens read of prompts"]


@pytest.fixture(scope="module")
def written(narrate):
    """Has both sides write the beginning of two sample videos in float64, freely or as given."""
    from benchmarks import narrate_sides as sides

    stories, tokenizer = sides.read_stories(None)[:2], sides.tokenizer_of(None, None)
    checkpoint = sides.checkpoint_of(sides.narrator_of("tiny", tokenizer, "fp64", "cpu"), tokenizer)
    tasks = sides.tasks_of(stories, sides.random_features(sides.visual_counts(stories)))
    tasks = [replace(task, clips=task.clips[:2]) for task in tasks]
    ways = (sides.Side("upstream", "fp64"), sides.Side("engine", "fp64", 2))
    guides = {"free": narrate.free(6), "given": sides.given(stories, tokenizer)}
    return lambda kind: {way: sides.write(way, checkpoint, tasks, guides[kind]) for way in ways}


def token_dropped(engine, index, row):
    """Of a text that is appended, the first token is left out."""
    part = part_of(engine, index, row)
    return replace(part, kept=part.kept + 1) if part.kept and len(part.ids) > part.kept + 1 else part


def token_confused(engine, index, row):
    """The last written token is read as another one."""
    part = part_of(engine, index, row)
    return replace(part, ids=[*part.ids[:-1], 7]) if row.line.written else part


part_of = Engine._part


@pytest.mark.parametrize("fault", [token_dropped, token_confused])
@pytest.mark.parametrize("kind, said", [("free", "do not write the same"), ("given", "equally likely")])
def test_no_ratio_of_an_engine_that_errs(narrate, written, monkeypatch, fault, kind, said):
    gaps = narrate.check_same(written(kind))
    assert gaps["upstream fp64 and engine fp64 x2"] < 1e-12
    monkeypatch.setattr(Engine, "_part", fault)
    with pytest.raises(NarratorError, match=f"{said}.*no ratio is told"):
        narrate.check_same(written(kind))


def test_an_error_is_seen_before_anything_is_timed(narrate, monkeypatch):
    monkeypatch.setattr(Engine, "_part", token_dropped)
    monkeypatch.setattr(narrate, "apart", None)
    monkeypatch.setattr(narrate, "LIMIT", 3)
    with pytest.raises(NarratorError, match="no ratio is told"):
        measured(narrate, "--parts", "runs")


@pytest.fixture
def unchecked(narrate, monkeypatch):
    monkeypatch.setattr(narrate, "check_freely", lambda *_: None)


@pytest.mark.usefixtures("unchecked")
def test_an_engine_that_keeps_nothing_is_seen(narrate, monkeypatch):
    def forgetful(engine, index, row):
        part = part_of(engine, index, row)
        return part if row.line.written else replace(part, kept=0)

    monkeypatch.setattr(Engine, "_part", forgetful)
    with pytest.raises(NarratorError, match="tokens of prompts and wrote"):
        measured(narrate, "--parts", "runs", "--batch", "1", "--sides", "engine", "--videos", "1")


@pytest.mark.usefixtures("unchecked")
def test_a_side_that_memory_does_not_suffice_for_is_left_out(narrate, monkeypatch):
    real = SlotMemory.extend

    def scarce(memory, parts):
        if sum(len(part.ids) for part in parts) > 300 and len(parts) == 2:
            raise MemoryError
        return real(memory, parts)

    monkeypatch.setattr(SlotMemory, "extend", scarce)
    runs = measured(narrate, "--parts", "runs", "--sides", "engine")["runs"]
    assert [*runs["sides"]] == ["engine fp32 x1"]
    assert "memory does not suffice for 2 videos" in runs["left out"]["engine fp32 x2"]


@pytest.mark.usefixtures("unchecked")
def test_fewer_videos_for_upstream_and_two_precisions(narrate):
    words = ["--upstream-videos", "1", "--precision", "fp32,bf16", "--batch", "2", "--bandwidth", "1"]
    runs = measured(narrate, "--parts", "runs", *words)["runs"]
    counts = {name: side["videos"] for name, side in runs["sides"].items()}
    assert counts == {"upstream fp32": 1, "upstream bf16": 1, "engine fp32 x2": 2, "engine bf16 x2": 2}
    assert len(runs["ratios"]) == 4
    for side in runs["sides"].values():
        steps = side["steps"]
        assert steps["of the bandwidth"] == pytest.approx(steps["GB read"] / steps["seconds"], rel=0.05)


def test_a_process_of_its_own_writes_the_same(narrate):
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    videos = tuple(one.video.id for one in narrate.read_stories(None)[:1])
    order = narrate.Order(narrate.Side("engine", "fp32"), videos, "tiny", "cpu", 1, None, None)
    here = narrate.carry_out(replace(order, threads=0))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        there = process.submit(narrate.carry_out, order).result()
    assert (there.ids, there.prefilled) == (here.ids, here.prefilled)
    assert there.seconds > 0 and there.peak_bytes > 0


@pytest.mark.parametrize(
    "words, said",
    [
        (["--parts", "speed"], "tokens, runs"),
        (["--sides", "ours"], "upstream, engine"),
        (["--precision", "int8"], "fp32, bf16, fp16"),
        (["--batch", "1,0"], "as in 1,8"),
    ],
)
def test_what_there_is_none_of_is_named(narrate, words, said):
    with pytest.raises(NarratorError, match=said):
        measured(narrate, *words)


def test_the_command_needs_no_reference_data(narrate, tmp_path, monkeypatch, capsys):
    import benchmark

    monkeypatch.setenv("VIDEONARRATOR_SHARED", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "narrate", "--parts", "tokens"])
    assert benchmark.main() == 0
    assert json.loads(capsys.readouterr().out)["data"] == "data/sample"
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "train"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "no reference data" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so(narrate):
    with pytest.raises(NarratorError, match="torch sees no GPU here"):
        measured(narrate, "--device", "cuda")
