"""The verb `calibrate`: a speaking rate from recordings, from an annotation file, or from a speech engine."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import typer

from data_process.annotations import read_annotations, read_sample_list
from data_process.files import read_json, read_text
from videonarrator.cli import PARTLY, check_writable, say
from videonarrator.config import load_template
from videonarrator.schema import NarratorError
from videonarrator.speech import count_spoken, default_rate, save_rate
from videonarrator.speech.audio import speech_seconds
from videonarrator.speech.engine import measure, parse_command
from videonarrator.speech.fitting import calibrate as fit
from videonarrator.speech.rate import COEFFICIENTS

ENGINE_TEXTS = 300
"""So many texts an engine speaks where --limit does not say."""


@dataclass
class Pairs:
    """Texts and the seconds they took, and of those that cannot be used the reason."""

    texts: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, text: str, seconds: float, language: str) -> None:
        if count_spoken(text, language).silent:
            self.fail(name, f"{text!r} has nothing to say")
        elif not seconds > 0:
            self.fail(name, f"lasts {seconds:g} s")
        else:
            self.texts.append(text)
            self.seconds.append(seconds)

    def fail(self, name: str, reason: str) -> None:
        self.failed[name] = reason
        say(f"left out: {name}: {reason}")


def calibrate(
    out: Path,
    language: str,
    pairs: Path | None,
    annotations: Path | None,
    engine: str | None,
    texts: Path | None,
    limit: int | None,
    voice: str | None,
) -> None:
    default_rate(language)
    if sum(source is not None for source in (pairs, annotations, engine)) != 1:
        raise NarratorError("give one of --pairs (audio and text), --annotations, and --engine with --texts")
    if (engine is None) != (texts is None):
        raise NarratorError("--engine and --texts (what the engine is to say) belong together")
    if out.is_dir():
        raise NarratorError(f"--out {out} is a folder: give a file, for example {out / 'rate.yaml'}")
    if engine is not None and texts is not None:
        parse_command(engine)
        wanted = [text for _, text, _ in _narrations(texts, language)]
        check_writable(out.parent)
        found = _spoken(engine, wanted, language, limit or ENGINE_TEXTS, out)
        source = f"engine {engine}"
    else:
        check_writable(out.parent)
        if pairs is not None:
            found, source = _recorded(pairs, language, limit), f"recordings {pairs.name}"
        else:
            assert annotations is not None
            found, source = _annotated(annotations, language, limit), f"annotations {annotations.name}"
    if not found.texts:
        name, reason = next(iter(found.failed.items()))
        raise NarratorError(f"none of {len(found.failed)} pairs can be used; the first, {name}: {reason}")
    fitted = fit(found.texts, found.seconds, language, voice=voice or "", source=source)
    save_rate(fitted.rate, out)
    result = {
        "out": str(out),
        "language": language,
        "pairs": fitted.pairs,
        "units_per_second": _rounded(fitted.rate.units_per_second),
        "median_error": _rounded(fitted.median_error),
        "median_error_seconds": _rounded(fitted.median_seconds),
        "within_10_percent": _rounded(fitted.within_10_percent),
        "seconds": {name: _rounded(getattr(fitted.rate, name)) for name in COEFFICIENTS},
        "failed": found.failed,
    }
    print(json.dumps(result, ensure_ascii=False))
    if found.failed:
        raise typer.Exit(PARTLY)


def _spoken(engine: str, texts: list[str], language: str, limit: int, out: Path) -> Pairs:
    found = Pairs()
    sayable = []
    for text in _spread(list(dict.fromkeys(texts)), limit):
        if count_spoken(text, language).silent:
            found.fail(repr(text), "has nothing to say")
        else:
            sayable.append(text)
    seconds, failed = measure(engine, sayable, language, out.with_name(f"{out.name}.measured.jsonl"), say)
    for text in sayable:
        if text in seconds:
            found.add(repr(text), text, seconds[text], language)
    found.failed |= {repr(text): reason for text, reason in failed.items()}
    return found


def _annotated(path: Path, language: str, limit: int | None) -> Pairs:
    if path.suffix.lower() != ".json":
        raise NarratorError(f"--annotations {path}: expected a JSON file, annotations or a sample list")
    found = Pairs()
    narrations = _narrations(path, language)
    for name, text, seconds in _spread(narrations, limit or len(narrations)):
        if seconds is None:
            found.fail(name, "the list does not tell when it starts and ends")
        else:
            found.add(name, text, seconds, language)
    return found


def _recorded(path: Path, language: str, limit: int | None) -> Pairs:
    found = Pairs()
    listed = _recordings(path)
    for name, audio, text in _spread(listed, limit or len(listed)):
        try:
            text = read_text(text) if isinstance(text, Path) else text
            found.add(name, text.strip(), speech_seconds(audio), language)
        except NarratorError as error:
            found.fail(name, str(error))
    return found


def _recordings(path: Path) -> list[tuple[str, Path, Path | str]]:
    """(name, audio, text or its file) from a folder of clip.wav and clip.txt, or lines `audio<tab>text`."""
    found: list[tuple[str, Path, Path | str]]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        files = [file for file in files if file.suffix != ".yaml"]  # a rate that was written here before
        audio = [file for file in files if file.suffix.lower() != ".txt"]
        found = [(file.name, file, file.with_suffix(".txt")) for file in audio]
        known = {file.stem for file in audio}
        found += [(file.name, file.with_suffix(".wav"), file) for file in files if file.stem not in known]
    else:
        lines = [line for line in read_text(path).splitlines() if line.strip()]
        found = []
        for number, line in enumerate(lines, 1):
            name, tab, text = line.partition("\t")
            if not tab:
                raise NarratorError(
                    f"{path}, line {number}: expected <audio file><tab><text>, found {line!r}"
                )
            found.append((name.strip(), path.parent / name.strip(), text))
    if not found:
        raise NarratorError(
            f"{path} holds no pairs: put clip.wav and clip.txt into a folder, or write lines "
            "<audio file><tab><text> into a list"
        )
    return found


def _narrations(path: Path, language: str) -> list[tuple[str, str, float | None]]:
    """(name, text, seconds of its clip or None) of an annotation file, a sample list, or lines of text."""
    found: list[tuple[str, str, float | None]]
    if path.suffix.lower() != ".json":
        lines = enumerate(read_text(path).splitlines(), 1)
        found = [(f"line {number}", text.strip(), None) for number, text in lines if text.strip()]
    else:
        if isinstance(read_json(path), list):
            samples = read_sample_list(path, load_template(language))
            videos = [(sample.video, sample.timed) for sample in samples]
        else:
            videos = [(video, True) for video in read_annotations(path).values()]
        found = [
            (f"{video.id}, clip {number}", clip.text, clip.duration if timed else None)
            for video, timed in videos
            for number, clip in enumerate(video.clips, 1)
            if clip.text
        ]
    if not found:
        raise NarratorError(f"{path} holds no narration")
    return found


def _spread(items: list, limit: int) -> list:
    """At most `limit` of the items, evenly from the whole list."""
    count = min(limit, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
