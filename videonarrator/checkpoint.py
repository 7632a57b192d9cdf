"""The checkpoint folder: everything narration needs, in safetensors and text.

    narrator.json      what the checkpoint is: backbone, features, token rules, checksums of the other files
    prompt.yaml        the prompt template it was trained with
    tokenizer/         with the added tokens
    trained.safetensors  projector, position table, input and output embeddings
    adapter/           (lora) peft's own adapter folder
    backbone/          (full) the whole language model
                       (projector: neither; the language model stayed as it was)

With LoRA the frozen backbone is not in the folder: narrator.json says where it lies and knows its
fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from videonarrator.clip_inputs import TokenRules
from videonarrator.config import load_template, save_template
from videonarrator.fingerprint import fingerprint, source_fingerprint
from videonarrator.modeling.adapters import apply_adapter
from videonarrator.modeling.backbones import add_tokens, load_backbone, load_tokenizer
from videonarrator.modeling.lora import add_projector_lora, merge_projector_lora, projector_tensors
from videonarrator.modeling.narrator import Narrator
from videonarrator.modeling.projector import VisualProjector
from videonarrator.prompt import ADDED_TOKENS, VISUAL_PATCH, Template
from videonarrator.schema import NarratorError
from videonarrator.timeline import POSITIONS
from videonarrator.weight_files import listing, open_to_others

FORMAT = 1
DESCRIPTION = "narrator.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself.

    backbone: folder (relative to the checkpoint) or hub name of the frozen language model; "" where the
    checkpoint holds the language model whole. backbone_source: fingerprint of what the backbone was converted
    from, the same for all its layouts. compat: `upstream` where ids, positions and decoding are those of the
    published set-up. projector_lora: rank, alpha and dropout of LoRA on a frozen projector. projector_origin:
    where a projector comes from that was not trained here. whole_video_tokens: visual tokens a clip where
    samples are whole videos, else 0. features: the settings its visual tokens were made with (encoder,
    threshold).
    """

    adapter: str
    feature_width: int
    backbone: str = ""
    backbone_fingerprint: str = ""
    backbone_source: str = ""
    positions: int = POSITIONS
    bos: bool = True
    strip_around_added_tokens: bool = False
    compat: str = "none"
    projector_lora: dict[str, Any] = field(default_factory=dict)
    projector_origin: str = ""
    whole_video_tokens: int = 0
    features: dict[str, Any] = field(default_factory=dict)

    @property
    def published(self) -> bool:
        return self.compat == "upstream"

    @property
    def token_rules(self) -> TokenRules:
        return TokenRules(self.bos, self.strip_around_added_tokens, self.published)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint, ready to narrate."""

    narrator: Narrator
    tokenizer: Any
    template: Template
    info: CheckpointInfo


def trained_tensors(narrator: Narrator) -> dict[str, Tensor]:
    """Projector, position table, and input and output embeddings, under the names of trained.safetensors."""
    base = narrator.base
    tensors: dict[str, Tensor] = {
        f"projector.{name}": tensor for name, tensor in projector_tensors(narrator.projector).items()
    }
    tensors["embed_tokens.weight"] = base.get_input_embeddings().weight
    tensors["lm_head.weight"] = base.get_output_embeddings().weight
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def save_checkpoint(
    folder: Path, narrator: Narrator, tokenizer: Any, template: Template, info: CheckpointInfo
) -> None:
    """Write a checkpoint folder as a whole or not at all; an older one in its place is replaced.

    Raises `NarratorError` where it cannot be written; what lay there is as it was.
    """
    partial, old = (folder.with_name(folder.name + ending) for ending in (".partial", ".old"))
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_files(partial, folder, narrator, tokenizer, template, info)
        open_to_others(partial)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)  # left by a kill
            os.replace(folder, old)
        os.replace(partial, folder)
    except Exception as error:  # tokenizers raises nothing more special where the disk is full
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        if isinstance(error, OSError | SafetensorError) or "os error" in str(error):
            raise NarratorError(
                f"cannot write the checkpoint {folder}: {error}. Make room, and type the same command again"
            ) from error
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_files(
    partial: Path, folder: Path, narrator: Narrator, tokenizer: Any, template: Template, info: CheckpointInfo
) -> None:
    """The files of a checkpoint that will lie in `folder`."""
    save_template(template, partial / "prompt.yaml")
    tokenizer.save_pretrained(partial / "tokenizer")
    save_file(trained_tensors(narrator), partial / "trained.safetensors", metadata={"format": "pt"})
    if info.adapter == "lora":
        narrator.language_model.save_pretrained(partial / "adapter", save_embedding_layers=False)
        (partial / "adapter" / "README.md").unlink(missing_ok=True)  # peft's model card
    elif info.adapter == "full":
        narrator.language_model.save_pretrained(partial / "backbone")
    described = {"format": FORMAT, **asdict(info)}
    if info.backbone and Path(info.backbone).is_dir():  # found again when both folders are moved together
        described["backbone"] = os.path.relpath(Path(info.backbone).resolve(), folder.resolve())
    described["sha256"] = {
        file.relative_to(partial).as_posix(): _sha256(file)
        for file in sorted(partial.rglob("*"))
        if file.is_file()
    }
    (partial / DESCRIPTION).write_text(json.dumps(described, ensure_ascii=False, indent=1) + "\n", "utf-8")


def read_info(folder: Path) -> CheckpointInfo:
    """What a checkpoint folder says of itself; `NarratorError` where it is none, or is damaged."""
    file = folder / DESCRIPTION
    if not file.is_file():
        raise NarratorError(
            f"{folder} is no checkpoint folder: it has no {DESCRIPTION} (found: {listing(folder)}). Give the "
            "folder that `videonarrator train` wrote, such as runs/sample/train/checkpoint"
        )
    try:
        described = json.loads(file.read_text("utf-8"))
        checksums, found = dict(described.pop("sha256")), described.pop("format")
        if found != FORMAT:
            raise NarratorError(f"{file} has format {found!r}, this version reads {FORMAT}")
        info = CheckpointInfo(**described)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NarratorError(f"{file} cannot be read: {error}") from error
    for name, expected in checksums.items():
        if not (folder / name).is_file():
            raise NarratorError(f"checkpoint {folder} is incomplete: {name} is missing")
        if _sha256(folder / name) != expected:
            raise NarratorError(f"checkpoint {folder} is damaged: {name} is not the file that was written")
    return info


def load_checkpoint(
    folder: Path,
    *,
    backbone: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    merge: bool = True,
) -> Checkpoint:
    """Load a checkpoint for narration.

    backbone: where the frozen language model lies now, if not where it was.
    merge: fold LoRA into the weights (faster; equal up to rounding).
    """
    info = read_info(folder)
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    source = str(folder / "backbone") if info.adapter == "full" else _find_backbone(folder, info, backbone)
    if info.adapter == "full":
        language_model: Any = load_backbone(source, dtype=dtype)
    else:
        with naming(source):
            language_model = load_backbone(source, dtype=dtype)
        add_tokens(language_model, tokenizer, ADDED_TOKENS)
    if info.adapter == "lora":
        settings = json.loads((folder / "adapter" / "adapter_config.json").read_text("utf-8"))
        try:
            tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
            language_model = apply_adapter(language_model, settings, tensors)
        except (ValueError, RuntimeError) as error:
            raise NarratorError(f"the adapter of {folder} does not go with {source}: {error}") from error
    hidden = language_model.get_input_embeddings().embedding_dim
    projector = VisualProjector(info.feature_width, hidden, info.positions)
    if info.projector_lora:
        add_projector_lora(projector, **info.projector_lora)
    narrator = Narrator(language_model, projector, tokenizer.convert_tokens_to_ids(VISUAL_PATCH))
    load_trained(narrator, load_file(folder / "trained.safetensors"), str(folder))
    if merge and info.adapter == "lora":
        narrator.language_model = narrator.language_model.merge_and_unload()
    if merge:
        merge_projector_lora(projector)
    narrator.to(device).eval().requires_grad_(False)
    narrator.projector.to(dtype)
    if info.projector_origin:
        log.warning("checkpoint %s: its visual projector was %s", folder, info.projector_origin)
    return Checkpoint(narrator, tokenizer, load_template(folder / "prompt.yaml"), info)


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Failures to load a backbone from `source` (folder or hub name) as a `NarratorError` that names it."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise NarratorError(f"no backbone can be loaded from {source}: {error}") from error


def load_trained(narrator: Narrator, tensors: dict[str, Tensor], source: str) -> None:
    """Put the tensors of trained.safetensors in place; each must be there and fit."""
    base = narrator.base
    own = {
        **{f"projector.{name}": tensor for name, tensor in projector_tensors(narrator.projector).items()},
        "embed_tokens.weight": base.get_input_embeddings().weight,
        "lm_head.weight": base.get_output_embeddings().weight,
    }
    if set(own) != set(tensors):
        raise NarratorError(f"{source}: trained.safetensors holds {sorted(tensors)}, expected {sorted(own)}")
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.shape != tensors[name].shape:
                raise NarratorError(
                    f"{source}: {name} is {list(tensors[name].shape)}, the model wants {list(tensor.shape)}: "
                    "another backbone?"
                )
            tensor.copy_(tensors[name])


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def backbone_source(backbone: str) -> str:
    """What a backbone folder was converted from (see `fingerprint`); "" for a name of the hub."""
    return source_fingerprint(Path(backbone)) if (Path(backbone) / "config.json").is_file() else ""


def recorded_backbone(folder: Path, info: CheckpointInfo) -> str:
    """Where the checkpoint says its language model is: a folder that is there, else as it was written."""
    recorded = (folder / info.backbone).resolve()
    return str(recorded) if recorded.is_dir() else info.backbone


def compare_backbone(info: CheckpointInfo, source: str) -> str:
    """How the backbone folder `source` compares with the one trained on; `NarratorError` if it is another."""
    if not info.backbone_fingerprint:
        return "not known which one the checkpoint was trained on"
    model = (Path(source) / "config.json").is_file()
    if model and fingerprint(Path(source)) == info.backbone_fingerprint:
        return "the one the checkpoint was trained on"
    if model and info.backbone_source and backbone_source(source) == info.backbone_source:
        return "the one the checkpoint was trained on, in another layout"
    raise NarratorError(
        f"{source} is not the backbone that the checkpoint was trained on (its files differ): give the right "
        "one with --backbone"
    )


def _find_backbone(folder: Path, info: CheckpointInfo, given: str | None) -> str:
    source = given or recorded_backbone(folder, info)
    if Path(source).is_dir():
        try:
            compare_backbone(info, source)
        except NarratorError as error:
            raise NarratorError(f"checkpoint {folder}: {error}") from None
    elif source.startswith("."):
        raise NarratorError(
            f"the backbone of checkpoint {folder} is not at {source}: give its folder with --backbone"
        )
    return source
