"""The step training and generation share: one clip's segments, visual tokens and position, and their ids.

Both take their segments from `videonarrator.prompt` and their ids from `encode`, so that a training sample up
to its target is the generation prompt of that clip, token for token. No torch here: the visual tokens pass
through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from videonarrator.prompt import (
    VISUAL_END,
    VISUAL_PATCH,
    VISUAL_START,
    Segment,
    StoryClip,
    Template,
    inputs_text,
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
class ClipInputs:
    """What the model is given for a clip: text around a slot, visual tokens [tokens, dim], position 0..99."""

    segments: tuple[Segment, ...]
    visual: Tensor
    position: int


def training_inputs(
    sample: Mapping[str, Any], visual: Tensor, template: Template, *, later: bool = True
) -> ClipInputs:
    """The inputs of an entry of a per-clip sample list (train_shots.json): slot and target at its `shot_loc`.

    sample: `inputs`, `id`, `shot_loc` (clip number from 1), `shot_pos` (0..99). later: keep the clips after
    the target, as the published lists do. Raises `NarratorError` naming the sample where it is none of that
    form.
    """
    check_sample(sample)
    number, position = sample["shot_loc"], sample["shot_pos"]
    name = f"sample of video {sample['id']}, clip {number}"
    if not isinstance(position, int) or not 0 <= position < POSITIONS:
        raise NarratorError(f"{name}: shot_pos is {position!r}, expected 0 to {POSITIONS - 1}")
    try:
        story = parse_inputs(sample["inputs"], template)
        segments = sample_segments(story, number, template, later=later)
    except NarratorError as error:
        raise NarratorError(f"{name}: {error}") from None
    if inputs_text(story, template, number) != sample["inputs"]:
        raise NarratorError(
            f"{name}: the slot {VISUAL_START}{VISUAL_END} of `inputs` is not (only) at this clip"
        )
    return ClipInputs(tuple(segments), visual, position)


def check_sample(sample: Any) -> None:
    """Raise `NarratorError` where `sample` is no entry of a per-clip sample list."""
    advice = (
        "Per-clip samples are needed: the list train_shots.json or test_shots.json that "
        "`videonarrator prepare` writes, not train.json"
    )
    if not isinstance(sample, Mapping):
        raise NarratorError(f"a sample is {sample!r:.60}. {advice}")
    missing = [key for key in ("inputs", "id", "shot_loc", "shot_pos") if key not in sample]
    if missing:
        raise NarratorError(
            f"sample of video {sample.get('id', '(no id)')}: no {', '.join(missing)}; "
            f"it has {', '.join(sample)}. {advice}"
        )
    if type(sample["shot_loc"]) is not int:
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
) -> ClipInputs:
    """The inputs from which `clip` is written, after the clips of `history`; `total` counts all clips.

    Of `clip` only number and length range are looked at.
    """
    return ClipInputs(tuple(prompt_segments(product, history, clip, total, template)), visual, position)


def encode(
    segments: Sequence[Segment],
    tokenizer: Any,
    visual_tokens: int,
    *,
    strip_around_added_tokens: bool = False,
    bos: bool = True,
) -> tuple[list[int], list[int]]:
    """Ids and labels of `segments`: labels repeat the ids of target segments and are -100 elsewhere.

    Each segment is tokenised by itself. A slot becomes start, `visual_tokens` patches, end. What looks like
    an added or special token inside a text stays text. tokenizer: a transformers tokenizer that has
    `prompt.ADDED_TOKENS` as special tokens. strip_around_added_tokens: white space next to the slot is
    dropped, as transformers 4.31's slow tokenizers did in the published set-up. bos: begin with the
    tokenizer's BOS id. Raises `ValueError` where the tokenizer lacks what is asked of it.
    """
    patch, start, end = (_added_id(tokenizer, token) for token in (VISUAL_PATCH, VISUAL_START, VISUAL_END))
    if strip_around_added_tokens:
        segments = _stripped(segments)
    ids: list[int] = []
    if bos:
        if tokenizer.bos_token_id is None:
            raise ValueError("the tokenizer has no BOS token: set one, or bos=False for a checkpoint without")
        ids.append(tokenizer.bos_token_id)
    labels = [IGNORED] * len(ids)
    for segment in segments:
        if segment.visual:
            if visual_tokens < 1:
                raise ValueError(f"a clip with a slot needs visual tokens, got {visual_tokens}")
            new = [start, *[patch] * visual_tokens, end]
        else:
            new = encode_text(segment.text, tokenizer)
            if not {patch, start, end}.isdisjoint(new):
                raise ValueError(
                    f"the tokenizer takes {VISUAL_PATCH} inside a text for the token: "
                    "add prompt.ADDED_TOKENS with special_tokens=True"
                )
        ids += new
        labels += new if segment.target else [IGNORED] * len(new)
    return ids, labels


def encode_text(text: str, tokenizer: Any) -> list[int]:
    """The ids of plain text: no BOS, and whatever looks like a special token in it stays text."""
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


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
