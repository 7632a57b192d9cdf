"""What the metrics of one evaluation share: the entries, and the segmenters, encoders and features."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metrics.annotated import AnnotatedVideo, Ids
from metrics.base import Signature, Skips
from metrics.entries import Entry, Output
from metrics.idf import product_points, read_idf
from metrics.scoring.corrections import Rules
from metrics.words.segment import Segmenter, Tokenizer, load_segmenter, load_tokenizer
from videonarrator.schema import GENERATED_KEY

if TYPE_CHECKING:
    from metrics.encoders.clip import ClipEncoder
    from metrics.encoders.text import TextEncoder

TOKENIZER = {"zh": "chars", "en": "words"}
"""The tokenizer of a language's n-gram metrics where none is named."""


@dataclass(frozen=True)
class Settings:
    """Everything that a caller of `evaluate` can set but the inputs that differ from output to output."""

    language: str = "zh"
    key: str = GENERATED_KEY
    upstream: bool = False
    tokenizer: str | None = None
    segmenter: str = "jieba"
    user_dict: Path | None = None
    clip_model: str | None = None
    clip_backend: str = "transformers"
    frame_features: Path | None = None
    frames: Path | None = None
    text_model: str | None = None
    idf: Path | None = None
    device: str = "cpu"


class Resources:
    """What costs time to load and serves several metrics and outputs; each is loaded when first asked for.

    annotated: the videos that frame features and knowledge points are looked up for. cache: where features
    computed from stills are kept. say: called with lines about the progress.
    """

    def __init__(
        self,
        settings: Settings,
        annotated: Mapping[str, AnnotatedVideo],
        cache: Path | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.settings = settings
        self.annotated = annotated
        self.cache = cache
        self.say = say

    @cached_property
    def words(self) -> Segmenter:
        """Words of EMScore: no user dictionary."""
        return load_segmenter(self.settings.language, self.settings.segmenter)

    @cached_property
    def knowledge_words(self) -> Segmenter:
        """Words of InfoSim, InfoDiverse, repetition and the tokenizer "words".

        With the user dictionary of knowledge points, where one is given.
        """
        if self.settings.user_dict is None:
            return self.words
        return load_segmenter(self.settings.language, self.settings.segmenter, self.settings.user_dict)

    @property
    def tokenizer_choice(self) -> str:
        return self.settings.tokenizer or TOKENIZER[self.settings.language]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Tokens of BLEU, METEOR and CIDEr."""
        return load_tokenizer(
            self.tokenizer_choice, self.knowledge_words if self.tokenizer_choice == "words" else None
        )

    @cached_property
    def clip_encoder(self) -> ClipEncoder:
        from metrics.encoders.clip import load_clip_encoder  # here, not above: it brings in torch

        settings = self.settings
        assert settings.clip_model is not None, "asked for with a model only"
        return load_clip_encoder(settings.clip_model, settings.clip_backend, settings.device)

    @cached_property
    def text_encoder(self) -> TextEncoder:
        from metrics.encoders.text import load_text_encoder

        assert self.settings.text_model is not None, "asked for with a model only"
        return load_text_encoder(self.settings.text_model, self.settings.device)

    @cached_property
    def frame_features(self) -> tuple[Mapping[str, np.ndarray], dict[str, str]]:
        """Key -> features [frames, dim], and key -> why a clip's stills gave none."""
        from metrics.encoders.frames import frame_features_from_folder, read_frame_features

        settings = self.settings
        if settings.frame_features is not None:
            return read_frame_features(settings.frame_features), {}
        assert settings.frames is not None, "asked for with features or stills only"
        clips = {
            f"{name}_{i}": (name, *clip.span)
            for name, video in self.annotated.items()
            for i, clip in enumerate(video.clips)
            if clip.span is not None
        }
        return frame_features_from_folder(settings.frames, clips, self.clip_encoder, self.cache, say=self.say)

    @cached_property
    def points(self) -> dict[str, list[str]]:
        """Product -> its knowledge points, the product name first: of the idf file, or of the annotations."""
        if self.settings.idf is not None:
            return read_idf(self.settings.idf)
        products = [video.product for video in self.annotated.values() if video.product is not None]
        return product_points(products)


def fields_needed(rules: Rules) -> tuple[str, ...]:
    """What an entry needs for a metric that compares narrations with anything but their references."""
    return ("narration", "reference") if rules.references_needed else ("narration",)


@dataclass(frozen=True)
class Context:
    """One output with what scoring it needs.

    whole, listed: the output's entries, all and those of the videos in `ids` (the same without --ids), each
    with the clips that the output lacks. clips: the part of a signature that says which clips could count.
    """

    resources: Resources
    whole: tuple[Output, Skips]
    listed: tuple[Output, Skips]
    ids: Ids | None = None
    clips: str = "all"
    memory: dict[Hashable, Any] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        return self.resources.settings

    def select(self, rules: Rules, *fields: str) -> tuple[list[Entry], Skips]:
        """Entries that have all `fields`, for a metric over clips, and why the others are left out."""
        output, absent = self.whole if rules.ids_for_stories_only else self.listed
        entries, skips = output.select(*fields)
        return entries, skips + absent

    def stories(self, rules: Rules, *fields: str) -> tuple[dict[str, list[Entry]], list[str], Skips]:
        """Video -> its entries that have all `fields`, by clip number; the videos to score, in order; skips.

        Under `ids_for_stories_only` a video stands as often as the published code reads its id.
        """
        output, absent = self.listed
        entries, skips = output.select(*fields)
        stories: dict[str, list[Entry]] = {}
        for entry in sorted(entries, key=lambda e: e.clip):
            stories.setdefault(entry.video, []).append(entry)
        order = list(dict.fromkeys(entry.video for entry in entries))  # file order
        if rules.ids_for_stories_only and self.ids is not None:
            order = [video for video in self.ids.as_published if video in stories]
        return stories, order, skips + absent

    def sign(self, rules: Rules, name: str, **settings: str) -> Signature:
        """A metric's signature: its settings, the published rules that hold, and which clips count."""
        held = ", ".join(rules.holding(name)) or "none"
        return Signature(name, {**settings, "published rules": held, "clips": self.clips})

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """What `compute` gave when first called for `key`: rules often leave a metric's input alone."""
        if key not in self.memory:
            self.memory[key] = compute()
        return self.memory[key]
