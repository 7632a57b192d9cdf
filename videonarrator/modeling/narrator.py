"""The narrator: a causal language model that reads a clip's visual tokens in the midst of its prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from videonarrator.modeling.projector import VisualProjector

IGNORED = -100
"""Label of tokens that no loss is computed on."""


class Narrator(nn.Module):
    """Language model and visual projector.

    patch_id: id of the token whose embedding is replaced by a projected visual token, in order.
    """

    accepts_loss_kwargs = True  # the Trainer then hands over the supervised tokens of the whole step

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

        `visual` holds the visual tokens of the whole batch, in the order of their slots.
        """
        embeddings = self.base.get_input_embeddings()(input_ids)
        slots = input_ids == self.patch_id
        if int(slots.sum()) != len(visual):
            raise ValueError(
                f"{int(slots.sum())} visual slots in the text, {len(visual)} visual tokens given"
            )
        if len(visual) == 0:
            return embeddings
        projected = self.projector(visual, positions).to(embeddings.dtype)
        return embeddings.masked_scatter(slots.unsqueeze(-1), projected)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        visual: Tensor,
        positions: Tensor,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """Next-token cross entropy on the labelled tokens only; logits are computed nowhere else.

        The sum is divided by `num_items_in_batch`, the supervised tokens of the whole optimisation step,
        where that is given, else by those of this batch.
        """
        embeddings = self.embed(input_ids, visual, positions)
        hidden = self.base.model(inputs_embeds=embeddings, attention_mask=attention_mask, use_cache=False)
        supervised = labels[:, 1:] != IGNORED
        logits = self.base.get_output_embeddings()(hidden.last_hidden_state[:, :-1][supervised])
        targets = labels[:, 1:][supervised]
        total = functional.cross_entropy(logits.float(), targets, reduction="sum")
        number = supervised.sum() if num_items_in_batch is None else num_items_in_batch
        return {"loss": total / number}

    def step(self, embeddings: Tensor, cache: Any) -> Tensor:
        """Append embeddings [1, tokens, hidden] to `cache`; the next token's logits [vocabulary], float32."""
        hidden = self.base.model(inputs_embeds=embeddings, past_key_values=cache, use_cache=True)
        return self.base.get_output_embeddings()(hidden.last_hidden_state[0, -1]).float()
