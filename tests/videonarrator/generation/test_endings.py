"""A narration that was written too far ends in range, at the end of a word, with a closing mark."""

import json
import math
from itertools import accumulate

import jieba
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_narrator import ROOT

from videonarrator.clip_inputs import encode_text
from videonarrator.generation.endings import NATURAL, best_cut, closed, cuts, ends_closed, far_enough, may_end
from videonarrator.length import count_units
from videonarrator.modeling.backbones import load_tokenizer


def narrations(name):
    videos = json.loads((ROOT / f"data/sample/{name}.json").read_text("utf-8"))
    return [clip["new_text"] for video in videos.values() for clip in video["frames"]]


ZH, EN = narrations("annotations"), narrations("annotations_en")


@pytest.fixture(scope="module")
def jieba_ends():
    """Where jieba's words end in a text: what the ends of narrations are judged by."""
    cutter = jieba.Tokenizer()
    return lambda text: set(accumulate(len(word) for word in cutter.cut(text)))


def beginnings(text, sizes=(1,)):
    """The text after each of its tokens, which have so many characters in turn."""
    ends = [0]
    while ends[-1] < len(text):
        ends.append(min(len(text), ends[-1] + sizes[(len(ends) - 1) % len(sizes)]))
    return [text[:end] for end in ends]


def texts_of(text, language, low, high, sizes=(1,)):
    return [cut.text for cut in cuts(beginnings(text, sizes), language, low, high)]


def likeliest(text, language, low, high, likely=(), ends=(), sizes=(1,)):
    """The cut where a closing mark is likely after the beginnings `likely`, the line's end after `ends`."""
    texts = beginnings(text, sizes)
    end = [-1.0 if one in ends else -9.0 for one in texts]
    close = [-1.0 if one in likely else -9.0 for one in texts]
    return best_cut(texts, language, low, high, end, close)


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("很好用", "zh", "很好用。"),
        (" 很好用，", "zh", "很好用。"),
        ("很好用 ，、", "zh", "很好用。"),
        ("很好用。", "zh", "很好用。"),
        ("很好用。。", "zh", "很好用。"),
        ("很好用。，", "zh", "很好用。"),
        ("好用吗？", "zh", "好用吗？"),
        ("好用!", "zh", "好用!"),
        ("好用……", "zh", "好用……"),
        ("他说“好用。”", "zh", "他说“好用。”"),
        ("他说“好用”", "zh", "他说“好用”。"),
        ("都说OK.", "zh", "都说OK。"),
        ("，", "zh", ""),
        ("", "zh", ""),
        ("It works", "en", "It works."),
        ("It works,", "en", "It works."),
        ("It works -", "en", "It works."),
        ('She said "it works!"', "en", 'She said "it works!"'),
        ("It works (really", "en", "It works (really."),
        (" - ", "en", ""),
    ],
)
def test_a_text_is_closed(text, language, expected):
    assert closed(text, language) == expected


@given(st.text("好用，。！…”“、 A3.-!\"'", max_size=12), st.sampled_from(["zh", "en"]))
@example("，! …", "zh")
def test_closing_twice_is_closing_once(text, language):
    once = closed(text, language)
    assert closed(once, language) == once
    assert not once or ends_closed(once, language)


def test_a_text_may_end_where_it_is_in_range_once_closed():
    assert [may_end("很好用", low, high, "zh") for low, high in [(4, 4), (5, 9), (1, 3)]] == [
        True,
        False,
        False,
    ]
    assert may_end("很好用，", 4, 4, "zh")  # the comma becomes the full stop
    assert may_end("It works well", 3, 3, "en") and not may_end("It works well", 4, 9, "en")
    assert not may_end("。！", 1, 9, "zh") and not may_end("...", 1, 9, "en") and not may_end("", 1, 9, "zh")
    assert may_end("。", 1, 1, "zh") and not may_end("好", 1, 1, "zh")


