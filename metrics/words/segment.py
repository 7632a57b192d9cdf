"""Texts into words (segmenters) and into the tokens that n-gram metrics count (tokenizers).

jieba keeps its dictionary in a module-wide object; here each segmenter has an object of its own, so that one
metric's user dictionary never reaches another metric. Segmenters and tokenizers carry the name that goes into
signatures.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from metrics.base import sha256
from metrics.entries import read_object
from metrics.words.english import tagged_words
from metrics.words.lac import Lac
from videonarrator.schema import NarratorError

SEGMENTERS = ("jieba", "lac", "lac-normalized")
"""Segmenters for Chinese that can be chosen by name."""

CACHED = 1 << 16
"""A segmenter remembers the words of about so many texts."""

HALF_WIDTH = {0x3000: " "} | {full: chr(full - 0xFEE0) for full in range(0xFF01, 0xFF5F)}
HALF_WIDTH |= {ord("。"): ".", ord("、"): ","}
"""Full-width form or Chinese mark -> ASCII character, for `str.translate`."""

Tokens = tuple[Hashable, ...]
TaggedWords = tuple[tuple[str, str], ...]

Tagged = Callable[[str], Sequence[tuple[str, str]]]
"""Text -> (word, part-of-speech tag) pairs, e.g. `jieba_segmenter().tagged`."""


def _nothing(texts: Iterable[str]) -> None:
    """There is nothing to prepare."""


@dataclass(frozen=True)
class Segmenter:
    """A text's words with their part-of-speech tags, in order; blanks are words too, as jieba has it.

    prepare: called once with all texts that are about to be segmented, so that a segmenter that works in
    batches can do so; `tagged` gives the same words without it.
    """

    name: str
    tagged: Callable[[str], TaggedWords]
    prepare: Callable[[Iterable[str]], None] = _nothing

    def words(self, text: str) -> list[str]:
        return [word for word, _ in self.tagged(text)]


@dataclass(frozen=True)
class Tokenizer:
    """A text's tokens (any hashable things) as n-gram metrics count them; `file` is the model's, if any.

    adds_bos: whether its configuration puts a beginning-of-sentence id before a text (`encode` never does).
    prepare: as a segmenter's.
    """

    name: str
    encode: Callable[[str], Tokens]
    file: Path | None = None
    adds_bos: bool = True
    prepare: Callable[[Iterable[str]], None] = _nothing


def jieba_segmenter(user_dict: str | Path | None = None) -> Segmenter:
    """jieba's part-of-speech cutting (`jieba.posseg`; plain `jieba.cut` splits differently), default mode.

    user_dict: file of `word [frequency] [tag]` lines in UTF-8, loaded as it is. Raises `NarratorError`
    where it cannot be read. The same contents give the same object: loading takes seconds.
    """
    if user_dict is None:
        return _jieba(None, "")
    path = Path(user_dict)
    if not path.is_file():
        raise NarratorError(f"user dictionary {path}: no such file; its lines are `word [frequency] [tag]`")
    return _jieba(path, sha256(path)[:12])


@cache
def _plain_cutter() -> Any:
    import jieba  # here, not above: loading its tables takes half a second, which BLEU need not wait for
    import jieba.posseg

    jieba.setLogLevel(logging.WARNING)
    cutter = jieba.posseg.POSTokenizer(jieba.Tokenizer())
    cutter.tokenizer.initialize()
    return cutter


def _with_own_tables(plain: Any) -> Any:
    """A copy that a user dictionary can be loaded into; reading jieba's tables again takes two seconds."""
    tokenizer = copy(plain.tokenizer)
    tokenizer.FREQ, tokenizer.user_word_tag_tab = dict(tokenizer.FREQ), {}
    cutter = object.__new__(type(plain))  # copy() is caught by its __getattr__
    vars(cutter).update(vars(plain), tokenizer=tokenizer, word_tag_tab=dict(plain.word_tag_tab))
    return cutter


@lru_cache(maxsize=4)
def _jieba(user_dict: Path | None, digest: str) -> Segmenter:
    cutter = _plain_cutter()
    if user_dict is not None:
        cutter = _with_own_tables(cutter)
        try:
            with user_dict.open("rb") as file:
                cutter.tokenizer.load_userdict(file)
        except (ValueError, OSError) as error:
            raise NarratorError(f"user dictionary {user_dict}: {error}") from None

    @lru_cache(maxsize=CACHED)
    def tagged(text: str) -> TaggedWords:
        return tuple((pair.word, pair.flag) for pair in cutter.cut(text))

    words = f"user dictionary {digest}" if digest else "no user dictionary"
    return Segmenter(f"jieba-{version('jieba')} posseg, {words}", tagged)


