"""LAVIS's BLIP-2 (ViT, LayerNorm, Q-Former) as a model folder that `qformer.load_encoder` reads, exactly.

Every name is either carried over or left out for a reason given here; any other one is an error.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import Blip2Config

from data_process.lavis_files import VIT_G_BLOCKS, LavisTensors, read_lavis, some
from data_process.qformer import FrameEncoder
from videonarrator.schema import NarratorError
from videonarrator.weight_files import open_to_others

BLOCK_EPS, LN_VISION_EPS, QFORMER_EPS = 1e-6, 1e-5, 1e-12

VIT_G_WIDTH, VIT_G_HEADS, VIT_G_SIZE = 1408, 16, 224
BERT_WIDTH, BERT_HEADS, BERT_LAYERS = 768, 12, 12

Precision = Literal["fp16", "fp32"]

_ENDS = r"\.(weight|bias)"
_TEXT_LAYER = r"Qformer\.bert\.encoder\.layer\.\d+\.(intermediate\.dense|output\.(dense|LayerNorm))" + _ENDS
_WORD_HEAD = r"Qformer\.cls\.predictions\.(bias|(decoder|transform\.(dense|LayerNorm))\.(weight|bias))"
LEFT_OUT = {
    _TEXT_LAYER: "text feed-forward layers: queries go through *_query",
    r"Qformer\.bert\.embeddings\.(word|position)_embeddings\.weight": "text embeddings",
    r"Qformer\.bert\.embeddings\.position_ids": "a buffer that counts from 0",
    _WORD_HEAD: "head that predicts words",
    r"(vision_proj|text_proj|itm_head)\.(weight|bias)|temp": "contrast and matching of pictures and texts",
    r"(opt_proj|t5_proj)\.(weight|bias)|(opt_model|t5_model)\..+": "language model and the way to it",
}
"""Names of a BLIP-2 file that frame features do without, as patterns, and why."""

_HALVED = ("patch_embed.proj.", "attn.qkv.", "attn.proj.", "mlp.fc1.", "mlp.fc2.")
_IN_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def convert_lavis(
    checkpoint: Path,
    out: Path,
    *,
    vit: Path | None = None,
    vit_heads: int | None = None,
    qformer_heads: int | None = None,
    vit_precision: Precision = "fp16",
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Write LAVIS's `checkpoint` as a BLIP-2 folder `out`, whole or not at all.

    checkpoint, vit: see `lavis_files.read_lavis`. Sizes are those of the tensors; the numbers of heads are
    not in them and must be given for widths other than 1408 and 768. vit_precision: "fp16" rounds the
    ViT's matrices, as LAVIS does. Raises `NarratorError` naming the file and what is wrong with it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise NarratorError(f"{out} exists: name another folder, or remove this one (rm -r {out})")
    source = read_lavis(checkpoint, vit, say)
    config = _config(source, vit_heads, qformer_heads)
    with torch.device("meta"):
        encoder = FrameEncoder(config)
    encoder.load_state_dict(_convert(source, encoder, vit_precision, say), assign=True)
    vision: Any = config.vision_config
    qformer: Any = config.qformer_config
    say(
        f"vision transformer: {vision.image_size} pixels, {vision.num_hidden_layers} blocks, width "
        f"{vision.hidden_size}; Q-Former: {qformer.num_hidden_layers} layers, width {qformer.hidden_size}, "
        f"{config.num_query_tokens} queries"
    )
    partial = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        encoder.save(partial)
        open_to_others(partial)
        partial.replace(out)
    except OSError as error:
        raise NarratorError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _config(source: LavisTensors, vit_heads: int | None, qformer_heads: int | None) -> Blip2Config:
    """Sizes from the tensors' shapes."""
    vit, rest, vit_file, blip2_file = source.vit, source.rest, source.vit_file, source.blip2_file
    width, _, patch, _ = _shape(vit, "patch_embed.proj.weight", 4, vit_file)
    _, places, _ = _shape(vit, "pos_embed", 3, vit_file)
    mlp, _ = _shape(vit, "blocks.0.mlp.fc1.weight", 2, vit_file)
    side = math.isqrt(max(places - 1, 0))
    if side < 1 or side**2 + 1 != places:
        raise NarratorError(
            f"{vit_file}: pos_embed has {places} places, expected 1 and a square number (257 for 224 pixels)"
        )
    blocks = _count(vit, r"blocks\.(\d+)\.")
    _, queries, hidden = _shape(rest, "query_tokens", 3, blip2_file)
    feed_forward, _ = _shape(rest, _layer(0) + "intermediate_query.dense.weight", 2, blip2_file)
    layers = _count(rest, r"Qformer\.bert\.encoder\.layer\.(\d+)\.")
    crossing = [i for i in range(layers) if any(n.startswith(_layer(i) + "crossattention.") for n in rest)]
    gaps = [after - before for before, after in pairwise(crossing)]
    if width == VIT_G_WIDTH and vit_heads is None:
        vit_heads = VIT_G_HEADS
        _expect(vit_file, "blocks", blocks, VIT_G_BLOCKS)
        if source.vit_file != source.blip2_file:
            _expect(vit_file, "pixels a side (by pos_embed)", side * patch, VIT_G_SIZE)
    if hidden == BERT_WIDTH and qformer_heads is None:
        qformer_heads = BERT_HEADS
        _expect(blip2_file, "Q-Former layers", layers, BERT_LAYERS)
    if vit_heads is None or qformer_heads is None:
        raise NarratorError(
            f"the numbers of attention heads are not in the files: known are widths {VIT_G_WIDTH} (ViT, "
            f"{VIT_G_HEADS} heads) and {BERT_WIDTH} (Q-Former, {BERT_HEADS} heads); these are {width} in "
            f"{vit_file} and {hidden} in {blip2_file}: give --vit-heads N and --qformer-heads N"
        )
    for option, heads, size in (("vit", vit_heads, width), ("qformer", qformer_heads, hidden)):
        if heads < 1 or size % heads:
            raise NarratorError(f"--{option}-heads {heads}: the width {size} is no multiple of it")
    return Blip2Config(
        dtype="float32",
        vision_config={
            "hidden_size": width,
            "intermediate_size": mlp,
            "num_hidden_layers": blocks,
            "num_attention_heads": vit_heads,
            "image_size": side * patch,
            "patch_size": patch,
            "layer_norm_eps": BLOCK_EPS,
            "post_layernorm_eps": LN_VISION_EPS,
        },
        qformer_config={
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": qformer_heads,
            "intermediate_size": feed_forward,
            "encoder_hidden_size": width,
            "layer_norm_eps": QFORMER_EPS,
            "cross_attention_frequency": min(gaps, default=2),
        },
        num_query_tokens=queries,
    )


