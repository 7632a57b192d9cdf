"""Frame features: BLIP-2's vision transformer and Q-Former, as transformers has them (paper, section 4.1).

A frame becomes 32 vectors, the Q-Former's last hidden states for its learned queries. The source is a folder
or hub name in transformers' BLIP-2 layout; only the vision model, the Q-Former and the query tokens are read
from it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Blip2Config, Blip2QFormerModel, Blip2VisionModel

from videonarrator.fingerprint import fingerprint
from videonarrator.schema import NarratorError

PREFIXES = ("vision_model.", "qformer.", "query_tokens")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class FrameEncoder(nn.Module):
    """BLIP-2 up to the Q-Former.

    width: of one visual token; image_size: side of its pictures in pixels. dtype applies to the vision model;
    the Q-Former stays in float32, as in LAVIS. Output is float32.
    """

    def __init__(self, config: Blip2Config) -> None:
        super().__init__()
        self.config = config
        vision: Any = config.vision_config
        qformer: Any = config.qformer_config
        self.vision_model: nn.Module = Blip2VisionModel(vision)
        self.qformer: nn.Module = Blip2QFormerModel(qformer)
        self.width: int = qformer.hidden_size
        self.image_size = int(vision.image_size)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, self.width))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [frames, 3, size, size] -> visual tokens [frames, queries, width]."""
        size = (self.image_size, self.image_size)
        if tuple(pixel_values.shape[-2:]) != size:  # transformers would silently take smaller pictures
            raise ValueError(
                f"pictures of {tuple(pixel_values.shape[-2:])} pixels given to an encoder for {size}"
            )
        image_states = self.vision_model(pixel_values=pixel_values).last_hidden_state
        queries = self.query_tokens.expand(len(pixel_values), -1, -1)
        hidden = self.qformer(query_embeds=queries, encoder_hidden_states=image_states).last_hidden_state
        return hidden

    @torch.inference_mode()
    def encode(self, stills: Sequence[np.ndarray], batch_size: int = 8) -> Tensor:
        """Stills, uint8 [height, width, 3] RGB of any size -> float32 features [frames, queries, width] on
        the CPU.
        """
        device, dtype = self.query_tokens.device, next(self.vision_model.parameters()).dtype
        features = []
        for start in range(0, len(stills), batch_size):
            pixels = preprocess(stills[start : start + batch_size], self.image_size)
            features.append(self(pixels.to(device, dtype)).float().cpu())
        return torch.cat(features) if features else torch.zeros(0, self.config.num_query_tokens, self.width)

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors in transformers' BLIP-2 layout."""
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(folder)
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def preprocess(stills: Sequence[np.ndarray], size: int) -> Tensor:
    """LAVIS's evaluation transform: PIL bicubic to `size` x `size` (aspect not kept), CLIP's mean and
    deviation.

    Returns float32 [frames, 3, size, size].
    """
    mean, std = np.array(CLIP_MEAN, np.float32), np.array(CLIP_STD, np.float32)
    pixels = []
    for still in stills:
        picture = Image.fromarray(still).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        pixels.append((np.asarray(picture, np.float32) / 255 - mean) / std)
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


def load_encoder(source: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> FrameEncoder:
    """The encoder of a local folder or a hub name, strictly loaded and in evaluation mode.

    Raises `NarratorError` where the folder is none of BLIP-2's or lacks weights.
    """
    folder = encoder_folder(source)
    settings = json.loads((folder / "config.json").read_text("utf-8"))
    if settings.get("model_type") != "blip-2":
        raise NarratorError(
            f"{source} holds a model of type {settings.get('model_type')!r}, not a BLIP-2: give a folder "
            "or hub name such as Salesforce/blip2-opt-2.7b, or data/sample/models/blip2 for the sample data"
        )
    encoder = FrameEncoder(Blip2Config.from_pretrained(folder))
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        with safe_open(file, framework="pt") as weights:
            for name in list(weights.keys()):
                if name.startswith(PREFIXES):
                    tensors[name] = weights.get_tensor(name).float()
    missing, unexpected = encoder.load_state_dict(tensors, strict=False)
    if missing or unexpected:
        raise NarratorError(
            f"{source} does not hold this BLIP-2 whole: missing {missing[:3]} ({len(missing)}), "
            f"not understood {unexpected[:3]} ({len(unexpected)})"
        )
    encoder.vision_model.to(dtype)
    return encoder.to(device).eval().requires_grad_(False)


def encoder_folder(source: str) -> Path:
    """The local folder of an encoder; a hub name is looked up (and fetched, unless HF_HUB_OFFLINE is set)."""
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors"]))
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise NarratorError(f"no folder {source!r}, and the hub does not give it: {error}") from error
    if not (folder / "config.json").is_file():
        raise NarratorError(f"{source} has no config.json: it is no model folder")
    return folder


def encoder_fingerprint(source: str) -> str:
    """Fingerprint of an encoder's folder: what the features' manifest remembers."""
    return fingerprint(encoder_folder(source))


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise NarratorError(f"{folder} has no .safetensors weights (pickled .bin files are not read)")
    return files
