"""Frame features by LAVIS's own code, in an environment of its own (environment-lavis.yml):

    python -m data_process.lavis_features VIDEO_OR_FOLDER... --out FEATURES

Frames, their numbers and the feature store are those of `videonarrator extract`. Without further options
LAVIS fetches its model "blip2"/"pretrain" itself. With --checkpoint its files are read from the disk, nothing
but tensors, into LAVIS's modules; --bert then names a local folder in place of the hub's bert-base-uncased,
of which only the vocabulary counts, and --sizes the config.json that `videonarrator convert lavis` wrote, for
a model of other sizes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import decord
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from data_process.extract import is_stored, video_features
from data_process.feature_store import FeatureStore
from data_process.files import read_json
from data_process.lavis_files import VIT_PREFIX, LavisTensors, read_lavis
from data_process.video_file import find_videos, for_each_video
from videonarrator.schema import NarratorError

BERT = "bert-base-uncased"
VIT_G = {
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}
BERT_BASE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "cross_attention_frequency": 2,
}
WORDS = "Qformer.bert.embeddings.word_embeddings.weight"
POSITIONS = "Qformer.bert.embeddings.position_embeddings.weight"
PROJECTION = "vision_proj.weight"


class LavisEncoder:
    """LAVIS's BLIP-2 with its own evaluation transform. width, tokens: of a frame's features."""

    def __init__(self, model: Any, transform: Any, device: str) -> None:
        self.model = model.float() if device == "cpu" else model  # as LAVIS does
        self.model = self.model.to(device).eval()
        self.transform = transform
        self.device = device
        _, self.tokens, self.width = model.query_tokens.shape
        self.image_size: int = model.visual_encoder.image_size

    @torch.inference_mode()
    def encode(self, stills: Sequence[np.ndarray], batch_size: int) -> Tensor:
        """Stills, uint8 [height, width, 3] RGB -> float32 features [frames, tokens, width] on the CPU."""
        features = []
        for start in range(0, len(stills), batch_size):
            batch = [self.transform(Image.fromarray(still)) for still in stills[start : start + batch_size]]
            given = {"image": torch.stack(batch).to(self.device)}
            features.append(self.model.extract_features(given, mode="image").image_embeds.float().cpu())
        return torch.cat(features)

    def settings(self, source: str) -> dict[str, Any]:
        """What the feature store's manifest remembers; see `extract.feature_settings`."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return {
            "encoder": source,
            "encoder_sha256": digest.hexdigest(),
            "fps": 1,
            "preprocessing": f"bicubic {self.image_size}x{self.image_size}, CLIP mean and deviation",
            "vision_dtype": "float32" if self.device == "cpu" else "float16 (autocast)",
            "dtype": "float32",
            "width": self.width,
            "tokens": self.tokens,
        }


def load_published(device: str) -> LavisEncoder:
    """LAVIS's "blip2"/"pretrain", found or fetched by LAVIS."""
    load = _lavis("models").load_model_and_preprocess
    try:
        model, transforms, _ = load("blip2", "pretrain", is_eval=True, device=device)
    except OSError as error:  # the tokenizer from the hub, or one of the two files
        raise NarratorError(
            f"LAVIS cannot fetch its model: {error}; give --checkpoint FOLDER (and --bert FOLDER)"
        ) from error
    return LavisEncoder(model, transforms["eval"], device)


def load_local(
    tensors: LavisTensors, bert: str, sizes: Path | None, vit_precision: str, device: str
) -> LavisEncoder:
    """LAVIS's Blip2Qformer with the weights of local files, every one of them and nothing else.

    bert: hub name or folder of a BERT tokenizer whose vocabulary is that of the weights (LAVIS adds [DEC]).
    sizes: config.json in transformers' layout. Raises `NarratorError` where they do not fit the weights.
    """
    vit, qformer = dict(VIT_G), dict(BERT_BASE)
    if sizes is not None:
        given = read_json(sizes)
        vit = {name: given["vision_config"][name] for name in VIT_G}
        qformer = {name: given["qformer_config"][name] for name in BERT_BASE}
    if lacking := [name for name in (WORDS, POSITIONS, PROJECTION) if name not in tensors.rest]:
        raise NarratorError(
            f"{tensors.blip2_file} lacks {', '.join(lacking)}: LAVIS's own code needs the whole model of its "
            "first stage (blip2_pretrained.pth); `videonarrator convert lavis` does without its text parts"
        )
    model = _build(tensors.rest, bert, vit, qformer, vit_precision)
    state = dict(tensors.rest) | {VIT_PREFIX + name: tensor for name, tensor in tensors.vit.items()}
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise NarratorError(
            f"{tensors.blip2_file} and {tensors.vit_file} are not this model of LAVIS's (other sizes: give "
            f"--sizes): {str(error)[:600]}"
        ) from None
    transform = _lavis("processors.blip_processors").BlipImageEvalProcessor
    return LavisEncoder(model, transform(image_size=vit["image_size"]), device)