def _convert(
    source: LavisTensors, encoder: FrameEncoder, precision: Precision, say: Callable[[str], None]
) -> dict[str, Tensor]:
    """The encoder's state dict. Every tensor of `source` is used, or left out for a reason, once."""
    expected = encoder.state_dict()
    vision: Any = encoder.config.vision_config
    qformer: Any = encoder.config.qformer_config
    depth, layers = vision.num_hidden_layers, qformer.num_hidden_layers
    names = {name: ours for name, ours in _qformer_names(layers).items() if ours in expected}
    vit_names = _vit_names(depth)
    biases = {f"blocks.{i}.attn.{which}_bias" for i in range(depth) for which in "qv"}
    _check_names(source.blip2_file, source.rest, set(names), LEFT_OUT)
    _check_names(source.vit_file, source.vit, biases | set(vit_names), {})
    width = expected["vision_model.post_layernorm.weight"].shape
    for file, tensors, mapped in (
        (source.blip2_file, source.rest, names),
        (source.vit_file, source.vit, vit_names),
    ):
        for name, ours in mapped.items():
            _check_tensor(file, name, tensors[name], expected[ours].shape)
    for name in biases:
        _check_tensor(source.vit_file, name, source.vit[name], width)
    for reason, number in _reasons(source.rest).items():
        say(f"left out: {number} tensors ({reason})")

    converted = {ours: source.rest[name] for name, ours in names.items()}
    for name, ours in vit_names.items():
        tensor = source.vit[name]
        if precision == "fp16" and any(part in name for part in _HALVED):
            tensor = tensor.half()
            if not tensor.isfinite().all():
                raise NarratorError(
                    f"{source.vit_file}: {name} holds values too large for fp16: give --vit-precision fp32"
                )
        converted[ours] = tensor
    for i in range(depth):
        q, v = (source.vit[f"blocks.{i}.attn.{which}_bias"].float() for which in "qv")
        bias = torch.cat([q, torch.zeros_like(q), v])  # keys have none
        converted[f"vision_model.encoder.layers.{i}.self_attn.qkv.bias"] = bias
    return converted


