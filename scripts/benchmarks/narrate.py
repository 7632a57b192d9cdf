"""Narration: tokens, time and memory of the engine against upstream's procedure.

Sides, each in a process of its own, one after the other; each figure is the median of --runs:

  upstream   as published: one video at a time, with transformers' cache; for every line (a clip's label, then
             its narration) the whole prompt is read anew. A lean loop: `generate` itself would take longer.
  engine xN  this project's engine, N videos at a time: what a row has read is kept, lines are appended.

--parts tokens  counts what either reads of the prompts of all videos. No model is run, nothing is timed.

--parts runs  times the videos whose prompts are nearest the median length. Every line is the reference's, its
  end included, on all sides: they write the same tokens, and as many as people wrote. Weights are random
  (LoRA merged), visual tokens, too. The processor's seconds are those of all threads of a side's process;
  reading data and making the model are not counted. Peak memory is the whole process's, on a GPU that of its
  tensors.
  First, a tiny model in float64 writes two short videos freely on both sides: where tokens or likelihoods
  differ, no ratio is told; nor where the likelihoods of what is written differ in the timed runs.
  Ratios are of what one written token takes, so that upstream may write fewer videos (--upstream-videos).

  `steps` are the forward passes that add one token to every row that takes part. They have to read all
  weights but the input embeddings, and of each row the keys and values so far: `GB read`. On a GPU its
  bandwidth sets a limit: `of the bandwidth` is what reading would take alone, as a share of what the passes
  took.

Text is tokenised with the reference data's small vocabulary of Baichuan's kind (about 0.8 tokens a character;
Baichuan's own has about 0.65: give --tokenizer where you have it). A clip of f seconds has 32 * (1 + ceil(0.6
f)) visual tokens, since no pictures come with the list. Without the reference data the videos and the
tokenizer are those of data/sample, whose prompts are shorter.

Examples:

  python scripts/benchmark.py narrate
  python scripts/benchmark.py narrate --parts runs --videos 2 --runs 1 --batch 1,2
  python scripts/benchmark.py narrate --device cuda --shape baichuan-7b --videos 64 --upstream-videos 4 \\
    --precision fp32,bf16 --batch 1,8,32,64
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from benchmarks.narrate_lines import free, read_stories, tasks_of, tokenizer_of, without_warnings
from benchmarks.narrate_sides import (
    DTYPES,
    Order,
    Side,
    Written,
    carry_out,
    checkpoint_of,
    counting,
    narrator_of,
    weight_bytes,
    write,
)
from benchmarks.train import _machine, _say
from benchmarks.training_sides import SHAPES, random_features, visual_counts

from data_process.annotations import SampleVideo
from videonarrator.generation.memory import slot_bytes
from videonarrator.schema import NarratorError
from videonarrator.sizing import parameter_counts

PARTS = ("tokens", "runs")
KINDS = ("upstream", "engine")

BANDWIDTHS = {
    "H200": 4800, "H100 NVL": 3900, "H100 PCIe": 2000, "H100": 3350, "A100-SXM4-80GB": 2039,
    "A100 80GB PCIe": 1935, "A100": 1555,
}  # fmt: skip
"""GB/s, from the makers' data sheets, by what a device's name holds; the first that fits."""

CHECKED, LIMIT = 2, 12
"""Videos that are written freely before anything is timed, and the tokens of a line of theirs."""

TOLERANCE = {"fp64": 1e-8, "fp32": 1e-3, "bf16": 0.1, "fp16": 0.05}
"""How far the mean log-likelihood of a line's tokens may lie apart on two sides."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", default=",".join(PARTS), help="by comma (default: %(default)s)")
    parser.add_argument("--videos", type=int, default=8, help="that are timed (default: %(default)s)")
    parser.add_argument("--upstream-videos", type=int, help="of these for upstream's side (default: all)")
    parser.add_argument("--batch", default="1,8", help="the engine's, by comma (default: %(default)s)")
    parser.add_argument("--sides", default=",".join(KINDS), help="by comma (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", help="by comma (default: fp32,bf16 on cuda, else fp32)")
    shapes = f"{', '.join(SHAPES)}, one of configs/shapes (baichuan-7b) or a config.json"
    parser.add_argument("--shape", default="50m", help=f"{shapes} (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=1, help="of the CPU; 0: torch's default (default: %(default)s)"
    )
    parser.add_argument("--bandwidth", type=float, help="of the GPU's memory in GB/s (known for some GPUs)")
    parser.add_argument("--tokenizer", help="folder of another SentencePiece tokenizer (Baichuan-7B's)")


