"""English words without a tagger: function words against content words, and what the metrics make of them."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from made_up_clips import DIM, encode

from metrics.emscore import emscore, emscore_ref
from metrics.knowledge import info_sim
from metrics.words.english import FUNCTION_WORDS, tagged_words
from metrics.words.segment import load_segmenter

SAMPLE = Path(__file__).resolve().parents[3] / "data" / "sample" / "annotations_en.json"
FRAMES = [np.random.default_rng(0).standard_normal((4, DIM)).astype(np.float32)]

Recorded = tuple[list[str], Callable[[Sequence[str]], np.ndarray]]


@pytest.fixture
def recorded() -> Recorded:
    """The texts that were encoded, and an encoder that writes them down."""
    texts: list[str] = []

    def recording(some: Sequence[str]) -> np.ndarray:
        texts.extend(some)
        return encode(some)

    return texts, recording


@pytest.fixture(scope="module")
def narrations() -> list[str]:
    """The English sample's narrations."""
    videos = json.loads(SAMPLE.read_text("utf-8")).values()
    return [frame["new_text"] for video in videos for frame in video["frames"]]


def content(text: str) -> list[str]:
    return [word for word, tag in tagged_words(text) if tag == "n"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Here is a yellow travel mug made to be used on the grass.", "yellow travel mug made grass"),
        ("We have all had enough of umbrellas that flip.", "umbrellas flip"),
        ("Best of all, it folds very small. It simply works.", "best folds small simply works"),
        (
            "Today it is only 79 yuan. The heart from the start comes with it.",
            "today 79 yuan heart start comes",
        ),
        ("And the sole grips wet stone, even after years.", "sole grips wet stone years"),
        ("You will wonder how you managed without it.", "wonder managed"),
    ],
)
def test_content_words_of_real_sentences(text: str, words: str) -> None:
    assert content(text) == words.split()


def test_all_narrations_of_the_sample(narrations: list[str]) -> None:
    """Every word is there in its order; what is left of each narration says something."""
    assert len(narrations) > 40
    for text in narrations:
        words = tagged_words(text)
        assert [word for word, _ in words] == re.findall(r"[a-z0-9]+", text.lower())
        assert {tag for _, tag in words} <= {"n", "x"} and content(text)
    kept = [word for text in narrations for word in content(text)]
    assert {"the", "is", "of", "it", "with", "and", "you"}.isdisjoint(kept)
    assert {"mug", "umbrella", "folds", "yellow", "order"} <= {*kept}
    assert 0.4 < len(kept) / sum(len(tagged_words(text)) for text in narrations) < 0.6


@pytest.mark.parametrize("apostrophe", ["'", "’"])
def test_contractions(apostrophe: str) -> None:
    """Function words with either apostrophe; a noun's 's stays with its noun."""
    text = "It's yours: you'll see, I'm sure they don't leak and we've never said they can't."
    assert content(text.replace("'", apostrophe)) == ["see", "sure", "leak", "said"]
    assert tagged_words(f"The mug{apostrophe}s lid") == (("the", "x"), ("mug's", "n"), ("lid", "n"))
    contracted = [word for word in FUNCTION_WORDS if "'" in word]
    assert len(contracted) > 40
    for word in contracted:
        assert tagged_words(word.capitalize().replace("'", apostrophe)) == ((word, "x"),)


def test_punctuation() -> None:
    """Gone at a word's ends, kept inside it; what is nothing else is no word."""
    assert content("“Steel” (double-wall), 3.5 cups… — ‘leak-proof’ -- 'really'?!") == [
        "steel",
        "double-wall",
        "3.5",
        "cups",
        "leak-proof",
        "really",
    ]
    assert tagged_words("THE, The. [the]") == (("the", "x"),) * 3
    assert tagged_words("Size M: 5 x") == (("size", "n"), ("m", "x"), ("5", "x"), ("x", "x"))


@pytest.mark.parametrize("text", ["", " \n\t", "...", "— ’ “”", "-- !? ()"])
def test_no_words(text: str) -> None:
    assert tagged_words(text) == ()


def test_emscore_compares_content_words(recorded: Recorded) -> None:
    texts, recording = recorded
    text = "It simply works: the mug’s lid isn’t loose, and the mug is hot."
    emscore([text], FRAMES, load_segmenter("en").tagged, recording)
    assert texts == [text, "simply", "works", "mug's", "lid", "loose", "mug", "hot"]


def test_function_words_do_not_move_the_fine_part_of_emscore() -> None:
    """Only the sentence as a whole is another; with another content word, the words are other ones."""

    def components(text: str) -> dict[str, float]:
        return emscore([text], FRAMES, tagged_words, encode).components

    first, same = components("A yellow mug on the grass."), components("It's THE yellow mug, in your grass!")
    assert same["fine"] == first["fine"] and same["recall"] == first["recall"]
    assert same["coarse"] != pytest.approx(first["coarse"], rel=1e-3)
    assert components("A yellow cup on the grass.")["fine"] != pytest.approx(first["fine"], rel=1e-3)


def test_only_function_words(recorded: Recorded) -> None:
    """In EMScore the first word stands for them, in InfoSim the narration itself."""
    texts, recording = recorded
    emscore_ref(["This is it."], ["Here you are."], FRAMES, tagged_words, recording)
    assert texts == ["This is it.", "this", "Here you are.", "here"]
    texts.clear()
    measured = info_sim(["This is it."], [["travel mug"]], tagged_words, recording, language="en")
    assert texts == ["This is it.", "travel mug"]
    assert measured.components["words"] == measured.components["sentence"]


def test_info_sim_compares_content_words(recorded: Recorded) -> None:
    """The narration gets its full stop, and a point is compared whole."""
    texts, recording = recorded
    points = ["Everyday travel mug", "keeps coffee hot all day", "it never leaks"]
    info_sim(
        ["This mug really keeps it hot"], [points], load_segmenter("en").tagged, recording, language="en"
    )
    assert texts == ["This mug really keeps it hot.", "mug", "really", "keeps", "hot", *points]
