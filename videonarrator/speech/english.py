"""English text as it is read aloud: numbers, prices, units, signs and abbreviations become words.

The rules stand in the order in which they are applied.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from videonarrator.speech.numbers import (
    NUMBER,
    english_digits,
    english_number,
    english_ordinal,
    english_year,
)

UNITS = {
    "ml": "milliliters", "mL": "milliliters", "L": "liters", "l": "liters",
    "mg": "milligrams", "g": "grams", "kg": "kilograms", "oz": "ounces", "lb": "pounds", "lbs": "pounds",
    "nm": "nanometers", "mm": "millimeters", "cm": "centimeters", "m": "meters", "km": "kilometers",
    "ft": "feet", "mph": "miles an hour", "sq ft": "square feet", "m²": "square meters",
    "W": "watts", "kW": "kilowatts", "kWh": "kilowatt hours", "V": "volts", "mAh": "milliamp hours",
    "Wh": "watt hours", "Hz": "hertz", "kHz": "kilohertz", "GHz": "gigahertz", "dB": "decibels",
    "MB": "megabytes", "GB": "gigabytes", "TB": "terabytes", "fps": "frames a second", "rpm": "R P M",
    "℃": "degrees Celsius", "°C": "degrees Celsius", "°F": "degrees Fahrenheit", "°": "degrees",
    "h": "hours", "hr": "hours", "hrs": "hours", "min": "minutes", "mins": "minutes", "s": "seconds",
    "sec": "seconds", "ms": "milliseconds", "kcal": "kilocalories", "x": "times", "lm": "lumens",
}  # fmt: skip
CURRENCIES = {
    "$": ("dollars", "cents"),
    "€": ("euros", "cents"),
    "£": ("pounds", "pence"),
    "¥": ("yuan", ""),
    "￥": ("yuan", ""),
}
ABBREVIATIONS = {
    "Dr.": "Doctor", "Mr.": "Mister", "Mrs.": "Missis", "Ms.": "Miz", "vs.": "versus", "etc.": "et cetera",
    "e.g.": "for example", "i.e.": "that is", "approx.": "approximately", "St.": "Saint",
    "a.m.": "A M", "p.m.": "P M", "w/": "with", "24/7": "twenty four seven",
}  # fmt: skip
FRACTIONS = {
    "1/2": "a half",
    "1/3": "a third",
    "2/3": "two thirds",
    "1/4": "a quarter",
    "3/4": "three quarters",
}
SIGNS = {
    "+": "plus",
    "×": "by",
    "*": "times",
    "=": "equals",
    "&": "and",
    "@": "at",
    "°": "degrees",
    "#": "number",
}
Reading = str | Callable[[re.Match[str]], str]
"""What stands in a match's place: a replacement as `re.sub` takes it."""

DASH = r"\s*[-~–—]+\s*"

_N = NUMBER
_UNIT = "|".join(re.escape(unit) for unit in sorted(UNITS, key=len, reverse=True))
_MONEY = "".join(map(re.escape, CURRENCIES))
_FRACTION = "|".join(map(re.escape, FRACTIONS))


def _price(found: re.Match[str]) -> str:
    (large, small), amount, scale = CURRENCIES[found[1]], found[2], found[3]
    whole, _, rest = amount.partition(".")
    if scale or not small or len(rest) != 2:
        return f"{english_number(amount)} {(scale or '').strip()} {_counted(amount, large)}"
    cents = "" if rest == "00" else english_number(rest)
    if whole.strip("0,") == "":
        return f"{cents or 'zero'} {_counted(rest.lstrip('0'), small)}"
    return f"{english_number(whole)} {_counted(whole, large)} {cents}"


def _quantity(found: re.Match[str]) -> str:
    return f"{english_number(found[1])} {_counted(found[1], UNITS[found[2]])}"


