"""Every stage's settings: one home for each default. `videonarrator.config` reads them from YAML."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from omegaconf import MISSING

from videonarrator.schema import NarratorError


@dataclass(frozen=True)
class DataSettings:
    """What is trained on: a per-clip sample list and the folder of clip tensors it belongs to.

    later_clips: keep the text of the clips after the target, as the published samples do; a causal model's
    loss does not depend on it, so it is left out by default.
    whole_videos: the list holds whole videos (train.json, training_data.json) and each is one sample: every
    clip's slot kept, its visual tokens cut or padded to `clip_tokens`, no positions, loss on all clips.
    """

    samples: str = MISSING
    clips: str = MISSING
    later_clips: bool = False
    whole_videos: bool = False
    clip_tokens: int = 64
    held_out: str = ""


@dataclass(frozen=True)
class ModelSettings:
    """The language model and what of it is trained (published: LoRA of rank 64 on all linear layers but the
    head).

    adapter: `lora` trains LoRA, embeddings, projector and position table; `full` trains every weight;
    `projector` trains projector and position table alone.
    projector: a BLIP-2 folder whose `language_projection` the projector starts from; "" draws it at random.
    bos: begin every prompt with the tokenizer's BOS; None: where it has one. strip_around_added_tokens: the
    published set-up's tokenisation. compat: `upstream` is the published set-up whole: that tokenisation,
    its per-clip lists as they are, and LoRA on a projector that is itself frozen.
    """

    backbone: str = MISSING
    projector: str = ""
    template: str = "zh"
    adapter: Literal["lora", "full", "projector"] = "lora"
    rank: int = 64
    alpha: int = 16
    dropout: float = 0.05
    bos: bool | None = None
    strip_around_added_tokens: bool = False
    compat: Literal["none", "upstream"] = "none"


@dataclass(frozen=True)
class OptimizationSettings:
    """How it is trained. Defaults are the published ones but for precision, which depends on the device, and
    for packing and the mean over tokens, which the published code does not have.

    samples_per_step: samples (clips) of an update, whole videos until there are as many, on all devices
    together (published: 4 GPUs x 4 samples x 8 batches). packed: a video's samples share one sequence,
    exactly, and short videos share sequences of up to `tokens_per_sequence`; else samples are padded to
    batches of `batch_size`. order: `videos` keeps a video's samples in one step; `samples` shuffles them one
    by one, as the published training does (only where not packed). loss_weighting: mean over the step's
    learnt `token`s; over samples of the mean of each (`sample`); over micro-batches (`microbatch`, as
    published). attention: of packed sequences, `sdpa` branch by branch or, on a GPU, `flex` with blocks.
    projector_learning_rate: another rate for projector and position table, which start from nothing (None:
    the same). schedule: `warmup_decay` is that of the published DeepSpeed file. warmup: share of all steps.
    precision: of the arithmetic and of frozen weights; trained ones are float32. save_steps: updates between
    two resumable states, of which the newest `keep_states` are kept. evaluate_steps: updates between two
    measurements on `data.held_out`; patience: stop after as many without a better one (0: never).
    workers: processes that prepare micro-batches. tensorboard: write its files, too.
    """

    epochs: float = 15
    samples_per_step: int = 128
    packed: bool = True
    tokens_per_sequence: int = 4096
    batch_size: int = 4
    order: Literal["videos", "samples"] = "videos"
    loss_weighting: Literal["token", "sample", "microbatch"] = "token"
    attention: Literal["sdpa", "flex"] = "sdpa"
    learning_rate: float = 1e-4
    projector_learning_rate: float | None = None
    schedule: Literal["cosine", "linear", "constant_with_warmup", "warmup_decay"] = "cosine"
    warmup: float = 0.03
    clip_norm: float = 1.0
    weight_decay: float = 0.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_checkpointing: bool = False
    save_steps: int = 100
    keep_states: int = 2
    evaluate_steps: int = 100
    patience: int = 0
    log_steps: int = 10
    workers: int = 0
    tensorboard: bool = False
    seed: int = 42

    def __post_init__(self) -> None:
        for name in (
            "epochs", "samples_per_step", "tokens_per_sequence", "batch_size", "learning_rate", "clip_norm",
            "save_steps", "keep_states", "evaluate_steps", "log_steps",
        ):  # fmt: skip
            if not 0 < getattr(self, name) < math.inf:
                raise NarratorError(f"optimization.{name}={getattr(self, name)}: it must be greater than 0")
        for name in ("workers", "patience", "warmup", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise NarratorError(f"optimization.{name}={getattr(self, name)}: it cannot be less than 0")
        if self.warmup >= 1:
            raise NarratorError(f"optimization.warmup={self.warmup}: it is a share of all steps, less than 1")
        if self.packed and self.order == "samples":
            raise NarratorError(
                "optimization.order=samples takes videos apart, which packed sequences keep together: set "
                "optimization.packed=false, too"
            )


@dataclass(frozen=True)
class TrainConfig:
    """`videonarrator train`: writes `<output>/checkpoint`, train_log.jsonl, config.yaml and env.json."""

    output: str = MISSING
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    optimization: OptimizationSettings = field(default_factory=OptimizationSettings)


@dataclass(frozen=True)
class DecodingSettings:
    """How text is written (published: temperature 0.1; penalty 1.0 for labels, 1.1 for narrations; 100 new
    tokens).

    greedy: always the likeliest token. length: `prompt` only asks for it, as published; `constrained` holds
    it, and ends every narration with a sentence; `best_of` takes the best of that many `candidates`, each
    constrained, all but the first drawn at `retry_temperature`. max_new_tokens: of a line whose length is
    only asked for. labels: the storyline is made of these and their "+" combinations (none: the twelve script
    labels); free_labels: of anything, as published.
    max_clips: clips that one prompt tells of, at most; windows: a longer video goes on with the last quarter
    of them (else its other clips are left out, as published).
    attempts: how often a narration is written that is empty, repeats itself, cannot be read, or had to be
    ended where it hardly would (all but the first drawn at `retry_temperature`); the least flawed one is
    kept, and what is wrong with it is said. batch: videos at
    a time (0: what memory allows). It does not change what is written.
    """

    greedy: bool = True
    temperature: float = 0.1
    label_penalty: float = 1.0
    narration_penalty: float = 1.1
    length: Literal["prompt", "constrained", "best_of"] = "constrained"
    candidates: int = 4
    max_new_tokens: int = 100
    labels: list[str] = field(default_factory=list)
    free_labels: bool = False
    max_clips: int = 20
    windows: bool = True
    attempts: int = 3
    retry_temperature: float = 0.7
    seed: int = 0
    batch: int = 0

    def __post_init__(self) -> None:
        if min(self.temperature, self.retry_temperature, self.label_penalty, self.narration_penalty) <= 0:
            raise NarratorError("temperatures and penalties must be greater than 0")
        if min(self.max_new_tokens, self.max_clips, self.attempts, self.candidates) < 1 or self.batch < 0:
            raise NarratorError(
                "max_new_tokens, max_clips, attempts and candidates must be at least 1, batch at least 0"
            )
        if self.free_labels and self.labels:
            raise NarratorError("labels and free_labels=true exclude each other: leave one of them out")


def as_published(settings: DecodingSettings) -> DecodingSettings:
    """The settings without what the published inference does not have: length and labels are only asked for,
    nothing is written again, and clips over the limit are left out.
    """
    return replace(settings, length="prompt", labels=[], free_labels=True, attempts=1, windows=False)
