"""Draws a scene of the sample world as a still: place or backdrop, product, sign of its script label."""

from __future__ import annotations

import math
import random
from functools import lru_cache

from PIL import Image, ImageDraw

from data_process.sample_world.products import OUTLINE, draw_gift, product_image, star_points
from data_process.sample_world.scenes import COLOURS, COUNTS, PLACE_SCENES, Scene

WIDTH, HEIGHT = 320, 240

BACKDROPS = {
    "problem": (112, 118, 128),
    "closeup": (238, 228, 210),
    "effect": (255, 246, 200),
    "quality": (206, 226, 240),
    "lab": (224, 240, 232),
    "badge": (250, 236, 236),
    "factory": (168, 160, 150),
    "stars": (226, 214, 244),
}

DIGITS = {
    "0": "01110 10001 10011 10101 11001 10001 01110",
    "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00010 00100 01000 11111",
    "3": "11110 00001 00001 01110 00001 00001 11110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "00110 01000 10000 11110 10001 10001 01110",
    "7": "11111 00001 00010 00100 01000 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00010 01100",
}
"""A 5 x 7 bitmap a digit: no font file, the same pixels everywhere."""


def draw_scene(scene: Scene, progress: float, seed: int = 0) -> Image.Image:
    """One still of a scene, 320 x 240 RGB. progress: 0..1 through the clip; seed: small shifts of what stands
    where.
    """
    jitter = random.Random(seed)
    image = _background(scene.kind, scene.place).copy()
    d = ImageDraw.Draw(image)
    dx, dy = jitter.randint(-8, 8), jitter.randint(-6, 6)
    _SCENES[scene.kind](image, d, scene, progress, dx, dy)
    if scene.sparkles:
        _sparkles(d, 268 + dx // 2, 60 + dy, 26)
    if scene.gift:
        draw_gift(d, scene.gift, 44 + dx // 2, 190 + dy // 2, 24)
    return image


@lru_cache(maxsize=64)
def _background(kind: str, place: str) -> Image.Image:
    if kind not in PLACE_SCENES:
        return Image.new("RGB", (WIDTH, HEIGHT), BACKDROPS[kind])
    image = Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255))
    d = ImageDraw.Draw(image)
    if place == "海边":
        d.rectangle((0, 0, 320, 90), fill=(150, 214, 250))
        d.rectangle((0, 90, 320, 150), fill=(30, 130, 190))
        d.rectangle((0, 150, 320, 240), fill=(240, 216, 160))
        for x in range(0, 320, 40):
            d.arc((x, 96, x + 40, 116), 0, 180, fill=(230, 245, 255), width=3)
    elif place == "草地":
        d.rectangle((0, 0, 320, 110), fill=(196, 232, 255))
        d.rectangle((0, 110, 320, 240), fill=(120, 196, 84))
        for x in range(4, 320, 18):
            d.line((x, 236, x + 6, 216), fill=(60, 140, 50), width=3)
    elif place == "雪地":
        d.rectangle((0, 0, 320, 120), fill=(176, 188, 204))
        d.ellipse((-80, 90, 400, 420), fill=(250, 252, 255))
        for step in range(40):
            x, y = (step * 73) % 320, (step * 47) % 120
            d.ellipse((x, y, x + 5, y + 5), fill=(255, 255, 255))
    elif place == "夜晚":
        d.rectangle((0, 0, 320, 240), fill=(22, 26, 66))
        d.ellipse((250, 14, 296, 60), fill=(250, 240, 180))
        for step in range(30):
            x, y = (step * 67) % 320, (step * 41) % 150
            d.rectangle((x, y, x + 2, y + 2), fill=(240, 240, 255))
    else:  # 客厅
        d.rectangle((0, 0, 320, 170), fill=(236, 214, 186))
        d.rectangle((0, 170, 320, 240), fill=(150, 104, 66))
        d.rectangle((16, 20, 96, 100), fill=(190, 226, 246), outline=(120, 84, 54), width=5)
        d.line((56, 20, 56, 100), fill=(120, 84, 54), width=4)
    return image


