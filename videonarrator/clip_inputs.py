"""The step training and generation share: one clip's segments, visual tokens and position, and their ids.

Both take their segments from `videonarrator.prompt` and their ids from `encode`, so that a training sample up
to its target is the generation prompt of that clip, token for token. No torch here: the visual tokens pass
through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

from videonarrator.prompt import (
    EMPTY_SLOT,
    VISUAL_END,
    VISUAL_PATCH,
    VISUAL_START,
    Segment,
    Story,
    StoryClip,
    Template,
    clip_segments,
    inputs_text,
    opening,
    parse_inputs,
    prompt_segments,
    sample_segments,
)
from videonarrator.schema import NarratorError, Product
from videonarrator.timeline import POSITIONS

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""Label of an id that the loss does not look at."""


@dataclass(frozen=True)
class TokenRules:
    """How a checkpoint's prompts become ids.

    bos: begin with the tokenizer's BOS. strip_around_added_tokens: white space next to a slot is dropped, as
    transformers 4.31's slow tokenizers did in the published set-up. published: the rest of that set-up: text
    between slots is tokenised in one go, and without BOS the labels slip (see `slipped_labels`).
    """

    bos: bool = True
    strip_around_added_tokens: bool = False
    published: bool = False


DEFAULT_RULES = TokenRules()


@dataclass(frozen=True)
class ClipInputs:
    """What the model is given: text around slots, and what is put into these.

    visual: the visual tokens [tokens, dim] of all slots; counts: how many of them each slot takes; positions:
    each slot's position 0..99 (-1: none).
    """

    segments: tuple[Segment, ...]
    visual: Tensor
    counts: tuple[int, ...]
    positions: tuple[int, ...]


def training_inputs(
    sample: Mapping[str, Any],
    visual: Tensor,
    template: Template,
    *,
    later: bool = True,
    published: bool = False,
) -> ClipInputs:
    """The inputs of an entry of a per-clip sample list (train_shots.json): slot and target at its `shot_loc`.

    sample: `inputs`, `id`, `shot_loc` (clip number from 1), `shot_pos` (0..99). later: keep the clips after
    the target, as the published lists do. published: the list is one of the published system's, in which
    shot_loc counts the kept clips, and a sample may have no slot at all. Raises `NarratorError` naming the
    sample where it is none of that form.
    """
    check_sample(sample)
    number, position = sample["shot_loc"], sample["shot_pos"]
    name = f"sample of video {sample['id']}, clip {number}"
    if not isinstance(position, int) or not 0 <= position < POSITIONS:
        raise NarratorError(f"{name}: shot_pos is {position!r}, expected 0 to {POSITIONS - 1}")
    seen = not published or EMPTY_SLOT in sample["inputs"]
    try:
        story = parse_inputs(sample["inputs"], template, slotless=not seen)
        if published:
            if not 1 <= number <= len(story.clips):
                raise NarratorError(f"shot_loc is {number}, but it has {len(story.clips)} clips")
            number = story.clips[number - 1].number
        segments = sample_segments(story, number, template, later=later, visual=seen)
        _check_told(story, [number])
    except NarratorError as error:
        raise NarratorError(f"{name}: {error}") from None
    if seen and inputs_text(story, template, number) != sample["inputs"]:
        raise NarratorError(
            f"{name}: the slot {VISUAL_START}{VISUAL_END} of `inputs` is not (only) at this clip"
        )
    if not seen:
        return ClipInputs(tuple(segments), visual[:0], (), ())
    return ClipInputs(tuple(segments), visual, (len(visual),), (position,))


