"""Features of texts and stills in one space, as EMScore wants them: Chinese CLIP, or CLIP for English.

Three back ends read the same models from different packages: transformers (the default), and, of the extra
`clip`, cn_clip and open_clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import normalize

from metrics.encoders import BACKENDS
from metrics.encoders.batching import TextFeatures, check_device, fitting_threads
from metrics.encoders.loading import identity, load_network, load_tokenizer, model_folder, token_ids
from videonarrator.schema import NarratorError

IMAGES = 32
"""Images of a batch."""


@dataclass(frozen=True)
class ClipModel:
    """What a back end brings. Features are not normalised yet.

    name: class and SHA-256; ids: texts -> token ids, special ones included, uncut; text_features: ids
    [texts, tokens] -> [texts, dim]; pixels: images -> [images, 3, height, width]; image_features: pixels ->
    [images, dim].
    """

    name: str
    network: torch.nn.Module
    dim: int
    max_tokens: int
    ids: Callable[[list[str]], list[list[int]]]
    text_features: Callable[[Tensor], Tensor]
    pixels: Callable[[Sequence[Image]], Tensor]
    image_features: Callable[[Tensor], Tensor]


class ClipEncoder:
    """Texts and images -> L2-normalised float32 features of one space.

    Chinese CLIP's text feature is the projection of the last hidden state of [CLS]; CLIP's that of the
    end-of-text token. name: class, SHA-256 of the model's files and longest text in tokens, for signatures.
    """

    def __init__(self, model: ClipModel, device: str | torch.device) -> None:
        model.network.to(device).eval().requires_grad_(False)
        self.dim = model.dim
        self.name = f"{model.name} max-tokens:{model.max_tokens}"
        self._model, self._device = model, device
        self._features = TextFeatures(
            model.ids, model.text_features, dim=model.dim, max_tokens=model.max_tokens, device=device
        )

    @property
    def truncated(self) -> int:
        """How many distinct texts were cut to the model's longest (the published code crashes there)."""
        return self._features.truncated

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [texts, dim]; each distinct text is encoded once in the encoder's life. "" is a text."""
        with fitting_threads(self._model.network):
            return self._features(texts)

    def encode_images(self, images: Sequence[Image]) -> np.ndarray:
        """Images of any size and mode -> float32 [images, dim]."""
        starts = range(0, len(images), IMAGES)
        with fitting_threads(self._model.network):
            features = [self._image_features(images[start : start + IMAGES]) for start in starts]
        return np.concatenate(features) if features else np.zeros((0, self.dim), np.float32)

    @torch.inference_mode()
    def _image_features(self, images: Sequence[Image]) -> np.ndarray:
        pixels = self._model.pixels(images).to(self._device)
        cudnn = torch.backends.cudnn  # its convolutions would round to TF32
        with cudnn.flags(enabled=cudnn.enabled, deterministic=True, allow_tf32=False):
            features = self._model.image_features(pixels)
        return normalize(features.float(), dim=-1).cpu().numpy()


def load_clip_encoder(model: str, backend: str = "transformers", device: str = "cpu") -> ClipEncoder:
    """The encoder of a model, in float32; backend: one of `metrics.encoders.BACKENDS`.

    model: with "transformers", a local folder or hub name of a Chinese CLIP or a CLIP; for
    the others see `clip_backends`. Raises `NarratorError` where it is not there, is of another kind or lacks
    weights, or where the back end's package is not installed.
    """
    check_device(device)
    if backend == "transformers":
        return ClipEncoder(_transformers_model(model), device)
    from metrics.encoders.clip_backends import cn_clip_model, open_clip_model

    if backend == "cn_clip":
        return ClipEncoder(cn_clip_model(model), device)
    if backend == "open_clip":
        return ClipEncoder(open_clip_model(model), device)
    raise NarratorError(f"unknown CLIP back end {backend!r}; there is: {', '.join(BACKENDS)}")


def _transformers_model(source: str) -> ClipModel:
    from transformers import BertTokenizer, ChineseCLIPModel, CLIPModel, CLIPTokenizer, PreTrainedConfig

    # the PIL variants by their modules: the default image processors want torchvision
    from transformers.models.chinese_clip import image_processing_pil_chinese_clip as chinese_clip_pil
    from transformers.models.clip import image_processing_pil_clip as clip_pil

    kinds = {
        "chinese_clip": (ChineseCLIPModel, BertTokenizer, chinese_clip_pil.ChineseCLIPImageProcessorPil),
        "clip": (CLIPModel, CLIPTokenizer, clip_pil.CLIPImageProcessorPil),
    }
    folder = model_folder(source)
    try:
        model_type = PreTrainedConfig.get_config_dict(folder, local_files_only=True)[0].get("model_type")
    except OSError as error:
        raise NarratorError(f"encoder {source}: its config.json cannot be read: {error}") from error
    if model_type not in kinds:
        raise NarratorError(
            f"encoder {source}: a model of type {model_type!r}; there is: {', '.join(kinds)}, such as "
            "OFA-Sys/chinese-clip-vit-base-patch16"
        )
    model_kind, tokenizer_kind, processor_kind = kinds[model_type]
    network = load_network(model_kind, folder)
    text_config = network.config.text_config
    tokenizer = load_tokenizer(tokenizer_kind, folder, text_config.vocab_size)
    try:
        processor = processor_kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise NarratorError(f"encoder {source}: how it takes images cannot be read: {error}") from error

    return ClipModel(
        name=f"{model_kind.__name__} sha256:{identity(folder)}",
        network=network,
        dim=network.config.projection_dim,
        max_tokens=min(text_config.max_position_embeddings, tokenizer.model_max_length),
        ids=lambda texts: token_ids(tokenizer, texts),
        text_features=lambda ids: network.get_text_features(input_ids=ids).pooler_output,
        pixels=lambda images: processor(list(images), return_tensors="pt")["pixel_values"],
        image_features=lambda pixels: network.get_image_features(pixel_values=pixels).pooler_output,
    )
