"""What `benchmark.py narrate` compares: two ways to write the same, with a model of random weights."""

from __future__ import annotations

import gc
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.narrate_lines import (
    Guides,
    Prescribed,
    given,
    prompt_tokens,
    read_stories,
    tasks_of,
    tokenizer_of,
    without_warnings,
)
from benchmarks.training_sides import (
    TEMPLATE,
    WIDTH,
    model_source,
    no_features,
    random_features,
    random_narrator,
    visual_counts,
)
from torch import Tensor
from transformers import DynamicCache, RepetitionPenaltyLogitsProcessor

from data_process.annotations import SampleVideo
from videonarrator.checkpoint import Checkpoint, CheckpointInfo
from videonarrator.generation.engine import Engine
from videonarrator.generation.jobs import ClipResult, VideoTask
from videonarrator.generation.line import Line
from videonarrator.generation.memory import SlotMemory, exact, slot_bytes
from videonarrator.modeling.backbones import begins_with_bos
from videonarrator.modeling.narrator import Narrator
from videonarrator.schema import NarratorError
from videonarrator.settings import DataSettings, ModelSettings, OptimizationSettings, TrainConfig
from videonarrator.sizing import empty_narrator

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


# -------------------- what is counted


@dataclass
class Passes:
    """Forward passes; and of those that only add one token a row: how many, and the tokens, the slots of the
    cache that these attend to, and the seconds of the clock (choosing the token not among them).
    """

    number: int = 0
    steps: int = 0
    tokens: int = 0
    slots: int = 0
    seconds: float = 0.0

    def add(self, spans: Sequence[tuple[int, int]], seconds: float) -> None:
        """spans: of each row, the tokens there were, and those that are new."""
        self.number += 1
        if all(new == 1 for _, new in spans):
            self.steps += 1
            self.tokens += len(spans)
            self.slots += sum(kept + 1 for kept, _ in spans)
            self.seconds += seconds


# -------------------- the model


def narrator_of(shape: str, tokenizer: Any, precision: str, device: str) -> Narrator:
    """A narrator of random weights, LoRA merged; device `meta`: without weights."""
    made_in = precision if precision in ("bf16", "fp16") else "fp32"
    how = {"precision": made_in, "gradient_checkpointing": False}
    settings = OptimizationSettings(**how)
    config = TrainConfig("", DataSettings("", ""), ModelSettings("", adapter="projector"), settings)
    with tempfile.TemporaryDirectory() as folder:
        source = model_source(shape, len(tokenizer), Path(folder))
        if device == "meta":
            return empty_narrator(config, WIDTH, source=source, tokenizer=tokenizer).eval()
        narrator = random_narrator(config, source, tokenizer, device, 0)
    return narrator.to(DTYPES[precision]).eval().requires_grad_(False)


def checkpoint_of(narrator: Narrator, tokenizer: Any) -> Checkpoint:
    info = CheckpointInfo("full", WIDTH, bos=begins_with_bos(tokenizer))
    return Checkpoint(narrator, tokenizer, TEMPLATE, info)


def weight_bytes(narrator: Narrator) -> int:
    """Bytes of the weights that every step reads: all of the language model's but the input embeddings."""
    base = narrator.base
    embeddings = base.get_input_embeddings().weight
    read = {id(one): one for one in base.parameters() if one is not embeddings}
    head = base.get_output_embeddings().weight
    return sum(one.nbytes for one in {**read, id(head): head}.values())


# -------------------- sides


@dataclass(frozen=True)
class Side:
    """One way to write: kind `upstream` or `engine`; batch: videos at a time."""

    kind: str
    precision: str
    batch: int = 1

    @property
    def name(self) -> str:
        return f"{self.kind} {self.precision}" + (f" x{self.batch}" if self.kind == "engine" else "")


@dataclass(frozen=True)
class Written:
    """What a side wrote and what it took. By video: (label, narration) of its clips; of each of its lines the
    ids and the log-likelihoods of these and of the line's end.

    prefilled, written: tokens read of prompts, and written. step_bytes: of weights and cache that the steps
    of `passes` read at least. peak_bytes: of the process (CUDA: of its tensors), weights included.
    """

    texts: dict[str, list[tuple[str, str]]]
    ids: dict[str, list[list[int]]]
    likelihoods: dict[str, list[list[float]]]
    prefilled: int
    written: int
    passes: Passes
    step_bytes: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int = 0


def write(side: Side, checkpoint: Checkpoint, videos: Sequence[VideoTask], guides: Guides) -> Written:
    """Write videos. Raises `NarratorError` where one cannot be written."""
    narrator, passes = checkpoint.narrator, Passes()
    writing = Prescribed(checkpoint, guides, side.batch)
    writer = _upstream if side.kind == "upstream" else _engine
    wait(narrator.device)
    begin, cpu_begin = time.perf_counter(), time.process_time()
    results, prefilled = writer(writing, videos, passes)
    wait(narrator.device)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    return Written(
        texts={video: [(one.label, one.text) for one in clips] for video, clips in results.items()},
        ids={video: [line.written for line in lines] for video, lines in writing.kept.items()},
        likelihoods={video: [line.own for line in lines] for video, lines in writing.kept.items()},
        prefilled=prefilled,
        written=sum(len(line.written) for lines in writing.kept.values() for line in lines),
        passes=passes,
        step_bytes=passes.steps * weight_bytes(narrator) + passes.slots * slot_bytes(narrator),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
    )


