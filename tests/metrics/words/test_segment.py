"""Segmenters and tokenizers: dictionaries that do not meet, neural words prepared or not, names."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from plain_lac import TEXT

from metrics.repetition import repetition
from metrics.words.lac import Lac
from metrics.words.segment import (
    blank_segmenter,
    char_tokenizer,
    jieba_segmenter,
    lac_segmenter,
    load_segmenter,
    normalize,
    word_tokenizer,
)
from videonarrator.schema import NarratorError


def test_user_dictionaries_do_not_meet(tmp_path) -> None:
    """A word of one segmenter's dictionary is unknown to another one, whichever is made first."""
    words = tmp_path / "words.txt"
    words.write_text("油腻轻薄 9999 l\n", encoding="utf-8")
    words_after = tmp_path / "other.txt"
    words_after.write_text("好\n", encoding="utf-8")
    before, own, after = jieba_segmenter(), jieba_segmenter(words), jieba_segmenter(words_after)
    text = "质地油腻轻薄"
    assert "油腻轻薄" in own.words(text) and ("油腻轻薄", "l") in own.tagged(text)
    assert before.words(text) == after.words(text) and "油腻轻薄" not in before.words(text)
    assert len({before.name, own.name, after.name}) == 3
    assert word_tokenizer(before).encode("很 好") == ("很", "好")


def test_tokenizers() -> None:
    assert char_tokenizer().encode("好 a\u3000\n。") == ("好", "a", "。")
    assert blank_segmenter().words('The "Red" cup -- is red.') == ["the", "red", "cup", "is", "red"]
    assert char_tokenizer().encode("") == ()


def test_neither_jieba_nor_torch_is_imported() -> None:
    code = (
        "import sys; from metrics.words.segment import load_segmenter;"
        "load_segmenter('zh', 'lac').tagged('好');"
        "print([name for name in ('jieba', 'torch', 'paddle') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_segmenter_gives_the_same_words_prepared_or_not(
    lac: Lac, narrations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = narrations[80:120]
    expected = {text: tuple(words) for text, words in zip(texts, lac.tag(texts), strict=True)}
    segmenter = load_segmenter("zh", "lac")
    assert [segmenter.tagged(text) for text in texts[:5]] == [expected[text] for text in texts[:5]]
    segmenter.prepare(text for text in [*texts, *texts, ""])
    monkeypatch.setattr(Lac, "tag", None)  # nothing is left to be computed
    assert [segmenter.tagged(text) for text in texts] == [expected[text] for text in texts]
    assert segmenter.words("") == [] and segmenter.words(texts[0]) == [word for word, _ in expected[texts[0]]]


def test_user_dictionary_has_no_effect(tmp_path: Path) -> None:
    """As in jieba, whose neural mode never looks at it."""
    (tmp_path / "words.txt").write_text("高科技公司 99999 n\n", encoding="utf-8")
    plain = load_segmenter("zh", "lac")
    assert load_segmenter("zh", "lac", tmp_path / "words.txt").name == plain.name
    assert load_segmenter("zh", "lac", tmp_path / "words.txt").words("高科技公司") == ["高科技", "公司"]


def test_names(lac: Lac) -> None:
    names = {load_segmenter("zh", name).name for name in ("jieba", "lac", "lac-normalized")}
    assert len(names) == 3
    assert lac_segmenter().name == f"jieba-0.42.1 lac exact, parameters {lac.digest[:12]}"
    assert lac_segmenter() is load_segmenter("zh", "lac") is not lac_segmenter(True)
    with pytest.raises(NarratorError, match="there is: jieba, lac, lac-normalized"):
        load_segmenter("zh", "LAC")


def test_normalize() -> None:
    assert normalize("ＡＢｃ，！？：（）０９～\u3000A-Z。、“”…—中İΣ") == "abc,!?:()09~ a-z.,“”…—中İσ"


@settings(deadline=None)
@given(TEXT)
@example("ΑΣ İ\u3000ﬀ\t")
def test_normalized_words_are_the_text_itself(lac: Lac, text: str) -> None:
    assert len(normalize(text)) == len(text) and normalize(normalize(text)) == normalize(text)
    found = lac_segmenter(True).tagged(text)
    assert "".join(word for word, _ in found) == text.strip()
    expected = lac.tag([normalize(text)])[0]
    assert [(len(word), flag) for word, flag in found] == [(len(word), flag) for word, flag in expected]


def test_normalized_punctuation_is_punctuation(narrations: list[str]) -> None:
    """Of the marks of real narrations, exact mode takes none for punctuation, and the other nearly all."""
    counts = {}
    for normalized in (False, True):
        segmenter = lac_segmenter(normalized)
        segmenter.prepare(narrations)
        pairs = [pair for text in narrations for pair in segmenter.tagged(text)]
        counts[normalized] = [pairs.count((mark, "w")) for mark in "，。、"]
    there = [sum(text.count(mark) for text in narrations) for mark in "，。、"]
    assert min(there) > 10 and counts[False] == [0, 0, 0]
    assert all(found > 0.9 * of for found, of in zip(counts[True], there, strict=True))


def test_metric_with_neural_words(narrations: list[str]) -> None:
    stories = [narrations[:5], narrations[5:10]]
    segmenter = lac_segmenter()
    segmenter.prepare(text for story in stories for text in story)
    same = [[story[0]] * 5 for story in stories]
    assert repetition(same, segmenter.words).value > 1 > repetition(stories, segmenter.words).value > 0