def _build(
    rest: dict[str, Tensor], bert: str, vit: dict[str, int], qformer: dict[str, int], vit_precision: str
) -> Any:
    """A Blip2Qformer of these sizes; LAVIS's own builders know only the published ones."""
    from transformers import BertTokenizer

    eva_vit, bert_lm = _lavis("models.eva_vit"), _lavis("models.blip2_models.Qformer")
    _, queries, _ = rest["query_tokens"].shape
    positions, _ = rest[POSITIONS].shape
    projection, _ = rest[PROJECTION].shape

    class LocalBlip2(_lavis("models.blip2_models.blip2_qformer").Blip2Qformer):
        @classmethod
        def init_tokenizer(cls) -> Any:
            try:
                tokenizer = BertTokenizer.from_pretrained(bert)
            except (OSError, ValueError) as error:
                raise NarratorError(
                    f"no BERT tokenizer in {bert}, and the hub does not give it: give --bert FOLDER ({error})"
                ) from None
            tokenizer.add_special_tokens({"bos_token": "[DEC]"})
            if len(tokenizer) != len(rest[WORDS]):
                raise NarratorError(
                    f"the BERT tokenizer {bert} has {len(tokenizer)} words with [DEC], the weights are for "
                    f"{len(rest[WORDS])}: give --bert FOLDER with the vocabulary of the weights"
                )
            return tokenizer

        @classmethod
        def init_vision_encoder(cls, *_: Any) -> tuple[nn.Module, nn.Module]:
            width = vit["hidden_size"]
            visual_encoder = eva_vit.VisionTransformer(
                img_size=vit["image_size"],
                patch_size=vit["patch_size"],
                use_mean_pooling=False,
                embed_dim=width,
                depth=vit["num_hidden_layers"],
                num_heads=vit["num_attention_heads"],
                mlp_ratio=(vit["intermediate_size"] + 0.5) / width,  # it takes the whole part of the product
                qkv_bias=True,
                drop_path_rate=0,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
            )
            if vit_precision == "fp16":
                eva_vit.convert_weights_to_fp16(visual_encoder)
            return visual_encoder, _lavis("models.blip2_models.blip2").LayerNorm(width)

        @classmethod
        def init_Qformer(cls, *_: Any) -> tuple[nn.Module, nn.Parameter]:
            config = bert_lm.BertConfig(
                hidden_size=qformer["hidden_size"],
                intermediate_size=qformer["intermediate_size"],
                num_hidden_layers=qformer["num_hidden_layers"],
                num_attention_heads=qformer["num_attention_heads"],
                max_position_embeddings=positions,
            )
            config.encoder_width = vit["hidden_size"]
            config.add_cross_attention = True
            config.cross_attention_freq = qformer["cross_attention_frequency"]
            config.query_length = queries
            tokens = nn.Parameter(torch.zeros(1, queries, config.hidden_size))
            return bert_lm.BertLMHeadModel(config), tokens

    return LocalBlip2(num_query_token=queries, embed_dim=projection)


def _lavis(name: str) -> Any:
    """A module of LAVIS's."""
    try:
        return import_module(f"lavis.{name}")
    except ImportError as error:
        raise NarratorError(
            f"LAVIS cannot be imported here ({error}): use its own environment, scripts/setup_lavis_env.sh"
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code, as `videonarrator extract` has it (3: some videos failed)."""
    parser = argparse.ArgumentParser(prog="python -m data_process.lavis_features", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("videos", nargs="+", type=Path, help="video files, or folders of them")
    parser.add_argument("--out", required=True, type=Path, help="folder of the feature store")
    parser.add_argument("--checkpoint", type=Path, help="LAVIS's files on the disk: a folder, or a file")
    parser.add_argument("--vit", type=Path, help="the ViT's file (default: eva_vit_g.pth beside)")
    parser.add_argument("--vit-precision", choices=("fp16", "fp32"), default="fp16")
    parser.add_argument("--bert", default=BERT, help="hub name or folder of the BERT tokenizer")
    parser.add_argument("--sizes", type=Path, help="config.json of a model other than the published one")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=8)
    given = parser.parse_args(arguments)
    try:
        failed, found = _extract(given)
    except NarratorError as error:
        say(f"error: {error}")
        return 2
    print(json.dumps({"out": str(given.out), "videos": found, "failed": failed}, ensure_ascii=False))
    return 0 if not failed else 3 if len(failed) < found else 2


def _extract(given: argparse.Namespace) -> tuple[dict[str, str], int]:
    if given.checkpoint is None and (given.vit or given.sizes or given.bert != BERT):
        raise NarratorError("--vit, --sizes and --bert belong to local files: give --checkpoint, too")
    videos = find_videos(given.videos)
    if given.checkpoint is None:
        encoder, source = load_published(given.device), "LAVIS blip2/pretrain"
    else:
        tensors = read_lavis(given.checkpoint, given.vit, say)
        encoder = load_local(tensors, given.bert, given.sizes, given.vit_precision, given.device)
        source = f"LAVIS {given.checkpoint}"
    decord.bridge.set_bridge("native")  # importing LAVIS makes decord's pictures torch tensors
    store = FeatureStore.create(given.out, encoder.settings(source))

    def save(path: Path) -> None:
        if not is_stored(store, path):
            store.write(path.stem, *video_features(encoder, path, given.batch_size))

    return for_each_video(videos, save, "features", say), len(videos)


def say(line: str) -> None:
    """Progress: one line on stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
