"""One function per metric, over plain lists: known values, properties, and what must not score well."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics import bleu, cider, label_accuracy, length_in_range, length_mae, repetition
from metrics.base import Signature
from metrics.repetition import join_single_characters, story_repetition

REFERENCES = [
    "这款面霜质地轻薄不油腻。",
    "每天早晚各用一次就够了。",
    "喜欢的姐妹赶紧下单吧！",
    "杯身是蓝色的。",
]
TEXT = st.text("这款面霜质地轻薄不油腻，。好 x", max_size=20)
TEXTS = st.lists(TEXT, min_size=2, max_size=6)


def test_equal_texts_are_perfect() -> None:
    for measured in bleu(REFERENCES, REFERENCES).values():
        assert measured.value == pytest.approx(1, abs=1e-6)
    measured = cider(REFERENCES, REFERENCES)
    assert measured.value == pytest.approx(10) and len(measured.per_item) == 4


def test_bleu_by_hand() -> None:
    """5 tokens against 6: 4 of 5 words right, 2 of 4 pairs, brevity penalty exp(1 - 6/5)."""
    scores = bleu(["abcxe"], ["abcdef"])
    assert scores["bleu_1"].value == pytest.approx(4 / 5 * math.exp(1 - 6 / 5), rel=1e-6)
    assert scores["bleu_2"].value == pytest.approx(math.sqrt(4 / 5 * 2 / 4) * math.exp(1 - 6 / 5), rel=1e-6)


def test_cider_by_hand() -> None:
    """Disjoint references of one character: only n = 1 of four counts, so a perfect match gives 10/4."""
    assert cider(["a", "b"], ["a", "b"]).per_item == pytest.approx([2.5, 2.5])
    assert cider(["b", "a"], ["a", "b"]).per_item == pytest.approx([0, 0])


def test_shuffled_narrations_score_worse() -> None:
    """Negative control: every narration stands under another clip."""
    wrong = REFERENCES[1:] + REFERENCES[:1]
    assert bleu(wrong, REFERENCES)["bleu_4"].value < 0.1
    assert cider(wrong, REFERENCES).value < 1


@settings(max_examples=40, deadline=None)
@given(TEXTS, st.randoms())
def test_ngram_scores_are_bounded_and_ignore_order(narrations: list[str], rng: random.Random) -> None:
    references = [text[::-1] + "好" for text in narrations]
    order = list(range(len(narrations)))
    rng.shuffle(order)
    scores = {**bleu(narrations, references), "cider": cider(narrations, references)}
    moved = [narrations[i] for i in order], [references[i] for i in order]
    again = {**bleu(*moved), "cider": cider(*moved)}
    for name, measured in scores.items():
        assert 0 <= measured.value <= (10 if name == "cider" else 1) + 1e-9
        assert again[name].value == pytest.approx(measured.value, rel=1e-9, abs=1e-12)


def test_tokens_may_hold_white_space() -> None:
    """A token is one token however it looks: "a b" is not two."""
    scores = bleu(["x"], ["x"], lambda text: ["a b\u3000c", "d"])
    assert scores["bleu_2"].value == pytest.approx(1, abs=1e-6)
    assert scores["bleu_3"].value < 0.05  # two tokens have no triple


def test_empty_narration_scores_nothing() -> None:
    narrations = ["", *REFERENCES[1:]]
    assert bleu(narrations, REFERENCES)["bleu_1"].per_item[0] == 0
    assert cider(narrations, REFERENCES).per_item[0] == 0


def test_very_long_narration() -> None:
    narrations = ["轻薄" * 2500, *REFERENCES[1:]]
    assert cider(narrations, REFERENCES).per_item[0] == pytest.approx(0, abs=1e-9)
    assert length_mae(narrations, REFERENCES).per_item[0] == 5000 - len(REFERENCES[0])


@pytest.mark.parametrize("function", [bleu, cider, length_in_range, length_mae, label_accuracy])
def test_unequal_or_empty_lists(function) -> None:
    for narrations, references in (([], []), (["a", "b"], ["a", "b", "c"])):
        with pytest.raises(ValueError, match="need"):
            function(narrations, references)


def test_cider_needs_two() -> None:
    with pytest.raises(ValueError, match="two references"):
        cider(["好"], ["好"])


@pytest.mark.parametrize(
    ("words", "units"),
    [
        (["质地", "轻薄"], ["质地", "轻薄"]),
        (["很", "轻薄"], ["很轻薄", "轻薄"]),  # a leading single character joins to the right
        (["轻薄", "的"], ["轻薄", "轻薄的"]),  # the left neighbour stays
        (["轻薄", "的", "很"], ["轻薄", "轻薄的", "的很"]),  # joined from the right: units overlap
        (["好", "，", "轻薄"], ["好，", "轻薄"]),
        (["，", "很", "好", "。"], ["很好"]),  # 很 equals the first character of 很好
        (["轻薄", "。"], ["轻薄"]),
        (["轻薄", "！"], ["轻薄", "轻薄！"]),  # other punctuation is a character like any other
        (["好"], []),
        ([], []),
    ],
)
def test_units(words: list[str], units: list[str]) -> None:
    assert join_single_characters(words) == units


def test_seven_equal_narrations_give_three() -> None:
    """The published score is no ratio: each unit counts once for every earlier narration (0+1+...+6)/7."""
    measured = repetition([["ab cd"] * 7], str.split)
    assert measured.value == 3
    assert measured.components["share"] == pytest.approx(6 / 7)


def test_repetition_inside_a_narration_does_not_count() -> None:
    assert story_repetition([["ab", "ab", "ab"], ["cd"]]) == (0, 0)


def test_stories_too_short_take_no_part() -> None:
    measured = repetition([["ab"], ["ab", "ab"], ["ab", ""], []], str.split)
    assert measured.per_item == [None, 0.5, None, None] and measured.value == 0.5
    with pytest.raises(ValueError, match="no story"):
        repetition([["ab"], []], str.split)


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from(["ab", "cd", "ef"]), max_size=4), max_size=5))
def test_repetition_against_its_definition(story: list[list[str]]) -> None:
    """The plain double loop over narrations and their earlier ones."""
    kept = [units for units in story if units]
    total = sum(unit in kept[e] for k, units in enumerate(kept) for unit in units for e in range(k))
    some = sum(any(unit in kept[e] for e in range(k)) for k, units in enumerate(kept) for unit in units)
    count = sum(Counter(map(len, kept))[n] * n for n in {len(units) for units in kept})
    expected = None if len(kept) < 2 else (total / count, some / count)
    assert story_repetition(story) == expected


def test_lengths() -> None:
    reference = "十" * 10
    narrations = ["一" * n for n in (6, 7, 13, 14, 0)]
    measured = length_in_range(narrations, [reference] * 5)
    assert measured.per_item == [0, 1, 1, 0, 0]
    assert measured.value == 0.4
    assert measured.components == pytest.approx({"too_short": 0.4, "too_long": 0.2, "mean_gap": 9 / 5})
    error = length_mae(narrations, [reference] * 5)
    assert error.value == pytest.approx((4 + 3 + 3 + 4 + 10) / 5)
    assert error.components["bias"] == pytest.approx(-10 / 5)


def test_english_lengths_are_words() -> None:
    assert length_in_range(["one two three", "w " * 9], ["a b c", "a b c"], "en").per_item == [1, 0]
    assert length_mae(["one two"], ["a b c d e"], "en").value == 3


def test_labels_are_sets() -> None:
    measured = label_accuracy(
        ["产品试用+产品功效", "其他/通用卖点", "产品功效", "产品功效", "", "胡说"],
        ["产品功效+产品试用", "其他", "产品功效+产品试用", "外观设计", "外观设计", "外观设计"],
    )
    assert measured.per_item == [1, 1, 0, 0, 0, 0]
    assert measured.components == pytest.approx({"jaccard": 2.5 / 6, "known": 4 / 6})


def test_signature_is_unambiguous() -> None:
    assert str(Signature("m", {"key": "0.1"})) == "m|version:1|key:0.1"
    assert str(Signature("m", {"key": "0.1|x:y"})) == "m|version:1|key:0.1%7Cx:y"
    assert str(Signature("m", {"key": "%7C"})) != str(Signature("m", {"key": "|"}))
