"""What is trained: LoRA on every linear layer but the head, with embeddings, projector and position table."""

from __future__ import annotations

from typing import Any, cast

from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from videonarrator.modeling.narrator import Narrator
from videonarrator.modeling.projector import VisualProjector


def linear_layers(language_model: Any) -> list[str]:
    """Names of all linear layers but the output head."""
    head = language_model.get_output_embeddings()
    return [n for n, m in language_model.named_modules() if isinstance(m, nn.Linear) and m is not head]


def add_lora(language_model: Any, *, rank: int, alpha: int, dropout: float) -> Any:
    """The language model with fresh LoRA layers (B is zero, so that nothing changes yet)."""
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias="none",
        target_modules=linear_layers(language_model),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(language_model, config)


def add_projector_lora(projector: VisualProjector, *, rank: int, alpha: int, dropout: float) -> None:
    """Fresh LoRA on the projector's linear map, whose own weights are then frozen (the published set-up)."""
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=["linear"])
    inject_adapter_in_model(config, projector)


def merge_projector_lora(projector: VisualProjector) -> None:
    """Fold the projector's LoRA, where there is one, into its weights."""
    linear: Any = projector.linear
    if isinstance(linear, LoraLayer):
        linear.merge()
        projector.linear = cast(nn.Linear, linear.get_base_layer())


def projector_tensors(projector: VisualProjector) -> dict[str, Tensor]:
    """The projector's parameters under names that do not depend on peft: linear.weight, linear.lora_A.weight,
    position.weight, ...
    """
    return {
        name.replace(".base_layer", "").replace(".default", ""): parameter
        for name, parameter in projector.named_parameters()
    }


def set_trainable(narrator: Narrator, adapter: str) -> None:
    """Leave gradients on what `adapter` trains.

    full: every weight. lora: LoRA, embeddings, projector (its LoRA alone, where it has one) and position
    table. projector: projector and position table.
    """
    projector = narrator.projector
    for name, parameter in narrator.language_model.named_parameters():
        parameter.requires_grad_(adapter == "full" or (adapter == "lora" and "lora_" in name))
    if adapter != "projector":
        for module in (narrator.base.get_input_embeddings(), narrator.base.get_output_embeddings()):
            module.requires_grad_(True)
    has_lora = isinstance(projector.linear, LoraLayer)
    for name, parameter in projector.named_parameters():
        parameter.requires_grad_(not has_lora or "base_layer" not in name)
