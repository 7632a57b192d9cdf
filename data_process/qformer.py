"""Frame features: BLIP-2's vision transformer and Q-Former, as transformers has them (paper, section 4.1).

A frame becomes 32 vectors, the Q-Former's last hidden states for its learned queries. The source is a folder
or hub name in transformers' BLIP-2 layout (safetensors or torch files, whole or in shards); only the vision
model, the Q-Former and the query tokens are read from it, and these strictly. `videonarrator convert lavis`
brings a checkpoint of LAVIS into that layout.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Blip2Config, Blip2QFormerModel, Blip2VisionModel

from data_process.files import read_json, write_json
from videonarrator.fingerprint import fingerprint
from videonarrator.schema import NarratorError
from videonarrator.weight_files import read_tensors, weight_shards

PREFIXES = ("vision_model.", "qformer.", "query_tokens")
TEXT_MODULES = re.compile(r"qformer\.(embeddings|encoder\.layer\.\d+\.(intermediate|output))\..+")
"""Weights that only text goes through: frames have no use for them."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
OLD_EPS = 1e-5
"""transformers' default for BLIP-2's vision model until 4.32; the weights were trained with 1e-6."""

log = logging.getLogger(__name__)


class Preprocessing(NamedTuple):
    """How a still becomes pixel values: size x size pixels, aspect not kept, then mean and deviation.

    The defaults are those of LAVIS's evaluation transform. resample: as Pillow counts its filters.
    """

    size: int
    mean: tuple[float, ...] = CLIP_MEAN
    deviation: tuple[float, ...] = CLIP_STD
    resample: int = Image.Resampling.BICUBIC

    def described(self) -> str:
        """One line for the feature store's manifest."""
        colours = f"mean {list(self.mean)} and deviation {list(self.deviation)}"
        if (self.mean, self.deviation) == (CLIP_MEAN, CLIP_STD):
            colours = "CLIP mean and deviation"
        return f"{Image.Resampling(self.resample).name.lower()} {self.size}x{self.size}, {colours}"


class FrameEncoder(nn.Module):
    """BLIP-2 up to the Q-Former.

    width: of one visual token; image_size: side of its pictures in pixels. dtype applies to the vision model;
    the Q-Former stays in float32, as in LAVIS. Output is float32. `post_layernorm_eps` in the vision config:
    eps of the LayerNorm behind the blocks, where it is not that of the blocks (LAVIS: 1e-5, blocks 1e-6).
    """

    def __init__(self, config: Blip2Config, preprocessing: Preprocessing | None = None) -> None:
        super().__init__()
        self.config = config
        vision: Any = config.vision_config
        qformer: Any = config.qformer_config
        self.vision_model: Any = Blip2VisionModel(vision)
        self.vision_model.post_layernorm.eps = getattr(vision, "post_layernorm_eps", vision.layer_norm_eps)
        self.qformer: nn.Module = Blip2QFormerModel(qformer)
        self.width: int = qformer.hidden_size
        self.image_size = int(vision.image_size)
        self.preprocessing = preprocessing or Preprocessing(self.image_size)
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
            pixels = preprocess(stills[start : start + batch_size], *self.preprocessing)
            features.append(self(pixels.to(device, dtype)).float().cpu())
        return torch.cat(features) if features else torch.zeros(0, self.config.num_query_tokens, self.width)

    def save(self, folder: Path) -> None:
        """Write config.json, preprocessor_config.json and model.safetensors in transformers' layout."""
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(folder)
        size, mean, deviation, resample = self.preprocessing
        settings = {
            "image_processor_type": "BlipImageProcessor",
            "size": {"height": size, "width": size},
            "resample": int(resample),
            "rescale_factor": 1 / 255,
            "image_mean": list(mean),
            "image_std": list(deviation),
        }
        write_json(folder / "preprocessor_config.json", settings)
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def preprocess(
    stills: Sequence[np.ndarray],
    size: int,
    mean: Sequence[float] = CLIP_MEAN,
    deviation: Sequence[float] = CLIP_STD,
    resample: int = Image.Resampling.BICUBIC,
) -> Tensor:
    """Stills, uint8 [height, width, 3] RGB -> pixel values, float32 [frames, 3, size, size].

    See `Preprocessing`. Resized by Pillow, as LAVIS's transform and transformers without torchvision do.
    """
    means, deviations = np.array(mean, np.float32), np.array(deviation, np.float32)
    pixels = []
    for still in stills:
        picture = Image.fromarray(still).convert("RGB").resize((size, size), Image.Resampling(resample))
        pixels.append((np.asarray(picture, np.float32) / 255 - means) / deviations)
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


