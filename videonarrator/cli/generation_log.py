"""What `infer` has written so far: a line of JSON for each finished video, on disk before the next one is.

A run of one process has one file, of several processes each its own; an earlier run may have left others.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from videonarrator import journal
from videonarrator.cli.visual_source import Store
from videonarrator.schema import Video
from videonarrator.settings import DecodingSettings
from videonarrator.speech import SpeakingRate


def digest_of(
    settings: DecodingSettings, offered_label: bool, precision: str, checkpoint: Path, rate: SpeakingRate
) -> str:
    """What a finished video must have been made with to be reused."""
    values = asdict(settings)
    del values["batch"]  # changes nothing of what is written
    described = hashlib.sha256((checkpoint / "narrator.json").read_bytes()).hexdigest()
    made_with = json.dumps([values, offered_label, precision, described, asdict(rate)], sort_keys=True)
    return hashlib.sha256(made_with.encode()).hexdigest()


class GenerationLog:
    """The files of a run's folder; `name` is that of all (`generations`), `process` the number of its own.

    process: None where there is only one.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        process: int | None,
        digest: str,
        videos: Mapping[str, Video],
        store: Store,
    ) -> None:
        self.folder, self.name, self.digest = folder, name, digest
        self.videos, self.store = videos, store
        self.file = folder / (f"{name}.jsonl" if process is None else f"{name}.{process}.jsonl")

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write down a finished video: `video` is its id. It is on disk when this returns."""
        made_with = {"digest": self.digest, "source": self._source(entry["video"])}
        journal.append(self.file, made_with | dict(entry))

    def finished(self) -> dict[str, dict[str, Any]]:
        """Videos in all files that were made with the same settings, model, annotation and features."""
        done: dict[str, dict[str, Any]] = {}
        known = set(self.store.ids) & self.videos.keys()
        form = re.compile(re.escape(self.name) + r"(\.\d+)?\.jsonl")
        for file in sorted(path for path in self.folder.glob("*.jsonl") if form.fullmatch(path.name)):
            for entry in journal.entries(file):  # a video whose line was cut off is narrated again
                video_id = entry.get("video")
                if video_id not in known or entry.get("digest") != self.digest:
                    continue
                if entry.get("source") == self._source(video_id):
                    done[video_id] = entry
        return done

    def _source(self, video_id: str) -> str:
        """A checksum of what a video's narration depends on besides the model."""
        facts = json.dumps([asdict(self.videos[video_id]), self.store.checksum(video_id)], ensure_ascii=False)
        return hashlib.sha256(facts.encode()).hexdigest()
