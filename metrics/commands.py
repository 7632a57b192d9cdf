"""The small commands beside scoring: `python -m metrics build-idf | tokenize | explain`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from metrics.entries import read_object
from metrics.explain import EXPLANATIONS, explain
from metrics.idf import build_idf, write_idf
from metrics.ngram import upstream_text
from metrics.words.segment import sentencepiece_tokenizer
from videonarrator.schema import NarratorError


def tokenize_output(content: dict[str, Any], encode: Callable[[str], Sequence[Any]]) -> dict[str, Any]:
    """The published out_tokens.json of an output.json's content: each text field of an entry as token ids.

    Texts under 4 characters are left out, the others get a final 。 (as the published code prepares them).
    """
    tokens: dict[str, Any] = {}
    for key, entry in content.items():
        if not isinstance(entry, dict):
            raise NarratorError(f'entry {key!r}: expected an object {{"gt": ..., "0.1": ...}}')
        texts = {name: upstream_text(text) for name, text in entry.items() if isinstance(text, str)}
        tokens[key] = {name: list(encode(text)) for name, text in texts.items() if text is not None}
    return tokens


def _build_idf(argv: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="python -m metrics build-idf",
        description="Knowledge points of the annotated products with their weights, for --idf.",
    )
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the idf file to write")
    args = parser.parse_args(argv)
    idf = build_idf(read_object(args.annotations, "annotation file"))
    _write(args.out, lambda: write_idf(idf, args.out))
    return {"idf": str(args.out), "products": len(idf), "points": sum(map(len, idf.values()))}


def _tokenize(argv: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="python -m metrics tokenize",
        description="out_tokens.json: the texts of an output.json as the published code tokenises them.",
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT.json")
    parser.add_argument(
        "--tokenizer", required=True, metavar="DIR_OR_FILE", help="a SentencePiece model, or its folder"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: out_tokens.json beside OUTPUT.json"
    )
    args = parser.parse_args(argv)
    target = args.out or args.output.with_name("out_tokens.json")
    tokenizer = sentencepiece_tokenizer(args.tokenizer)
    tokens = tokenize_output(read_object(args.output, "output file"), tokenizer.encode)
    text = json.dumps(tokens, ensure_ascii=False)
    _write(target, lambda: target.write_text(text, encoding="utf-8"))
    return {"tokens": str(target), "entries": len(tokens)}


def _write(target: Path, write: Callable[[], object]) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write()
    except OSError as error:
        raise NarratorError(f"cannot write {target}: {error.strerror}") from None


def _explain(argv: Sequence[str]) -> str:
    parser = argparse.ArgumentParser(
        prog="python -m metrics explain",
        description="What a metric is: definition, formula, source, settings.",
    )
    parser.add_argument("name", nargs="*", help=f"default: all of {', '.join(EXPLANATIONS)}")
    names = parser.parse_args(argv).name or list(EXPLANATIONS)
    return "\n\n".join(map(explain, names))


COMMANDS: dict[str, Callable[[Sequence[str]], dict[str, Any] | str]] = {
    "build-idf": _build_idf,
    "tokenize": _tokenize,
    "explain": _explain,
}
"""Command -> what runs it; a dict is printed as one JSON object, text as it is."""
