"""Measuring a speech engine: a command of this machine speaks texts into files, and these are timed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from videonarrator.journal import append, entries
from videonarrator.schema import NarratorError
from videonarrator.speech.audio import speech_seconds
from videonarrator.speech.reading import spoken_text

EXAMPLE = "espeak-ng -v en-us -w {wav} {text}"
TEXT_SECONDS = 120
"""A text that takes the engine longer than this has failed."""

_PLACE = re.compile(r"\{(wav|text|spoken)\}")


def parse_command(template: str) -> list[str]:
    """The words of a command template, split as a shell would; no shell ever runs it.

    {wav} is the file to write, {text} the text as written, {spoken} the text with numbers and signs in words;
    without the last two the text is given on standard input. Raises `NarratorError`.
    """
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise NarratorError(f"--engine {template!r}: {error}; for example --engine '{EXAMPLE}'") from None
    if not words or "{wav}" not in template:
        raise NarratorError(
            f"--engine {template!r}: write {{wav}} where the audio file goes; "
            f"for example --engine '{EXAMPLE}'"
        )
    if shutil.which(words[0]) is None:
        raise NarratorError(f"--engine: there is no program {words[0]!r}; install it, or give its path")
    return words


def speak(command: Sequence[str], text: str, language: str, wav: Path) -> float:
    """Seconds that the engine speaks `text`; `wav` is written. Raises `NarratorError` where that fails."""
    wav.unlink(missing_ok=True)
    values = {"text": text, "spoken": spoken_text(text, language)}
    values = {name: f" {value}" if value.startswith("-") else value for name, value in values.items()}
    values["wav"] = str(wav)  # the blank above: a text that begins with a dash is no option
    words = [_PLACE.sub(lambda found: values[found[1]], word) for word in command[1:]]
    told = any(place in word for word in command for place in ("{text}", "{spoken}"))
    try:
        subprocess.run(
            [command[0], *words],
            input=b"" if told else text.encode(),
            capture_output=True,
            check=True,
            timeout=TEXT_SECONDS,
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise NarratorError(f"{command[0]} ended with code {error.returncode}: {said}") from None
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise NarratorError(f"{command[0]} failed: {error}") from None
    if not wav.is_file():
        raise NarratorError(f"{command[0]} wrote no file at {{wav}}")
    return speech_seconds(wav)


def measure(
    template: str, texts: Sequence[str], language: str, journal: Path, say: Callable[[str], None] = print
) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of each text, and of those that failed the reason.

    Each measured text is at once on disk in `journal` (JSONL); what stands there of the same command and
    language is not measured again.
    """
    command = parse_command(template)
    known = dict(_measured(journal, template, language))
    seconds = {text: known[text] for text in texts if text in known}
    todo = [text for text in dict.fromkeys(texts) if text not in known]
    if seconds:
        say(f"{len(seconds)} texts are measured already ({journal})")
    failed: dict[str, str] = {}
    started = told = time.monotonic()
    _writable(journal)
    with tempfile.TemporaryDirectory() as folder:
        for done, text in enumerate(todo, 1):
            try:
                seconds[text] = speak(command, text, language, Path(folder) / "spoken.wav")
                entry = {"engine": template, "language": language, "text": text, "seconds": seconds[text]}
                append(journal, entry)
            except NarratorError as error:
                failed[text] = str(error)
                say(f"failed: {text!r}: {error}")
            now = time.monotonic()
            if done == len(todo) or now - told > 5:
                told, pace = now, done / max(now - started, 1e-9)
                left = (len(todo) - done) / pace
                say(f"measured {done}/{len(todo)} texts, {pace:.1f} a second, {left:.0f} s left")
    return seconds, failed


def _measured(file: Path, template: str, language: str) -> Iterator[tuple[str, float]]:
    """What a journal holds of this command."""
    for entry in entries(file):
        try:
            if (entry["engine"], entry["language"]) == (template, language) and entry["seconds"] > 0:
                yield entry["text"], float(entry["seconds"])
        except (ValueError, KeyError, TypeError):
            continue


def _writable(journal: Path) -> None:
    """Raise `NarratorError` where a journal cannot be written, before anything takes long."""
    try:
        journal.open("ab").close()
    except OSError as error:
        raise NarratorError(f"cannot write {journal}: {error.strerror or error}") from error
