"""A tiny random CLIP (or Chinese CLIP) with the true architecture, in transformers' layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import ChineseCLIPConfig, ChineseCLIPModel, CLIPConfig, CLIPModel

CLIP_WIDTH = 6


def save_tiny_clip(folder: Path, seed: int = 0, *, chinese: bool = False) -> Any:
    """Two layers of 16 for pictures of 32 pixels, features of width 6; returns the model."""
    size: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    size["num_hidden_layers"] = 2
    parts = {
        "text_config": {**size, "vocab_size": 40, "max_position_embeddings": 12},
        "vision_config": {**size, "image_size": 32, "patch_size": 8},
        "projection_dim": CLIP_WIDTH,
    }
    if chinese:
        model: Any = ChineseCLIPModel(ChineseCLIPConfig(**parts))
    else:
        model = CLIPModel(CLIPConfig(**parts))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim:  # biases and norms too, so that every part is felt
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
                if "norm" in name.lower() and name.endswith("weight"):
                    weight += 1
    model.eval().save_pretrained(folder)
    settings = {
        "do_resize": True,
        "size": {"height": 32, "width": 32} if chinese else {"shortest_edge": 32},
        "do_center_crop": not chinese,
        "crop_size": {"height": 32, "width": 32},
        "resample": 3,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.25],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return model
