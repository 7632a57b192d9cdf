"""A checkpoint of the published training to a checkpoint folder of ours, and back.

The published folder: adapter_config.json, adapter_model.bin (LoRA on every linear layer but the head, the
visual projector among them), non_lora_trainables.bin (input and output embeddings, position table),
config.json. The projector's own weights are in none of these: they were drawn at random, frozen, and saved
nowhere, so that each load drew others. Where they cannot be found the import is refused unless asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from videonarrator.checkpoint import CheckpointInfo, backbone_source, naming, save_checkpoint
from videonarrator.fingerprint import fingerprint
from videonarrator.modeling.backbones import empty_backbone, extend_tokenizer, load_tokenizer
from videonarrator.modeling.lora import add_projector_lora, projector_tensors
from videonarrator.modeling.narrator import Narrator
from videonarrator.modeling.projector import VisualProjector
from videonarrator.prompt import ADDED_TOKENS, VISUAL_PATCH, Template
from videonarrator.published.baichuan import PROJECTOR_FILE, adds_bos
from videonarrator.schema import NarratorError
from videonarrator.visual_memory import THRESHOLD
from videonarrator.weight_files import listing, read_tensors

STEM = "base_model.model."
LORA = re.compile(r"base_model\.model\.(?P<layer>model\.\S+)\.lora_(?P<half>[AB])\.weight")
EMBEDDINGS = {
    "base_model.model.model.embed_tokens.weight": "embed_tokens",
    "base_model.model.lm_head.weight": "lm_head",
}
POSITION = "base_model.model.model.frame_position_embedding.weight"
PROJECTOR = "model.mm_projector"
PROJECTOR_NAMES = re.compile(r"(?:base_model\.model\.)?(?:model\.)?(?:mm_projector\.|linear\.)?(weight|bias)")


@dataclass(frozen=True)
class PublishedCheckpoint:
    """What lies in a published checkpoint folder, names sorted out.

    lora: layer -> (A [rank, in], B [out, rank]); embeddings: embed_tokens and lm_head [vocabulary, hidden];
    position: [100, width]; projector: weight and bias, or nothing.
    """

    folder: Path
    settings: dict[str, Any]
    lora: dict[str, tuple[Tensor, Tensor]]
    embeddings: dict[str, Tensor]
    position: Tensor
    projector: dict[str, Tensor]

    @property
    def projector_lora(self) -> tuple[Tensor, Tensor] | None:
        return self.lora.get(PROJECTOR)


def read_published(folder: Path) -> PublishedCheckpoint:
    """A published checkpoint folder; every tensor of it is accounted for, or a `NarratorError` names it."""
    settings = _adapter_settings(folder)
    lora = _lora(folder, int(settings["r"]))
    file = folder / "non_lora_trainables.bin"
    others = read_tensors(file)
    projector: dict[str, Tensor] = {}
    embeddings = {EMBEDDINGS[name]: others.pop(name) for name in list(others) if name in EMBEDDINGS}
    position = others.pop(POSITION, None)
    for name in [name for name in others if "mm_projector." in name]:
        projector[_projector_part(name, file)] = others.pop(name)
    if others:
        raise NarratorError(f"{file} holds tensors of another kind of model: {', '.join(sorted(others)[:3])}")
    if set(embeddings) != set(EMBEDDINGS.values()) or position is None:
        raise NarratorError(
            f"{file} lacks embeddings or the position table: expected {', '.join([*EMBEDDINGS, POSITION])}"
        )
    return PublishedCheckpoint(folder, settings, lora, embeddings, position, projector)


def find_projector(published: PublishedCheckpoint, base: Path, given: Path | None) -> dict[str, Tensor]:
    """The projector's own weights: of `given`, else of the checkpoint, else of the base folder; or nothing.

    Empty where there is none; `NarratorError` where a file holds something else.
    """
    if given is not None:
        return _projector_of(given)
    if published.projector:
        return published.projector
    places = [published.folder / "mm_projector.bin", published.folder.parent / "mm_projector.bin"]
    found = next((file for file in (*places, base / PROJECTOR_FILE) if file.is_file()), None)
    return _projector_of(found) if found else {}


def import_published(
    published: PublishedCheckpoint,
    base: Path,
    out: Path,
    template: Template,
    projector: Mapping[str, Tensor],
    *,
    origin: str = "",
) -> Path:
    """Write the checkpoint folder `out`; `base` is its backbone folder of ours. Returns `out`.

    Nothing but the checkpoint's own tensors is held in memory. projector: weight [hidden, width] and bias.
    origin: said in the checkpoint where the projector was not trained with it.
    """
    hidden, width = (int(size) for size in projector["weight"].shape)
    with naming(str(base)):
        tokenizer = load_tokenizer(str(base))
        language_model: Any = empty_backbone(str(base))
    known = len(tokenizer)
    extend_tokenizer(tokenizer, ADDED_TOKENS)
    _check_vocabulary(published, base, known, len(tokenizer))
    language_model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    rank, alpha = int(published.settings["r"]), int(published.settings["lora_alpha"])
    dropout = float(published.settings["lora_dropout"])
    inside = [layer for layer in published.lora if layer != PROJECTOR]
    _check_layers(published, inside, language_model, base)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, bias="none", target_modules=inside,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    with torch.device("meta"):
        language_model = get_peft_model(language_model, config)
        visual = VisualProjector(width, hidden, len(published.position))
        if published.projector_lora:
            add_projector_lora(visual, rank=rank, alpha=alpha, dropout=dropout)
    narrator = Narrator(language_model, visual, tokenizer.convert_tokens_to_ids(VISUAL_PATCH))
    _assign(narrator, _language_tensors(published, inside), f"the base model {base}")
    _assign_projector(visual, published, projector)
    info = CheckpointInfo(
        adapter="lora",
        feature_width=width,
        backbone=str(base),
        backbone_fingerprint=fingerprint(base),
        backbone_source=backbone_source(str(base)),
        positions=len(published.position),
        bos=adds_bos(base),
        strip_around_added_tokens=True,
        compat="upstream",
        projector_lora={"rank": rank, "alpha": alpha, "dropout": dropout} if published.projector_lora else {},
        projector_origin=origin,
        features={"width": width, "threshold": THRESHOLD, "memory": "tokens"},
    )
    save_checkpoint(out, narrator, tokenizer, template, info)
    return out


def _adapter_settings(folder: Path) -> dict[str, Any]:
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise NarratorError(
            f"{folder} is no published checkpoint: no adapter_config.json (found: {listing(folder)})"
        )
    try:
        settings = dict(json.loads(file.read_text("utf-8")))
        wanted = {"peft_type": "LORA", "bias": "none", "fan_in_fan_out": False, "modules_to_save": None}
        for key, value in wanted.items():
            if settings.get(key, value) != value:
                raise NarratorError(f"{file}: {key} is {settings[key]!r}, expected {value!r}")
        for key in ("r", "lora_alpha", "lora_dropout"):
            float(settings[key])
    except (ValueError, KeyError, TypeError) as error:
        raise NarratorError(f"{file} is no configuration of LoRA: {error!r}") from None
    return settings


def _lora(folder: Path, rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    file = folder / "adapter_model.bin"
    if not file.is_file() and (folder / "adapter_model.safetensors").is_file():
        file = folder / "adapter_model.safetensors"
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read_tensors(file).items():
        match = LORA.fullmatch(name)
        if match is None:
            raise NarratorError(f"{file}: {name} is no LoRA tensor of the published model")
        if rank not in tensor.shape[match["half"] == "B" :][:1]:
            raise NarratorError(
                f"{file}: {name} is {list(tensor.shape)}, adapter_config.json says rank {rank}"
            )
        halves.setdefault(match["layer"], {})[match["half"]] = tensor
    if not halves:
        raise NarratorError(f"{file} holds no tensor")
    if half := [layer for layer, pair in halves.items() if len(pair) != 2]:
        raise NarratorError(f"{file}: {half[0]} has only one of lora_A and lora_B")
    return {layer: (pair["A"], pair["B"]) for layer, pair in halves.items()}


def _projector_of(file: Path) -> dict[str, Tensor]:
    tensors = read_tensors(file)
    found = {_projector_part(name, file): tensor for name, tensor in tensors.items()}
    if set(found) != {"weight", "bias"} or found["weight"].dim() != 2:
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        raise NarratorError(
            f"{file} holds {shapes}, expected the projector's weight [hidden, width] and bias"
        )
    return found


def _projector_part(name: str, file: Path) -> str:
    match = PROJECTOR_NAMES.fullmatch(name)
    if match is None:
        raise NarratorError(
            f"{file}: {name} is no tensor of the visual projector (mm_projector.weight, .bias)"
        )
    return match[1]


def _check_vocabulary(published: PublishedCheckpoint, base: Path, known: int, extended: int) -> None:
    for name, tensor in published.embeddings.items():
        if len(tensor) != extended:
            raise NarratorError(
                f"{published.folder}: {name} has {len(tensor)} rows, but the tokenizer of {base} has {known} "
                f"pieces and {extended} with the pad token and {', '.join(ADDED_TOKENS)}: wrong vocabulary "
                "size, the base model is another one"
            )


def _check_layers(published: PublishedCheckpoint, inside: list[str], model: Any, base: Path) -> None:
    modules = dict(model.named_modules())
    for layer in inside:
        a, b = published.lora[layer]
        module = modules.get(layer)
        weight = getattr(module, "weight", None)
        if weight is None:
            hint = " (convert it with --qkv fused)" if layer.endswith("W_pack") else ""
            raise NarratorError(
                f"the adapter of {published.folder} is on {layer}, which the base model {base} does not "
                f"have{hint}: it was trained on another base"
            )
        if tuple(weight.shape) != (len(b), a.shape[1]):
            raise NarratorError(
                f"the adapter of {published.folder} is of another base: on {layer} it maps {a.shape[1]} to "
                f"{len(b)}, the weights in {base} {weight.shape[1]} to {weight.shape[0]}"
            )


def _language_tensors(published: PublishedCheckpoint, inside: list[str]) -> dict[str, Tensor]:
    """Embeddings and LoRA under the names that peft gives them on our language model."""
    tensors = {}
    for layer in inside:
        for half, tensor in zip("AB", published.lora[layer], strict=True):
            tensors[f"{STEM}{layer}.lora_{half}.default.weight"] = tensor
    return tensors | {name: published.embeddings[ours] for name, ours in EMBEDDINGS.items()}


def _assign(narrator: Narrator, tensors: Mapping[str, Tensor], of: str) -> None:
    own = dict(narrator.language_model.named_parameters())
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            wanted = list(own[name].shape) if name in own else "nothing of that name"
            raise NarratorError(f"{name} is {list(tensor.shape)}; {of} has {wanted}: it is another base")
    narrator.language_model.load_state_dict(dict(tensors), strict=False, assign=True)


def _assign_projector(
    visual: VisualProjector, published: PublishedCheckpoint, projector: Mapping[str, Tensor]
) -> None:
    tensors = {
        "linear.weight": projector["weight"],
        "linear.bias": projector["bias"],
        "position.weight": published.position,
    }
    if pair := published.projector_lora:
        tensors |= {"linear.lora_A.weight": pair[0], "linear.lora_B.weight": pair[1]}
    by_ours = {id(parameter): name for name, parameter in visual.named_parameters()}
    state = {}
    for name, parameter in projector_tensors(visual).items():
        if tensors[name].shape != parameter.shape:
            raise NarratorError(
                f"{published.folder}: the projector's {name} is {list(tensors[name].shape)}, expected "
                f"{list(parameter.shape)}: projector and adapter are of two models"
            )
        state[by_ours[id(parameter)]] = tensors[name]
    visual.load_state_dict(state, assign=True)
