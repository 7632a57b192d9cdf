"""Chinese text as it is read aloud: numbers, prices, units and signs become characters.

Latin words and letters stay as they are. The rules stand in the order in which they are applied; what one has
turned into characters, no later one sees as digits.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from videonarrator.speech.numbers import NUMBER, chinese_digits, chinese_number

UNITS = {
    "ml": "毫升", "mL": "毫升", "ML": "毫升", "L": "升", "l": "升",
    "mg": "毫克", "g": "克", "kg": "公斤", "KG": "公斤", "Kg": "公斤", "t": "吨",
    "nm": "纳米", "μm": "微米", "mm": "毫米", "cm": "厘米", "CM": "厘米", "m": "米", "km": "公里",
    "㎡": "平方米", "m²": "平方米", "cm²": "平方厘米", "m³": "立方米",
    "W": "瓦", "w": "瓦", "kW": "千瓦", "KW": "千瓦", "kWh": "千瓦时", "V": "伏", "v": "伏",
    "mAh": "毫安时", "mah": "毫安时", "MAH": "毫安时", "Wh": "瓦时",
    "Hz": "赫兹", "HZ": "赫兹", "hz": "赫兹", "kHz": "千赫兹", "GHz": "吉赫兹", "dB": "分贝", "db": "分贝",
    "℃": "摄氏度", "°C": "摄氏度", "°": "度", "°F": "华氏度",
    "h": "小时", "min": "分钟", "s": "秒", "ms": "毫秒", "kcal": "千卡", "kJ": "千焦", "oz": "盎司",
    "Pa": "帕", "kPa": "千帕", "rpm": "转每分钟", "lm": "流明", "inch": "英寸",
}  # fmt: skip
CURRENCIES = {"¥": "元", "￥": "元", "$": "美元", "€": "欧元", "£": "英镑"}
DAYS = ("618", "520", "1111", "1212", "315", "1314", "5201314", "7788")
"""Shopping days and sayings that are read digit by digit unless something is counted by them."""
MEASURES = (
    "个件瓶盒款层种支条片包套只双位次倍张把台袋罐杯块元折斤克米升度天年月日号岁"
    "小分秒点人家盏颗粒滴泵遍抽万亿千百代成"
)
SIGNS = {"+": "加", "×": "乘", "*": "乘", "=": "等于", "&": "和", "℃": "摄氏度", "°": "度", "@": "艾特"}
Reading = str | Callable[[re.Match[str]], str]
"""What stands in a match's place: a replacement as `re.sub` takes it."""

DASH = r"\s*[-~～–—]+\s*"

_WIDE_SIGNS = map(ord, "％＋－／．＄＝＆＊＠")
_WIDE_RANGES = (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))
_WIDE = {code: code - 0xFEE0 for code in (*_WIDE_SIGNS, *_WIDE_RANGES)}

_N = NUMBER
_UNIT = "|".join(re.escape(unit) for unit in sorted(UNITS, key=len, reverse=True))
_MONEY = "".join(map(re.escape, CURRENCIES))


def _time(found: re.Match[str]) -> str:
    hour, minute = found[1], found[2]
    return f"{chinese_number(hour)}点" + (f"{chinese_number(minute)}分" if minute != "00" else "")


RULES: tuple[tuple[re.Pattern[str], Reading], ...] = tuple(
    (re.compile(pattern), reading)
    for pattern, reading in (
        (r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})(?!\d)",
         lambda m: f"{chinese_digits(m[1])}年{chinese_number(m[2])}月{chinese_number(m[3])}日"),
        (r"(?<!\d)(?:1\d{10}|\d{3,4}-\d{3,4}-\d{3,4}|0\d{2,3}-\d{7,8})(?!\d)",
         lambda m: chinese_digits(m[0], "幺")),
        (r"(?<![\d.])([01]?\d|2[0-4]):([0-5]\d)(?!\d)", _time),
        (r"(?<=\d):(?=\d)", "比"),
        (rf"({_N})%?{DASH}({_N})%", lambda m: f"百分之{chinese_number(m[1])}到百分之{chinese_number(m[2])}"),
        (rf"({_N})%", lambda m: f"百分之{chinese_number(m[1])}"),
        (rf"({_N})‰", lambda m: f"千分之{chinese_number(m[1])}"),
        (r"(?<![\d/])(\d+)/(\d+)(?![\d/])", lambda m: f"{chinese_number(m[2])}分之{chinese_number(m[1])}"),
        (rf"([{_MONEY}])\s*({_N}){DASH}[{_MONEY}]?({_N})元?",
         lambda m: f"{chinese_number(m[2])}到{chinese_number(m[3])}{CURRENCIES[m[1]]}"),
        (rf"([{_MONEY}])\s*({_N})([万亿]?)元?", lambda m: f"{chinese_number(m[2])}{m[3]}{CURRENCIES[m[1]]}"),
        (rf"(?<=\d)\s*({_UNIT}){DASH}(?=\d)", r"\1到"),
        (rf"(?<=\d){DASH}(?=\d)", "到"),
        (rf"(?<![\dA-Za-z])[-－](?={_N}\s*(?:℃|°|度))", "零下"),
        (rf"(?<![\dA-Za-z.\u4e00-\u9fff])-(?={_N})", "负"),
        (rf"(?<![\d.])2\s*({_UNIT})(?![A-Za-z])", lambda m: f"两{UNITS[m[1]]}"),
        (rf"({_N})\s*({_UNIT})(?![A-Za-z])", lambda m: f"{chinese_number(m[1])}{UNITS[m[2]]}"),
        (r"(?<!\d)(1[5-9]\d\d|20\d\d)(?=年)", lambda m: chinese_digits(m[1])),
        (r"(?<!\d)([06789][05])(?=后)", lambda m: chinese_digits(m[1])),
        (r"(?<![\d.])([1-9][1-9])(?=折)", lambda m: chinese_digits(m[1])),
        (rf"(?<![\d.])({'|'.join(DAYS)})(?![\d.{MEASURES}])", lambda m: chinese_digits(m[1])),
        (r"(?<=[A-Za-z])-?(\d{3,})", lambda m: chinese_digits(m[1])),
        (r"(?<![\d.,])0\d+", lambda m: chinese_digits(m[0])),
        (rf"(?<![\d.,])(?!\d+0000(?!\d))\d{{7,}}(?![\d.{MEASURES}])", lambda m: chinese_digits(m[0])),
        (rf"(?<![\d.第])2(?=[{MEASURES}])(?![月日号岁分秒点度折成年十])", "两"),
        (rf"{_N}", lambda m: chinese_number(m[0])),
        (rf"[{''.join(map(re.escape, SIGNS))}]", lambda m: SIGNS[m[0]]),
    )
)  # fmt: skip


def expand_chinese(text: str) -> str:
    """`text` with its numbers and signs in characters."""
    text = text.translate(_WIDE)
    for pattern, reading in RULES:
        text = pattern.sub(reading, text)
    return text