Results = dict[str, list[ClipResult]]


def _engine(writing: Prescribed, videos: Sequence[VideoTask], passes: Passes) -> tuple[Results, int]:
    engine = Engine(writing)
    if not isinstance(engine.memory, SlotMemory):
        raise NarratorError("the engine does not take this model's attention for one that suits its cache")
    counted: Any = Counted(engine.memory, passes)
    engine.memory = counted
    results: Results = {}
    for video, result in engine.run(videos):
        if isinstance(result, NarratorError):
            raise result
        results[video] = result
    if engine.memory is not counted:
        raise NarratorError(f"memory does not suffice for {writing.settings.batch} videos at a time")
    return results, engine.prefilled


class Counted:
    """A memory whose forward passes are counted and timed."""

    def __init__(self, memory: SlotMemory, passes: Passes) -> None:
        self.move, self.clear = memory.move, memory.clear
        self.memory, self.passes = memory, passes

    def extend(self, parts: Sequence[Any]) -> Tensor:
        begin = time.perf_counter()
        logits = self.memory.extend(parts)
        wait(logits.device)
        spans = [(part.kept, len(part.ids) - part.kept) for part in parts]
        self.passes.add(spans, time.perf_counter() - begin)
        return logits


def _upstream(writing: Prescribed, videos: Sequence[VideoTask], passes: Passes) -> tuple[Results, int]:
    """The published procedure: one video at a time, the whole prompt anew for every line."""
    writing.checkpoint.narrator.base.set_attn_implementation("sdpa")
    results: Results = {}
    prefilled = 0
    for video in videos:
        lines = writing.lines(video)
        while True:
            try:
                line = next(lines)
            except StopIteration as done:
                results[video.id] = done.value
                break
            _write_line(writing.checkpoint.narrator, line, passes)
            prefilled += len(line.prompt.ids)
    return results, prefilled


@torch.inference_mode()
def _write_line(narrator: Narrator, line: Line, passes: Passes) -> None:
    """The prompt through the model, then token by token. transformers' `generate` does the same with more
    ado, and would be slower.
    """
    prompt, base, device = line.prompt, narrator.base, narrator.device
    penalise = RepetitionPenaltyLogitsProcessor(line.penalty) if line.penalty != 1 else None
    ids: Any = torch.tensor([prompt.ids], device=device)
    places = torch.tensor(prompt.positions, dtype=torch.long, device=device)
    embeddings = narrator.embed(ids, prompt.visual.to(device), places)
    cache = DynamicCache(config=base.config)
    own, length, ended = [], 0, False
    while not ended:
        begin, new = time.perf_counter(), embeddings.shape[1]
        hidden = base.model(inputs_embeds=embeddings, past_key_values=cache, use_cache=True).last_hidden_state
        logits = exact(base.get_output_embeddings()(hidden[0, -1]))
        wait(device)
        passes.add([(length, new)], time.perf_counter() - begin)
        length += new
        scores = penalise(ids, logits[None].clone())[0] if penalise else logits
        token, only = int(scores.argmax()), line.guide.only(line.written)
        if only is not None:
            token = only[int(scores[list(only)].argmax())]
        own.append(logits.log_softmax(-1)[token])
        ended = line.take(token)
        following = torch.tensor([[token]], device=device)
        ids = torch.cat([ids, following], 1)
        embeddings = base.get_input_embeddings()(following)
    line.own = torch.stack(own).tolist()


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# -------------------- one run


@dataclass(frozen=True)
class Order:
    """One run of a side, for a process of its own. videos: ids."""

    side: Side
    videos: tuple[str, ...]
    shape: str
    device: str
    threads: int
    data: Path | None
    tokenizer: str | None


def carry_out(order: Order) -> Written:
    """Make the model, and write the videos. On a GPU the first of them once before, unmeasured."""
    if order.threads:
        torch.set_num_threads(order.threads)
    with without_warnings():
        return _carry_out(order)


def _carry_out(order: Order) -> Written:
    stories = {one.video.id: one for one in read_stories(order.data)}
    chosen = [stories[video] for video in order.videos]
    tokenizer = tokenizer_of(order.data, order.tokenizer)
    videos = tasks_of(chosen, random_features(visual_counts(chosen)))
    narrator = narrator_of(order.shape, tokenizer, order.side.precision, order.device)
    checkpoint, guides = checkpoint_of(narrator, tokenizer), given(chosen, tokenizer)
    if order.device == "cuda":
        write(order.side, checkpoint, videos[:1], guides)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    made = write(order.side, checkpoint, videos, guides)
    if order.device == "cuda":
        return replace(made, peak_bytes=torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return replace(made, peak_bytes=unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def counting(stories: Sequence[SampleVideo], tokenizer: Any, shape: str) -> dict[str, tuple[int, int, int]]:
    """Of each video: see `prompt_tokens`."""
    checkpoint = checkpoint_of(narrator_of(shape, tokenizer, "fp32", "meta"), tokenizer)
    videos = tasks_of(stories, no_features(visual_counts(stories)))
    writing = Prescribed(checkpoint, given(stories, tokenizer))
    return {video.id: prompt_tokens(writing, video) for video in videos}
