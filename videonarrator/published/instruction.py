"""The instruction wording that a published checkpoint was trained with, out of the user's own clone.

The wording is not part of this project. It is read by parsing the clone's Python files; nothing is run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from videonarrator.schema import NarratorError

FACTS = "商品信息："
"""What a Chinese prompt goes on with, after the instruction."""

SIGNS = ("商品", "镜头", "剧本", "文案", "字数", "广告", "视频")
"""Words of which an instruction holds several."""


def read_instruction(file: Path) -> str:
    """The wording in a text file, ending in two line breaks whatever the file ends in."""
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise NarratorError(f"cannot read the instruction {file}: {error}") from error
    if not text.strip():
        raise NarratorError(
            f"{file} is empty: it should hold the instruction the checkpoint was trained with"
        )
    return as_instruction(text)


def as_instruction(text: str) -> str:
    """`text` up to the product facts, ending in two line breaks."""
    return text.partition(FACTS)[0].rstrip("\n") + "\n\n"


def find_instruction(repository: Path) -> str:
    """The wording in the Python files of a clone of the published repository.

    It is the text that ends in an empty line, or stands before the product facts, and speaks of what an
    instruction speaks of. Raises `NarratorError` where there is none, or several different ones.
    """
    if not repository.is_dir():
        raise NarratorError(f"no folder {repository}: expected a clone of the published repository")
    files = sorted(repository.rglob("*.py"))
    found: dict[str, str] = {}
    for file in files:
        for line, text in _texts(file):
            if _is_instruction(text):
                found.setdefault(as_instruction(text), f"{file.relative_to(repository)}, line {line}")
    whole = {
        text: place for text, place in found.items() if not any(text in other != text for other in found)
    }
    if len(whole) == 1:
        return next(iter(whole))
    advice = "copy the wording into a text file and give it with --instruction FILE"
    if not whole:
        raise NarratorError(
            f"no instruction found in the {len(files)} Python files of {repository}: {advice}"
        )
    places = "; ".join(f"{place}: {text[:20]!r}..." for text, place in whole.items())
    raise NarratorError(f"{repository} holds {len(whole)} wordings ({places}): {advice}")


def _is_instruction(text: str) -> bool:
    ends = text.endswith("\n\n") or FACTS in text.lstrip()[1:]
    head = text.partition(FACTS)[0]
    return ends and len(head.strip()) >= 20 and sum(sign in head for sign in SIGNS) >= 2


def _texts(file: Path) -> Iterator[tuple[int, str]]:
    """Every text of a Python file with its line; sums of texts count as one, up to what is no text."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # Python 2, or no Python: nothing to be read
        return
    named: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            text, whole = _leading_text(node.value, named)
            if whole:
                named[node.targets[0].id] = text
    for node in ast.walk(tree):
        if isinstance(node, ast.expr):
            text, _ = _leading_text(node, named)
            if text:
                yield node.lineno, text


def _leading_text(node: ast.expr, named: dict[str, str]) -> tuple[str, bool]:
    """The text an expression begins with, as far as it can be told without running it; is it all?"""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value, True
    if isinstance(node, ast.Name) and node.id in named:
        return named[node.id], True
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, whole = _leading_text(node.left, named)
        if not whole:
            return left, False
        right, whole = _leading_text(node.right, named)
        return left + right, whole
    if isinstance(node, ast.JoinedStr):
        text = ""
        for part in node.values:
            inner = part.value if isinstance(part, ast.FormattedValue) else part
            piece, whole = _leading_text(inner, named)
            text += piece
            if not whole:
                return text, False
        return text, True
    return "", False
