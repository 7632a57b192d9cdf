"""Texts into words and tokens: jieba, its neural mode (LAC) in numpy, English, and tokenizers."""
