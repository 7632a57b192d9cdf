"""What is trained: LoRA on every linear layer but the head, with embeddings, projector and position table."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn

from videonarrator.modeling.narrator import Narrator


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


def set_trainable(narrator: Narrator, *, full: bool = False) -> None:
    """Leave gradients on what is trained: all (`full`), or LoRA, embeddings, projector and position table."""
    for name, parameter in narrator.language_model.named_parameters():
        parameter.requires_grad_(full or "lora_" in name)
    base = narrator.base
    for module in (base.get_input_embeddings(), base.get_output_embeddings(), narrator.projector):
        module.requires_grad_(True)
