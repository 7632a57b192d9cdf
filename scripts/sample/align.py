"""Gives data/sample/models/blip2 its language_projection: from what the queries answer to the words for it.

As BLIP-2's second stage does for a frozen language model, here in closed form, since the small encoder's
answers are known codes: the linear map that takes each code to the backbone's embedding of the word for it
(for an answer without a word, to the embedding of the comma). Training starts its projector from it
(`model.projector`).

    python scripts/sample/align.py [--blip2 data/sample/models/blip2] [--backbone data/sample/models/backbone]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from make_backbone import CAPTION_WORDS
from make_encoder import QUESTIONS, Codes
from safetensors.torch import load_file, save_file

from videonarrator.clip_inputs import encode_text
from videonarrator.modeling.backbones import load_backbone, load_tokenizer

NOTHING = "、"


def word_for(question: str, answer: Any) -> str:
    """The word that captions use for an answer; products stand in the facts, and nothing in no caption."""
    if question == "kind":
        return CAPTION_WORDS[answer]
    if question == "sparkles":
        return "闪光" if answer else NOTHING
    return NOTHING if question == "product" else answer or NOTHING


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blip2", type=Path, default=Path("data/sample/models/blip2"))
    parser.add_argument("--backbone", default="data/sample/models/backbone")
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.backbone)
    model: Any = load_backbone(options.backbone)
    embeddings = model.get_input_embeddings().weight.detach()
    words = [word_for(question, answer) for question, answers in QUESTIONS.items() for answer in answers]
    wanted = torch.stack([embeddings[encode_text(word, tokenizer)[0]] for word in words])
    codes = torch.cat(Codes().codes)
    weight = torch.linalg.lstsq(codes, wanted).solution.T.contiguous()  # [hidden, width]
    error = (codes @ weight.T - wanted).abs().max().item()
    file = options.blip2 / "model.safetensors"
    tensors = load_file(file)
    tensors["language_projection.weight"] = weight
    tensors["language_projection.bias"] = torch.zeros(len(weight))
    save_file(tensors, file, metadata={"format": "pt"})
    print(f"{len(words)} answers mapped to embeddings, greatest difference {error:.1e}")


if __name__ == "__main__":
    main()
