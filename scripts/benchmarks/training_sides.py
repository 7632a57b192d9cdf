"""What `benchmark.py train` compares: real videos' samples in several forms, a model of random weights."""

from __future__ import annotations

import gc
import json
import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaTokenizer

from data_process.annotations import SampleVideo, clip_file, read_sample_list
from videonarrator.config import load_template
from videonarrator.dataset import ClipSamples, VisualSource
from videonarrator.modeling.attention import TREE_SDPA
from videonarrator.modeling.backbones import extend_tokenizer
from videonarrator.modeling.narrator import IGNORED, Narrator
from videonarrator.prompt import ADDED_TOKENS, inputs_text
from videonarrator.settings import TrainConfig
from videonarrator.sizing import LiveBytes, empty_narrator, shape_file
from videonarrator.timeline import clip_positions, frame_numbers
from videonarrator.training.batches import MicroBatch, Packed, Padded, StepBatches, padded_steps
from videonarrator.training.plan import orders, padded_batches

WIDTH, QUERIES, KEPT = 768, 32, 0.6
"""Of BLIP-2's features: width, tokens a frame, and the share of a clip's frames that compression keeps."""

TEMPLATE = load_template("zh")

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
    "50m": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 12, "num_attention_heads": 8},
}
"""Small shapes of Baichuan's architecture; their vocabulary is the tokenizer's."""


# -------------------- samples


def read_videos(data: Path) -> list[SampleVideo]:
    """The 300 real videos."""
    return read_sample_list(data / "esyncvidstory_test_300.json", TEMPLATE)


def read_tokenizer(data: Path, folder: str | None) -> Any:
    """The tokenizer in `folder` (None: the reference data's, of Baichuan's kind), with the added tokens."""
    source = folder or data / "metrics_fixture/models/baichuan-tokenizer"
    tokenizer = LlamaTokenizer.from_pretrained(source, add_prefix_space=False)
    extend_tokenizer(tokenizer, ADDED_TOKENS)
    return tokenizer


def samples_of(videos: Sequence[SampleVideo]) -> list[dict[str, Any]]:
    """The per-clip samples of the videos, as train_shots.json has them."""
    samples = []
    for one in videos:
        kept = [clip.number - 1 for clip in one.story.clips]
        places = clip_positions([clip.duration for clip in one.video.clips], kept)
        samples += [
            {
                "shot_pos": place,
                "shot_loc": index + 1,
                "inputs": inputs_text(one.story, TEMPLATE, index + 1),
                "id": one.video.id,
                "frames": [clip_file(one.video.id, index)],
            }
            for index, place in zip(kept, places, strict=True)
        ]
    return samples


def visual_counts(videos: Sequence[SampleVideo]) -> dict[tuple[str, int], int]:
    """Visual tokens of each (video id, clip index): those of the memory frame and of the frames kept."""
    return {
        (one.video.id, index): QUERIES * (1 + math.ceil(KEPT * len(frame_numbers(clip.start, clip.end))))
        for one in videos
        for index, clip in enumerate(one.video.clips)
    }


def no_features(counts: dict[tuple[str, int], int]) -> VisualSource:
    """Visual tokens that take no memory, for counting."""
    return lambda video, clip: torch.zeros(1).expand(counts[video, clip], WIDTH)


def random_features(counts: dict[tuple[str, int], int]) -> VisualSource:
    """Random visual tokens, the same at every call."""

    def features(video: str, clip: int) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{video} {clip}".encode()))
        return torch.randn(counts[video, clip], WIDTH, generator=generator)

    return features


def shuffled_batches(samples: int, batch_size: int, seed: int) -> list[list[int]]:
    """The batches of an epoch as upstream makes them: all samples shuffled, then taken in turn."""
    return [batch for step in padded_batches(orders(samples, 1, seed), batch_size, samples) for batch in step]


# -------------------- sides


Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Side:
    """One way to compute the samples: micro-batches, the loss of one, attention as transformers names it."""

    micro_batches: list[MicroBatch]
    loss: Loss
    attention: str = "sdpa"

    @property
    def computed(self) -> int:
        """Tokens that go through the model, padding included."""
        return sum(one.tensors["input_ids"].numel() for one in self.micro_batches)

    @property
    def tokens(self) -> int:
        """The same without padding."""
        return sum(one.tokens for one in self.micro_batches)


def our_loss(narrator: Narrator, **tensors: Tensor) -> Tensor:
    """As this project has it: logits only where something is learnt."""
    return narrator(**tensors)["loss"]


def published_loss(
    narrator: Narrator,
    *,
    input_ids: Tensor,
    labels: Tensor,
    visual: Tensor,
    positions: Tensor,
    attention_mask: Tensor,
    weights: Tensor,
) -> Tensor:
    """As the published code has it: logits [batch, tokens, vocabulary]; the loss passes over most of them."""
    embeddings = narrator.embed(input_ids, visual, positions)
    hidden = narrator.base.model(inputs_embeds=embeddings, attention_mask=attention_mask, use_cache=False)
    logits = narrator.base.get_output_embeddings()(hidden.last_hidden_state)[:, :-1].flatten(0, 1)
    losses = functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="none", ignore_index=IGNORED)
    return (losses * weights[:, 1:].flatten()).sum()


