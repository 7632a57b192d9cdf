"""The narrator as training begins with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors import safe_open

from videonarrator.checkpoint import naming
from videonarrator.clip_inputs import TokenRules
from videonarrator.dataset import ClipSamples
from videonarrator.modeling.attention import TREE_SDPA, register
from videonarrator.modeling.backbones import add_tokens, begins_with_bos, load_backbone, load_tokenizer
from videonarrator.modeling.lora import add_lora, add_projector_lora, set_trainable
from videonarrator.modeling.narrator import Narrator
from videonarrator.modeling.projector import VisualProjector
from videonarrator.prompt import ADDED_TOKENS, VISUAL_PATCH
from videonarrator.schema import NarratorError
from videonarrator.settings import TrainConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def frozen_dtype(config: TrainConfig) -> torch.dtype:
    """In what the frozen weights are kept: in the precision of the arithmetic; trained ones are float32."""
    return torch.float32 if config.model.adapter == "full" else DTYPES[config.optimization.precision]


def build_narrator(config: TrainConfig, feature_width: int) -> tuple[Narrator, Any]:
    """The model as training begins with it, and its tokenizer with the added tokens."""
    with naming(config.model.backbone):
        tokenizer = load_tokenizer(config.model.backbone)
        language_model: Any = load_backbone(config.model.backbone, dtype=frozen_dtype(config))
    narrator = with_parts(config, language_model, tokenizer, feature_width)
    return narrator, tokenizer


def with_parts(
    config: TrainConfig, language_model: Any, tokenizer: Any, feature_width: int, positions: int | None = None
) -> Narrator:
    """The language model with added tokens, adapter and projector; gradients are on where they belong.

    tokenizer: None where only shapes are wanted: the added tokens are counted then, a pad token included.
    """
    model = config.model
    if model.adapter != "projector":  # trained, so in float32
        for embeddings in (language_model.get_input_embeddings(), language_model.get_output_embeddings()):
            embeddings.float()
    if tokenizer is None:
        rows = language_model.get_input_embeddings().num_embeddings + 1 + len(ADDED_TOKENS)
        language_model.resize_token_embeddings(rows, mean_resizing=False)
    else:
        add_tokens(language_model, tokenizer, ADDED_TOKENS)
    if config.optimization.gradient_checkpointing:
        language_model.gradient_checkpointing_enable({"use_reentrant": False})
    register()
    flex = config.optimization.attention == "flex" and torch.cuda.is_available()
    language_model.set_attn_implementation("flex_attention" if flex else TREE_SDPA)
    hidden = language_model.get_input_embeddings().embedding_dim
    projector = VisualProjector(feature_width, hidden, *(() if positions is None else (positions,)))
    if model.adapter == "lora":
        language_model = add_lora(language_model, rank=model.rank, alpha=model.alpha, dropout=model.dropout)
    if settings := projector_lora(config):
        add_projector_lora(projector, **settings)
    patch_id = -1 if tokenizer is None else tokenizer.convert_tokens_to_ids(VISUAL_PATCH)
    narrator = Narrator(language_model, projector, patch_id)
    set_trainable(narrator, model.adapter)
    if config.optimization.precision != "fp32":  # autocast does it, without a float32 copy of every input
        for module in narrator.modules():
            if isinstance(module, LoraLayer):
                module.cast_input_dtype_enabled = False
    return narrator


def token_rules(config: TrainConfig, tokenizer: Any) -> TokenRules:
    """The settings' token rules; whether prompts begin with BOS is found out where they do not say."""
    model = config.model
    published = model.compat == "upstream"
    bos = begins_with_bos(tokenizer) if model.bos is None else model.bos
    return TokenRules(bos, model.strip_around_added_tokens or published, published)


def projector_lora(config: TrainConfig) -> dict[str, Any]:
    """Settings of the projector's LoRA: the published set-up has one; ours trains the projector itself."""
    model = config.model
    if model.compat != "upstream" or model.adapter != "lora":
        return {}
    return {"rank": model.rank, "alpha": model.alpha, "dropout": model.dropout}


def match_projector(narrator: Narrator, dataset: ClipSamples) -> None:
    """Start the projector at the scale of the words, measured on the first sample that shows something."""
    seen = next((one["visual"] for one in dataset if len(one["visual"])), None)  # pyright: ignore
    if seen is None:
        raise NarratorError(
            "no sample of the list shows its clip: there is nothing to train the projector on"
        )
    narrator.projector.match_scale(narrator.base.get_input_embeddings().weight, seen)


def start_projector(projector: VisualProjector, folder: Path) -> None:
    """Start the projector from a BLIP-2's `language_projection`; half its bias, since ours enters twice."""
    names = ("language_projection.weight", "language_projection.bias")
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            tensors |= {name: stored.get_tensor(name).float() for name in names if name in stored.keys()}  # noqa: SIM118
    shape = projector.linear.weight.shape
    if set(tensors) != set(names) or tensors[names[0]].shape != shape:
        found = {name: list(tensor.shape) for name, tensor in tensors.items()} or "none"
        raise NarratorError(
            f"model.projector={folder}: expected a BLIP-2 folder with a language_projection of "
            f'{list(shape)}, found {found}; give another, or model.projector="" to start at random'
        )
    with torch.no_grad():
        projector.linear.weight.copy_(tensors[names[0]])
        projector.linear.bias.copy_(tensors[names[1]] / 2)


def optimizer_of(narrator: Narrator, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over what is trained, projector and position table at a rate of their own where one is set."""
    settings = config.optimization
    rate = settings.projector_learning_rate
    groups: dict[float, list[torch.nn.Parameter]] = {settings.learning_rate: []}
    for name, parameter in narrator.named_parameters():
        if parameter.requires_grad:
            own = rate is not None and name.startswith("projector.")
            groups.setdefault(rate if own and rate is not None else settings.learning_rate, []).append(
                parameter
            )
    return torch.optim.AdamW(
        [{"params": parameters, "lr": lr} for lr, parameters in groups.items() if parameters],
        weight_decay=settings.weight_decay,
        fused=True if torch.cuda.is_available() else None,
    )
