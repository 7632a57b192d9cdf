"""Text vectors: the published masked means, whatever company a text is in."""

from pathlib import Path

import numpy as np
import torch
from feature_checks import TEXTS, assert_close, unit

from metrics.encoders.text import TextEncoder, load_text_encoder


def test_text_features_are_masked_means(
    text_encoder: TextEncoder, models: Path, real_texts: list[str]
) -> None:
    """The published way: padded batches with an attention mask, all tokens averaged but the padding."""
    from transformers import BertModel, BertTokenizer

    folder = models / "chinese-roberta"
    model, tokenizer = BertModel.from_pretrained(folder).eval(), BertTokenizer.from_pretrained(folder)
    texts = TEXTS + real_texts
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    assert_close(text_encoder.encode(texts), unit((hidden * mask).sum(1) / mask.sum(1)))
    assert text_encoder.dim == 64 and text_encoder.encode([]).shape == (0, 64)


def test_company_does_not_matter(models: Path, real_texts: list[str]) -> None:
    """Alone, in a crowd, in another order: the same but for rounding; again: the same to the bit."""
    crowd = load_text_encoder(str(models / "chinese-roberta"))
    alone = load_text_encoder(str(models / "chinese-roberta"))
    together = crowd.encode(real_texts)
    assert_close(np.concatenate([alone.encode([text]) for text in real_texts]), together)
    np.testing.assert_array_equal(crowd.encode(real_texts[::-1]), together[::-1])
    first = real_texts[0]
    np.testing.assert_array_equal(crowd.encode([first, "新的", first])[[0, 2]], together[[0, 0]])