def _counted(number: str, plural: str) -> str:
    """The unit's name as it follows the number: one meter, two meters."""
    singular = {"feet": "foot", "pence": "penny", "degrees Celsius": "degree Celsius"}
    return singular.get(plural, plural.removesuffix("s")) if number == "1" else plural


def _time(found: re.Match[str]) -> str:
    minute = english_number(found[2]) if found[2] != "00" else ""
    minute = f"oh {minute}" if found[2][0] == "0" and minute else minute
    return f"{english_number(found[1])} {minute}"


RULES: tuple[tuple[re.Pattern[str], Reading], ...] = tuple(
    (re.compile(pattern), reading)
    for pattern, reading in (
        (rf"(?<!\w)(?:{'|'.join(map(re.escape, ABBREVIATIONS))})(?!\w)", lambda m: ABBREVIATIONS[m[0]]),
        (r"\bNo\.\s?(?=\d)", "number "),
        (r"(?<!\d)(?:\d{1,3}-)?(?:\d{3}-)?\d{3}-\d{4}(?!\d)", lambda m: english_digits(m[0], "oh")),
        (r"(?<![\d.])([01]?\d|2[0-4]):([0-5]\d)(?!\d)", _time),
        (r"(?<=\d):(?=\d)", " to "),
        (rf"(?<=\d)%{DASH}(?={_N}%)", "-"),
        (rf"([{_MONEY}])\s?({_N}){DASH}[{_MONEY}]?({_N})",
         lambda m: f"{english_number(m[2])} to {english_number(m[3])} {CURRENCIES[m[1]][0]}"),
        (rf"([{_MONEY}])\s?({_N})( (?:thousand|million|billion)\b)?", _price),
        (rf"(?<=\d)\s?(?:{_UNIT})?{DASH}(?={_N})", " to "),
        (rf"({_N})\s?%", lambda m: f"{english_number(m[1])} percent"),
        (rf"(?<![\d/])({_FRACTION})(?![\d/])", lambda m: FRACTIONS[m[1]]),
        (r"(?<=\d)/(?=\d)", " over "),
        (r"(?<=\d)\s?[×x]\s?(?=\d)", " by "),
        (r"(?<![\w.])-(?=\d)", "minus "),
        (r"(?<![\d.])(\d+)(?:st|nd|rd|th)\b", lambda m: english_ordinal(m[1])),
        (r"\b((?:1\d|20)\d0|[5-9]0)'?s\b", lambda m: _decade(m[1])),
        (rf"({_N})[ -]?({_UNIT})(?!\w)", _quantity),
        (rf'({_N})"', lambda m: f"{english_number(m[1])} inch"),
        (r"(?<=[A-Za-z])-?(\d{3,})", lambda m: f" {english_digits(m[1])} "),
        (r"(?<![\d.,])0\d+", lambda m: english_digits(m[0], "oh")),
        (r"(?<![\d.,])(?!\d+0000(?!\d))\d{7,}(?![\d.])", lambda m: english_digits(m[0])),
        (r"(?<![\d.,])(1[1-9]\d\d|20\d\d)(?![\d.,]\d|\d)", lambda m: english_year(m[1])),
        (rf"(?<=[A-Za-z])(?={_N})", " "),
        (rf"({_N})(?=[A-Za-z])", lambda m: f"{english_number(m[1])} "),
        (rf"{_N}", lambda m: english_number(m[0])),
        (rf"\s*([{''.join(map(re.escape, SIGNS))}])\s*", lambda m: f" {SIGNS[m[1]]} "),
    )
)  # fmt: skip


def _decade(years: str) -> str:
    words = english_year(years) if len(years) == 4 else english_number(years)
    return words.removesuffix("y") + "ies" if words.endswith("y") else words + "s"


def expand_english(text: str) -> str:
    """`text` with its numbers, signs and abbreviations in words."""
    for pattern, reading in RULES:
        text = pattern.sub(reading, text)
    return re.sub(r" +([ ,.;:!?]|$)", r"\1", text)
