"""Texts as they are read aloud, and what is counted of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videonarrator.schema import NarratorError
from videonarrator.speech import SpokenCounts, count_spoken, spoken_text
from videonarrator.speech.numbers import (
    chinese_number,
    english_number,
    english_ordinal,
    english_year,
)
from videonarrator.speech.syllables import is_spelled, latin_syllables


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("0", "零"),
        ("10", "十"),
        ("12", "十二"),
        ("20", "二十"),
        ("101", "一百零一"),
        ("110", "一百一十"),
        ("618", "六百一十八"),
        ("1010", "一千零一十"),
        ("2000", "两千"),
        ("10000", "一万"),
        ("20305", "二万零三百零五"),
        ("28800", "二万八千八百"),
        ("100001", "十万零一"),
        ("1,299", "一千二百九十九"),
        ("100000000", "一亿"),
        ("200010000", "二亿零一万"),
        ("3.5", "三点五"),
        ("0.76", "零点七六"),
        ("105.10", "一百零五点一零"),
    ],
)
def test_chinese_numbers(number, words):
    assert chinese_number(number) == words


def read_back(words: str) -> int:
    """The value of a Chinese numeral, by its own rules."""
    total = section = digit = 0
    for sign in words:
        if sign in "零一二三四五六七八九":
            digit = "零一二三四五六七八九".index(sign)
        elif sign == "两":
            digit = 2
        elif sign in "十百千":
            section += (digit or 1) * {"十": 10, "百": 100, "千": 1000}[sign]
            digit = 0
        else:
            unit = {"万": 10**4, "亿": 10**8}[sign]
            total = (total + section + digit) * unit if unit > total > 0 else total + (section + digit) * unit
            section = digit = 0
    return total + section + digit


@given(st.integers(0, 10**8 - 1) | st.integers(0, 99_999))
def test_chinese_numbers_mean_what_they_were_made_from(value):
    assert read_back(chinese_number(str(value))) == value


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("0", "zero"),
        ("15", "fifteen"),
        ("21", "twenty one"),
        ("100", "one hundred"),
        ("850", "eight hundred fifty"),
        ("2,400", "two thousand four hundred"),
        ("1000001", "one million one"),
        ("12.05", "twelve point zero five"),
    ],
)
def test_english_numbers(number, words):
    assert english_number(number) == words


def test_english_years_and_ordinals():
    years = {
        "1998": "nineteen ninety eight",
        "1905": "nineteen oh five",
        "1900": "nineteen hundred",
        "2000": "two thousand",
        "2007": "two thousand seven",
        "2024": "twenty twenty four",
    }
    assert {year: english_year(year) for year in years} == years
    ordinals = {
        "1": "first",
        "2": "second",
        "3": "third",
        "9": "ninth",
        "12": "twelfth",
        "20": "twentieth",
        "21": "twenty first",
        "100": "one hundredth",
    }
    assert {number: english_ordinal(number) for number in ordinals} == ordinals


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("原价¥99，500ml装", "原价九十九元，五百毫升装"),
        ("￥1.2万", "一点二万元"),
        ("$12.99", "十二点九九美元"),
        ("¥99元", "九十九元"),
        ("只要3.5折", "只要三点五折"),
        ("46折", "四六折"),
        ("99元", "九十九元"),
        ("减50%", "减百分之五十"),
        ("３０％", "百分之三十"),
        ("30%-50%", "百分之三十到百分之五十"),
        ("5‰", "千分之五"),
        ("1/2000", "两千分之一"),
        ("3kg", "三公斤"),
        ("100W快充", "一百瓦快充"),
        ("30℃", "三十摄氏度"),
        ("-5℃", "零下五摄氏度"),
        ("1-2小时", "一到两小时"),
        ("5cm-10cm", "五厘米到十厘米"),
        ("１２ｍｌ", "十二毫升"),
        ("2L", "两升"),
        ("6000mAh", "六千毫安时"),
        ("10㎡", "十平方米"),
        ("5G", "五G"),
        ("4K屏", "四K屏"),
        ("2026年", "二零二六年"),
        ("30年", "三十年"),
        ("90后", "九零后"),
        ("2026-01-02", "二零二六年一月二日"),
        ("20:30", "二十点三十分"),
        ("8:00", "八点"),
        ("16:9", "十六比九"),
        ("电话13812345678", "电话幺三八幺二三四五六七八"),
        ("400-800-1234", "四零零八零零幺二三四"),
        ("034号", "零三四号"),
        ("HX2471", "HX二四七一"),
        ("iPhone15", "iPhone十五"),
        ("SPF50+", "SPF五十加"),
        ("618活动", "六一八活动"),
        ("618元", "六百一十八元"),
        ("2个", "两个"),
        ("第2个", "第二个"),
        ("2月", "二月"),
        ("10000000", "一千万"),
        ("1234567", "一二三四五六七"),
        ("1+1", "一加一"),
        ("3×4", "三乘四"),
        ("USB接口", "USB接口"),
        ("没有数字。", "没有数字。"),
        ("", ""),
    ],
)
def test_chinese_is_read_aloud(text, spoken):
    assert spoken_text(text, "zh") == spoken


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("Only $12.99!", "Only twelve dollars ninety nine!"),
        ("$0.99", "ninety nine cents"),
        ("$1", "one dollar"),
        ("$1.5 million", "one point five million dollars"),
        ("$5-10", "five to ten dollars"),
        ("¥49.", "forty nine yuan."),
        ("50% off", "fifty percent off"),
        ("30%-50%", "thirty to fifty percent"),
        ("500ml", "five hundred milliliters"),
        ("1.7 L", "one point seven liters"),
        ("1 m", "one meter"),
        ("100W", "one hundred watts"),
        ("3kg", "three kilograms"),
        ("-20°C", "minus twenty degrees Celsius"),
        ("1-2 hours", "one to two hours"),
        ("5-year plan", "five-year plan"),
        ("in 2024.", "in twenty twenty four."),
        ("1990s", "nineteen nineties"),
        ("2,400", "two thousand four hundred"),
        ("the 3rd", "the third"),
        ("7:30 a.m.", "seven thirty A M"),
        ("9:05", "nine oh five"),
        ("1/2 cup", "a half cup"),
        ("call 555-0199", "call five five five oh one nine nine"),
        ("24/7", "twenty four seven"),
        ("No. 1", "number one"),
        ("Loud? No. It is quiet.", "Loud? No. It is quiet."),
        ("iPhone15", "iPhone fifteen"),
        ("20+ styles", "twenty plus styles"),
        ("2.5x", "two point five times"),
        ("Dr. Lee & co", "Doctor Lee and co"),
        ("1,000,000", "one million"),
        ("It works.", "It works."),
    ],
)
def test_english_is_read_aloud(text, spoken):
    assert spoken_text(text, "en") == spoken


@given(st.text(alphabet="0123456789.,:/-%¥$+×°℃kgmlW 元折年a。个") | st.text(), st.sampled_from(["zh", "en"]))
def test_any_text_can_be_read_and_no_digit_is_left(text, language):
    assert not any(sign in "0123456789" for sign in spoken_text(text, language))
    count_spoken(text, language)


def test_other_languages_are_refused():
    with pytest.raises(NarratorError, match="language 'fr' is unknown; there are zh, en"):
        spoken_text("bonjour", "fr")


def test_latin_words():
    words = {
        "USB": 3,
        "W": 3,
        "iPhone": 2,
        "babycare": 3,
        "OLAY": 2,
        "PMMA": 4,
        "spa": 1,
        "pd": 2,
        "café": 2,
        "FREE": 1,
        "it's": 1,
        "coffee": 2,
        "chocolate": 3,
        "LED": 3,
    }
    assert {word: latin_syllables(word) for word in words} == words
    assert is_spelled("UVB") and not is_spelled("Olay") and not is_spelled("MINI")


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("大家好，这款很好用。", SpokenCounts(syllables=8, weak=1)),
        ("好了吗？看、看。。。走！！", SpokenCounts(syllables=4, light=2, weak=1, strong=2)),
        ("，。好。", SpokenCounts(syllables=1)),
        ("USB接口", SpokenCounts(syllables=2, latin=3)),
        ("A，。B", SpokenCounts(latin=2, strong=1)),
        ("S.F.E", SpokenCounts(latin=3)),
        ("99元", SpokenCounts(syllables=4)),
        ("……！？", SpokenCounts()),
        ("", SpokenCounts()),
    ],
)
def test_chinese_counts(text, counts):
    assert count_spoken(text, "zh") == counts
    assert counts.silent == (not counts.syllables + counts.light + counts.latin)


def test_english_counts():
    assert count_spoken("The coffee is hot. Take it, now!", "en") == SpokenCounts(
        syllables=5, light=3, words=4, consonants=11, weak=1, strong=1
    )
    assert count_spoken("It costs $5.", "en") == count_spoken("It costs five dollars.", "en")
    assert count_spoken("3.5", "en").strong == 0
