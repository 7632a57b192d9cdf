"""Scores that need encoders: EMScore by CLIP, InfoSim and InfoDiverse by a text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np

from metrics.base import Measured, Score, Signature, make_score, sha256
from metrics.emscore import REFERENCE_CHARACTERS, ClipParts, clip_parts
from metrics.entries import Entry
from metrics.idf import cut_point, product_key
from metrics.knowledge import info_diverse, info_sim, stopped
from metrics.ngram import SHORTEST_UPSTREAM
from metrics.scoring.context import Context, fields_needed
from metrics.scoring.corrections import Rules

EMSCORES = ("emscore", "emscore_ref")
INFOS = ("info_sim", "info_diverse")


def emscore_scores(context: Context, rules: Rules) -> list[Score]:
    """EMScore and EMScore_ref, from one pass over the clips that have narration, reference and frames.

    A clip without a reference has an EMScore but no EMScore_ref.
    """
    resources = context.resources
    entries, skips = context.select(rules, *fields_needed(rules))
    usable, frames = [], []
    for entry in entries:
        reason = _unusable(str(entry.narration), rules.short_texts_left_out)
        features = None if reason else _frames(context, entry)
        if isinstance(features, np.ndarray):
            usable.append(entry)
            frames.append(features)
        else:
            skips.append((entry.key, reason or str(features)))
    both = [i for i, entry in enumerate(usable) if (entry.reference or "").strip()]
    chosen = set(both)
    missing = [(e.key, "reference_missing_or_empty") for i, e in enumerate(usable) if i not in chosen]
    alone = paired = None
    if both:
        paired = _parts(context, rules, [usable[i] for i in both], [frames[i] for i in both], True)
    if usable:
        alone = paired if paired and not missing else _parts(context, rules, usable, frames, False)
    settings = {
        "key": context.settings.key,
        "model": resources.clip_encoder.name,
        "frames": _frame_source(context),
        "segmenter": resources.words.name,
        "idf": "no",
        "P": "sum",
    }
    keys = [entry.key for entry in usable]
    padding = rules.padded_maximum
    return [
        make_score(context.sign(rules, "emscore", **settings), keys, alone and alone.emscore(padding), skips),
        make_score(
            context.sign(rules, "emscore_ref", **settings),
            [keys[i] for i in both],
            paired and paired.emscore_ref(padding),
            skips + missing,
        ),
    ]


def _unusable(narration: str, short_left_out: bool) -> str | None:
    if not narration.strip():
        return "narration_empty"
    if short_left_out and len(narration) < SHORTEST_UPSTREAM:
        return f"narration_under_{SHORTEST_UPSTREAM}_characters"
    return None


def _frames(context: Context, entry: Entry) -> np.ndarray | str:
    """A clip's frame features, or the reason why there are none."""
    features, reasons = context.resources.frame_features
    found = features.get(entry.key)
    if found is None:
        return reasons.get(entry.key, "frame_features_missing")
    if not len(found):
        return "frame_features_empty"
    return found if np.isfinite(found).all() else "frame_features_not_finite"


def _frame_source(context: Context) -> str:
    path = context.settings.frame_features
    return "stills, one a second" if path is None else f"features {sha256(path)[:12]}"


def _parts(
    context: Context,
    rules: Rules,
    entries: Sequence[Entry],
    frames: Sequence[np.ndarray],
    referenced: bool,
) -> ClipParts:
    """Computed once for the same clips: rules that change the padding alone share it."""
    resources = context.resources
    narrations = [str(entry.narration) for entry in entries]
    longest = REFERENCE_CHARACTERS if context.settings.language == "zh" else None
    references = [str(entry.reference)[:longest] for entry in entries] if referenced else None

    def compute() -> ClipParts:
        encoder, words = resources.clip_encoder, resources.words
        words.prepare([*narrations, *(references or [])])
        return clip_parts(
            narrations,
            frames,
            words.tagged,
            encoder.encode_texts,
            references,
            normalize=not rules.frames_as_given,
            longest=None,
        )

    keys = tuple(entry.key for entry in entries)
    return context.once(("emscore", referenced, rules.frames_as_given, keys), compute)


