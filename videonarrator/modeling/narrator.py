"""The narrator: a causal language model that reads a clip's visual tokens in the midst of its prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from videonarrator.modeling.attention import TREE_SDPA, tree_block_mask, tree_mask, tree_segments
from videonarrator.modeling.projector import VisualProjector

IGNORED = -100
"""Label of tokens that no loss is computed on."""


class Narrator(nn.Module):
    """Language model and visual projector.

    patch_id: id of the token whose embedding is replaced by a projected visual token, in order.
    """

    def __init__(self, language_model: Any, projector: VisualProjector, patch_id: int) -> None:
        super().__init__()
        self.language_model = language_model
        self.projector = projector
        self.patch_id = patch_id

    @property
    def base(self) -> Any:
        """The language model itself, with LoRA layers in place where there are any."""
        model = self.language_model
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    @property
    def device(self) -> torch.device:
        return self.projector.linear.weight.device

    def embed(self, input_ids: Tensor, visual: Tensor, positions: Tensor) -> Tensor:
        """input_ids [batch, tokens], visual [patches, width], positions [patches] -> [batch, tokens, hidden].

        `visual` holds the visual tokens of the whole batch, in the order of their slots. The result has the
        dtype of the layers (embeddings that are trained may be more exact than frozen layers).
        """
        embeddings = self.base.get_input_embeddings()(input_ids)
        slots = input_ids == self.patch_id
        if int(slots.sum()) != len(visual):
            raise ValueError(
                f"{int(slots.sum())} visual slots in the text, {len(visual)} visual tokens given"
            )
        embeddings = embeddings.to(next(self.base.model.layers.parameters()).dtype)
        if len(visual) == 0:
            return embeddings
        projected = self.projector(visual, positions).to(embeddings.dtype)
        return embeddings.masked_scatter(slots.unsqueeze(-1), projected)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        visual: Tensor,
        positions: Tensor,
        attention_mask: Tensor | None = None,
        tree: Tensor | None = None,
        weights: Tensor | None = None,
        whole: bool = False,
    ) -> dict[str, Tensor]:
        """Next-token cross entropy on the labelled tokens only; logits are computed nowhere else.

        input_ids, labels [batch, tokens]; visual and positions: see `embed`. attention_mask [batch, tokens]
        for padded samples, or tree [4, tokens] for one packed sequence (see `modeling.attention`). weights
        [batch, tokens]: what each labelled token's loss counts; None: their mean. whole: give every trained
        parameter a gradient, the projector, too, where nothing is seen (processes that train together need
        that). Returns `loss`, and `token_losses` [labelled tokens] without gradient.
        """
        embeddings = self.embed(input_ids, visual, positions)
        if whole and len(visual) == 0:  # here, since DeepSpeed needs gradients in the same order everywhere
            nothing = torch.zeros(1, self.projector.position.embedding_dim, device=labels.device)
            projected = self.projector(nothing, torch.zeros_like(labels[0, :1]))
            embeddings = embeddings + 0.0 * projected.sum().to(embeddings.dtype)
        how: dict[str, Any] = {"attention_mask": attention_mask}
        if tree is not None:
            kind = self.base.config._attn_implementation
            mask = tree_block_mask(tree) if kind == "flex_attention" else tree_mask(tree)[None, None]
            how = {"attention_mask": mask, "position_ids": tree[3:]}
            if kind == TREE_SDPA:
                how["segments"] = tree_segments(tree)
        hidden = self.base.model(inputs_embeds=embeddings, use_cache=False, **how).last_hidden_state
        supervised = labels[:, 1:] != IGNORED
        logits = self.base.get_output_embeddings()(hidden[:, :-1][supervised])
        exact = logits if logits.dtype == torch.float64 else logits.float()
        losses = functional.cross_entropy(exact, labels[:, 1:][supervised], reduction="none")
        loss = losses.mean() if weights is None else (losses * weights[:, 1:][supervised]).sum()
        return {"loss": loss, "token_losses": losses.detach()}

    def step(self, embeddings: Tensor, cache: Any) -> Tensor:
        """Append embeddings [1, tokens, hidden] to `cache`; the next token's logits [vocabulary], float32."""
        hidden = self.base.model(inputs_embeds=embeddings, past_key_values=cache, use_cache=True)
        return self.base.get_output_embeddings()(hidden.last_hidden_state[0, -1]).float()
