"""The one prompt builder: a story and a template become segments of text, target and visual slot.

Training and generation both take their segments from here, so that the text of a training sample up to its
target is the generation prompt of that clip. The sample lists' `inputs` strings are written and read here
too. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from videonarrator.schema import NarratorError, Product, Video

VISUAL_PATCH, VISUAL_START, VISUAL_END = "<vid_patch>", "<vid_start>", "<vid_end>"
ADDED_TOKENS = (VISUAL_PATCH, VISUAL_START, VISUAL_END)
"""Tokens added to a backbone's vocabulary, in this order (after the pad token, where one is missing)."""

EMPTY_SLOT = VISUAL_START + VISUAL_END


@dataclass(frozen=True)
class Template:
    """Wording around the facts. Placeholders: name, info; i, n; low, high. `label` "": no storyline.

    `product` "": the prompt tells of no product. `header` without {n}: it does not tell how many clips the
    video has.
    """

    language: str
    instruction: str
    product: str
    header: str
    scene: str
    scene_end: str
    length: str
    label: str
    narration: str

    @property
    def blank(self) -> str:
        """What stands between `narration` and the text: in English a blank, which tokens take as one with the
        first word, so that it is written with the text and is no part of the prompt.
        """
        return " " if self.language == "en" else ""


@dataclass(frozen=True)
class Segment:
    """A piece of a prompt, tokenised by itself. `visual`: the slot of the clip's visual tokens (no text)."""

    text: str
    target: bool = False
    visual: bool = False


@dataclass(frozen=True)
class StoryClip:
    """One clip as a prompt tells it: number from 1, label, narration, and the length range asked for."""

    number: int
    label: str
    text: str
    low: int
    high: int


@dataclass(frozen=True)
class Story:
    """A product and clips as a prompt tells them. `total` counts all clips, left-out ones included.

    Read back from a text whose template tells no total, it is the largest number of a clip told of.
    """

    product: Product
    total: int
    clips: tuple[StoryClip, ...]


def opening(product: Product, template: Template) -> Segment:
    """Instruction and product facts: what every prompt of a video begins with."""
    return Segment(template.instruction + _product_text(product, template))


def clip_segments(
    clip: StoryClip, total: int, template: Template, *, visual: bool = False, target: bool = False
) -> list[Segment]:
    """One clip's part of the prompt, label and narration included; the slot only where `visual`.

    Cuts stand where tokens never merge across: before the clip, around the slot, after `剧本类型：`, after
    the label's line break and after `{i}.`; in English before the blank in front of the narration.
    """
    answer = [Segment(clip.label + "\n", target=target)] if template.label else []
    answer += [
        Segment(template.narration.format(i=clip.number), target=target),
        Segment(template.blank + clip.text + "\n", target=target),
    ]
    return [*question_segments(clip, total, template, visual=visual), *answer]


def question_segments(
    clip: StoryClip, total: int, template: Template, *, visual: bool = False
) -> list[Segment]:
    """One clip's part of the prompt up to where its label (without storyline: its narration) is written."""
    header = template.header.format(i=clip.number, n=total)
    rest = template.length.format(low=clip.low, high=clip.high) + template.label
    if not visual:
        return [Segment(header + rest)]
    return [Segment(header + template.scene), Segment("", visual=True), Segment(template.scene_end + rest)]


def sample_segments(
    story: Story, number: int, template: Template, *, later: bool = True, visual: bool = True
) -> list[Segment]:
    """A training sample: the whole story, with slot and target at clip `number` (from 1).

    later: keep the clips after the target, as the published lists do. A causal model's loss does not depend
    on them. visual: False leaves the slot out.
    """
    if all(clip.number != number for clip in story.clips):
        raise NarratorError(f"clip {number} is not in the story: it has {[c.number for c in story.clips]}")
    segments = [opening(story.product, template)]
    for clip in story.clips:
        if later or clip.number <= number:
            here = clip.number == number
            segments += clip_segments(clip, story.total, template, visual=here and visual, target=here)
    return segments


def prompt_segments(
    product: Product,
    history: Sequence[StoryClip],
    clip: StoryClip,
    total: int,
    template: Template,
    *,
    all_slots: bool = False,
) -> list[Segment]:
    """The generation prompt of `clip` (its label and text are not looked at), after those of `history`.

    all_slots: earlier clips keep their slots, as in samples of whole videos.
    """
    segments = [opening(product, template)]
    for earlier in history:
        segments += clip_segments(earlier, total, template, visual=all_slots)
    return segments + question_segments(clip, total, template, visual=True)