def _vit_names(depth: int) -> dict[str, str]:
    """LAVIS's names of the ViT's tensors -> transformers'; the biases of q and v, which are joined, lack."""
    embeddings, ends = "vision_model.embeddings.", ("weight", "bias")
    names = {"cls_token": embeddings + "class_embedding", "pos_embed": embeddings + "position_embedding"}
    names |= {f"patch_embed.proj.{end}": f"{embeddings}patch_embedding.{end}" for end in ends}
    for i in range(depth):
        block, layer = f"blocks.{i}.", f"vision_model.encoder.layers.{i}."
        names[block + "attn.qkv.weight"] = layer + "self_attn.qkv.weight"
        for lavis, ours in _IN_BLOCK.items():
            names |= {f"{block}{lavis}.{end}": f"{layer}{ours}.{end}" for end in ends}
    return names


def _qformer_names(layers: int) -> dict[str, str]:
    """LAVIS's names of all else -> transformers', with cross-attention in every layer."""
    modules = {
        "ln_vision": "vision_model.post_layernorm",
        "Qformer.bert.embeddings.LayerNorm": "qformer.layernorm",
    }
    for i in range(layers):
        lavis, ours = _layer(i), f"qformer.encoder.layer.{i}."
        for attention in ("attention", "crossattention"):
            for part in ("query", "key", "value"):
                modules[f"{lavis}{attention}.self.{part}"] = f"{ours}{attention}.attention.{part}"
            for part in ("dense", "LayerNorm"):
                modules[f"{lavis}{attention}.output.{part}"] = f"{ours}{attention}.output.{part}"
        for part in ("intermediate_query.dense", "output_query.dense", "output_query.LayerNorm"):
            modules[lavis + part] = ours + part
    names = {"query_tokens": "query_tokens"}
    for lavis, ours in modules.items():
        names |= {f"{lavis}.{end}": f"{ours}.{end}" for end in ("weight", "bias")}
    return names


def _layer(number: int) -> str:
    return f"Qformer.bert.encoder.layer.{number}."


def _check_names(file: Path, tensors: dict[str, Tensor], wanted: set[str], left_out: dict[str, str]) -> None:
    missing = sorted(wanted - set(tensors))
    unknown = [
        name
        for name in tensors
        if name not in wanted and not any(re.fullmatch(pattern, name) for pattern in left_out)
    ]
    if missing:
        raise NarratorError(f"{file} is not whole: {len(missing)} tensors are missing: {some(missing)}")
    if unknown:
        raise NarratorError(
            f"{file} holds {len(unknown)} tensors that are none of this BLIP-2's: {some(unknown)}"
        )


def _check_tensor(file: Path, name: str, tensor: Tensor, shape: torch.Size) -> None:
    if tensor.shape != shape:
        raise NarratorError(
            f"{file}: {name} is {list(tensor.shape)}, by the sizes of the other tensors it is {list(shape)}"
        )
    if not tensor.is_floating_point() or not tensor.isfinite().all():
        raise NarratorError(f"{file}: {name} ({tensor.dtype}) holds values that are no finite numbers")


def _reasons(tensors: dict[str, Tensor]) -> Counter[str]:
    return Counter(why for name in tensors for how, why in LEFT_OUT.items() if re.fullmatch(how, name))


def _shape(tensors: dict[str, Tensor], name: str, dimensions: int, file: Path) -> torch.Size:
    if name not in tensors:
        raise NarratorError(f"{file} is not whole: it lacks {name}")
    if tensors[name].dim() != dimensions:
        raise NarratorError(
            f"{file}: {name} is {list(tensors[name].shape)}, expected {dimensions} dimensions"
        )
    return tensors[name].shape


def _count(tensors: dict[str, Tensor], pattern: str) -> int:
    """How many numbers the names have; a gap among them shows as missing names."""
    return len({found[1] for name in tensors if (found := re.match(pattern, name))})


def _expect(file: Path, what: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise NarratorError(f"{file} is not the file it should be: {found} {what}, expected {wanted}")