def run(args: argparse.Namespace, data: Path | None) -> dict[str, Any]:
    parts = args.parts.split(",")
    if not {*parts} <= {*PARTS}:
        raise NarratorError(f"--parts {args.parts}: there are {', '.join(PARTS)}")
    sides = sides_of(args)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise NarratorError("--device cuda: torch sees no GPU here; take --device cpu")
    stories, tokenizer = read_stories(data), tokenizer_of(data, args.tokenizer)
    told: dict[str, Any] = {"data": "E-SyncVidStory" if data else "data/sample"}
    with without_warnings():
        counts = counting(stories, tokenizer, args.shape)
        if "tokens" in parts:
            told["tokens"] = _tokens(stories, counts)
        if "runs" in parts:
            told["runs"] = runs(args, data, sides, stories, counts)
    return told


def sides_of(args: argparse.Namespace) -> list[Side]:
    """The sides that are wanted."""
    kinds = args.sides.split(",")
    precisions = (args.precision or ("fp32,bf16" if args.device == "cuda" else "fp32")).split(",")
    known = [one for one in DTYPES if one != "fp64"]
    if not {*kinds} <= {*KINDS}:
        raise NarratorError(f"--sides {args.sides}: there are {', '.join(KINDS)}")
    if not {*precisions} <= {*known}:
        raise NarratorError(f"--precision {args.precision}: there are {', '.join(known)}")
    batches = args.batch.split(",")
    if not all(one.isdecimal() and int(one) for one in batches):
        raise NarratorError(f"--batch {args.batch}: give numbers of videos by comma, as in 1,8")
    sides = [Side("upstream", one) for one in precisions if "upstream" in kinds]
    both = product(precisions, batches)
    return sides + [Side("engine", one, int(batch)) for one, batch in both if "engine" in kinds]


def _tokens(stories: Sequence[SampleVideo], counts: dict[str, tuple[int, int, int]]) -> dict[str, Any]:
    """Tokens that either way reads of the prompts of all videos."""
    upstream, engine, written = map(sum, zip(*counts.values(), strict=True))
    return {
        "videos": len(stories),
        "clips": sum(len(one.story.clips) for one in stories),
        "tokens read of prompts": {"upstream": upstream, "engine": engine},
        "tokens written": written,
        "upstream / engine": round(upstream / engine, 3),
    }


def runs(
    args: argparse.Namespace,
    data: Path | None,
    sides: Sequence[Side],
    stories: Sequence[SampleVideo],
    counts: dict[str, tuple[int, int, int]],
) -> dict[str, Any]:
    """Time and memory of each side."""
    tokenizer = tokenizer_of(data, args.tokenizer)
    shortest = sorted(stories, key=lambda one: counts[one.video.id][0])[:CHECKED]
    check_freely(shortest, tokenizer, args.device)
    middle = median(whole for whole, _, _ in counts.values())
    chosen = tuple(sorted(counts, key=lambda video: abs(counts[video][0] - middle))[: args.videos])
    made: dict[Side, list[Written]] = {side: [] for side in sides}
    left_out: dict[str, str] = {}
    for number in range(args.runs):
        for side in sides:
            videos = chosen[: args.upstream_videos] if side.kind == "upstream" else chosen
            order = Order(side, videos, args.shape, args.device, args.threads, data, args.tokenizer)
            if side.name in left_out:
                continue
            try:
                made[side].append(apart(order))
            except (NarratorError, RuntimeError) as error:
                left_out[side.name] = f"{type(error).__name__}: {error}"[:500]
                _say(f"{side.name}  {left_out[side.name]}")
                continue
            took = made[side][-1]
            _say(f"run {number + 1}/{args.runs}  {side.name}  {took.seconds:.1f} s  ({took.cpu_seconds:.1f})")
    measured = {side: written for side, written in made.items() if side.name not in left_out}
    if not measured:
        raise NarratorError(f"no side could be run: {left_out}")
    check_counts(measured, counts)
    apart_by = check_same({side: written[0] for side, written in measured.items()})
    narrator = narrator_of(args.shape, tokenizer, "fp32", "meta")
    bandwidth = args.bandwidth or _bandwidth(args.device)
    return {
        "machine": _machine(args.device) | ({"threads": args.threads} if args.threads else {}),
        "model": {
            "shape": args.shape,
            "parameters": parameter_counts(narrator)["total"]["all"],
            "weights read a step (fp32 GB)": round(weight_bytes(narrator) / 1e9, 4),
            "of a row's slot (fp32 MB)": round(slot_bytes(narrator) / 1e6, 4),
        },
        "videos": len(chosen),
        "runs": args.runs,
        "sides": {side.name: _figures(written, bandwidth) for side, written in measured.items()},
        "ratios": _ratios(measured),
        "likelihoods apart by": apart_by,
        "left out": left_out,
    }


