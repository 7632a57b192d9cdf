"""Drawings of the ten kinds of product, each a shape of its own, in any colour and at any angle."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
OUTLINE = (28, 28, 32)
CANVAS = 120
"""Side of the square every product is drawn in, in pixels."""


def shade(colour: Colour, factor: float) -> Colour:
    """`colour` darker (factor < 1) or lighter (factor > 1)."""
    if factor <= 1:
        r, g, b = (int(channel * factor) for channel in colour)
    else:
        r, g, b = (int(255 - (255 - channel) / factor) for channel in colour)
    return r, g, b


def _cup(d: ImageDraw.ImageDraw, c: Colour) -> None:
    d.rounded_rectangle((40, 30, 80, 112), 8, fill=c, outline=OUTLINE, width=2)
    d.rounded_rectangle((44, 10, 76, 32), 5, fill=shade(c, 0.6), outline=OUTLINE, width=2)
    d.rectangle((47, 40, 52, 104), fill=shade(c, 2))


def _umbrella(d: ImageDraw.ImageDraw, c: Colour) -> None:
    d.line((60, 60, 60, 104), fill=OUTLINE, width=4)
    d.arc((44, 92, 62, 114), 0, 180, fill=OUTLINE, width=4)
    d.pieslice((6, 12, 114, 116), 180, 360, fill=c, outline=OUTLINE, width=2)
    d.pieslice((42, 12, 78, 116), 180, 360, fill=shade(c, 1.7), outline=OUTLINE)


def _backpack(d: ImageDraw.ImageDraw, c: Colour) -> None:
    d.arc((44, 4, 76, 36), 180, 360, fill=OUTLINE, width=5)
    d.rounded_rectangle((22, 18, 98, 112), 22, fill=c, outline=OUTLINE, width=2)
    d.rounded_rectangle((32, 62, 88, 104), 8, fill=shade(c, 0.7), outline=OUTLINE, width=2)
    d.line((32, 74, 88, 74), fill=(240, 240, 240), width=3)


def _lamp(d: ImageDraw.ImageDraw, c: Colour) -> None:
    d.ellipse((26, 98, 94, 114), fill=shade(c, 0.7), outline=OUTLINE, width=2)
    d.line((60, 104, 36, 62), fill=OUTLINE, width=5)
    d.line((36, 62, 66, 32), fill=OUTLINE, width=5)
    d.polygon([(58, 12), (82, 34), (102, 62), (46, 62)], fill=c, outline=OUTLINE, width=2)
    d.ellipse((60, 58, 88, 72), fill=(255, 240, 150))


def _shoe(d: ImageDraw.ImageDraw, c: Colour) -> None:
    d.polygon(
        [(12, 40), (44, 40), (64, 62), (108, 74), (112, 92), (12, 92)], fill=c, outline=OUTLINE, width=2
    )
    d.rounded_rectangle((8, 90, 114, 102), 5, fill=(245, 245, 245), outline=OUTLINE, width=2)
    for x in (48, 57, 66):
        d.line((x, 52 + (x - 48) // 2, x + 8, 46 + (x - 48) // 2), fill=(245, 245, 245), width=3)


def _cap(d: ImageDraw.ImageDraw, c: Colour) -> None:
    d.pieslice((16, 28, 92, 124), 180, 360, fill=c, outline=OUTLINE, width=2)
    d.polygon([(56, 70), (92, 70), (118, 84), (60, 82)], fill=shade(c, 0.65), outline=OUTLINE, width=2)
    d.ellipse((49, 22, 59, 32), fill=shade(c, 0.65), outline=OUTLINE)


def _teapot(d: ImageDraw.ImageDraw, c: Colour) -> None:
    d.arc((2, 50, 40, 96), 90, 270, fill=OUTLINE, width=6)
    d.polygon([(84, 70), (116, 44), (118, 54), (92, 92)], fill=c, outline=OUTLINE, width=2)
    d.ellipse((20, 42, 96, 110), fill=c, outline=OUTLINE, width=2)
    d.ellipse((40, 34, 76, 50), fill=shade(c, 0.7), outline=OUTLINE, width=2)
    d.ellipse((53, 22, 63, 34), fill=OUTLINE)


def _headphones(d: ImageDraw.ImageDraw, c: Colour) -> None:
    d.arc((18, 12, 102, 108), 180, 360, fill=c, width=10)
    d.rounded_rectangle((8, 58, 36, 104), 10, fill=c, outline=OUTLINE, width=2)
    d.rounded_rectangle((84, 58, 112, 104), 10, fill=c, outline=OUTLINE, width=2)
    d.rounded_rectangle((30, 62, 40, 100), 4, fill=OUTLINE)
    d.rounded_rectangle((80, 62, 90, 100), 4, fill=OUTLINE)


def _candle(d: ImageDraw.ImageDraw, c: Colour) -> None:
    d.rectangle((28, 56, 92, 110), fill=c, outline=OUTLINE, width=2)
    d.rectangle((34, 74, 86, 98), fill=(248, 244, 232), outline=OUTLINE)
    d.line((60, 56, 60, 44), fill=OUTLINE, width=3)
    d.polygon([(60, 14), (70, 36), (60, 46), (50, 36)], fill=(255, 190, 40), outline=(230, 110, 20))


def _bucket_bag(d: ImageDraw.ImageDraw, c: Colour) -> None:
    d.arc((30, 2, 90, 84), 180, 360, fill=shade(c, 0.6), width=6)
    d.polygon([(22, 44), (98, 44), (90, 112), (30, 112)], fill=c, outline=OUTLINE, width=2)
    d.line((22, 54, 98, 54), fill=(240, 225, 160), width=4)
    d.ellipse((52, 62, 68, 78), fill=(240, 225, 160), outline=OUTLINE)


DRAWINGS: dict[str, Callable[[ImageDraw.ImageDraw, Colour], None]] = {
    "保温杯": _cup,
    "雨伞": _umbrella,
    "背包": _backpack,
    "台灯": _lamp,
    "运动鞋": _shoe,
    "帽子": _cap,
    "茶壶": _teapot,
    "耳机": _headphones,
    "香薰蜡烛": _candle,
    "水桶包": _bucket_bag,
}


@lru_cache(maxsize=2048)
def product_image(kind: str, colour: Colour, size: int, angle: int = 0) -> Image.Image:
    """The product as an RGBA picture of `size` x `size` pixels, turned by `angle` degrees."""
    image = Image.new("RGBA", (CANVAS, CANVAS), (0, 0, 0, 0))
    DRAWINGS[kind](ImageDraw.Draw(image), colour)
    if angle % 360:
        image = image.rotate(angle, resample=Image.Resampling.BICUBIC)
    return image.resize((size, size), Image.Resampling.BICUBIC)


def star_points(
    x: float, y: float, radius: float, tips: int = 5, inner: float = 0.42
) -> list[tuple[float, float]]:
    """Corner points of a star with its first tip upwards."""
    points = []
    for step in range(2 * tips):
        r = radius if step % 2 == 0 else radius * inner
        angle = math.pi * step / tips - math.pi / 2
        points.append((x + r * math.cos(angle), y + r * math.sin(angle)))
    return points


def draw_gift(d: ImageDraw.ImageDraw, gift: str, x: int, y: int, r: int) -> None:
    """A gift of radius `r` pixels at (x, y), on a white plate that keeps it apart from any background."""
    d.ellipse((x - r - 8, y - r - 8, x + r + 8, y + r + 8), fill=(255, 255, 255), outline=OUTLINE, width=2)
    if gift == "星星":
        d.polygon(star_points(x, y, r), fill=(250, 200, 30), outline=OUTLINE)
    elif gift == "爱心":
        red = (235, 50, 90)
        d.ellipse((x - r, y - r + 2, x + 1, y + 3), fill=red)
        d.ellipse((x - 1, y - r + 2, x + r, y + 3), fill=red)
        d.polygon([(x - r + 1, y - 2), (x + r - 1, y - 2), (x, y + r)], fill=red)
    elif gift == "蝴蝶结":
        blue = (60, 110, 220)
        d.polygon([(x, y), (x - r, y - r + 6), (x - r, y + r - 6)], fill=blue, outline=OUTLINE)
        d.polygon([(x, y), (x + r, y - r + 6), (x + r, y + r - 6)], fill=blue, outline=OUTLINE)
        d.ellipse((x - 6, y - 6, x + 6, y + 6), fill=blue, outline=OUTLINE)
    elif gift == "铃铛":
        green = (40, 150, 90)
        d.pieslice((x - r + 4, y - r, x + r - 4, y + r + 8), 180, 360, fill=green, outline=OUTLINE)
        d.rectangle((x - r, y + 2, x + r, y + 8), fill=green, outline=OUTLINE)
        d.ellipse((x - 5, y + 8, x + 5, y + 18), fill=OUTLINE)