def _paste(
    image: Image.Image, scene: Scene, x: int, y: int, size: int, angle: int = 0, grey: bool = False
) -> None:
    colour = (150, 150, 150) if grey else COLOURS[scene.colour]
    picture = product_image(scene.product, colour, size, angle)
    image.paste(picture, (x - size // 2, y - size // 2), picture)


def _hero(
    image: Image.Image, d: ImageDraw.ImageDraw, scene: Scene, progress: float, dx: int, dy: int
) -> None:
    _paste(image, scene, 176 + dx, 120 + dy, 168 + int(10 * progress))


def _problem(
    image: Image.Image, d: ImageDraw.ImageDraw, scene: Scene, progress: float, dx: int, dy: int
) -> None:
    d.ellipse((180 + dx, 40, 300 + dx, 110), fill=(66, 70, 80))
    for x in range(196, 290, 18):
        d.line((x + dx, 116, x - 8 + dx, 150), fill=(70, 90, 140), width=4)
    d.ellipse((40, 80 + dy, 150, 190 + dy), fill=(238, 206, 120), outline=OUTLINE, width=3)
    for x in (74, 108):
        d.ellipse((x, 114 + dy, x + 10, 126 + dy), fill=OUTLINE)
    d.arc((68, 146 + dy, 122, 186 + dy), 200, 340, fill=OUTLINE, width=5)


def _price(
    image: Image.Image, d: ImageDraw.ImageDraw, scene: Scene, progress: float, dx: int, dy: int
) -> None:
    _paste(image, scene, 74 + dx // 2, 118 + dy, 110)
    x, y = 136 + dx // 2, 62 + dy
    d.polygon([(x, y + 58), (x + 30, y), (x + 174, y), (x + 174, y + 116), (x + 30, y + 116)],
              fill=(255, 232, 60), outline=(200, 30, 30), width=6)  # fmt: skip
    for place, digit in enumerate(scene.price):
        for row, bits in enumerate(DIGITS[digit].split()):
            for column, bit in enumerate(bits):
                if bit == "1":
                    left, top = x + 40 + place * 66 + column * 11, y + 18 + row * 11
                    d.rectangle((left, top, left + 10, top + 10), fill=(200, 20, 20))


def _display(
    image: Image.Image, d: ImageDraw.ImageDraw, scene: Scene, progress: float, dx: int, dy: int
) -> None:
    d.rectangle((0, 176, WIDTH, HEIGHT), fill=(250, 250, 250), outline=(90, 90, 90), width=4)
    number = COUNTS.get(scene.count, 1)
    size = {1: 120, 2: 110, 3: 92, 4: 78}[number]
    for item in range(number):
        _paste(image, scene, int(WIDTH * (item + 0.5) / number) + dx // 2, 182 - size // 2, size)


def _closeup(
    image: Image.Image, d: ImageDraw.ImageDraw, scene: Scene, progress: float, dx: int, dy: int
) -> None:
    r, g, b = COLOURS[scene.colour]
    d.ellipse((30 + dx, -10 + dy, 290 + dx, 250 + dy), fill=(r, g, b), outline=OUTLINE, width=6)
    line = (min(r + 60, 255), min(g + 60, 255), min(b + 60, 255))
    for step in range(-240, 320, 22):
        d.line((max(60, step), 30 + max(0, 60 - step), step + 180, 210), fill=line, width=4)


def _use(image: Image.Image, d: ImageDraw.ImageDraw, scene: Scene, progress: float, dx: int, dy: int) -> None:
    wave = math.sin(2 * math.pi * progress)
    x, y, angle = 150 + dx, 112 + dy, 0
    ink = (255, 60, 160)
    if scene.motion == "旋转":
        angle = int(30 * wave)
        for start in (200, 20):
            d.arc((x - 100, y - 100, x + 100, y + 100), start, start + 140, fill=ink, width=9)
    elif scene.motion == "滑行":
        x += int(16 * wave)
        for step in range(4):
            d.line((8, 60 + 34 * step + dy, 62 + 8 * (step % 2), 60 + 34 * step + dy), fill=ink, width=9)
    elif scene.motion == "弹跳":
        y += int(12 * wave) - 10
        for left in (100, 140, 180):
            d.line((left + dx, 214, left + dx, 182), fill=ink, width=9)
    _paste(image, scene, x, y, 120, angle)
    skin = (250, 206, 170)
    d.rounded_rectangle((226, 150 + dy, 320, 190 + dy), 12, fill=skin, outline=OUTLINE, width=3)
    for finger in range(4):
        top = 138 + 15 * finger + dy
        d.rounded_rectangle((200, top, 246, top + 13), 6, fill=skin, outline=OUTLINE, width=2)


def _effect(
    image: Image.Image, d: ImageDraw.ImageDraw, scene: Scene, progress: float, dx: int, dy: int
) -> None:
    _paste(image, scene, 100 + dx, 130 + dy, 120)
    for step, height in enumerate((40, 80, 130)):
        d.rectangle(
            (190 + 40 * step, 210 - height, 220 + 40 * step, 210), fill=(70, 180, 110), outline=OUTLINE
        )
    _sparkles(d, 190, 60 + dy, 30)


def _quality(
    image: Image.Image, d: ImageDraw.ImageDraw, scene: Scene, progress: float, dx: int, dy: int
) -> None:
    _paste(image, scene, 90 + dx, 124 + dy, 116)
    x, y = 226, 120 + dy
    shield = [(x - 60, y - 70), (x + 60, y - 70), (x + 60, y), (x, y + 80), (x - 60, y)]
    d.polygon(shield, fill=(50, 110, 190), outline=OUTLINE, width=4)
    d.line((x - 30, y - 8, x - 6, y + 20), fill=(255, 255, 255), width=12)
    d.line((x - 6, y + 20, x + 34, y - 38), fill=(255, 255, 255), width=12)


def _lab(image: Image.Image, d: ImageDraw.ImageDraw, scene: Scene, progress: float, dx: int, dy: int) -> None:
    _paste(image, scene, 130 + dx, 110 + dy, 110)
    x, y = 150 + int(12 * progress), 104 + dy
    d.ellipse((x - 74, y - 74, x + 74, y + 74), outline=(60, 60, 60), width=12)
    d.line((x + 54, y + 54, x + 116, y + 116), fill=(110, 70, 40), width=20)


def _badge(
    image: Image.Image, d: ImageDraw.ImageDraw, scene: Scene, progress: float, dx: int, dy: int
) -> None:
    d.rectangle((50 + dx, 24, 270 + dx, 216), fill=(255, 255, 255), outline=(190, 150, 60), width=8)
    for row in range(3):
        d.rectangle((80 + dx, 52 + 24 * row, 240 + dx - 40 * (row % 2), 60 + 24 * row), fill=(170, 170, 170))
    d.polygon(
        [(196 + dx, 160), (182 + dx, 214), (206 + dx, 200), (232 + dx, 214), (222 + dx, 160)],
        fill=(200, 30, 40),
    )
    d.polygon(star_points(208 + dx, 156, 42, 12, 0.8), fill=(210, 40, 50), outline=OUTLINE)
    d.ellipse((188 + dx, 136, 228 + dx, 176), fill=(250, 220, 120))


def _factory(
    image: Image.Image, d: ImageDraw.ImageDraw, scene: Scene, progress: float, dx: int, dy: int
) -> None:
    for x, y, r in ((80 + dx, 80, 46), (190 + dx, 66, 34), (262 + dx, 98, 28)):
        d.polygon(star_points(x, y, r, 10, 0.78), fill=(90, 90, 96), outline=OUTLINE)
        d.ellipse((x - r // 3, y - r // 3, x + r // 3, y + r // 3), fill=(168, 160, 150))
    d.rectangle((0, 186, WIDTH, 216), fill=(50, 50, 54))
    for x in range(-20, 340, 40):
        d.ellipse((x + int(36 * progress), 192, x + 18 + int(36 * progress), 210), fill=(150, 150, 154))
    for x in (60, 160, 260):
        _paste(image, scene, x + int(20 * progress) + dx, 156, 64, grey=True)


def _stars(
    image: Image.Image, d: ImageDraw.ImageDraw, scene: Scene, progress: float, dx: int, dy: int
) -> None:
    for step in range(5):
        d.polygon(star_points(46 + 57 * step, 70 + dy, 26), fill=(255, 190, 20), outline=OUTLINE)
    for left, top, colour in ((30, 120, (255, 255, 255)), (120, 168, (180, 230, 170))):
        d.rounded_rectangle(
            (left + dx, top, left + 170 + dx, top + 38), 14, fill=colour, outline=OUTLINE, width=3
        )
        d.rectangle((left + 20 + dx, top + 16, left + 140 + dx, top + 22), fill=(120, 120, 130))


def _sparkles(d: ImageDraw.ImageDraw, x: int, y: int, r: int) -> None:
    for ox, oy, size in ((0, 0, 1.0), (r + 8, r, 0.6), (-r - 4, r - 4, 0.6)):
        points = star_points(x + ox, y + oy, r * size, 4, 0.3)
        d.polygon(points, fill=(255, 250, 120), outline=(220, 120, 0))


_SCENES = {
    "hero": _hero,
    "problem": _problem,
    "price": _price,
    "display": _display,
    "closeup": _closeup,
    "use": _use,
    "effect": _effect,
    "quality": _quality,
    "lab": _lab,
    "badge": _badge,
    "factory": _factory,
    "stars": _stars,
}
