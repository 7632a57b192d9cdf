"""Writes the sample videos' stories: products with facts, scenes, and a narration as long as each clip asks
for.

A narration is put together from the clauses of phrases.py until it has about six characters for every second
of its clip. What a clip names for the first time in its video (colour, count, motion, price, place, an
earlier clip's gift) is kept beside it: that is what grounding is measured on.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass

from data_process.sample_world.phrases import CATEGORIES, CLAUSES, KINDS, SELLING_POINTS
from data_process.sample_world.scenes import COLOURS, COUNTS, GIFTS, MOTIONS, PLACES, PRICES, Scene
from videonarrator.schema import Clip, Product, Video

CHARACTERS_A_SECOND = 6
NUMBER_OF_VIDEOS = 60


def _pairs() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Product x colour pairs of the training and of the held-out videos; both have all products and
    colours.
    """
    kinds, colours = list(KINDS), list(COLOURS)
    held_out = [(kind, colours[(3 * place + 1) % 8]) for place, kind in enumerate(kinds)]
    held_out += [(kinds[2], colours[4]), (kinds[7], colours[1])]
    rest = [(kind, colour) for kind in kinds for colour in colours if (kind, colour) not in held_out]
    random.Random(7).shuffle(rest)
    return rest[: NUMBER_OF_VIDEOS - len(held_out)], held_out


TRAINING_PAIRS, _held_out = _pairs()
HELD_OUT = frozenset(_held_out)
"""Product x colour pairs that only held-out videos show: neither training nor the small models ever see
them.
"""


@dataclass(frozen=True)
class SampleVideo:
    """A video of the sample world: the annotated facts, one scene a clip, and what each narration names
    first.
    """

    video: Video
    scenes: tuple[Scene, ...]
    named: tuple[dict[str, str], ...]


def sample_videos() -> tuple[list[SampleVideo], list[str]]:
    """The sixty Chinese videos and the ids of the twelve held-out ones; the same on every call."""
    pairs = [*TRAINING_PAIRS, *_held_out]
    videos = [
        make_story(random.Random(1000 + number), pair, f"sample{number + 1:02d}")
        for number, pair in enumerate(pairs)
    ]
    return videos, [sample.video.id for sample in videos[len(TRAINING_PAIRS) :]]


def make_story(
    rng: random.Random, pair: tuple[str, str], video_id: str, seconds: tuple[float, float] | None = None
) -> SampleVideo:
    """One story of 3 to 6 clips about a product of this kind and colour.

    seconds: shortest and longest clip; without it, whole seconds and 8 to 25 of them together.
    """
    kind, colour = pair
    facts = {slot: rng.sample(words, 2) for slot, words in KINDS[kind].items() if slot != "brand"}
    facts["s"] = rng.sample(SELLING_POINTS, 2)
    brand = rng.choice(KINDS[kind]["brand"])
    name = rng.choice([f"【{brand}】{kind}", f"{brand}{kind}", f"{brand}{kind}旗舰款"])
    info = "\n".join(f"{CATEGORIES[slot]}：{'、'.join(facts[slot])}" for slot in CATEGORIES)
    scenes = scene_plan(rng, kind, colour)
    durations = [rng.uniform(*seconds) for _ in scenes] if seconds else scene_durations(rng, scenes)
    clips, named, start = [], [], 0.0
    gift = ""
    for scene, duration in zip(scenes, durations, strict=True):
        wanted = _to_name(scene, gift)
        text = _write(
            rng, scene, kind, facts, wanted, int(CHARACTERS_A_SECOND * duration) - rng.randint(0, 2)
        )
        clips.append(Clip(start, start + duration, scene.label, text))
        named.append(wanted)
        start += duration
        gift = gift or scene.gift
    return SampleVideo(
        Video(video_id, Product(name, info), tuple(clips), type=kind), tuple(scenes), tuple(named)
    )