@pytest.mark.parametrize(
    ("text", "high", "language", "expected"),
    [
        ("折叠以后放进包里", 6, "zh", False),
        ("折叠以后放进，", 6, "zh", True),
        ("折叠以后放，进", 6, "zh", False),  # the mark stands before the bound
        ("折叠以后放进包里一点也不占", 6, "zh", False),
        ("折叠以后放进包里一点也不占地", 6, "zh", True),
        ("折叠以后放进包里一点也不占\ufffd", 6, "zh", False),
        ("现在只要19.", 5, "zh", False),  # a number may go on
        ("It folds into any bag", 3, "en", False),
        ("It folds into any bag,", 3, "en", True),
        ("It folds into any bag at", 3, "en", True),
    ],
)
def test_how_far_a_line_is_written(text, high, language, expected):
    assert far_enough(text, high, language) is expected


def test_what_is_written_later_does_not_move_the_words_in_range(jieba_ends):
    checked = 0
    for start in range(0, len(ZH) - 4, 3):
        whole = "".join(ZH[start : start + 4])
        for high in (9, 17, 26):
            settled = next(
                whole[:end] for end in range(high, len(whole)) if far_enough(whole[:end], high, "zh")
            )
            in_range = [{end for end in jieba_ends(text) if end <= high} for text in (settled, whole)]
            assert in_range[0] == in_range[1], (settled, whole)
            checked += 1
    assert checked > 200


def test_chinese_ends_only_where_a_word_of_the_whole_line_does():
    whole = "这款雨伞折叠以后放进背包里也不占地方"
    assert texts_of(whole, "zh", 4, 8) == ["这款雨伞。", "这款雨伞折叠。"]  # 以后 ends too late
    assert texts_of(whole, "zh", 4, 9) == ["这款雨伞。", "这款雨伞折叠。", "这款雨伞折叠以后。"]


@pytest.mark.parametrize(
    ("whole", "low", "high", "expected"),
    [
        ("现在只要19.9元就能带走", 3, 8, ["现在。"]),  # 只要 leaves it hanging, 19.9 wants its unit
        ("现在只要19.9元就能带走", 3, 10, ["现在。", "现在只要19.9元。"]),
        ("浓度高达5.5%的精华", 5, 8, ["浓度高达。"]),
        ("新款iPhone 15 Pro手机", 3, 12, ["新款。"]),
        ("含S.F.E+二裂酵母", 1, 8, ["含。"]),
        ("大家都说“很轻巧”值得买", 3, 10, ["大家。", "大家都说。", "大家都说“很轻巧”。"]),
        ("大家都看《雨伞指南》了", 3, 9, ["大家。", "大家都看。"]),
        ("大家都看（雨伞（新款）指南）了", 3, 14, ["大家。", "大家都看。"]),
        ("很好）都看（雨伞指南）了", 5, 9, ["很好）都看。"]),
        ("雨伞轻巧，折叠方便", 4, 6, ["雨伞轻巧。"]),
        ("雨伞轻巧！折叠方便", 4, 6, ["雨伞轻巧！"]),
        ("雨伞的，颜色", 1, 4, ["雨伞。"]),
        ("她和", 2, 3, ["她。"]),
        ("和", 2, 2, ["和。"]),  # nothing else is left
    ],
)
def test_where_chinese_may_end(whole, low, high, expected):
    assert texts_of(whole, "zh", low, high) == expected


@pytest.mark.parametrize(
    ("whole", "low", "high", "expected"),
    [
        ("We don't mind the rain", 1, 3, ["We.", "We don't.", "We don't mind."]),
        ("Up to 3.5 litres of tea", 1, 4, ["Up.", "Up to 3.5 litres."]),
        ("A well-known mug for tea", 1, 3, ["A well-known.", "A well-known mug."]),
        ("Warm for the whole day", 1, 4, ["Warm.", "Warm for the whole."]),
        ("Warm, and light. Take it", 1, 3, ["Warm.", "Warm, and light."]),
        ("Ask Mr. Smith for it", 1, 3, ["Ask.", "Ask Mr. Smith."]),
        ("Tea, e.g. green tea", 1, 2, ["Tea."]),
        ('They say "it works" today', 2, 4, ["They say.", 'They say "it works".']),
        ("It costs $49, all in", 2, 3, ["It costs.", "It costs $49."]),
        ("A $49 mug", 2, 2, ["A $49."]),
        ("It takes 15 minutes", 2, 3, ["It takes."]),
        ("You’ll love it here", 1, 2, ["You’ll love."]),
    ],
)
def test_where_english_may_end(whole, low, high, expected):
    assert texts_of(whole, "en", low, high) == expected