def sides_of(
    videos: Sequence[SampleVideo],
    tokenizer: Any,
    patch_id: int,
    *,
    tokens_per_sequence: int,
    batch_size: int,
    seed: int,
) -> dict[str, Side]:
    """The samples of `videos` as one step of each side. The loss is the mean over the learnt tokens."""
    samples, features = samples_of(videos), random_features(visual_counts(videos))
    whole, cut = (
        ClipSamples(samples, features, tokenizer, TEMPLATE, WIDTH, later_clips=later)
        for later in (True, False)
    )
    by_video = [[branch.sample for tree in trees for branch in tree.branches] for trees in cut.trees]
    everything = [list(range(len(by_video)))]
    pad = tokenizer.pad_token_id
    forms: dict[str, tuple[Packed | Padded, ClipSamples, Loss]] = {
        "upstream": (
            Padded(whole, [shuffled_batches(len(samples), batch_size, seed)], pad),
            whole,
            published_loss,
        ),
        "padded": (
            Padded(cut, padded_steps(cut, by_video, everything, batch_size), pad),
            cut,
            our_loss,
        ),
        "packed": (Packed(cut, cut.trees, everything, tokens_per_sequence), cut, our_loss),
    }
    return {
        name: Side(
            StepBatches(form, dataset, patch_id, "token")[0], loss, TREE_SDPA if name == "packed" else "sdpa"
        )
        for name, (form, dataset, loss) in forms.items()
    }


# -------------------- the model


def model_source(shape: str, vocabulary: int, folder: Path) -> str:
    """A shape's configuration: one of `SHAPES` (written to `folder`), of configs/shapes, or a config.json."""
    if shape not in SHAPES:
        return str(shape_file(shape))
    file = folder / "config.json"
    values: dict[str, Any] = {"model_type": "baichuan-fused", "vocab_size": vocabulary}
    values |= {"max_position_embeddings": 4096, "tie_word_embeddings": False, **SHAPES[shape]}
    file.write_text(json.dumps(values), "utf-8")
    return str(file)


def random_narrator(config: TrainConfig, source: str, tokenizer: Any, device: str, seed: int) -> Narrator:
    """The narrator that training with `config` begins with, of random weights made on the device.

    Both matrices of LoRA are random, too, so that all of its gradients are there from the first pass on.
    """
    narrator = empty_narrator(config, WIDTH, source=source, tokenizer=tokenizer).to_empty(device=device)
    decoder = narrator.base.model
    decoder.rotary_emb = type(decoder.rotary_emb)(narrator.base.config).to(device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in narrator.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return narrator.train()


def weight_flops(narrator: Narrator, side: Side) -> float:
    """FLOP of a side's forward and backward that weights take part in (see the benchmark's description)."""
    base = narrator.base
    embeddings, head = base.get_input_embeddings().weight, base.get_output_embeddings().weight
    per_token = sum(
        parameter.numel() * (6 if parameter.requires_grad else 4)
        for parameter in narrator.language_model.parameters()
        if parameter.ndim > 1 and parameter is not embeddings and parameter is not head
    )
    learnt = sum(len(one.owners) for one in side.micro_batches)
    return side.tokens * per_token + learnt * head.numel() * (6 if head.requires_grad else 4)


def attention_flops(narrator: Narrator, side: Side) -> float:
    """FLOP of a side's forward and backward between pairs of tokens."""
    config = narrator.base.config
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    pairs = sum(_pairs(one.tensors) for one in side.micro_batches)
    return 12.0 * config.num_hidden_layers * width * pairs


def _pairs(tensors: dict[str, Tensor]) -> int:
    """Pairs of tokens of which one attends to the other: each to as many as its position says, and itself."""
    if "tree" in tensors:
        return int((tensors["tree"][3] + 1).sum())
    lengths = tensors["attention_mask"].sum(1)
    return int((lengths * (lengths + 1) // 2).sum())


# -------------------- a pass


@dataclass(frozen=True)
class Pass:
    """Forward and backward of all of a side's micro-batches: loss, norm of the gradient, and what it took.

    cpu_seconds: of all of this process's threads.
    """

    loss: float
    norm: float
    seconds: float
    cpu_seconds: float


def one_pass(narrator: Narrator, side: Side, precision: str) -> Pass:
    """Compute a side once. precision: fp32, or bf16 by autocast. Gradients stay where they are, anew."""
    device = narrator.device
    narrator.base.set_attn_implementation(side.attention)
    narrator.zero_grad(set_to_none=False)
    total = torch.zeros((), device=device)
    _wait(device)
    begin, cpu_begin = time.perf_counter(), time.process_time()
    for micro_batch in side.micro_batches:
        tensors = {name: tensor.to(device) for name, tensor in micro_batch.tensors.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = side.loss(narrator, **tensors)
        loss.backward()
        total += loss.detach()
    _wait(device)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    norm = float(nn.utils.get_total_norm(_gradients(narrator)))
    return Pass(float(total), norm, seconds, cpu_seconds)


def _gradients(narrator: Narrator) -> list[Tensor]:
    return [parameter.grad for parameter in narrator.parameters() if parameter.grad is not None]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def without_dropout(narrator: Narrator) -> Iterator[None]:
    """Dropout is off inside; all else, checkpointing among it, is as in training."""
    dropouts = [module for module in narrator.modules() if isinstance(module, nn.Dropout)]
    rates = [module.p for module in dropouts]
    for module in dropouts:
        module.p = 0.0
    try:
        yield
    finally:
        for module, rate in zip(dropouts, rates, strict=True):
            module.p = rate


def peak_bytes(narrator: Narrator, side: Side, precision: str) -> int:
    """Gradients (there before) and the most bytes of tensors alive at a time in the largest micro-batch.

    On CUDA by torch's allocator; elsewhere by counting the storages that operations make.
    """
    largest = max(side.micro_batches, key=lambda one: one.tensors["input_ids"].numel())
    side = replace(side, micro_batches=[largest])
    gradients = sum(gradient.nbytes for gradient in _gradients(narrator))
    gc.collect()
    if narrator.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        one_pass(narrator, side, precision)
        return gradients + torch.cuda.max_memory_allocated() - before
    with LiveBytes() as live:
        one_pass(narrator, side, precision)
    return gradients + live.peak
