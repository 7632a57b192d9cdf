"""A checkpoint of ours to the published folder layout, where its form allows it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from videonarrator.checkpoint import read_info
from videonarrator.modeling.adapters import PACKED, PARTS
from videonarrator.published.checkpoint import EMBEDDINGS, POSITION, PROJECTOR, STEM
from videonarrator.schema import NarratorError


def export_published(checkpoint: Path, out: Path) -> Path:
    """Write adapter_config.json, adapter_model.bin, non_lora_trainables.bin and mm_projector.bin to `out`.

    The projector's own weights, which the published training saves nowhere, are in both of the last two.
    Raises `NarratorError` for checkpoints that have no form in that layout.
    """
    info = read_info(checkpoint)
    if info.adapter != "lora" or info.whole_video_tokens:
        raise NarratorError(
            f"{checkpoint} was trained with adapter={info.adapter}: only LoRA checkpoints of per-clip "
            "samples have a place in the published layout"
        )
    settings = json.loads((checkpoint / "adapter" / "adapter_config.json").read_text("utf-8"))
    adapter = load_file(checkpoint / "adapter" / "adapter_model.safetensors")
    if info.backbone_source and any(f".{part}." in name for name in adapter for part in PARTS):
        raise NarratorError(
            f"{checkpoint} has LoRA on q, k and v apart; the published model has them in one matrix, where "
            f"three A matrices do not fit into one. Train on a backbone converted with --qkv fused ({PACKED})"
        )
    trained = load_file(checkpoint / "trained.safetensors")
    for half in "AB":
        if (tensor := trained.get(f"projector.linear.lora_{half}.weight")) is not None:
            adapter[f"{STEM}{PROJECTOR}.lora_{half}.weight"] = tensor
    projector = {part: trained[f"projector.linear.{part}"] for part in ("weight", "bias")}
    others: dict[str, Tensor] = {name: trained[f"{ours}.weight"] for name, ours in EMBEDDINGS.items()}
    others[POSITION] = trained["projector.position.weight"]
    others |= {f"{STEM}{PROJECTOR}.{part}": tensor for part, tensor in projector.items()}
    out.mkdir(parents=True, exist_ok=True)
    torch.save(adapter, out / "adapter_model.bin")
    torch.save(others, out / "non_lora_trainables.bin")
    torch.save(
        {f"{PROJECTOR}.{part}": tensor for part, tensor in projector.items()}, out / "mm_projector.bin"
    )
    (out / "adapter_config.json").write_text(json.dumps(_config(settings, adapter), indent=2) + "\n", "utf-8")
    return out


def _config(settings: dict[str, Any], adapter: dict[str, Tensor]) -> dict[str, Any]:
    """An adapter_config.json with the fields that peft 0.4 knows, in its form of module names."""
    layers = {match[1] for name in adapter if (match := re.search(r"\.(\w+)\.lora_A\.weight$", name))}
    return {
        "base_model_name_or_path": "",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": settings["lora_alpha"],
        "lora_dropout": settings["lora_dropout"],
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": settings["r"],
        "target_modules": sorted(layers),
        "task_type": "CAUSAL_LM",
    }
