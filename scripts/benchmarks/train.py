"""Training: tokens, time and memory of packed sequences against upstream's padded batches.

Ways to compute the same samples, in turn; each figure is the median of --runs:

  upstream     as published: samples shuffled one by one into padded batches, each with the text of its whole
               video; logits [batch, tokens, vocabulary] at every token. Layers and attention (sdpa) are this
               project's, so that only the form differs.
  padded       this project's padded batches: samples end after their clip, those of like length together;
               logits only where something is learnt.
  packed       this project's default: a video's samples share one sequence; sdpa branch by branch.
  flex         the same with flex_attention (CUDA only: it has no backward on the CPU).

--parts tokens  counts what an epoch over the 300 real videos computes: the tokens, padding included, of
  upstream's shuffled batches and of packed sequences as training makes them (steps of whole videos of 128
  samples, sequences of 4096 tokens, too long videos divided). Nothing is timed: the numbers are the same on
  every machine.

--parts steps  times forward and backward (no optimizer, no reading of data) over all samples of the first
  videos, in a fixed random order, until there are --samples. Visual features and weights are random; LoRA,
  embeddings, projector and position table are trained, as in training.
  First, every side is run without dropout: where losses or gradient norms differ, no ratio is told. Then peak
  memory is taken in each side's largest micro-batch: all tensors alive at a time, gradients among them, but
  not the weights; by torch's allocator on CUDA, elsewhere by adding up the storages that operations make.
  Then come the timed runs, with training's dropout. On the CPU the processor's seconds are told beside those
  of the clock: they are the steadier ones where others are at work on the machine.

Text is tokenised with the reference data's small vocabulary of Baichuan's kind (about 0.8 tokens a character;
Baichuan's own has about 0.65: give --tokenizer where you have it). A clip of f seconds has 32 * (1 + ceil(0.6
f)) visual tokens, since no pictures come with the list.

Model FLOPs, of which mfu is told as the share of the device's peak: tokens without padding; for each token 4
FLOP per frozen weight (2 forward, 2 for the gradient of its input) and 6 per trained one (LoRA), embeddings
not counted; the head's 6 only at tokens that are learnt, on all sides; attention 12 * layers * width per pair
of tokens of which one attends to the other (4 forward, 8 backward). What gradient checkpointing computes
again is not counted: with it the device does about half as much again.

Examples:

  python scripts/benchmark.py train
  python scripts/benchmark.py train --parts steps --threads 0
  python scripts/benchmark.py train --parts steps --device cuda --shape baichuan-7b --samples 64
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmarks import training_sides
from benchmarks.training_sides import (
    SHAPES,
    TEMPLATE,
    WIDTH,
    Pass,
    Side,
    attention_flops,
    model_source,
    no_features,
    one_pass,
    peak_bytes,
    random_narrator,
    read_tokenizer,
    read_videos,
    samples_of,
    shuffled_batches,
    visual_counts,
    weight_flops,
    without_dropout,
)

from videonarrator.dataset import ClipSamples
from videonarrator.modeling.narrator import Narrator
from videonarrator.prompt import VISUAL_PATCH
from videonarrator.schema import NarratorError
from videonarrator.settings import DataSettings, ModelSettings, OptimizationSettings, TrainConfig
from videonarrator.sizing import parameter_counts
from videonarrator.training.batches import Packed
from videonarrator.training.plan import orders, whole_videos

PARTS = ("tokens", "steps")
SIDES = ("upstream", "padded", "packed", "flex")

PEAK_TFLOPS = {"H200 NVL": 835, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312}
"""Dense bf16, from the makers' data sheets, by what a device's name holds; the first that fits."""

TOLERANCE = {"fp32": (1e-5, 1e-4), "bf16": (1e-2, 5e-2)}
"""How far losses and gradient norms of two sides may lie apart, relative to each other."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    settings = OptimizationSettings()
    parser.add_argument("--parts", default=",".join(PARTS), help="by comma (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=13, help="at least as many (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    shapes = f"{', '.join(SHAPES)}, one of configs/shapes (baichuan-7b) or a config.json"
    parser.add_argument("--shape", default="50m", help=f"{shapes} (default: %(default)s)")
    parser.add_argument("--sides", help=f"by comma: {', '.join(SIDES)} (default: all the device can run)")
    parser.add_argument(
        "--threads", type=int, default=1, help="of the CPU; 0: torch's default (default: %(default)s)"
    )
    parser.add_argument("--precision", choices=tuple(TOLERANCE), help="default: bf16 on cuda, else fp32")
    parser.add_argument(
        "--checkpointing",
        action=argparse.BooleanOptionalAction,
        help="gradient checkpointing (default: on cuda only)",
    )
    parser.add_argument("--rank", type=int, default=ModelSettings.rank, help="of LoRA (default: %(default)s)")
    parser.add_argument(
        "--tokens-per-sequence",
        type=int,
        default=settings.tokens_per_sequence,
        help="of packed sequences (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=settings.batch_size, help="padded samples (default: %(default)s)"
    )
    parser.add_argument(
        "--peak-tflops", type=float, help="of the device, for mfu (known for some GPUs by their name)"
    )
    parser.add_argument("--tokenizer", help="folder of another SentencePiece tokenizer (Baichuan-7B's)")


def run(args: argparse.Namespace, data: Path) -> dict[str, Any]:
    parts = args.parts.split(",")
    if not {*parts} <= {*PARTS}:
        raise NarratorError(f"--parts {args.parts}: there are {', '.join(PARTS)}")
    measures = {"tokens": tokens_of_an_epoch, "steps": steps}
    return {part: measure(args, data) for part, measure in measures.items() if part in parts}


def tokens_of_an_epoch(args: argparse.Namespace, data: Path) -> dict[str, Any]:
    """Tokens that an epoch over the real videos computes, upstream's way and packed."""
    settings = OptimizationSettings()
    videos = read_videos(data)
    samples = samples_of(videos)
    tokenizer = read_tokenizer(data, args.tokenizer)
    features = no_features(visual_counts(videos))
    # with later clips, as upstream has them; what is packed does not depend on these
    dataset = ClipSamples(samples, features, tokenizer, TEMPLATE, WIDTH, later_clips=True)
    lengths = dataset.lengths
    batches = shuffled_batches(len(samples), args.batch_size, settings.seed)
    upstream = sum(len(batch) * max(lengths[one] for one in batch) for batch in batches)
    sizes = [sum(len(tree.branches) for tree in trees) for trees in dataset.trees]
    epoch = whole_videos(orders(len(sizes), 1, settings.seed), sizes, settings.samples_per_step)
    form = Packed(dataset, dataset.trees, epoch, args.tokens_per_sequence)
    groups = [group for step in range(len(form)) for group in form.groups(step, 1)[0]]
    packed = sum(tree.length for group in groups for tree in group)
    return {
        "videos": len(videos),
        "samples": len(samples),
        "tokens computed": {"upstream": upstream, "packed": packed},
        "of upstream's, padding": round(1 - sum(lengths) / upstream, 3),
        "micro-batches": {"upstream": len(batches), "packed": len(groups)},
        "upstream / packed": round(upstream / packed, 3),
    }


def steps(args: argparse.Namespace, data: Path) -> dict[str, Any]:
    """Time and memory of each side over the same samples."""
    device = args.device
    if device == "cuda" and not torch.cuda.is_available():
        raise NarratorError("--device cuda: torch sees no GPU here; take --device cpu")
    if args.threads:
        torch.set_num_threads(args.threads)
    precision = args.precision or ("bf16" if device == "cuda" else "fp32")
    checkpointing = device == "cuda" if args.checkpointing is None else args.checkpointing
    settings = OptimizationSettings(precision=precision, gradient_checkpointing=checkpointing)
    config = TrainConfig("", DataSettings("", ""), ModelSettings("", rank=args.rank), settings)
    videos = _first_videos(data, args.samples, settings.seed)
    tokenizer = read_tokenizer(data, args.tokenizer)
    sides, left_out = _sides(args, videos, tokenizer, settings.seed)
    with tempfile.TemporaryDirectory() as folder:
        source = model_source(args.shape, len(tokenizer), Path(folder))
        narrator = random_narrator(config, source, tokenizer, device, settings.seed)
    same, failed = first_passes(narrator, sides, precision)
    check_same(same, precision)
    sides = {name: sides[name] for name in same}
    peaks = {name: peak_bytes(narrator, side, precision) for name, side in sides.items()}
    passes: dict[str, list[Pass]] = {name: [] for name in sides}
    for number in range(args.runs):
        for name, side in sides.items():
            passes[name].append(one_pass(narrator, side, precision))
            _say(f"run {number + 1}/{args.runs}  {name}  {passes[name][-1].seconds:.2f} s")
    samples = len(samples_of(videos))
    counts = parameter_counts(narrator)["total"]
    model = {"shape": args.shape, "parameters": counts["all"], "trained": counts["trained"]}
    peak = args.peak_tflops or _peak_tflops(device)
    return {
        "machine": _machine(device),
        "model": model | {"precision": precision, "checkpointing": checkpointing},
        "samples": samples,
        "videos": len(videos),
        "runs": args.runs,
        "sides": {
            name: _figures(narrator, side, passes[name], peaks[name], samples, peak)
            for name, side in sides.items()
        },
        "ratios": _ratios(sides, passes, peaks),
        "same": {name: {"loss": one.loss, "gradient norm": one.norm} for name, one in same.items()},
        "left out": left_out | failed,
    }


def _sides(
    args: argparse.Namespace, videos: Sequence[Any], tokenizer: Any, seed: int
) -> tuple[dict[str, Side], dict[str, str]]:
    """The sides that are wanted; and of those that the device does not have, why."""
    wanted = args.sides.split(",") if args.sides else [*SIDES]
    if not {*wanted} <= {*SIDES}:
        raise NarratorError(f"--sides {args.sides}: there are {', '.join(SIDES)}")
    patch_id = tokenizer.convert_tokens_to_ids(VISUAL_PATCH)
    how = {"tokens_per_sequence": args.tokens_per_sequence, "batch_size": args.batch_size, "seed": seed}
    sides = training_sides.sides_of(videos, tokenizer, patch_id, **how)
    sides["flex"] = replace(sides["packed"], attention="flex_attention")
    left_out = {}
    if args.device == "cpu" and "flex" in wanted:
        left_out["flex"] = "flex_attention has no backward on the CPU"
    return {name: sides[name] for name in wanted if name not in left_out}, left_out


def _first_videos(data: Path, samples: int, seed: int) -> list[Any]:
    """The first videos of the first epoch that have as many samples."""
    videos, chosen, held = read_videos(data), [], 0
    for index in orders(len(videos), 1, seed)[0]:
        if held >= samples:
            break
        chosen.append(videos[index])
        held += len(videos[index].story.clips)
    return chosen


def first_passes(
    narrator: Narrator, sides: dict[str, Side], precision: str
) -> tuple[dict[str, Pass], dict[str, str]]:
    """Each side once without dropout; of those that the device could not run (memory, kernels), why."""
    made, failed = {}, {}
    for name, side in sides.items():
        try:
            with without_dropout(narrator):
                made[name] = one_pass(narrator, side, precision)
            _say(f"first pass  {name}  loss {made[name].loss:.6f}  {made[name].seconds:.2f} s")
        except RuntimeError as error:
            failed[name] = f"{type(error).__name__}: {error}"[:500]
            _say(f"first pass  {name}  {failed[name]}")
    if not made:
        raise NarratorError(f"no side could be run: {failed}")
    return made, failed


def check_same(passes: dict[str, Pass], precision: str) -> None:
    """Raise `NarratorError` where two sides do not compute the same loss and gradient norm."""
    for measure, tolerance in zip(("loss", "norm"), TOLERANCE[precision], strict=True):
        values = {name: getattr(one, measure) for name, one in passes.items()}
        first = next(iter(values.values()))
        if not all(abs(value - first) <= tolerance * abs(first) for value in values.values()):
            raise NarratorError(
                f"the sides do not compute the same, so no ratio is told. {measure}: {values}; they may be "
                f"{tolerance:g} of it apart"
            )


def _figures(
    narrator: Narrator, side: Side, passes: list[Pass], peak: int, samples: int, peak_tflops: float | None
) -> dict[str, Any]:
    taken = median(one.seconds for one in passes)
    done = weight_flops(narrator, side) + attention_flops(narrator, side)
    figures = {
        "micro-batches": len(side.micro_batches),
        "tokens": side.tokens,
        "tokens computed": side.computed,
        "seconds": round(taken, 3),
        "cpu seconds": round(median(one.cpu_seconds for one in passes), 3),
        "samples/s": round(samples / taken, 3),
        "tokens/s": round(side.tokens / taken, 1),
        "peak GB": round(peak / 1e9, 4),
        "model TFLOP": round(done / 1e12, 4),
        "model TFLOP/s": round(done / taken / 1e12, 4),
    }
    return figures | ({"mfu": round(done / taken / 1e12 / peak_tflops, 4)} if peak_tflops else {})


def _ratios(
    sides: dict[str, Side], passes: dict[str, list[Pass]], peaks: dict[str, int]
) -> dict[str, dict[str, float]]:
    others = {"packed": ("upstream", "padded"), "flex": ("upstream", "packed")}
    ratios = {}
    for right, left in ((right, left) for right, lefts in others.items() for left in lefts):
        if {left, right} <= {*sides}:
            pairs = list(zip(passes[left], passes[right], strict=True))
            ratios[f"{left} / {right}"] = {
                "seconds": round(median(a.seconds / b.seconds for a, b in pairs), 3),
                "cpu seconds": round(median(a.cpu_seconds / b.cpu_seconds for a, b in pairs), 3),
                "peak memory": round(peaks[left] / peaks[right], 3),
                "tokens computed": round(sides[left].computed / sides[right].computed, 3),
            }
    return ratios


def _machine(device: str) -> dict[str, Any]:
    told: dict[str, Any] = {"torch": torch.__version__}
    if device == "cuda":
        return {"device": torch.cuda.get_device_name(), **told}
    return {"device": platform.machine(), "threads": torch.get_num_threads(), **told}


def _peak_tflops(device: str) -> float | None:
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((peak for known, peak in PEAK_TFLOPS.items() if known in name), None)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