def render(segments: Sequence[Segment], visual_tokens: int = 0) -> str:
    """The segments as one text, the slot filled with that many patch tokens."""
    slot = VISUAL_START + VISUAL_PATCH * visual_tokens + VISUAL_END
    return "".join(slot if segment.visual else segment.text for segment in segments)


def inputs_text(story: Story, template: Template, visual_clip: int | None = None) -> str:
    """The `inputs` string of a sample list: no instruction, empty slots, no closing line break.

    visual_clip: number of the only clip whose slot is kept (per-clip samples); None keeps every clip's.
    """
    text = _product_text(story.product, template)
    for clip in story.clips:
        visual = visual_clip in (None, clip.number)
        text += render(clip_segments(clip, story.total, template, visual=visual))
    return text.removesuffix("\n")


def parse_inputs(inputs: str, template: Template, *, slotless: bool = False) -> Story:
    """The story of an `inputs` string, the inverse of `inputs_text`; slotless: of one without any slot.

    What the template does not tell is not known: a product without name, and as total the largest number of
    a clip. Raises `NarratorError` where the text does not have the template's form or would not be given
    back unchanged.
    """
    match = re.match(_pattern(template.product, name=r"[^\n]*", info=r"[\s\S]*?"), inputs)
    if match is None:
        raise NarratorError(f"sample text does not begin like {template.product!r}: {inputs[:40]!r}")
    label = re.escape(template.label) + r"(?P<label>[^\n]*)\n" if template.label else ""
    clip = re.compile(
        _pattern(template.header, i=r"\d+", n=r"\d+")
        + f"(?P<slot>{re.escape(template.scene + EMPTY_SLOT + template.scene_end)})?"
        + _pattern(template.length, low=r"-?\d+", high=r"-?\d+")
        + label
        + re.escape(template.narration + template.blank).replace(r"\{i\}", r"(?P=i)")
        + r"(?P<text>[^\n]*)(?:\n|$)"
    )
    clips, slots, total, at = [], [], 0, match.end()
    while at < len(inputs):
        found = clip.match(inputs, at)
        if found is None:
            raise NarratorError(
                f"sample text breaks the template at character {at}: {inputs[at : at + 60]!r}"
            )
        parts = found.groupdict()
        clips.append(
            StoryClip(
                int(parts["i"]),
                parts.get("label") or "",
                parts["text"],
                int(parts["low"]),
                int(parts["high"]),
            )
        )
        if parts["slot"]:
            slots.append(clips[-1].number)
        total = int(parts["n"]) if "n" in parts else max(total, clips[-1].number)
        at = found.end()
    if not clips:
        raise NarratorError(f"sample text tells of no clip: {inputs[:40]!r}")
    facts = match.groupdict()
    story = Story(Product(facts.get("name", ""), facts.get("info", "")), total, tuple(clips))
    if slotless != (not slots) or len(slots) not in (0, 1, len(clips)):
        raise NarratorError(
            f"{template.scene + EMPTY_SLOT!r} stands in clips {slots} of {[c.number for c in clips]}: "
            "expected it in every clip or, in a per-clip sample, in one"
        )
    visual_clip = slots[0] if len(slots) == 1 else 0 if slotless else None
    if inputs_text(story, template, visual_clip) != inputs:
        raise NarratorError(f"sample text would not be given back unchanged: {inputs[:40]!r}")
    return story


def story_of(video: Video, kept: Sequence[int], ranges: Sequence[tuple[int, int]]) -> Story:
    """The story an annotated video tells.

    kept: indices of the clips that have text and frames; ranges: the length range of each of these.
    A doubled full stop in a narration becomes one (the published lists did so in all but the last clip).
    """
    clips = tuple(
        StoryClip(index + 1, video.clips[index].label, single_stops(video.clips[index].text or ""), low, high)
        for index, (low, high) in zip(kept, ranges, strict=True)
    )
    return Story(video.product, len(video.clips), clips)


def single_stops(text: str) -> str:
    """`text` with a doubled full stop made single (one pass, as the published data processing does)."""
    return text.replace("。。", "。")


def published_wording(text: str) -> str:
    """`text` as the published sample lists have it: a phrase close to the slot's name is shortened to it."""
    return text.replace("场景描述", "场景")


def with_answer(clip: StoryClip, label: str, text: str) -> StoryClip:
    """`clip` once its label and narration are known."""
    return replace(clip, label=label, text=text)


def _product_text(product: Product, template: Template) -> str:
    return template.product.format(name=product.name, info=product.info)


def _pattern(wording: str, **groups: str) -> str:
    pattern = re.escape(wording)
    for name, expression in groups.items():
        pattern = pattern.replace(rf"\{{{name}\}}", f"(?P<{name}>{expression})")
    return pattern
