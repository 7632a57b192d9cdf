"""Texts into words (segmenters) and into the tokens that n-gram metrics count (tokenizers).

jieba keeps its dictionary in a module-wide object; here each segmenter has an object of its own, so that one
metric's user dictionary never reaches another metric. Segmenters and tokenizers carry the name that goes into
signatures.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path

from metrics.base import sha256
from videonarrator.schema import NarratorError

SEGMENTERS = ("jieba",)
"""Segmenters for Chinese that can be chosen by name."""

Tokens = tuple[Hashable, ...]


@dataclass(frozen=True)
class Segmenter:
    """A text's words with their part-of-speech tags, in order; blanks are words too, as jieba has it."""

    name: str
    tagged: Callable[[str], tuple[tuple[str, str], ...]]

    def words(self, text: str) -> list[str]:
        return [word for word, _ in self.tagged(text)]


@dataclass(frozen=True)
class Tokenizer:
    """A text's tokens (any hashable things) as n-gram metrics count them; `file` is the model's, if any."""

    name: str
    encode: Callable[[str], Tokens]
    file: Path | None = None


def jieba_segmenter(user_dict: str | Path | None = None) -> Segmenter:
    """jieba's part-of-speech cutting (`jieba.posseg`; plain `jieba.cut` splits differently), default mode.

    user_dict: file of `word [frequency] [tag]` lines in UTF-8, loaded as it is. Raises `NarratorError`
    where it cannot be read. Without one the same object is returned each time: loading takes seconds.
    """
    return _plain_jieba() if user_dict is None else _jieba(Path(user_dict))


@cache
def _plain_jieba() -> Segmenter:
    return _jieba(None)


def _jieba(user_dict: Path | None) -> Segmenter:
    import jieba  # here, not above: loading its tables takes half a second, which BLEU need not wait for
    import jieba.posseg

    jieba.setLogLevel(logging.WARNING)
    name = f"jieba-{version('jieba')} posseg, "
    if user_dict is not None and not user_dict.is_file():
        raise NarratorError(
            f"user dictionary {user_dict}: no such file; its lines are `word [frequency] [tag]`"
        )
    cutter = jieba.posseg.POSTokenizer(jieba.Tokenizer())
    if user_dict is None:
        name += "no user dictionary"
    else:
        try:
            with user_dict.open("rb") as file:
                cutter.tokenizer.load_userdict(file)
        except (ValueError, OSError) as error:
            raise NarratorError(f"user dictionary {user_dict}: {error}") from None
        name += f"user dictionary {sha256(user_dict)[:12]}"

    @lru_cache(maxsize=1 << 16)
    def tagged(text: str) -> tuple[tuple[str, str], ...]:
        return tuple((pair.word, pair.flag) for pair in cutter.cut(text))

    return Segmenter(name, tagged)


def blank_segmenter() -> Segmenter:
    """English: words between blanks, lower case, without punctuation at either end; every tag is empty."""

    def tagged(text: str) -> tuple[tuple[str, str], ...]:
        stripped = (word.strip(".,;:!?\"'()[]“”‘’…—-").lower() for word in text.split())
        return tuple((word, "") for word in stripped if word)

    return Segmenter("blanks lower-case", tagged)


def load_segmenter(language: str, name: str = "jieba", user_dict: str | Path | None = None) -> Segmenter:
    """The segmenter of a language ("zh": `name`; "en": blanks, which takes no user dictionary)."""
    if language == "en":
        if user_dict is not None:
            raise NarratorError("a user dictionary is for Chinese: leave --user-dict out with --lang en")
        return blank_segmenter()
    if name not in SEGMENTERS:
        raise NarratorError(f"unknown segmenter {name!r}; there is: {', '.join(SEGMENTERS)}")
    return jieba_segmenter(user_dict)


def char_tokenizer() -> Tokenizer:
    """Characters, white space left out."""
    return Tokenizer("chars", lambda text: tuple(char for char in text if not char.isspace()))


def word_tokenizer(segmenter: Segmenter) -> Tokenizer:
    """The segmenter's words, blank ones left out."""
    return Tokenizer(
        f"words ({segmenter.name})",
        lambda text: tuple(word for word in segmenter.words(text) if word.strip()),
    )


def sentencepiece_tokenizer(path: str | Path) -> Tokenizer:
    """Token ids of a SentencePiece model, without the beginning-of-sentence id.

    path: the model file, or a folder that holds it as `tokenizer.model`. Raises `NarratorError` on anything
    else.
    """
    import sentencepiece

    path = Path(path)
    file = path / "tokenizer.model" if path.is_dir() else path
    if not file.is_file():
        there = (
            ", ".join(sorted(p.name for p in path.iterdir())[:8])
            if path.is_dir()
            else "neither file nor folder"
        )
        raise NarratorError(
            f"tokenizer {path}: {there or 'an empty folder'}; type chars, words, a SentencePiece file, or a "
            "folder that holds tokenizer.model"
        )
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(file))  # pyright: ignore[reportCallIssue]
    except (RuntimeError, OSError):
        raise NarratorError(f"tokenizer {file}: not a SentencePiece model") from None
    return Tokenizer(f"sentencepiece {sha256(file)[:12]}", lambda text: tuple(processor.encode(text)), file)


def load_tokenizer(choice: str, segmenter: Segmenter | None = None) -> Tokenizer:
    """The tokenizer named "chars", "words" (of `segmenter`), or by a SentencePiece file or folder."""
    if choice == "chars":
        return char_tokenizer()
    if choice == "words":
        return word_tokenizer(segmenter or jieba_segmenter())
    return sentencepiece_tokenizer(choice)