def lac_segmenter(normalized: bool = False) -> Segmenter:
    """jieba's neural mode (`metrics.words.lac`); white space at a text's ends is gone. Same object each time.

    normalized: False: exactly jieba's words and flags, in which each character unknown to the model (blanks,
    line breaks, emoji) is one blank. True: the model reads the text through `normalize`, which is closer to
    what it seems to have been trained on (its embeddings of ，！？：０Ａ and A-Z are as good as random, so
    that exact mode takes ， for a noun or verb or glues it to a word), and the words are cut from the text
    itself. Raises `NarratorError` where jieba's files are missing or damaged.
    """
    return _lac_segmenter(normalized)


@cache
def _lac_segmenter(normalized: bool) -> Segmenter:
    lac = _lac()
    known: dict[str, TaggedWords] = {}

    def prepare(texts: Iterable[str]) -> None:
        if len(known) > CACHED:
            known.clear()
        new = [text for text in dict.fromkeys(texts) if text not in known]
        found = lac.tag([normalize(text) for text in new] if normalized else new)
        for text, words in zip(new, found, strict=True):
            known[text] = _own_characters(text, words) if normalized else tuple(words)

    def tagged(text: str) -> TaggedWords:
        if text not in known:
            prepare([text])
        return known[text]

    mode = "normalized" if normalized else "exact"
    name = f"jieba-{version('jieba')} lac {mode}, parameters {lac.digest[:12]}"
    return Segmenter(name, tagged, prepare)


@cache
def _lac() -> Lac:
    return Lac.load()


def normalize(text: str) -> str:
    """Full-width ASCII forms, U+3000, 。 and 、 to ASCII, then lower case, character by character.

    (A letter whose lower case is more than one character, as İ, is kept.)
    """
    lower = ((character.lower(), character) for character in text.translate(HALF_WIDTH))
    return "".join(low if len(low) == 1 else character for low, character in lower)


def _own_characters(text: str, words: Iterable[tuple[str, str]]) -> TaggedWords:
    """The words, as long as they are, cut from the text without white space at its ends."""
    text, end = text.strip(), 0
    own = []
    for word, flag in words:
        start, end = end, end + len(word)
        own.append((text[start:end], flag))
    return tuple(own)


def blank_segmenter() -> Segmenter:
    """English: words between blanks, lower case, without punctuation at either end (`words.english`)."""
    return Segmenter("blanks lower-case, closed-class words told from content words", tagged_words)


def load_segmenter(language: str, name: str = "jieba", user_dict: str | Path | None = None) -> Segmenter:
    """The segmenter of a language ("zh": `name`; "en": blanks, which takes no user dictionary).

    A user dictionary does nothing in LAC mode, as in jieba's own: the segmenter and its name are the same.
    Raises `NarratorError` on anything it does not know or cannot read.
    """
    if language == "en":
        if user_dict is not None:
            raise NarratorError("a user dictionary is for Chinese: leave --user-dict out with --lang en")
        return blank_segmenter()
    if name not in SEGMENTERS:
        raise NarratorError(f"unknown segmenter {name!r}; there is: {', '.join(SEGMENTERS)}")
    if name != "jieba":
        return lac_segmenter(name == "lac-normalized")
    return jieba_segmenter(user_dict)


def char_tokenizer() -> Tokenizer:
    """Characters, white space left out."""
    return Tokenizer("chars", lambda text: tuple(char for char in text if not char.isspace()))


def word_tokenizer(segmenter: Segmenter) -> Tokenizer:
    """The segmenter's words, blank ones left out."""
    return Tokenizer(
        f"words ({segmenter.name})",
        lambda text: tuple(word for word in segmenter.words(text) if word.strip()),
        prepare=segmenter.prepare,
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
    name = f"sentencepiece {sha256(file)[:12]}"
    return Tokenizer(name, lambda text: tuple(processor.encode(text)), file, _adds_bos(file))


def _adds_bos(file: Path) -> bool:
    """What the tokenizer_config.json beside a model says; Baichuan's default is to add one."""
    config = file.with_name("tokenizer_config.json")
    if not config.is_file():
        return True
    return bool(read_object(config, "tokenizer configuration").get("add_bos_token", True))


def load_tokenizer(choice: str, segmenter: Segmenter | None = None) -> Tokenizer:
    """The tokenizer named "chars", "words" (of `segmenter`), or by a SentencePiece file or folder."""
    if choice == "chars":
        return char_tokenizer()
    if choice == "words":
        return word_tokenizer(segmenter or jieba_segmenter())
    return sentencepiece_tokenizer(choice)
