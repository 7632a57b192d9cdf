"""Frame features and clip tensors on disk: one safetensors a video, and a manifest that says what made them.

A file counts once the manifest names it, and the manifest is written after the file, both whole or not at
all: a killed run loses at most the video in work, and the next run goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from data_process.files import read_json, replacing, write_text
from videonarrator.schema import NarratorError
from videonarrator.timeline import frame_numbers

MANIFEST = "manifest.json"

FEATURE_SETTINGS = ("encoder", "encoder_sha256", "fps", "preprocessing", "dtype", "width")
"""What a feature store's manifest must say: other values of these give other features.

Where the store also holds CLIP features, `clip` says of what model: CLIP_SETTINGS.
"""

CLIP_SETTINGS = ("model", "sha256", "dtype", "width")
"""What `clip` of a feature store's manifest must say."""

log = logging.getLogger(__name__)


class _VideoStore:
    """One safetensors a video in `folder`, and the manifest: `settings`, and a record of each video."""

    what = "files"
    made_by = ""

    def __init__(self, folder: Path, settings: dict[str, Any], records: dict[str, dict[str, Any]]) -> None:
        self.folder = folder
        self.settings = settings
        self._records = records
        self._whole: set[str] = set()  # videos whose file was compared with its checksum

    @classmethod
    def create(cls, folder: str | Path, settings: Mapping[str, Any]) -> Self:
        """The store in `folder`, made where there is none. settings: JSON values.

        Raises `NarratorError` naming the settings in which a store that is there differs.
        """
        folder, new = Path(folder), json.loads(json.dumps(dict(settings)))
        if (folder / MANIFEST).exists():
            store = cls.open(folder)
            differing = _differences(store.settings, new)
            if differing:
                raise NarratorError(
                    f"{folder} holds {cls.what} made with other settings: {'; '.join(differing)}. "
                    "Name another folder, or delete this one to make them anew"
                )
            return store
        store = cls(folder, new, {})
        store._save_manifest()
        return store

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """The store in `folder`. Raises `NarratorError` where there is none."""
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            there = "the folder has no manifest.json" if folder.is_dir() else "there is no such folder"
            raise NarratorError(f"no {cls.what} in {folder}: {there}. {cls.made_by}")
        manifest = read_json(folder / MANIFEST)
        fields = manifest.keys() if isinstance(manifest, dict) else ()
        if not {"kind", "settings", "videos"} <= set(fields) or manifest["kind"] != cls.what:
            raise NarratorError(f"{folder / MANIFEST} is not a manifest of {cls.what}. {cls.made_by}")
        return cls(folder, manifest["settings"], manifest["videos"])

    @property
    def ids(self) -> list[str]:
        """The videos that are stored."""
        return list(self._records)

    def has(self, video_id: str) -> bool:
        """Whether the video is stored and its file is whole (its checksum is compared, once)."""
        if video_id not in self._records:
            return False
        if video_id not in self._whole:
            file = self.file(video_id)
            if not file.is_file() or _sha256(file) != self._records[video_id]["sha256"]:
                return False
            self._whole.add(video_id)
        return True

    def file(self, video_id: str) -> Path:
        return self.folder / f"{video_id}.safetensors"

    def checksum(self, video_id: str) -> str:
        """SHA-256 of the video's file, as the manifest has it."""
        self._check_stored(video_id)
        return self._records[video_id]["sha256"]

    def _write(self, video_id: str, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        with replacing(self.file(video_id)) as part:
            part.write_bytes(data)
        self._records[video_id] = {"sha256": hashlib.sha256(data).hexdigest(), **record}
        self._save_manifest()
        self._whole.add(video_id)

    def _save_manifest(self) -> None:
        head = json.dumps({"kind": self.what, "settings": self.settings}, ensure_ascii=False)[:-1]
        lines = [f"{json.dumps(name)}: {json.dumps(record)}" for name, record in self._records.items()]
        text = f'{head}, "videos": {{\n' + ",\n".join(lines) + "\n}}\n"  # one line a video; indent= is slow
        write_text(self.folder / MANIFEST, text)

    def _check_stored(self, video_id: str) -> None:
        if video_id not in self._records:
            raise NarratorError(
                f"no {self.what} of video {video_id} in {self.folder}, "
                f"which holds {len(self._records)} videos. {self.made_by}"
            )

    def _check_whole(self, video_id: str) -> None:
        self._check_stored(video_id)
        if not self.has(video_id):
            raise NarratorError(
                f"{self.file(video_id)} (video {video_id}) is missing or not as it was written. "
                + self.made_by
            )

    def _check_tensor(self, tensor: Tensor, where: str, settings: Mapping[str, Any]) -> None:
        dtype, width = str(tensor.dtype).removeprefix("torch."), tensor.shape[-1]
        for field, found in (("dtype", dtype), ("width", width)):
            if found != settings[field]:
                raise NarratorError(f"{where}: {field} {found}, but {self.folder} is for {settings[field]}")


class FeatureStore(_VideoStore):
    """Frame features: a video's `frames` [frames, 32, dim] and their `numbers` (number k: second k-1).

    A store whose settings have `clip` also holds the same frames' CLIP features, `clip` [frames, clip dim].
    """

    what = "frame features"
    made_by = "Run `videonarrator extract` to make them (it makes only what is missing)"

    @classmethod
    def create(cls, folder: str | Path, settings: Mapping[str, Any]) -> Self:
        """See `_VideoStore.create`; settings must have at least FEATURE_SETTINGS."""
        missing = [field for field in FEATURE_SETTINGS if field not in settings]
        if "clip" in settings:
            missing += [f"clip.{field}" for field in CLIP_SETTINGS if field not in settings["clip"]]
        if missing:
            raise ValueError(f"feature settings lack {', '.join(missing)}")
        return super().create(folder, settings)

    @property
    def has_clip(self) -> bool:
        """Whether CLIP features stand beside the others."""
        return "clip" in self.settings

    def write(
        self, video_id: str, numbers: Sequence[int] | Tensor, frames: Tensor, clip: Tensor | None = None
    ) -> None:
        """Store a video's frames [frames, 32, dim] and their numbers (from 1, ascending).

        clip: their CLIP features [frames, clip dim], where the store is for them. Raises `NarratorError`
        naming the video, and the frames that hold values which are no numbers.
        """
        numbers = torch.as_tensor(numbers, dtype=torch.int64)
        where = f"video {video_id}"
        if frames.dim() != 3 or not len(frames) or numbers.shape != frames.shape[:1]:
            raise NarratorError(
                f"{where}: expected frames [frames >= 1, tokens, dim] and as many numbers, got "
                f"{tuple(frames.shape)} and {tuple(numbers.shape)}"
            )
        if numbers[0] < 1 or (numbers.diff() < 1).any():
            raise NarratorError(f"{where}: frame numbers must ascend from 1, got {numbers.tolist()}")
        if (clip is not None) != self.has_clip or (clip is not None and clip.shape[:-1] != numbers.shape):
            found = "none" if clip is None else tuple(clip.shape)
            wanted = f"[{len(numbers)}, clip dim]" if self.has_clip else "none"
            raise NarratorError(f"{where}: CLIP features {found}, but {self.folder} is for {wanted}")
        tensors = {"frames": frames, "numbers": numbers} | ({} if clip is None else {"clip": clip})
        for name, settings in (("frames", self.settings), ("clip", self.settings.get("clip", {}))):
            if name in tensors:
                self._check_tensor(tensors[name], where, settings)
                finite = tensors[name].isfinite().flatten(1).all(dim=1).cpu()
                if broken := numbers[~finite].tolist():
                    raise NarratorError(
                        f"{where}: the features of frames {broken} hold NaN or infinite values"
                    )
        self._write(video_id, tensors, {"frames": len(frames)})

    def read(self, video_id: str) -> tuple[Tensor, Tensor]:
        """A video's frame numbers [frames] (int64) and frames [frames, 32, dim]."""
        self._check_whole(video_id)
        tensors = load_file(self.file(video_id))
        return tensors["numbers"], tensors["frames"]

    def read_clip(self, video_id: str) -> Tensor:
        """The CLIP features [frames, clip dim] of the frames that `read` gives."""
        self.check_clip()
        self._check_whole(video_id)
        return load_file(self.file(video_id))["clip"]

    def check_clip(self) -> None:
        """Raise `NarratorError` where the store holds no CLIP features."""
        if not self.has_clip:
            raise NarratorError(
                f"{self.folder} holds no CLIP features, by which the memory is to be merged: extract into "
                "another folder with `videonarrator extract --clip-model`, a folder or hub name such as "
                "openai/clip-vit-large-patch14"
            )

    def frames_of(self, video_id: str, start: float, end: float) -> Tensor:
        """The frames [frames, 32, dim] of a clip `[start, end)` in seconds, in order; may be none.

        A missing frame is passed over, with a warning of this module's logger that names it.
        """
        frames, missing = select_frames(*self.read(video_id), start, end)
        if missing:
            log.warning("video %s, clip %g-%g s: no features of frames %s", video_id, start, end, missing)
        return frames


class ClipStore(_VideoStore):
    """Clip tensors: of each video, clip index (from 0, as annotated) -> visual tokens [tokens, dim].

    A video's record also says what it was made from (`source`) and how many tokens each clip has.
    """

    what = "clip tensors"
    made_by = "Run `videonarrator prepare` to make them (it makes only what is missing)"

    def has_from(self, video_id: str, source: str) -> bool:
        """Whether the video is stored, whole, and made from `source`."""
        return self._records.get(video_id, {}).get("source") == source and self.has(video_id)

    def write(self, video_id: str, clips: Mapping[int, Tensor], source: str) -> None:
        """Store a video's clip tensors [tokens, dim]. source: checksum of what they were made from."""
        for index, tokens in clips.items():
            self._check_tensor(tokens, f"video {video_id}, clip {index + 1}", self.settings)
        counts = {str(index): len(tokens) for index, tokens in clips.items()}
        tensors = {str(index): tokens for index, tokens in clips.items()}
        self._write(video_id, tensors, {"source": source, "clips": counts})

    def read(self, video_id: str, clip: int) -> Tensor:
        """The visual tokens [tokens, dim] of clip `clip` (index from 0)."""
        self.tokens(video_id, clip)
        self._check_whole(video_id)
        try:
            with safe_open(self.file(video_id), framework="pt") as tensors:
                return tensors.get_tensor(str(clip))
        except SafetensorError as error:
            where = f"video {video_id}, clip {clip + 1}"
            raise NarratorError(f"{where}: {self.file(video_id)}: {error}") from error

    def clips(self, video_id: str) -> list[int]:
        """Indices of the clips that are stored."""
        self._check_stored(video_id)
        return [int(index) for index in self._records[video_id]["clips"]]

    def tokens(self, video_id: str, clip: int) -> int:
        """How many visual tokens a clip has, from the manifest."""
        if clip not in self.clips(video_id):
            stored = ", ".join(str(index + 1) for index in self.clips(video_id)) or "none"
            raise NarratorError(
                f"video {video_id}, clip {clip + 1}: no tensor in {self.folder}; of this video it holds "
                f"clips {stored} (clips without text or without frames are left out)"
            )
        return self._records[video_id]["clips"][str(clip)]


def select_frames(numbers: Tensor, frames: Tensor, start: float, end: float) -> tuple[Tensor, list[int]]:
    """Of a video's `frames` [frames, ...] with these `numbers`, those of a clip; and the numbers lacking.

    frames: any of a video's frame features. `[start, end)` in seconds; see `timeline.frame_numbers`.
    """
    places = {number: place for place, number in enumerate(numbers.tolist())}
    owned = frame_numbers(start, end)
    kept = [places[number] for number in owned if number in places]
    return frames[kept], [number for number in owned if number not in places]


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for field in dict.fromkeys([*old, *new]):
        before, after = old.get(field, "absent"), new.get(field, "absent")
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(before, after, f"{prefix}{field}.")
        elif before != after:
            found.append(f"{prefix}{field} is {before!r} there, {after!r} here")
    return found


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