def test_the_likeliest_place_is_taken_and_a_sentence_s_own_end_before_it():
    whole = "雨伞轻巧。折叠方便又好看"
    assert likeliest(whole, "zh", 5, 12, likely=["雨伞轻巧。折叠方便"]).text == "雨伞轻巧。折叠方便。"
    own = likeliest(whole, "zh", 5, 12, likely=["雨伞轻巧。折叠方便"], ends=["雨伞轻巧。"])
    assert (own.text, own.tokens, own.score, own.natural) == ("雨伞轻巧。", 5, -1.0, True)


@pytest.mark.parametrize(("advantage", "natural"), [(NATURAL - 0.1, True), (NATURAL + 0.1, False)])
def test_how_much_likelier_another_place_must_be(advantage, natural):
    texts = beginnings("雨伞轻巧。折叠方便又好看")
    end = [-9.0] * len(texts)
    close = [-9.0 + advantage] * len(texts)
    cut = best_cut(texts, "zh", 5, 12, end, close)
    assert cut.natural is natural and cut.score == (-9.0 if natural else -9.0 + advantage)


def test_the_place_before_a_weak_mark_is_the_one_that_is_scored():
    cut = likeliest("雨伞轻巧，折叠方便又好看", "zh", 5, 12, likely=["雨伞轻巧"])
    assert (cut.text, cut.tokens, cut.score) == ("雨伞轻巧。", 4, -1.0)


def test_of_equal_places_the_latest_is_taken_and_a_missing_last_score_counts_least():
    texts = beginnings("雨伞轻巧又好看")
    assert best_cut(texts, "zh", 1, 8, [-1.0] * 8, [-1.0] * 8).text == "雨伞轻巧又好看。"
    assert best_cut(texts, "zh", 1, 8, [-1.0] * 7, [-1.0] * 7).text == "雨伞轻巧。"


def test_a_line_whose_tokens_end_within_words_ends_at_a_word_within_a_token():
    cut = likeliest("雨伞轻巧，折叠方便又好看", "zh", 4, 8, sizes=(3, 9))
    assert (cut.text, cut.tokens, cut.score, cut.natural) == ("雨伞轻巧。", 2, -math.inf, False)
    assert likeliest("雨伞轻巧折叠方便又好看", "zh", 4, 8, sizes=(3, 9)).text == "雨伞轻巧折叠。"
    cut = likeliest("雨伞轻巧！折叠方便又好看", "zh", 4, 8, sizes=(12,))
    assert (cut.text, cut.tokens, cut.natural) == ("雨伞轻巧！", 1, True)


def test_there_may_be_no_place():
    assert likeliest("Supercalifragilistic雨伞", "zh", 4, 8) is None
    assert likeliest("“雨伞轻巧，折叠方便又好看", "zh", 4, 8) is None
    assert likeliest("雨伞", "zh", 4, 8) is None
    assert best_cut([""], "zh", 1, 5, [-1.0], [-1.0]) is None


def test_a_place_within_a_character_is_none(backbone):
    tokenizer = load_tokenizer(str(backbone))
    whole = "雨伞轻巧，龘靐齉的都好看"
    ids = encode_text(whole, tokenizer)
    texts = [tokenizer.decode(ids[:end]) for end in range(len(ids) + 1)]
    assert len(ids) > len(whole) and any("\ufffd" in text for text in texts)
    found = cuts(texts, "zh", 2, 12)
    assert found and all(texts[cut.tokens] + "。" == cut.text for cut in found)
    scores = [0.0 if "\ufffd" in text else -5.0 for text in texts]
    assert "\ufffd" not in best_cut(texts, "zh", 2, 12, scores, scores).text
    assert cuts(["", "雨伞", "雨伞轻巧", "雨伞轻巧\ufffd"], "zh", 5, 6) == []  # the word may go on
    cut_off = texts[: next(t for t, text in enumerate(texts) if "\ufffd" in text) + 1]
    assert [cut.text for cut in cuts(cut_off, "zh", 2, 12)] == ["雨伞。", "雨伞轻巧。"]