def apart(order: Order) -> Written:
    """Carry out in a new process, so that nothing of one run is left over for the next."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(carry_out, order).result()


# -------------------- whether the sides compute the same


def check_freely(stories: Sequence[SampleVideo], tokenizer: Any, device: str) -> None:
    """Raise `NarratorError` where a tiny model in float64 does not choose the same tokens on both sides."""
    checkpoint = checkpoint_of(narrator_of("tiny", tokenizer, "fp64", device), tokenizer)
    videos = tasks_of(stories, random_features(visual_counts(stories)))
    sides = [Side("upstream", "fp64"), *(Side("engine", "fp64", batch) for batch in (1, len(videos)))]
    check_same({side: write(side, checkpoint, videos, free(LIMIT)) for side in sides})


def check_same(made: dict[Side, Written]) -> dict[str, float]:
    """Raise `NarratorError` where two sides did not write the same, or not as likely; how far it was apart.

    Likelihoods are compared within a precision.
    """
    apart_by = {}
    for precision in dict.fromkeys(side.precision for side in made):
        first, *others = [side for side in made if side.precision == precision]
        for other in others:
            names = f"{first.name} and {other.name}"
            one, two = made[first], made[other]
            common = sorted({*one.ids} & {*two.ids})
            if not common or any(
                one.ids[video] != two.ids[video] or one.texts[video] != two.texts[video] for video in common
            ):
                raise NarratorError(f"{names} do not write the same, so no ratio is told")
            gap = max(
                abs(mean(left) - mean(right))
                for video in common
                for left, right in zip(one.likelihoods[video], two.likelihoods[video], strict=True)
            )
            if not gap <= TOLERANCE[precision]:
                raise NarratorError(
                    f"{names} do not find a line equally likely, so no ratio is told: the means of the "
                    f"log-likelihood of its tokens lie {gap:.3g} apart, allowed is {TOLERANCE[precision]:g}"
                )
            apart_by[names] = float(f"{gap:.3g}")
    return apart_by


def check_counts(made: dict[Side, list[Written]], counts: dict[str, tuple[int, int, int]]) -> None:
    """Raise `NarratorError` where a side read or wrote another number of tokens than its prompts tell."""
    for side, runs_of_side in made.items():
        for one in runs_of_side:
            expected = [sum(column) for column in zip(*(counts[video] for video in one.ids), strict=True)]
            read = expected[side.kind == "engine"]
            if (one.prefilled, one.written) != (read, expected[2]):
                raise NarratorError(
                    f"{side.name} read {one.prefilled} tokens of prompts and wrote {one.written}; it should "
                    f"be {read} and {expected[2]}"
                )


# -------------------- figures


def _figures(written: Sequence[Written], bandwidth: float | None) -> dict[str, Any]:
    one, taken = written[0], median(one.seconds for one in written)
    passes, in_steps = one.passes, median(one.passes.seconds for one in written)
    steps = {
        "number": passes.steps,
        "tokens": passes.tokens,
        "seconds": round(in_steps, 3),
        "GB read": round(one.step_bytes / 1e9, 3),
    }
    if bandwidth:
        steps["of the bandwidth"] = round(one.step_bytes / 1e9 / bandwidth / in_steps, 3)
    return {
        "videos": len(one.ids),
        "tokens read of prompts": one.prefilled,
        "tokens written": one.written,
        "forward passes": passes.number,
        "seconds": round(taken, 3),
        "cpu seconds": round(median(one.cpu_seconds for one in written), 3),
        "videos/min": round(60 * len(one.ids) / taken, 3),
        "tokens/s": round(one.written / taken, 2),
        "peak GB": round(median(one.peak_bytes for one in written) / 1e9, 3),
        "steps": steps,
    }


def _ratios(made: dict[Side, list[Written]]) -> dict[str, dict[str, float]]:
    """Upstream's figures over the engine's: of what one written token takes; peak memory as it is."""
    ratios = {}
    for right, left in product(made, made):
        if (left.kind, right.kind) != KINDS:
            continue
        pairs = list(zip(made[left], made[right], strict=True))

        def ratio(name: str, pairs: list[tuple[Written, Written]] = pairs) -> float:
            values = [getattr(a, name) / a.written * b.written / getattr(b, name) for a, b in pairs]
            return round(median(values), 3)

        ratios[f"{left.name} / {right.name}"] = {
            "seconds": ratio("seconds"),
            "cpu seconds": ratio("cpu_seconds"),
            "tokens read of prompts": ratio("prefilled"),
            "peak memory": round(median(a.peak_bytes / b.peak_bytes for a, b in pairs), 3),
        }
    return ratios


def _bandwidth(device: str) -> float | None:
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((speed for known, speed in BANDWIDTHS.items() if known in name), None)
