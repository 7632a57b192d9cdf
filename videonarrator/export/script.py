"""A script as files: script.json for programs, script.md for people."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from videonarrator.schema import NarratorError, Script, ScriptLine


def script_table(script: Script) -> str:
    """The script as a Markdown table: clip, times, label, narration, characters asked for and written, and
    the seconds that it takes to say.
    """
    rows = [
        "| clip | time | script label | narration | asked | written | spoken |",
        "| ---: | :--- | :--- | :--- | :--- | ---: | :--- |",
    ]
    rows += [_row(line) for line in script.lines]
    return "\n".join(rows)


def write_script(script: Script, folder: Path) -> tuple[Path, Path]:
    """Write script.json and script.md into `folder`, each whole or not at all."""
    described = asdict(script)
    for line, described_line in zip(script.lines, described["lines"], strict=True):
        described_line["in_range"] = line.in_range
    inside = sum(line.in_range for line in script.lines)
    notes = [f"{inside} of {len(script.lines)} narrations are inside their length range."]
    late = [line.clip + 1 for line in script.lines if line.fit in ("fast", "over")]
    notes += [f"Clip {clip} takes longer to say than to show: shorten it." for clip in late]
    notes += [
        f"Look at clip {line.clip + 1}, its narration is flawed: {', '.join(line.flaws)}."
        for line in script.lines
        if line.flaws
    ]
    notes += [f"Clip {index + 1} has no narration: {reason}." for index, reason in script.skipped.items()]
    text = "\n\n".join(
        [f"# {script.product.name}", f"Video: {script.video_id}", script_table(script), *notes]
    )
    paths = folder / "script.json", folder / "script.md"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in zip(
            paths, (json.dumps(described, ensure_ascii=False, indent=1), text), strict=True
        ):
            partial = path.with_name(path.name + ".partial")
            partial.write_text(content + "\n", "utf-8")
            os.replace(partial, path)
    except OSError as error:
        raise NarratorError(f"cannot write the script to {folder}: {error}") from error
    return paths


def _row(line: ScriptLine) -> str:
    written = f"{line.written}" if line.in_range else f"**{line.written}**"
    time = f"{_clock(line.start)} - {_clock(line.end)}"
    label, narration = _cell(line.label), _cell(line.text)
    asked = f"{line.low}-{line.high}"
    cells = (f"{line.clip + 1}", time, label, narration, asked, written, _spoken(line))
    return f"| {' | '.join(cells)} |"


def _spoken(line: ScriptLine) -> str:
    """Seconds and fit, in bold where the clip is too short for them."""
    if line.seconds is None:
        return ""
    spoken = f"{line.seconds:.1f} s, {line.fit}"
    return f"**{spoken}**" if line.fit in ("fast", "over") else spoken


def _cell(text: str) -> str:
    """Text on one line, its bars escaped: what a model writes must not break the table."""
    return " ".join(text.split()).replace("|", "\\|")


def _clock(seconds: float) -> str:
    tenths = round(seconds * 10)
    return f"{tenths // 600}:{tenths % 600 // 10:02d}.{tenths % 10}"
