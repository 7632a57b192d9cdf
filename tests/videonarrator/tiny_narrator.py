"""A narrator small enough to train in seconds, and the samples and settings it is trained with."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from data_process.annotations import clip_file
from data_process.prepare import video_story
from videonarrator.prompt import inputs_text
from videonarrator.settings import DataSettings, ModelSettings, OptimizationSettings, TrainConfig
from videonarrator.timeline import clip_positions

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 16
PIECES = 1200


def clip_tokens(video_id, clip):
    """Random visual tokens [2 to 5, WIDTH], the same for the same clip at every call."""
    seed = int.from_bytes(hashlib.sha256(f"{video_id} {clip}".encode()).digest()[:4], "big")
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2 + seed % 4, WIDTH, generator=generator)


def clip_samples(video, template):
    """A video's entries of train_shots.json."""
    story = video_story(video, range(len(video.clips)), template)
    positions = clip_positions([clip.duration for clip in video.clips], range(len(video.clips)))
    return [
        {
            "shot_pos": position,
            "shot_loc": index + 1,
            "inputs": inputs_text(story, template, index + 1),
            "id": video.id,
            "frames": [clip_file(video.id, index)],
        }
        for index, position in enumerate(positions)
    ]


def batched(samples, pad=36):
    """One batch of samples with at most one slot whose ids and labels are tensors."""
    from videonarrator.dataset import collate

    lists = [
        {
            **one,
            "ids": one["ids"].tolist(),
            "labels": one["labels"].tolist(),
            "counts": (len(one["visual"]),) * len(one["positions"]),
        }
        for one in samples
    ]
    return collate(lists, pad)


def tiny_config(vocabulary, **changes):
    from videonarrator.modeling.backbones import BaichuanConfig

    values = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,  # large enough for logits that differ clearly
        "rms_norm_eps": 1e-6,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    return BaichuanConfig(**values | changes)


def ten_samples(sample_videos, template):
    """Per-clip samples of the first two sample videos (6 and 4)."""
    return [one for video in list(sample_videos.values())[:4] for one in clip_samples(video, template)][:10]


def train_config(backbone, output, *, adapter="lora", dropout=0.0, bos=None, template="zh", **changes):
    values = {"epochs": 2, "samples_per_step": 4, "learning_rate": 1e-2, "log_steps": 1}
    return TrainConfig(
        output=str(output),
        data=DataSettings(samples="", clips=""),
        model=ModelSettings(
            backbone=str(backbone),
            template=template,
            adapter=adapter,
            rank=4,
            alpha=8,
            dropout=dropout,
            bos=bos,
        ),
        optimization=OptimizationSettings(**values | changes),
    )


FEATURES = {"encoder": "tiny", "width": WIDTH, "threshold": 0.9}


def as_started(config, shots, template):
    """Narrator, tokenizer and data set as that run begins with them."""
    from videonarrator.dataset import ClipSamples
    from videonarrator.training.building import build_narrator

    torch.manual_seed(config.optimization.seed)
    narrator, tokenizer = build_narrator(config, WIDTH)
    dataset = ClipSamples(shots, clip_tokens, tokenizer, template, WIDTH)
    narrator.projector.match_scale(narrator.base.get_input_embeddings().weight, dataset[0]["visual"])
    return narrator, tokenizer, dataset


def started_run(config, shots, template, held_out=()):
    """The run as it is before its first step, its folder not made ready; and its data set."""
    from videonarrator.dataset import ClipSamples
    from videonarrator.training.parallel import Processes
    from videonarrator.training.run import Run

    processes = Processes(config.optimization.precision)
    narrator, tokenizer, dataset = as_started(config, shots, template)
    evaluated = ClipSamples(held_out, clip_tokens, tokenizer, template, WIDTH) if held_out else None
    return Run(config, narrator, dataset, evaluated, tokenizer.pad_token_id, processes), dataset


def log_of(run):
    """The lines of a run's train_log.jsonl."""
    return [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]


def train_and_keep(config, shots):
    """The narrator at the end of a run, as it is in memory."""
    import videonarrator.training.run as training

    kept = []

    def save(folder, narrator, *rest):
        kept.append(narrator)
        real(folder, narrator, *rest)

    real = training.save_checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "save_checkpoint", save)
        training.train(config, shots, clip_tokens, FEATURES)
    return kept[0]
