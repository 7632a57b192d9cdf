"""LoRA adapters of one layout of q, k, v on a backbone of the other.

LoRA on the fused `W_pack` (A [r, hidden], B [3 * hidden, r]) equals LoRA on q, k and v with the same A each
and B's rows divided among them. The other way round three independent A do not fit into one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch import Tensor

from videonarrator.modeling.lora import linear_layers

PACKED, PARTS = "W_pack", ("q_proj", "k_proj", "v_proj")


def apply_adapter(language_model: Any, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """The language model with LoRA of peft's settings and tensors; a fused one is divided for a split model.

    Raises `ValueError` where the adapter is of another model, or cannot be had on this layout.
    """
    targets = list(settings["target_modules"])
    have = {name.rpartition(".")[2] for name in linear_layers(language_model)}
    if any(name.endswith(PACKED) for name in targets) and PACKED not in have:
        targets, tensors = divided_names(targets), divided_adapter(tensors)
    elif PACKED in have and any(name.endswith(PARTS) for name in targets):
        raise ValueError(
            "it is LoRA on q, k and v apart, the backbone keeps them in one matrix: three A matrices do not "
            "fit into one. Give the backbone converted with --qkv split"
        )
    config = LoraConfig(
        r=settings["r"],
        lora_alpha=settings["lora_alpha"],
        lora_dropout=settings["lora_dropout"],
        bias="none",
        target_modules=targets,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    model = get_peft_model(language_model, config)
    report: Any = set_peft_model_state_dict(model, dict(tensors))
    missing = [name for name in report.missing_keys if "lora_" in name]
    if missing or report.unexpected_keys:
        raise ValueError(f"missing {missing[:3]}, not understood {report.unexpected_keys[:3]}")
    return model


def divided_names(targets: Iterable[str]) -> list[str]:
    """The layers that an adapter is on, q, k and v apart."""
    names = []
    for name in targets:
        stem = name.removesuffix(PACKED)
        names += [stem + part for part in PARTS] if stem != name else [name]
    return names


def divided_adapter(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LoRA tensors on W_pack as LoRA tensors on q, k and v; the others unchanged."""
    divided: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if f".{PACKED}." not in name:
            divided[name] = tensor
            continue
        rows = tensor.chunk(3) if ".lora_B." in name else [tensor] * 3
        for part, piece in zip(PARTS, rows, strict=True):
            divided[name.replace(f".{PACKED}.", f".{part}.")] = piece.clone()
    return divided
