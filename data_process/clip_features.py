"""CLIP image features of frames: by their cosine the published English mode merges its memory.

A frame becomes one vector, the image's embedding in the space of images and texts, as the model gives it: not
normalised. For cosines that is the same; for the averages of merged frames it is not, and the mean tokens,
whose place these vectors take, are not normalised either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, ChineseCLIPVisionModel, CLIPVisionModel

from data_process.qformer import encoder_folder
from videonarrator.fingerprint import fingerprint
from videonarrator.schema import NarratorError
from videonarrator.weight_files import read_tensors, weight_shards

PREPROCESSOR = "preprocessor_config.json"

KINDS: dict[str, Any] = {"clip": CLIPVisionModel, "chinese_clip": ChineseCLIPVisionModel}
"""Model types that are read, and the class of their vision model."""


class ClipFrameEncoder(nn.Module):
    """CLIP's vision model and its projection. width: of a feature; processor: how pictures are taken in."""

    def __init__(self, config: Any, processor: Any) -> None:
        super().__init__()
        self.vision_model: nn.Module = KINDS[config.model_type](config.vision_config)
        self.width = int(config.projection_dim)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, self.width, bias=False)
        self.processor = processor

    @torch.inference_mode()
    def encode(self, stills: Sequence[np.ndarray], batch_size: int = 8) -> Tensor:
        """Stills, uint8 [height, width, 3] RGB of any size -> float32 features [frames, width] on the CPU."""
        weight = self.visual_projection.weight
        features = [torch.zeros(0, self.width)]
        for start in range(0, len(stills), batch_size):
            pictures = [Image.fromarray(still) for still in stills[start : start + batch_size]]
            pixels = self.processor(pictures, return_tensors="pt")["pixel_values"]
            pooled = self.vision_model(pixel_values=pixels.to(weight.device, weight.dtype)).pooler_output
            features.append(self.visual_projection(pooled).float().cpu())
        return torch.cat(features)


def load_clip(source: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> ClipFrameEncoder:
    """The image half of the CLIP or Chinese CLIP in a local folder or of a hub name, strictly loaded.

    Raises `NarratorError` where the folder holds another kind of model, or lacks weights or its picture
    settings.
    """
    folder = encoder_folder(source)
    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise NarratorError(f"{source}: its config.json cannot be read: {error}") from error
    if config.model_type not in KINDS:
        raise NarratorError(
            f"{source} holds a model of type {config.model_type!r}, not a CLIP ({', '.join(KINDS)}): give a "
            "folder or hub name such as openai/clip-vit-large-patch14"
        )
    encoder = ClipFrameEncoder(config, _processor(config.model_type, folder))
    own = encoder.state_dict()
    # files of old versions also hold the numbers of the positions, which are no weights
    parts = ("vision_model.", "visual_projection.")
    tensors = {
        name: tensor
        for file in weight_shards(folder)
        for name, tensor in read_tensors(file).items()
        if name.startswith(parts) and not name.endswith(".position_ids")
    }
    missing, unknown = sorted(own.keys() - tensors), sorted(tensors.keys() - own)
    if missing or unknown:
        raise NarratorError(
            f"{source} does not hold this CLIP's image half whole: missing {missing[:3]} ({len(missing)}), "
            f"not understood {unknown[:3]} ({len(unknown)})"
        )
    if wrong := [name for name, tensor in own.items() if tensor.shape != tensors[name].shape]:
        raise NarratorError(
            f"{source}: {wrong[0]} is {list(tensors[wrong[0]].shape)}, by its config.json it should be "
            f"{list(own[wrong[0]].shape)}: config.json and weights do not belong together"
        )
    encoder.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return encoder.to(device, dtype).eval().requires_grad_(False)


def clip_settings(source: str, encoder: ClipFrameEncoder) -> dict[str, Any]:
    """What the feature store's manifest remembers of the CLIP: all that can move a feature."""
    return {
        "model": source,
        "sha256": clip_fingerprint(source),
        "dtype": "float32",
        "width": encoder.width,
    }


def clip_fingerprint(source: str) -> str:
    """sha256 (hex) of a CLIP's folder: its configuration, its weights, and how it takes in pictures."""
    folder = encoder_folder(source)
    weights = fingerprint(folder, (weight_shards(folder)[0].suffix,))
    return hashlib.sha256(weights.encode() + (folder / PREPROCESSOR).read_bytes()).hexdigest()


def _processor(model_type: str, folder: Path) -> Any:
    # the PIL variants by their modules: the default image processors want torchvision
    from transformers.models.chinese_clip.image_processing_pil_chinese_clip import (
        ChineseCLIPImageProcessorPil,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    kind: Any = CLIPImageProcessorPil if model_type == "clip" else ChineseCLIPImageProcessorPil
    if not (folder / PREPROCESSOR).is_file():
        raise NarratorError(
            f"{folder} has no {PREPROCESSOR}, which says how pictures are taken in: copy the model's own "
            "there"
        )
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise NarratorError(f"{folder / PREPROCESSOR} cannot be read: {error}") from error
