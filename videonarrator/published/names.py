"""Baichuan-7B's tensor names in three layouts, and the way between them.

    published  as the model's authors released it: `W_pack` [3 * hidden, hidden] (rows q, then k, then v), and
               buffers of the rotary positions
    fused      the project's backbone for training as the published system trained: the same without buffers
    split      a plain LLaMA: q_proj, k_proj and v_proj [hidden, hidden] each

All names that occur are in the table; any other is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from videonarrator.schema import NarratorError

LAYOUTS = ("fused", "split")

OUTSIDE = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
IN_LAYER = (
    "self_attn.o_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
)
PACKED = "self_attn.W_pack.weight"
PARTS = tuple(f"self_attn.{part}_proj.weight" for part in "qkv")
BUFFER = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
"""Recomputed at every load; the only kind of tensor that is dropped."""

PROJECTOR = ("model.mm_projector.weight", "model.mm_projector.bias")
"""Not Baichuan's: some base folders carry the visual projector; it is put beside the language model."""


def names_of(layers: int, layout: str) -> set[str]:
    """All tensor names of a model with so many layers in the layout fused or split."""
    attention = (PACKED,) if layout == "fused" else PARTS
    inside = {f"model.layers.{i}.{name}" for i in range(layers) for name in (*IN_LAYER, *attention)}
    return {*OUTSIDE, *inside}


def layout_of(names: Iterable[str]) -> str:
    """`split` where q, k and v stand alone, else `fused`."""
    return "split" if any(name.endswith(PARTS) for name in names) else "fused"


def sort_names(names: Iterable[str], where: str) -> tuple[list[str], list[str]]:
    """Of a source's tensors, the language model's names and the projector's; buffers are dropped.

    Raises `NarratorError` naming what is none of these.
    """
    model, projector, unknown = [], [], []
    known = re.compile(
        r"model\.layers\.\d+\.(?:" + "|".join(map(re.escape, (*IN_LAYER, PACKED, *PARTS))) + ")"
    )
    for name in names:
        if name in PROJECTOR:
            projector.append(name)
        elif name in OUTSIDE or known.fullmatch(name):
            model.append(name)
        elif not BUFFER.fullmatch(name):
            unknown.append(name)
    if unknown:
        raise NarratorError(
            f"{where} holds {len(unknown)} tensors that Baichuan-7B does not have, first "
            f"{', '.join(unknown[:3])}: it is another model, or one with adapters inside"
        )
    return model, projector


def to_layout(tensors: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """`tensors` (one or more whole layers' worth of q, k, v) in the layout fused or split; rest unchanged.

    Raises `KeyError` where a layer has only some of q, k and v.
    """
    converted: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if layout == "split" and name.endswith(PACKED):
            layer = name.removesuffix(PACKED)
            for part, rows in zip(PARTS, tensor.chunk(3), strict=True):
                converted[layer + part] = rows
        elif layout == "fused" and name.endswith(PARTS):
            layer = name[: name.index("self_attn.")]
            if layer + PACKED not in converted:
                converted[layer + PACKED] = torch.cat([tensors[layer + part] for part in PARTS])
        else:
            converted[name] = tensor
    return converted
