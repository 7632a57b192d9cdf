"""Tiny random models with the true architectures: a BLIP-2, and a Baichuan with its tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import sentencepiece
import torch
from torch import nn
from transformers import Blip2Config, LlamaTokenizer

from data_process.qformer import FrameEncoder
from videonarrator.modeling.backbones import BaichuanConfig, BaichuanForCausalLM

WIDTH, QUERIES = 16, 4


def save_tiny_encoder(folder: Path, seed: int = 0) -> Path:
    """A BLIP-2 (vision model and Q-Former) for pictures of 28 pixels: 4 queries of width 16."""
    torch.manual_seed(seed)
    config = Blip2Config(
        vision_config={
            "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14,
        },
        qformer_config={
            "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
            "encoder_hidden_size": WIDTH, "cross_attention_frequency": 1, "vocab_size": 2,
        },
        num_query_tokens=QUERIES,
    )  # fmt: skip
    encoder = FrameEncoder(config)
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=0.2)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    embeddings = encoder.vision_model.embeddings
    for parameter in (embeddings.class_embedding, embeddings.position_embedding, encoder.query_tokens):
        nn.init.normal_(parameter, std=0.5)
    encoder.eval().save(folder)
    return folder


def save_tiny_tokenizer(folder: Path, texts: Iterable[str], pieces: int = 800) -> LlamaTokenizer:
    """A tokenizer of Baichuan's kind: SentencePiece BPE, byte fallback, the line break a piece of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(texts), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=pieces,
        byte_fallback=True, split_digits=True, add_dummy_prefix=False, remove_extra_whitespaces=False,
        normalization_rule_name="identity", character_coverage=1.0, user_defined_symbols=["\n"],
        max_sentencepiece_length=2, num_threads=1, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    corpus.unlink()
    (folder / "tokenizer.vocab").unlink()
    tokenizer = LlamaTokenizer.from_pretrained(
        str(folder), vocab_file=str(folder / "tokenizer.model"), add_prefix_space=False, legacy=False
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_tiny_backbone(folder: Path, texts: Iterable[str], seed: int = 0) -> Path:
    """A language model of Baichuan's architecture (q, k, v fused), 2 layers of 32, and its tokenizer."""
    tokenizer = save_tiny_tokenizer(folder, texts)
    torch.manual_seed(seed)
    model = BaichuanForCausalLM(
        BaichuanConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=2048, rms_norm_eps=1e-6,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
        )
    )  # fmt: skip
    model.eval().save_pretrained(folder)
    return folder
