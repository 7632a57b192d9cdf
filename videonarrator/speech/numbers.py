"""Numbers as words, in Chinese and English, from digits as they are written."""

from __future__ import annotations

NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
"""Pattern of a number as written: 99, 2,400, 12.5."""

_ZH_DIGITS = "零一二三四五六七八九"
_ZH_PLACES = ("", "十", "百", "千")
_ZH_GROUPS = ("", "万", "亿", "万亿", "亿亿")

_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
)
_ONES, _TENS = _WORDS.split()[:20], _WORDS.split()[20:]
_GROUPS = ("", "thousand", "million", "billion", "trillion")
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}

_CARDINAL_DIGITS = 15  # longer ones are read digit by digit


def chinese_number(number: str) -> str:
    """A number in Chinese: `28800` -> 二万八千八百 (two thousand: 两千), `3.5` -> 三点五."""
    whole, point, decimals = number.replace(",", "").partition(".")
    if len(whole) > _CARDINAL_DIGITS:
        return chinese_digits(number)
    return _chinese_integer(int(whole)) + (f"点{chinese_digits(decimals)}" if point else "")


def chinese_digits(text: str, one: str = "一") -> str:
    """The digits of `text`, each for itself; what is no digit is left out."""
    digits = [_ZH_DIGITS[int(digit)] for digit in text if digit.isdecimal()]
    return "".join(digits).replace("一", one)


def _chinese_integer(value: int) -> str:
    if value == 0:
        return _ZH_DIGITS[0]
    words, zero, rank = "", False, 0
    while value:
        value, group = divmod(value, 10_000)
        if group:
            words = _chinese_group(group) + _ZH_GROUPS[rank] + ("零" if zero and words else "") + words
        zero = group < 1000
        rank += 1
    return words.removeprefix("一") if words.startswith("一十") else words


def _chinese_group(value: int) -> str:
    """1 to 9999."""
    words, gap = "", False
    for place in (3, 2, 1, 0):
        digit = value // 10**place % 10
        if digit:
            name = "两" if digit == 2 and place == 3 else _ZH_DIGITS[digit]
            words += ("零" if gap and words else "") + name + _ZH_PLACES[place]
        gap = not digit
    return words


def english_number(number: str) -> str:
    """A number in English: `2,400` -> two thousand four hundred, `12.5` -> twelve point five."""
    whole, point, decimals = number.replace(",", "").partition(".")
    if len(whole) > _CARDINAL_DIGITS:
        return english_digits(number)
    return _english_integer(int(whole)) + (f" point {english_digits(decimals)}" if point else "")


def english_digits(text: str, zero: str = "zero") -> str:
    """The digits of `text`, each for itself; what is no digit is left out."""
    return " ".join(zero if digit == "0" else _ONES[int(digit)] for digit in text if digit.isdecimal())


def english_ordinal(number: str) -> str:
    """`3` -> third, `21` -> twenty first."""
    start, blank, last = english_number(number).rpartition(" ")
    stem = last.removesuffix("y") + "ie" if last.endswith("y") else last
    return start + blank + _ORDINALS.get(last, stem + "th")


def english_year(year: str) -> str:
    """Four digits as a year: 1995 -> nineteen ninety five, 2007 -> two thousand seven."""
    century, rest = int(year[:2]), int(year[2:])
    if year[1:3] == "00" or (century, rest) == (20, 0):
        return english_number(year)
    if rest < 10:
        return f"{_english_integer(century)} " + (f"oh {_ONES[rest]}" if rest else "hundred")
    return f"{_english_integer(century)} {_english_integer(rest)}"


def _english_integer(value: int) -> str:
    if value < 20:
        return _ONES[value]
    words: list[str] = []
    rank = 0
    while value:
        value, group = divmod(value, 1000)
        if group:
            words.insert(0, f"{_english_group(group)} {_GROUPS[rank]}".strip())
        rank += 1
    return " ".join(words)


def _english_group(value: int) -> str:
    """1 to 999."""
    words = []
    if value >= 100:
        words.append(f"{_ONES[value // 100]} hundred")
        value %= 100
    if value >= 20:
        words.append(_TENS[value // 10 - 2])
        value %= 10
    if value:
        words.append(_ONES[value])
    return " ".join(words)