@st.composite
def lines(draw, sentences, joint, frames):
    """Sentences in a row, some of them framed, with the tokens' sizes, the upper bound and scores."""
    text = ""
    for sentence in draw(st.lists(st.sampled_from(sentences), min_size=3, max_size=6)):
        left, right = draw(st.sampled_from(frames))
        text += left + sentence.removesuffix("。").removesuffix(".") + right + joint
    texts = beginnings(text, draw(st.lists(st.integers(1, 4), min_size=1, max_size=9)))
    scores = st.lists(st.floats(-30, 0), min_size=len(texts), max_size=len(texts))
    return texts, draw(scores), draw(scores)


@settings(max_examples=150, deadline=None)
@given(
    line=lines(
        ZH, "", [("", "。"), ("", "，"), ("", ""), ("“", "”"), ("《", "》，"), ("（", "）。"), ("12.5", "%")]
    ),
    high=st.integers(7, 30),
)
def test_a_chinese_cut_keeps_every_promise(jieba_ends, line, high):
    texts, end, close = line
    whole, low = texts[-1], max(1, high - 6)
    cut = best_cut(texts, "zh", low, high, end, close)
    assert cut == best_cut(texts, "zh", low, high, end, close)
    if cut is None:  # only what must not be broken off can be in the way
        assert any(mark in whole[:high] for mark in "“《（")
        return
    assert low <= count_units(cut.text, "zh") <= high
    assert ends_closed(cut.text, "zh") and closed(cut.text, "zh") == cut.text
    said = cut.text if cut.natural else cut.text.removesuffix("。")
    assert whole.startswith(said) and texts[cut.tokens].startswith(said)
    assert len(said) in jieba_ends(whole)
    assert not (said[-1].isascii() and said[-1].isalnum() and whole[len(said)] in ".%0123456789")
    assert all(said.count(left) <= said.count(right) for left, right in ("“”", "《》", "（）"))


@settings(max_examples=100, deadline=None)
@given(
    line=lines(EN, " ", [("", "."), ("", ","), ("", ""), ('"', '"'), ("(", ")"), ("don't ", ", 3.5")]),
    high=st.integers(4, 25),
)
def test_an_english_cut_keeps_every_promise(line, high):
    texts, end, close = line
    whole, low = texts[-1], max(1, high - 10)
    cut = best_cut(texts, "en", low, high, end, close)
    assert cut == best_cut(texts, "en", low, high, end, close)
    if cut is None:
        assert any(mark in " ".join(whole.split()[:high]) for mark in '"(')
        return
    assert low <= count_units(cut.text, "en") <= high
    assert ends_closed(cut.text, "en") and closed(cut.text, "en") == cut.text
    said = cut.text if cut.natural else cut.text.removesuffix(".")
    assert whole.startswith(said) and texts[cut.tokens].startswith(said)
    words = cut.text.split()
    assert all(
        ours.rstrip('.,!?"') == theirs.rstrip('.,!?"')
        for ours, theirs in zip(words, whole.split(), strict=False)
    )
    assert said.count('"') % 2 == 0 and said.count("(") == said.count(")")


def test_sample_lines_end_between_two_tokens_of_the_sample_model(jieba_ends):
    tokenizer = load_tokenizer(str(ROOT / "data/sample/models/backbone"))
    for start in range(0, len(ZH) - 3, 2):
        ids = encode_text("".join(ZH[start : start + 3]), tokenizer)
        texts = [tokenizer.decode(ids[:end]) for end in range(len(ids) + 1)]
        for high in (10, 19, 28):
            cut = best_cut(texts, "zh", high - 6, high, [-1.0] * len(texts), [-1.0] * len(texts))
            assert cut.score == -1.0 and high - 6 <= len(cut.text) <= high
            assert len(cut.text) - (not cut.natural) in jieba_ends(texts[-1])