def info_sim_scores(context: Context, rules: Rules) -> list[Score]:
    """InfoSim over the narrations that have text and whose product has knowledge points."""
    entries, skips = context.select(rules, *fields_needed(rules))
    unscored = _never_scored(context, entries) if rules.last_entry_left_out else set()
    usable, points = [], []
    for entry in entries:
        reason = None if str(entry.narration).strip() else "narration_empty"
        if reason is None and entry.key in unscored:
            reason = "at_the_end_of_the_file"
        found = _points(context, entry.video) if reason is None else ""
        if isinstance(found, str):
            skips.append((entry.key, reason or found))
        else:
            usable.append(entry)
            points.append(found)
    texts, measured = [str(entry.narration) for entry in usable], None
    if usable:
        words, encode = context.resources.knowledge_words, context.resources.text_encoder.encode
        words.prepare(stopped(texts, context.settings.language))
        measured = context.once(
            ("info_sim", tuple(entry.key for entry in usable)),
            lambda: info_sim(texts, points, words.tagged, encode, context.settings.language),
        )
    return [make_score(_sign_info(context, rules, "info_sim"), [e.key for e in usable], measured, skips)]


def _never_scored(context: Context, entries: Sequence[Entry]) -> set[str]:
    """Keys of the narrations that the published loop collects but leaves before it scores them.

    It scores a video's narrations when it meets one of another video, or at the last entry of the file,
    before it takes that one in. So the last one is lost; where the file ends with an entry without narration,
    the loop passes it over, and all narrations of the last video are lost.
    """
    narrated = [entry for entry in entries if entry.narration]
    if not narrated:
        return set()
    if narrated[-1] is context.whole[0].entries[-1]:
        return {narrated[-1].key}
    return {entry.key for entry in takewhile(lambda e: e.video == narrated[-1].video, reversed(narrated))}


def info_diverse_scores(context: Context, rules: Rules) -> list[Score]:
    """InfoDiverse over the stories that have narrations, clip times and a product with knowledge points."""
    stories, videos, skips = context.stories(rules, *fields_needed(rules))
    seconds, points, reasons = {}, {}, {}
    for video, story in stories.items():
        found = _points(context, video)
        spans = [context.resources.annotated[video].clips[entry.clip].span for entry in story]
        if isinstance(found, str):
            reasons[video] = found
        elif len(found) < 2:
            reasons[video] = "product_without_points"
        elif None in spans:
            reasons[video] = "clip_without_time"
        else:
            points[video] = found
            seconds[video] = sum(abs(end - start) for start, end in filter(None, spans))
            if not seconds[video]:
                reasons[video] = "clips_without_length"
    skips += reasons.items()
    videos = [video for video in videos if video not in reasons]
    texts = {video: [str(entry.narration) for entry in stories[video]] for video in videos}
    measured: Measured | None = None
    if videos:
        words, encode = context.resources.knowledge_words, context.resources.text_encoder.encode
        words.prepare(text for story in texts.values() for text in story)
        measured = context.once(
            ("info_diverse", tuple(videos), tuple(e.key for video in texts for e in stories[video])),
            lambda: info_diverse(
                [texts[video] for video in videos],
                [points[video] for video in videos],
                [seconds[video] for video in videos],
                words.tagged,
                encode,
                context.settings.language,
            ),
        )
    return [make_score(_sign_info(context, rules, "info_diverse"), videos, measured, skips, "story")]


def _points(context: Context, video: str) -> list[str] | str:
    """The knowledge points of a video's product, or the reason why there are none."""
    product = context.resources.annotated[video].product
    if product is None:
        return "product_without_name"
    points = context.resources.points.get(product_key(product.name))
    if points is None:
        return "product_not_in_idf"
    language = context.settings.language
    long = any(len(cut_point(point, language)) > 1 for point in points)
    return points if long else "product_without_points"


def _sign_info(context: Context, rules: Rules, name: str) -> Signature:
    idf = context.settings.idf
    return context.sign(
        rules,
        name,
        key=context.settings.key,
        model=context.resources.text_encoder.name,
        points=f"idf file {sha256(idf)[:12]}" if idf is not None else "annotations",
        segmenter=context.resources.knowledge_words.name,
    )
