"""Language models that narrate: Baichuan's architecture with fused q, k, v, or any causal LM of transformers.

Baichuan-7B is a LLaMA whose q, k and v weights are one matrix `W_pack` (rows: q, then k, then v). Kept fused,
LoRA has one shared A for the three, as the published training had; split, it is a plain LLaMA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

PAD_TOKEN = "[PAD]"


class BaichuanConfig(LlamaConfig):
    """A LLaMA configuration whose attention keeps q, k, v in one matrix."""

    model_type = "baichuan-fused"


class FusedAttention(LlamaAttention):
    """LLaMA's attention with `W_pack` [3 * hidden, hidden] in place of three projections."""

    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        del self.q_proj, self.k_proj, self.v_proj
        self.W_pack = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states [batch, tokens, hidden] -> the same shape, and attention weights if eager."""
        assert position_embeddings is not None
        batch, length, _ = hidden_states.shape
        packed = self.W_pack(hidden_states).view(batch, length, 3, -1, self.head_dim)
        query, key, value = (
            part.transpose(1, 2) for part in packed.unbind(2)
        )  # [batch, heads, tokens, head_dim]
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation or "eager", eager_attention_forward
        )
        dropout = self.attention_dropout if self.training else 0.0
        mixed, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(mixed.reshape(batch, length, -1).contiguous()), weights


class BaichuanForCausalLM(LlamaForCausalLM):
    """Baichuan-7B's architecture on transformers' LLaMA: the same names but for `self_attn.W_pack`."""

    config_class = BaichuanConfig

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        for index, layer in enumerate(self.model.layers):
            layer.self_attn = FusedAttention(config, index)
        self.post_init()


def load_backbone(source: str, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A causal LM from a folder or hub name. No code from the folder is run, no pickle is read.

    Raises `ValueError` where its files lack weights (transformers would draw them at random).
    """
    model_type = _model_type(source)
    if model_type == "baichuan":
        raise ValueError(
            "it is a Baichuan folder as published: make a backbone of it with "
            f"`videonarrator convert baichuan {source} DST`"
        )
    kind: Any = BaichuanForCausalLM if model_type == BaichuanConfig.model_type else AutoModelForCausalLM
    model, report = kind.from_pretrained(source, dtype=dtype, use_safetensors=True, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"its files lack {len(missing)} of the weights, first {', '.join(missing[:3])}")
    return model


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a folder or hub name, padding on the right."""
    fused = _model_type(source) == BaichuanConfig.model_type
    config = BaichuanConfig.from_pretrained(source) if fused else None
    tokenizer = AutoTokenizer.from_pretrained(source, config=config)
    tokenizer.padding_side = "right"
    return tokenizer


def add_tokens(model: Any, tokenizer: Any, tokens: Sequence[str]) -> None:
    """Add a pad token where there is none, then `tokens`, and grow the model's embeddings where needed.

    Rows of tokens that are new to the tokenizer start at the mean of the others, in the input and the output
    embeddings (also where the model had spare rows for them). What the tokenizer knew keeps its rows.
    """
    known = len(tokenizer)
    extend_tokenizer(tokenizer, tokens)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
            embeddings.weight[known : len(tokenizer)] = embeddings.weight[:known].mean(0)


def extend_tokenizer(tokenizer: Any, tokens: Sequence[str]) -> None:
    """Add a pad token where there is none, then `tokens`."""
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    tokenizer.add_tokens(list(tokens), special_tokens=True)


def begins_with_bos(tokenizer: Any) -> bool:
    """Whether prompts of a tokenizer's model begin with BOS: where it has one that is not its EOS, too.

    (Qwen's has none. What a bare tokenizer file adds by itself is no sign: transformers 5 adds nothing.)
    """
    return tokenizer.bos_token_id is not None and tokenizer.bos_token_id != tokenizer.eos_token_id


def empty_backbone(source: str) -> nn.Module:
    """The causal LM of a folder or hub name with its true shapes and no weights (torch's meta device)."""
    fused = _model_type(source) == BaichuanConfig.model_type
    with torch.device("meta"):
        if fused:
            return BaichuanForCausalLM(BaichuanConfig.from_pretrained(source))
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))


def _model_type(source: str) -> str:
    settings, _ = PreTrainedConfig.get_config_dict(source)
    return str(settings.get("model_type", ""))