def whole_video_inputs(sample: Mapping[str, Any], visual: Tensor, template: Template) -> ClipInputs:
    """The inputs of an entry of train.json or training_data.json: every clip with slot and target.

    visual: the visual tokens of all its clips, the same number each (`visual_memory.fit_tokens`). This is the
    published system's first variant; its lists know no positions, so none are added.
    """
    try:
        story = parse_inputs(sample["inputs"], template)
        _check_told(story, [clip.number for clip in story.clips])
    except NarratorError as error:
        raise NarratorError(f"sample of video {sample['id']}: {error}") from None
    if inputs_text(story, template) != sample["inputs"]:
        raise NarratorError(
            f"sample of video {sample['id']}: not every clip has its slot {EMPTY_SLOT}; data.whole_videos "
            "needs the list train.json or training_data.json, not train_shots.json"
        )
    segments = [opening(story.product, template)]
    for clip in story.clips:
        segments += clip_segments(clip, story.total, template, visual=True, target=True)
    number = len(story.clips)
    return ClipInputs(tuple(segments), visual, (len(visual) // number,) * number, (-1,) * number)


def _check_told(story: Story, numbers: Sequence[int]) -> None:
    """Raise `NarratorError` where a clip that is to be learnt has no narration."""
    for clip in story.clips:
        if clip.number in numbers and not clip.text.strip():
            raise NarratorError(f"clip {clip.number} has no narration: there is nothing to learn from it")


def check_sample(sample: Any, *, whole_video: bool = False) -> None:
    """Raise `NarratorError` where `sample` is no entry of a per-clip (or whole-video) sample list."""
    advice = (
        "Per-clip samples are needed: the list train_shots.json or test_shots.json that "
        "`videonarrator prepare` writes, not train.json (that is for data.whole_videos=true)"
    )
    wanted = ("inputs", "id", "shot_loc", "shot_pos")
    if whole_video:
        advice = "Whole videos are needed (data.whole_videos): the list train.json or training_data.json"
        wanted = ("inputs", "id", "frames")
    if not isinstance(sample, Mapping):
        raise NarratorError(f"a sample is {sample!r:.60}. {advice}")
    missing = [key for key in wanted if key not in sample]
    if missing:
        raise NarratorError(
            f"sample of video {sample.get('id', '(no id)')}: no {', '.join(missing)}; "
            f"it has {', '.join(sample)}. {advice}"
        )
    if not whole_video and type(sample["shot_loc"]) is not int:
        raise NarratorError(
            f"sample of video {sample['id']}: shot_loc is {sample['shot_loc']!r}, expected the clip's number"
        )


def check_visual(visual: Tensor, width: int, name: str) -> None:
    """Raise `NarratorError` naming `name` where visual tokens are not [tokens >= 1, width], or not finite."""
    if visual.ndim != 2 or visual.shape[1] != width or not len(visual):
        raise NarratorError(
            f"{name}: its visual tokens have shape {list(visual.shape)}, expected [tokens, {width}]: they "
            "were made by another encoder than the model's, run `videonarrator extract` and `prepare` anew"
        )
    if not visual.isfinite().all():
        raise NarratorError(
            f"{name}: its visual tokens hold values that are no numbers (NaN or infinite): extract the "
            "features of this video anew, in float32 or bfloat16"
        )


def generation_inputs(
    product: Product,
    history: Sequence[StoryClip],
    clip: StoryClip,
    total: int,
    visual: Tensor,
    position: int,
    template: Template,
    *,
    all_slots: bool = False,
) -> ClipInputs:
    """The inputs from which `clip` is written, after the clips of `history`; `total` counts all clips.

    Of `clip` only number and length range are looked at. all_slots: earlier clips keep their slots, `visual`
    holds the same number of visual tokens for each of them and the clip, and there are no positions.
    """
    segments = prompt_segments(product, history, clip, total, template, all_slots=all_slots)
    number = len(history) + 1 if all_slots else 1
    places = (-1,) * number if all_slots else (position,)
    return ClipInputs(tuple(segments), visual, (len(visual) // number,) * number, places)


def encode(
    segments: Sequence[Segment],
    tokenizer: Any,
    counts: int | Sequence[int],
    rules: TokenRules = DEFAULT_RULES,
) -> tuple[list[int], list[int]]:
    """Ids and labels of `segments`: labels repeat the ids of target segments and are -100 elsewhere.

    Each segment is tokenised by itself, its closing line break, too, so that no tokenizer joins it with what
    stands before (published: all text between two slots at once). A slot becomes start, patches, end. What
    looks like an added or special token inside a text stays text.
    tokenizer: a transformers tokenizer that has `prompt.ADDED_TOKENS` as special tokens. counts: visual
    tokens of each slot in order, or of every slot. Raises `ValueError` where the tokenizer lacks what is
    asked of it.
    """
    patch, start, end = (_added_id(tokenizer, token) for token in (VISUAL_PATCH, VISUAL_START, VISUAL_END))
    slots = sum(segment.visual for segment in segments)
    left = [counts] * slots if isinstance(counts, int) else list(counts)
    if len(left) != slots or any(count < 1 for count in left):
        raise ValueError(f"{slots} slots need visual tokens, got {counts}")
    if rules.strip_around_added_tokens:
        segments = _stripped(segments)
    ids: list[int] = []
    if rules.bos:
        if tokenizer.bos_token_id is None:
            raise ValueError("the tokenizer has no BOS token: set one, or bos=False for a checkpoint without")
        ids.append(tokenizer.bos_token_id)
    labels = [IGNORED] * len(ids)
    for run in _runs(segments):
        if run[0].visual:
            new = [start, *[patch] * left.pop(0), end]
            new_labels = [IGNORED] * len(new)
        else:
            new, new_labels = (_encode_at_once if rules.published else _encode_each)(run, tokenizer)
            if not {patch, start, end}.isdisjoint(new):
                raise ValueError(
                    f"the tokenizer takes {VISUAL_PATCH} inside a text for the token: "
                    "add prompt.ADDED_TOKENS with special_tokens=True"
                )
        ids += new
        labels += new_labels
    return ids, labels


def slipped_labels(ids: Sequence[int], labels: Sequence[int], rank: int) -> list[int]:
    """The labels of a published per-clip sample whose ids have no BOS.

    The published label arithmetic takes a BOS for granted in every piece it counts: for the clip of that
    rank (from 1 among the kept clips) they begin `rank` ids early and end one more than that early.
    """
    at = [place for place, label in enumerate(labels) if label != IGNORED]
    first, last = at[0] - rank, at[-1] - rank - 1
    return [token if first <= place <= last else IGNORED for place, token in enumerate(ids)]


def encode_text(text: str, tokenizer: Any) -> list[int]:
    """The ids of plain text in the midst of a prompt: no BOS, and what looks like a special token stays text.

    Of a tokenizer that puts a blank before every text (LLaMA 2's kind) the blank is left out: the text is
    tokenised behind a line break.
    """
    newline = _plain("\n", tokenizer)
    if len(newline) == 1:
        return _plain(text, tokenizer)
    ids = _plain("\n" + text, tokenizer)
    if ids[: len(newline)] != newline:
        raise ValueError(f"the tokenizer joins a line break with the text behind it: {text!r:.40}")
    return ids[len(newline) :]


def cuts_hold(segments: Sequence[Segment], tokenizer: Any) -> bool:
    """Whether tokenising segment by segment gives the ids of the whole text (between slots).

    It does where no token of the vocabulary reaches across a cut and none is put in front of a text.
    """
    runs: list[list[str]] = [[]]
    for segment in segments:
        if segment.visual:
            runs.append([])
        else:
            runs[-1].append(segment.text)
    return all(
        encode_text("".join(run), tokenizer)
        == [token for text in run for token in encode_text(text, tokenizer)]
        for run in runs
    )


def _plain(text: str, tokenizer: Any) -> list[int]:
    return list(_kept(text, tokenizer, len(tokenizer)))


@lru_cache(maxsize=1 << 16)
def _kept(text: str, tokenizer: Any, size: int) -> tuple[int, ...]:
    """Ids of a text, kept: the samples of a video's clips repeat its texts. size: the vocabulary may grow."""
    return tuple(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))


def _runs(segments: Sequence[Segment]) -> list[list[Segment]]:
    """The segments in groups: each slot by itself, and the text between two slots together."""
    return [list(run) for _, run in groupby(segments, key=lambda one: id(one) if one.visual else 0)]


def _encode_each(run: Sequence[Segment], tokenizer: Any) -> tuple[list[int], list[int]]:
    ids: list[int] = []
    labels: list[int] = []
    for segment in run:
        body = segment.text.removesuffix("\n") or segment.text
        new = encode_text(body, tokenizer)
        if body != segment.text:
            new = new + encode_text("\n", tokenizer)
        ids += new
        labels += new if segment.target else [IGNORED] * len(new)
    return ids, labels


def _encode_at_once(run: Sequence[Segment], tokenizer: Any) -> tuple[list[int], list[int]]:
    """The whole text's ids; labels lie where the text up to a target's ends has its number of ids."""
    ids = encode_text("".join(segment.text for segment in run), tokenizer)
    labels = [IGNORED] * len(ids)
    text = ""
    for segment in run:
        first = len(encode_text(text, tokenizer)) if segment.target else 0
        text += segment.text
        if segment.target:
            last = len(encode_text(text, tokenizer))
            labels[first:last] = ids[first:last]
    return ids, labels


def _stripped(segments: Sequence[Segment]) -> list[Segment]:
    """The segments without the white space that stands directly before or after a slot."""
    texts = [segment.text for segment in segments]
    for index, segment in enumerate(segments):
        if segment.visual:
            if index:
                texts[index - 1] = texts[index - 1].rstrip()
            if index + 1 < len(segments):
                texts[index + 1] = texts[index + 1].lstrip()
    return [
        Segment(text, segment.target, segment.visual) for text, segment in zip(texts, segments, strict=True)
    ]


def _added_id(tokenizer: Any, token: str) -> int:
    index = tokenizer.convert_tokens_to_ids(token)
    if index is None or index == tokenizer.unk_token_id:
        raise ValueError(f"the tokenizer does not know {token}: add prompt.ADDED_TOKENS to it")
    return index
