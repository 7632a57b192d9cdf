"""One line of text from a prompt: greedy or sampled, with repetition penalty, up to the line break."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from videonarrator.modeling.narrator import Narrator


@torch.inference_mode()
def write_line(
    narrator: Narrator,
    ids: Sequence[int],
    visual: Tensor,
    positions: Sequence[int],
    stop_ids: Sequence[int],
    *,
    temperature: float,
    penalty: float,
    max_new_tokens: int,
    generator: torch.Generator | None = None,
) -> list[int]:
    """The ids that follow the prompt `ids`, without the stop id that ended them.

    visual [patches, width]: the prompt's visual tokens; positions: of each of these. penalty: repetition
    penalty over all prompt ids (patches included) and the output (paper's decoding). temperature: 0 takes the
    likeliest token. generator: for sampling.
    """
    device = narrator.device
    prompt = torch.tensor([list(ids)], device=device)
    places = torch.tensor(list(positions), dtype=torch.long, device=device)
    seen = torch.zeros(narrator.base.get_output_embeddings().weight.shape[0], dtype=torch.bool, device=device)
    seen[prompt[0]] = True
    cache: Any = DynamicCache(config=narrator.base.config)
    logits = narrator.step(narrator.embed(prompt, visual.to(device), places), cache)
    written: list[int] = []
    while len(written) < max_new_tokens:
        token = choose(penalised(logits, seen, penalty), temperature, generator)
        if token in stop_ids:
            break
        written.append(token)
        seen[token] = True
        following = torch.tensor([[token]], device=device)
        logits = narrator.step(narrator.base.get_input_embeddings()(following), cache)
    return written


def penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """`logits` [vocabulary] with those of `seen` ids divided by `penalty` where positive, multiplied where
    negative.
    """
    weaker = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, weaker, logits)


def choose(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> int:
    """The likeliest id (temperature 0), or one drawn from the softmax at `temperature`, on the CPU in
    float64.
    """
    if temperature == 0:
        return int(logits.argmax())
    chances = torch.softmax(logits.double().cpu() / temperature, dim=-1)
    return int(torch.multinomial(chances, 1, generator=generator))
