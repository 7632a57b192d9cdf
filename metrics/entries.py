"""Reading output.json: its entries, and why some cannot be used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metrics.base import Skips
from videonarrator.schema import GENERATED_KEY, NarratorError, split_output_key


@dataclass(frozen=True)
class Entry:
    """One entry of output.json. A field without text in the file is None, and `why` has the reason."""

    key: str
    video: str
    clip: int
    reference: str | None
    narration: str | None
    label: str | None
    generated_label: str | None
    why: dict[str, str]


@dataclass(frozen=True)
class Output:
    """The usable entries of an output.json in file order, what was rejected whole, and the entries' keys."""

    entries: list[Entry]
    rejected: Skips
    fields: list[str]

    def select(self, *fields: str) -> tuple[list[Entry], Skips]:
        """Entries that have all of `fields` (attributes of `Entry`), and why the others are left out."""
        chosen, skips = [], list(self.rejected)
        for entry in self.entries:
            missing = [entry.why[name] for name in fields if name in entry.why]
            if missing:
                skips.append((entry.key, missing[0]))
            else:
                chosen.append(entry)
        return chosen, skips


class _Object(dict[str, Any]):
    """A JSON object that remembers which of its keys stood in the file more than once (the last counts)."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(key for key, _ in pairs)
        self.repeated = [key for key, count in counts.items() for _ in range(count - 1)]


def read_object(path: Path, what: str) -> _Object:
    """The JSON object in `path`; raises `NarratorError` on anything else, an empty object included."""
    if not path.is_file():
        there = "a folder" if path.is_dir() else "no such file"
        near = sorted(str(p) for p in path.parent.glob("*.json")) if path.parent.is_dir() else []
        raise NarratorError(f"{what} {path}: {there}" + (f"; there are: {some(near)}" if near else ""))
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_Object)
    except UnicodeDecodeError as error:
        raise NarratorError(f"{what} {path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except ValueError as error:
        raise NarratorError(f"{what} {path}: not JSON: {error}") from None
    except RecursionError:
        raise NarratorError(f"{what} {path}: nested too deeply to be {what}") from None
    except OSError as error:
        raise NarratorError(f"{what} {path}: cannot be read: {error.strerror}") from None
    if not isinstance(content, _Object):
        raise NarratorError(f"{what} {path}: expected a JSON object, found a {type(content).__name__}")
    if not content:
        raise NarratorError(f"{what} {path}: the JSON object is empty")
    return content


def read_output(path: Path, key: str = GENERATED_KEY) -> Output:
    """Read an output.json: `<video id>_<clip index>` -> {"gt", "label", "out_label", <key>: narration}.

    Keys of another form, entries that are no objects and entries that stand twice are rejected with a reason;
    raises `NarratorError` where nothing is left.
    """
    content = read_object(path, "output file")
    entries: list[Entry] = []
    rejected: Skips = [(name, "duplicate_entry") for name in content.repeated]
    for name, value in content.items():
        try:
            place = split_output_key(name)
        except (NarratorError, ValueError):  # ValueError: an index of thousands of digits
            rejected.append((name, "key_not_video_and_clip"))
            continue
        if not isinstance(value, dict):
            rejected.append((name, "entry_not_an_object"))
        elif isinstance(value, _Object) and value.repeated:
            rejected.append((name, "entry_with_repeated_key"))
        else:
            entries.append(_entry(name, *place, value, key))
    if not entries:
        raise NarratorError(
            f"output file {path}: none of its {len(content)} keys leads to a clip's entry (first key: "
            f'{next(iter(content))!r}); expected "<video id>_<clip index from 0>": '
            f'{{"gt": ..., "label": ..., "out_label": ..., "{key}": ...}}'
        )
    fields = dict.fromkeys(name for value in content.values() if isinstance(value, dict) for name in value)
    return Output(entries, rejected, list(fields))


def _entry(name: str, video: str, clip: int, value: dict[str, Any], key: str) -> Entry:
    texts: dict[str, str | None] = {}
    why = {}
    for attribute, json_key in (
        ("reference", "gt"),
        ("narration", key),
        ("label", "label"),
        ("generated_label", "out_label"),
    ):
        text = value.get(json_key)
        texts[attribute] = text if _is_text(text) else None
        if json_key not in value:
            why[attribute] = f"{attribute}_missing"
        elif texts[attribute] is None:
            why[attribute] = f"{attribute}_not_text"
        elif attribute in ("reference", "label") and not str(text).strip():
            why[attribute] = f"{attribute}_empty"
    return Entry(name, video, clip, **texts, why=why)


def _is_text(value: object) -> bool:
    """Whether `value` is text that can be written as UTF-8 (a JSON escape can be half a character)."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_fields(path: Path, output: Output, key: str, *, narrations: bool, references: bool) -> None:
    """Raise `NarratorError` where not one entry has a narration (under `key`) or reference that is needed."""
    there = f"the entries' keys are: {some(output.fields)}"
    if narrations and not any("narration" not in entry.why for entry in output.entries):
        others = [n for n in output.fields if n not in ("gt", "label", "out_label")]
        hint = f"; type --key {others[0]}" if others and others[0] != key else ""
        raise NarratorError(f'output file {path}: no entry has a narration under "{key}"; {there}{hint}')
    if references and not any("reference" not in entry.why for entry in output.entries):
        raise NarratorError(
            f'output file {path}: no entry has a reference narration under "gt"; {there}; for the metrics '
            "that need none type --metrics repetition,label_accuracy"
        )


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and how many more there are, for messages."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