def scene_plan(rng: random.Random, kind: str, colour: str) -> list[Scene]:
    place = rng.choice(PLACES)
    opening = ["problem", "hero"] if rng.random() < 0.3 else ["hero"]
    middle = ["display", "closeup", "use", "effect", "quality", "lab", "badge", "factory", "stars"]
    weights = [6, 2, 7, 2, 1.5, 1, 1, 1, 1]
    number = rng.choices([3, 4, 5, 6], [1, 3, 4, 3])[0] - len(opening) - 1
    chosen: list[str] = []
    while len(chosen) < max(1, number):
        pick = rng.choices(middle, weights)[0]
        if pick not in chosen:
            chosen.append(pick)
    gift = rng.choice(GIFTS) if rng.random() < 0.75 else ""
    scenes = []
    for name in [*opening, *chosen, "price"]:
        scenes.append(
            Scene(
                kind=name,
                product=kind,
                colour=colour,
                place=place,
                count=rng.choice(list(COUNTS)) if name == "display" else "",
                motion=rng.choice(MOTIONS) if name == "use" and rng.random() < 0.5 else "",
                price=rng.choice(PRICES) if name == "price" else "",
                gift=gift if name == "hero" else "",
                sparkles=name in ("closeup", "use") and rng.random() < 0.25,
            )
        )
    return scenes


def scene_durations(rng: random.Random, scenes: Sequence[Scene]) -> list[int]:
    """Whole seconds a clip: 2 to 6, at most 25 and at least 8 together."""
    longest = min(6, 25 - 3 * (len(scenes) - 1))
    while True:
        seconds = [rng.randint(2, longest) for _ in scenes]
        seconds[-1] = max(seconds[-1], 3)
        if 8 <= sum(seconds) <= 25:
            return seconds


NAMED_IN = {"hero": ("colour",), "display": ("count",), "use": ("motion", "place"), "price": ("price",)}
"""Scene kind -> what its narration names of what is seen: the first of these that is shown."""


def _to_name(scene: Scene, gift: str) -> dict[str, str]:
    """What this clip's narration says of what can be seen, and of a gift seen earlier; each once a video."""
    shown = scene.shown()
    wanted = {name: shown[name] for name in NAMED_IN.get(scene.kind, ()) if name in shown}
    first = dict(list(wanted.items())[:1])
    return first | ({"gift": gift} if gift and scene.kind == "price" else {})


def _write(
    rng: random.Random,
    scene: Scene,
    kind: str,
    facts: dict[str, list[str]],
    wanted: dict[str, str],
    length: int,
) -> str:
    """The narration whose length comes nearest to `length` characters, of sixty tries."""
    words = {slot: values[0] for slot, values in facts.items()}
    words |= {f"{slot}2": values[-1] for slot, values in facts.items()} | {"n": kind} | wanted
    best = ""
    for _ in range(60):
        clauses = [rng.choice(CLAUSES[scene.kind][name]) for name in wanted if name in CLAUSES[scene.kind]]
        clauses = clauses or [rng.choice(CLAUSES[scene.kind]["plain"])]
        more = list(CLAUSES[scene.kind]["more"])
        if scene.sparkles:
            clauses.append(rng.choice(CLAUSES["effect"]["plain"]))
            more += CLAUSES["effect"]["more"]
        rng.shuffle(more)
        texts = [_fill(clause, words) for clause in clauses]
        while more:
            text = _fill(more.pop(), words)
            if text not in texts and sum(map(len, texts)) + len(texts) + len(text) + 1 <= length + 2:
                texts.append(text)
        written = "，".join(texts) + rng.choice("。。！")
        if not best or abs(len(written) - length) < abs(len(best) - length):
            best = written
        if len(best) == length:
            break
    return best


def _fill(clause: str, words: dict[str, str]) -> str:
    known = {name for _, name, _, _ in string.Formatter().parse(clause) if name}
    return clause.format(**{name: words[name] for name in known})
