"""CLIP models through cn_clip and open_clip, the packages of their authors (extra `clip`)."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metrics.encoders.clip import ClipModel
from metrics.encoders.loading import digest, fetched, listing
from videonarrator.schema import NarratorError

HEAD_WIDTH, WIDE_HEAD_WIDTH = 64, 80
"""Width of an attention head in the published Chinese CLIPs; the wide one is ViT-H-14's, 1280 wide."""


def cn_clip_model(source: str) -> ClipModel:
    """A Chinese CLIP with a vision transformer, from cn_clip's checkpoint.

    source: the .pt file (read with weights_only, nothing of it is run), or a .safetensors file of the same
    names. Its architecture is read off the weights. Texts may be as long as the position table (512 tokens),
    not cn_clip's 52. The weights are used in float32; cn_clip itself rounds them to half precision.
    """
    cn_clip = _package("cn_clip.clip", "cn_clip")
    _package("cn_clip.clip.model", "cn_clip")
    file = Path(source)
    if not file.is_file():
        there = f" but a folder of {listing(file)}" if file.is_dir() else ""
        raise NarratorError(
            f"encoder {source}: no such file{there}; the back end cn_clip takes a checkpoint such as "
            "clip_cn_vit-b-16.pt, or the same as .safetensors"
        )
    weights = _cn_clip_weights(file)
    tokenizer = cn_clip._tokenizer
    try:
        architecture = cn_clip_architecture(weights)
    except (KeyError, IndexError) as error:
        raise NarratorError(
            f"encoder {file}: not a Chinese CLIP with a vision transformer: it has no weight {error}"
        ) from None
    if architecture["vocab_size"] != len(tokenizer.vocab):
        raise NarratorError(
            f"encoder {file}: made for {architecture['vocab_size']} tokens, but cn_clip's vocabulary has "
            f"{len(tokenizer.vocab)}; take --clip-backend transformers with the model's own vocabulary"
        )
    with torch.device("meta"):  # no weights are drawn
        network = cn_clip.model.CLIP(**architecture)
    try:
        network.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise NarratorError(
            f"encoder {file}: its weights are not whole: {' '.join(str(error).split())}"
        ) from None
    start, end = tokenizer.vocab["[CLS]"], tokenizer.vocab["[SEP]"]
    transform = cn_clip.image_transform(architecture["image_resolution"])
    return ClipModel(
        name=f"cn_clip-{version('cn_clip')} sha256:{digest([file])}",
        network=network,
        dim=architecture["embed_dim"],
        max_tokens=architecture["text_max_position_embeddings"],
        ids=lambda texts: [
            [start, *tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)), end] for text in texts
        ],
        text_features=network.encode_text,
        pixels=lambda images: torch.stack([transform(image) for image in images]),
        image_features=network.encode_image,
    )


def cn_clip_architecture(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of cn_clip's model, read off its weights. Raises `KeyError` where one is not there."""
    patch = weights["visual.conv1.weight"].shape
    hidden = weights["bert.embeddings.word_embeddings.weight"].shape
    side = round((weights["visual.positional_embedding"].shape[0] - 1) ** 0.5)

    def layers(prefix: str) -> int:
        depth = len(prefix.split("."))
        return len({name.split(".")[depth] for name in weights if name.startswith(prefix + ".")})

    return {
        "embed_dim": weights["text_projection"].shape[1],
        "image_resolution": side * patch[-1],
        "vision_layers": layers("visual.transformer.resblocks"),
        "vision_width": patch[0],
        "vision_patch_size": patch[-1],
        "vision_head_width": WIDE_HEAD_WIDTH if patch[0] == 1280 else HEAD_WIDTH,
        "vocab_size": hidden[0],
        "text_hidden_size": hidden[1],
        "text_num_hidden_layers": layers("bert.encoder.layer"),
        "text_num_attention_heads": hidden[1] // HEAD_WIDTH,
        "text_intermediate_size": weights["bert.encoder.layer.0.intermediate.dense.weight"].shape[0],
        "text_max_position_embeddings": weights["bert.embeddings.position_embeddings.weight"].shape[0],
        "text_type_vocab_size": weights["bert.embeddings.token_type_embeddings.weight"].shape[0],
        "text_hidden_act": "gelu",
        "text_attention_probs_dropout_prob": 0.1,
        "text_hidden_dropout_prob": 0.1,
        "text_initializer_range": 0.02,
    }


def _cn_clip_weights(file: Path) -> dict[str, Tensor]:
    """Name -> float32 weight of a checkpoint, without the names' `module.` and the pooler."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            content: Any = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).split("\n")[0]
        raise NarratorError(f"encoder {file}: not a checkpoint of tensors alone: {reason}") from None
    weights = content.get("state_dict", content) if isinstance(content, dict) else {}
    return {
        name.removeprefix("module."): tensor.float()
        for name, tensor in weights.items()
        if isinstance(tensor, Tensor) and "bert.pooler" not in name
    }


def open_clip_model(source: str) -> ClipModel:
    """An English CLIP in open_clip's layout.

    source: a folder that holds open_clip_config.json and the weights, or a hub name such as
    laion/CLIP-ViT-B-32-laion2B-s34B-b79K. Weights are read from safetensors, or with weights_only.
    """
    open_clip = _package("open_clip", "open_clip_torch")
    folder = fetched(source, ("open_clip*",))
    if not (folder / "open_clip_config.json").is_file():
        raise NarratorError(
            f"encoder {source}: no open_clip_config.json, but {listing(folder)}; take --clip-backend "
            "transformers for a model in transformers' layout"
        )
    name = f"local-dir:{folder}"
    try:
        network, transform = open_clip.create_model_from_pretrained(name, precision="fp32", weights_only=True)
        tokenizer = open_clip.get_tokenizer(name)
    except (RuntimeError, ValueError, OSError, pickle.UnpicklingError) as error:
        raise NarratorError(f"encoder {source}: open_clip cannot load it: {error}") from error
    if not isinstance(tokenizer, open_clip.SimpleTokenizer):
        raise NarratorError(f"encoder {source}: its tokenizer is not CLIP's own; take another model")
    length = tokenizer.context_length

    def text_features(
        ids: Tensor,
    ) -> Tensor:  # the padding stands behind the end of the text: nothing sees it
        padded = torch.nn.functional.pad(ids, (0, length - ids.shape[1]))
        return network.encode_text(padded)

    return ClipModel(
        name=f"open_clip-{version('open_clip_torch')} sha256:{digest(folder.glob('open_clip*'))}",
        network=network,
        dim=network.text_projection.shape[-1],
        max_tokens=length,
        ids=lambda texts: [
            [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id] for text in texts
        ],
        text_features=text_features,
        pixels=lambda images: torch.stack([transform(image) for image in images]),
        image_features=network.encode_image,
    )


def _package(module: str, package: str) -> Any:
    """The imported module; RuntimeError is what a torchvision built for another torch raises."""
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:
        raise NarratorError(
            f'the package {package} cannot be imported ({error}); type: pip install "videonarrator[clip]"'
        ) from error
