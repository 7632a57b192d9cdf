"""scripts/benchmark.py train: what it counts and times, and that it tells no ratio of sides that differ."""

import argparse
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from videonarrator.schema import NarratorError

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--shape", "tiny", "--samples", "3", "--runs", "1"]


@pytest.fixture(scope="module")
def train():
    """The module scripts/benchmarks/train.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        from benchmarks import train

        yield train


@pytest.fixture(scope="module")
def told(shared):
    """What the command prints, both parts together."""
    made = subprocess.run(
        [sys.executable, str(ROOT / "scripts/benchmark.py"), "train", *SMALL],
        capture_output=True,
        text=True,
        env=os.environ | {"VIDEONARRATOR_SHARED": str(shared)},
    )
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


def measured(train, shared, *words):
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int)
    train.add_arguments(parser)
    args = parser.parse_args([*SMALL, "--parts", "steps", "--threads", "0", *words])
    return train.run(args, shared / "data")["steps"]


def test_packed_sequences_compute_several_times_fewer_tokens_on_the_real_videos(told):
    tokens = told["tokens"]
    assert (tokens["videos"], tokens["samples"]) == (300, 2161)
    assert tokens["upstream / packed"] >= 3.4
    computed = tokens["tokens computed"]
    assert tokens["upstream / packed"] == round(computed["upstream"] / computed["packed"], 3)


def test_the_sides_are_timed_on_the_cpu(told):
    steps = told["steps"]
    assert {*steps["sides"]} == {"upstream", "padded", "packed"}
    assert "no backward" in steps["left out"]["flex"]
    assert {*steps["ratios"]} == {"upstream / packed", "padded / packed"}
    for values in (*steps["ratios"].values(), *steps["sides"].values()):
        assert all(math.isfinite(value) and value > 0 for value in values.values())
    tokens = {name: side["tokens computed"] for name, side in steps["sides"].items()}
    assert tokens["upstream"] > tokens["padded"] > tokens["packed"]


def test_bf16_with_checkpointing_as_on_a_gpu(train, shared):
    how = ["--precision", "bf16", "--peak-tflops", "1", "--sides"]
    told = measured(train, shared, *how, "upstream,packed", "--checkpointing")
    assert (told["model"]["precision"], told["model"]["checkpointing"]) == ("bf16", True)
    for side in told["sides"].values():
        assert side["mfu"] == pytest.approx(side["model TFLOP/s"], abs=1e-3)
    without = measured(train, shared, *how, "upstream")
    assert told["sides"]["upstream"]["peak GB"] < without["sides"]["upstream"]["peak GB"]


def wrong_mask(side):
    """Branches that see one token of the trunk less."""
    micro_batches = []
    for one in side.micro_batches:
        tree = one.tensors["tree"].clone()
        tree[2] -= (tree[1] > 0).long()
        micro_batches.append(replace(one, tensors=one.tensors | {"tree": tree}))
    return replace(side, micro_batches=micro_batches)


def sample_left_out(side):
    return replace(side, micro_batches=side.micro_batches[1:])


@pytest.mark.parametrize("name, fault", [("packed", wrong_mask), ("upstream", sample_left_out)])
def test_no_ratio_of_sides_that_differ(train, shared, monkeypatch, name, fault):
    real = train.training_sides.sides_of

    def broken(*args, **how):
        sides = real(*args, **how)
        return sides | {name: fault(sides[name])}

    monkeypatch.setattr(train.training_sides, "sides_of", broken)
    with pytest.raises(NarratorError, match="no ratio is told"):
        measured(train, shared)


def test_a_side_that_the_device_cannot_run_is_left_out_and_named(train, shared, monkeypatch):
    real = train.training_sides.sides_of

    def out_of_memory(narrator, **tensors):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken(*args, **how):
        sides = real(*args, **how)
        return sides | {"upstream": replace(sides["upstream"], loss=out_of_memory)}

    monkeypatch.setattr(train.training_sides, "sides_of", broken)
    told = measured(train, shared)
    assert "out of memory" in told["left out"]["upstream"]
    assert {*told["ratios"]} == {"padded / packed"}


@pytest.mark.parametrize(
    "words, said", [(["--parts", "speed"], "tokens, steps"), (["--sides", "ours"], "flex")]
)
def test_what_there_is_none_of_is_named(train, shared, words, said):
    with pytest.raises(NarratorError, match=said):
        measured(train, shared, *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so(train, shared, monkeypatch, capsys):
    import benchmark

    monkeypatch.setenv("VIDEONARRATOR_SHARED", str(shared))
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "train", "--parts", "steps", "--device", "cuda"])
    assert benchmark.main() == 1
    out, err = capsys.readouterr()
    assert out == "" and err == "error: --device cuda: torch sees no GPU here; take --device cpu\n"


def test_model_flops_are_those_that_torch_counts(train, shared, tmp_path):
    """Of the weights, all but the projector's; packed, so that no padding is computed."""
    sides, settings = train.training_sides, train.OptimizationSettings()
    tokenizer = sides.read_tokenizer(shared / "data", None)
    videos = sides.read_videos(shared / "data")[:1]
    patch_id = tokenizer.convert_tokens_to_ids(train.VISUAL_PATCH)
    how = {"tokens_per_sequence": 4096, "batch_size": 4, "seed": 0}
    side = sides.sides_of(videos, tokenizer, patch_id, **how)["packed"]
    config = train.TrainConfig("", train.DataSettings("", ""), train.ModelSettings("", rank=4), settings)
    source = sides.model_source("tiny", len(tokenizer), tmp_path)
    narrator = sides.random_narrator(config, source, tokenizer, "cpu", 0)
    with FlopCounterMode(display=False) as counter:
        sides.one_pass(narrator, side, "fp32")
    counts = counter.get_flop_counts()
    total, projector = (
        sum(counts[module][operation] for operation in (torch.ops.aten.mm, torch.ops.aten.addmm))
        for module in ("Global", "Narrator.projector")
    )
    assert sides.weight_flops(narrator, side) == total - projector