def read_preprocessing(folder: Path, image_size: int) -> Preprocessing:
    """What a model folder says of its pictures (preprocessor_config.json, or in processor_config.json);
    LAVIS's transform where it says nothing.

    Raises `NarratorError` naming the setting that cannot be followed.
    """
    file = folder / "preprocessor_config.json"
    if file.is_file():
        settings = read_json(file)
    elif (file := folder / "processor_config.json").is_file():
        content = read_json(file)
        settings = content.get("image_processor", {}) if isinstance(content, dict) else content
    else:
        settings = {}
    if not isinstance(settings, dict):
        raise NarratorError(f"{file} holds no settings of pictures, but {type(settings).__name__}")
    if not settings:
        return Preprocessing(image_size)
    given = {name: value for name, value in settings.items() if value is not None}

    def refuse(name: str, wanted: str) -> NarratorError:
        return NarratorError(f"{file}: {name} is {given.get(name)!r}, which is not supported: {wanted}")

    kind = given.get("image_processor_type", "BlipImageProcessor")
    if not str(kind).startswith("BlipImageProcessor"):
        raise refuse("image_processor_type", "BLIP-2's is BlipImageProcessor")
    for name, wanted in {
        "do_resize": True, "do_rescale": True, "do_normalize": True, "do_center_crop": False, "do_pad": False,
    }.items():  # fmt: skip
        if given.get(name, wanted) is not wanted:
            raise refuse(name, f"expected {str(wanted).lower()}, as BLIP-2 has it")
    factor = given.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise refuse("rescale_factor", "expected 1/255")
    size = given.get("size", {"height": 384, "width": 384})  # the default of transformers' processor
    if size not in (image_size, {"height": image_size, "width": image_size}):
        raise refuse("size", f"the vision model is for {image_size} x {image_size} pixels")
    resample = given.get("resample", Image.Resampling.BICUBIC)
    if resample not in list(Image.Resampling):
        raise refuse("resample", "expected a number from 0 to 5")
    colours = []
    for name, default in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)):
        value = given.get(name, default)
        three = isinstance(value, list | tuple) and len(value) == 3
        if not three or not all(isinstance(v, int | float) and (v or name == "image_mean") for v in value):
            raise refuse(name, "expected three numbers, one a colour")
        colours.append(tuple(map(float, value)))
    return Preprocessing(image_size, *colours, resample=int(resample))


def load_encoder(source: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> FrameEncoder:
    """The encoder of a local folder or a hub name, strictly loaded and in evaluation mode.

    What only text goes through (embeddings, text feed-forward layers, projections, a language model) is left
    unread. The eps of config.json is followed, as transformers does, though old hub configs say 1e-5 where
    Salesforce's weights were trained with 1e-6: with another one this would not be the model that everybody
    else gets from that folder, and one trained further in transformers has that eps. A warning says it.
    Raises `NarratorError` where the folder is none of BLIP-2's or lacks weights.
    """
    folder = encoder_folder(source)
    config = _read_config(folder, source)
    vision: Any = config.vision_config
    preprocessing = read_preprocessing(folder, vision.image_size)
    with torch.device("meta"):  # initial values would only hide what is missing
        encoder = FrameEncoder(config, preprocessing)
    encoder.load_state_dict(_read_weights(folder, encoder.state_dict(), source), assign=True)
    if vision.layer_norm_eps == OLD_EPS:
        log.warning(
            "%s: the vision model's layer_norm_eps is 1e-05, as in old configs, and is followed; "
            "Salesforce's weights were trained with 1e-06 (to have that, change it in %s; features move by "
            "up to 0.02)",
            source,
            folder / "config.json",
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
            if not any(folder.glob("*.safetensors")):  # an old repository: torch files only
                folder = Path(snapshot_download(source, allow_patterns=["*.json", "pytorch_model*.bin"]))
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise NarratorError(f"no folder {source!r}, and the hub does not give it: {error}") from error
    if not (folder / "config.json").is_file():
        raise NarratorError(f"{source} has no config.json: it is no model folder")
    return folder


def encoder_fingerprint(source: str) -> str:
    """Fingerprint of an encoder's folder: what the features' manifest remembers."""
    folder = encoder_folder(source)
    return fingerprint(folder, tuple({file.suffix for file in weight_shards(folder)}))


def _read_config(folder: Path, source: str) -> Blip2Config:
    file = folder / "config.json"
    settings = read_json(file)
    kind = settings.get("model_type") if isinstance(settings, dict) else None
    if kind != "blip-2":
        raise NarratorError(
            f"{source} holds a model of type {kind!r}, not a BLIP-2: give a folder or hub name such as "
            "Salesforce/blip2-opt-2.7b, or data/sample/models/blip2 for the sample data"
        )
    try:
        config = Blip2Config.from_pretrained(folder)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise NarratorError(f"{file} is no config of a BLIP-2: {error}") from error
    vision: Any = config.vision_config
    qformer: Any = config.qformer_config
    if isinstance(vision.image_size, list | tuple) and len(set(vision.image_size)) == 1:
        vision.image_size = vision.image_size[0]  # the model wants a number
    if not isinstance(vision.image_size, int):
        raise NarratorError(f"{file}: image_size is {vision.image_size!r}, expected one number: a square")
    qformer.use_qformer_text_input = False  # its text layers change nothing for queries
    return config


def _read_weights(folder: Path, expected: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors that the encoder needs, in float32 and memory of their own."""
    tensors: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for file in weight_shards(folder):
        for name, tensor in read_tensors(file).items():
            if name in expected:
                if tensor.shape != expected[name].shape:
                    raise NarratorError(
                        f"{file}: {name} is {list(tensor.shape)}, by config.json it is "
                        f"{list(expected[name].shape)}"
                    )
                tensors[name] = tensor.to(torch.float32, copy=True)
            elif name.startswith(PREFIXES) and not TEXT_MODULES.fullmatch(name):
                unexpected.append(name)
    missing = [name for name in expected if name not in tensors]
    if missing or unexpected:
        raise NarratorError(
            f"{source} does not hold this BLIP-2 whole: missing {missing[:3]} ({len(missing)}), "
            f"not understood {unexpected[:3]} ({len(unexpected)})"
        )
    return tensors
