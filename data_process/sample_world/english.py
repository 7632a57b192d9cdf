"""The sample world's twelve English videos: the same scenes, told in English, two and a half words a second."""

from __future__ import annotations

import random

from data_process.sample_world.scenes import Scene
from data_process.sample_world.stories import SampleVideo, scene_durations, scene_plan
from videonarrator.schema import Clip, Product, Video

WORDS_A_SECOND = 2.5

KINDS = {
    "保温杯": ("travel mug", "double wall steel", "keeps coffee hot all day", "it never leaks", "cold coffee"),
    "雨伞": ("umbrella", "carbon fibre ribs", "stands up to strong wind", "it folds very small", "umbrellas that flip"),
    "背包": ("backpack", "tough woven nylon", "takes weight off your shoulders", "every pocket has a zip", "sore shoulders"),
    "台灯": ("desk lamp", "a brushed metal arm", "is gentle on tired eyes", "it dims in three steps", "harsh light"),
    "运动鞋": ("running shoe", "a knitted upper", "softens every landing", "the sole grips wet stone", "aching feet"),
    "茶壶": ("teapot", "heat proof glass", "brews a clear cup", "the spout never drips", "bitter tea"),
}  # fmt: skip
"""Kind -> noun, material, effect, quality, problem."""

COLOURS = {
    "红色": "red", "橙色": "orange", "黄色": "yellow", "绿色": "green", "蓝色": "blue", "紫色": "purple",
    "粉色": "pink", "黑色": "black",
}  # fmt: skip
COUNTS = {"两只": "two", "三只": "three", "四只": "four"}
MOTIONS = {"旋转": "spin", "滑行": "slide", "弹跳": "bounce"}
PLACES = {
    "海边": "by the sea",
    "草地": "on the grass",
    "雪地": "in the snow",
    "夜晚": "at night",
    "客厅": "at home",
}
GIFTS = {"星星": "star", "爱心": "heart", "蝴蝶结": "ribbon", "铃铛": "bell"}
WORDS = {"colour": COLOURS, "count": COUNTS, "motion": MOTIONS, "place": PLACES, "gift": GIFTS}

SENTENCES = {
    "hero": ["Meet the {colour} {n} everyone asks about.", "Here is a {colour} {n} made to be used {place}."],
    "problem": ["Tired of {p}?", "We have all had enough of {p}."],
    "price": ["Today it is only {price} yuan.", "Take it home for {price} yuan."],
    "display": ["Look at {count} of them side by side.", "Seen together, the {count} look even better."],
    "closeup": ["Up close you can see {m}.", "It is made with {m}."],
    "use": ["Let it {motion} and nothing goes wrong.", "You can use it {place} without a second thought."],
    "effect": ["It {e}.", "This {n} really {e}."],
    "quality": ["Best of all, {q}.", "And {q}, even after years."],
    "lab": ["Under the glass, you see honest work.", "We tested it, and {q}."],
    "badge": ["It carries a full safety certificate.", "Every batch is checked and certified."],
    "factory": ["Each one is finished by hand.", "In the factory, every step is inspected."],
    "stars": ["Buyers give it five stars.", "People keep coming back for more."],
}
GIFT_SENTENCE = "The {gift} from the start comes with it."
MORE = [
    "You will wonder how you managed without it.", "It simply works.",
    "Your friends will ask where you got it.",
    "A small thing that changes the day.", "Order now while it lasts.", "It feels right in the hand.",
    "Nothing to learn, nothing to break.", "A present nobody returns.",
]  # fmt: skip


def english_videos() -> list[SampleVideo]:
    """The twelve videos; the same on every call."""
    kinds, colours = list(KINDS), list(COLOURS)
    pairs = [(kinds[number % 6], colours[(5 * number + 2) % 8]) for number in range(12)]
    return [_story(random.Random(5000 + n), pair, f"english{n + 1:02d}") for n, pair in enumerate(pairs)]


def _story(rng: random.Random, pair: tuple[str, str], video_id: str) -> SampleVideo:
    kind, colour = pair
    noun, material, effect, quality, problem = KINDS[kind]
    info = f"Material：{material}\nEffect：{effect}\nQuality：{quality}\nProblem：{problem}"
    scenes = scene_plan(rng, kind, colour)
    clips, named, start, gift = [], [], 0.0, ""
    known: set[str] = set()
    for scene, seconds in zip(scenes, scene_durations(rng, scenes), strict=True):
        seen = {name: WORDS[name][value] for name, value in scene.shown().items() if name in WORDS}
        words = {
            "n": noun,
            "m": material,
            "e": effect,
            "q": quality,
            "p": problem,
            "price": scene.price,
            **seen,
        }
        usable = [
            s for s in SENTENCES[scene.kind] if all(f"{{{name}}}" not in s or name in words for name in WORDS)
        ]
        text, wanted = _write(rng, scene, words, usable or [MORE[0]], gift, WORDS_A_SECOND * seconds, known)
        known.update(wanted)
        clips.append(Clip(start, start + seconds, scene.label, text))
        named.append(wanted)
        start += seconds
        gift = gift or GIFTS.get(scene.gift, "")
    name = f"{rng.choice(['Harbour', 'Pine', 'Everyday'])} {noun}"
    return SampleVideo(
        Video(video_id, Product(name, info), tuple(clips), type=kind), tuple(scenes), tuple(named)
    )


def _write(
    rng: random.Random,
    scene: Scene,
    words: dict[str, str],
    usable: list[str],
    gift: str,
    limit: float,
    known: set[str],
) -> tuple[str, dict[str, str]]:
    first = rng.choice(usable)
    sentences = [first.format(**words)]
    wanted = {n: words[n] for n in (*WORDS, "price") if f"{{{n}}}" in first and n not in known}
    if scene.kind == "price" and gift:
        sentences.append(GIFT_SENTENCE.format(gift=gift))
        wanted["gift"] = gift
    for sentence in rng.sample(MORE, len(MORE)):
        if len(" ".join([*sentences, sentence]).split()) <= limit:
            sentences.append(sentence)
    return " ".join(sentences), wanted
