"""Scores into files: results.json (numbers), samples.jsonl (each clip and story), report.md (for reading)."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from metrics.base import Score
from metrics.evaluation import Evaluation
from videonarrator.schema import NarratorError

DEFINITIONS = {
    "bleu_1": "n-gram precision against the reference with brevity penalty, n up to 1, whole corpus; 0..1",
    "bleu_2": "the same, n up to 2",
    "bleu_3": "the same, n up to 3",
    "bleu_4": "the same, n up to 4",
    "cider": "CIDEr-D: cosine of tf-idf n-gram vectors (n up to 4, these references' frequencies), times 10",
    "repetition": "how often units stood in earlier narrations of the story (can pass 1); share: 0 or 1 each",
    "length_in_range": "share of narrations whose length lies in the range asked for (see signature)",
    "length_mae": "mean absolute difference to the reference's length; bias: the same with its sign",
    "label_accuracy": "share of clips whose generated labels equal the reference's as a set; "
    "jaccard: mean overlap; known: share made of the twelve script labels",
}
"""One line per metric, for the report."""

PACKAGES = ("videonarrator", "pycocoevalcap", "jieba", "sentencepiece", "numpy")


def results(evaluation: Evaluation, created: str | None = None) -> dict[str, Any]:
    """The content of results.json. Equal runs differ in `created` only (default: now, UTC)."""
    return {
        "created": created or datetime.now(UTC).isoformat(timespec="seconds"),
        "metrics": {name: score.as_json() for name, score in evaluation.scores.items()},
        "left_out": evaluation.left_out,
        "failed": evaluation.failed,
        "notes": evaluation.notes,
        "settings": evaluation.settings,
        "inputs": evaluation.inputs,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def samples(scores: Iterable[Score]) -> list[dict[str, Any]]:
    """One object per clip and story: its values by metric, and by metric the reasons why it was left out."""
    rows: dict[str, dict[str, Any]] = {}
    for score in scores:
        for key, value in score.samples.items():
            rows.setdefault(key, {"key": key, "scores": {}, "skipped": {}})["scores"][score.name] = value
        for key, reason in score.skips:
            row = rows.setdefault(key, {"key": key, "scores": {}, "skipped": {}})
            row["skipped"].setdefault(score.name, []).append(reason)
    return list(rows.values())


def markdown(evaluation: Evaluation) -> str:
    """The report: a table of the scores, what was skipped, and what each number means and was made with."""
    lines = [
        "# Scores",
        "",
        "| metric | value | better | scored | skipped | parts |",
        "|---|---|---|---|---|---|",
    ]
    for name, score in evaluation.scores.items():
        entry = score.as_json()
        value = "none" if score.value is None else f"{score.value:.4f}"
        better = "higher" if entry["higher_is_better"] else "lower"
        unit = f"{entry['n_scored']} {'stories' if score.unit == 'story' else 'clips'}"
        skipped = ", ".join(f"{_cell(reason)} {n}" for reason, n in entry["n_skipped"].items()) or "none"
        parts = ", ".join(f"{part} {number:.4f}" for part, number in score.components.items())
        lines.append(f"| {name} | {value} | {better} | {unit} | {skipped} | {parts} |")
    lines += ["", *(f"- **{name} failed**: {reason}" for name, reason in evaluation.failed.items())]
    lines += [f"- **{name} left out**: {reason}" for name, reason in evaluation.left_out.items()]
    lines += [f"- {note}" for note in evaluation.notes]
    lines += ["", "## What the numbers mean", ""]
    lines += [f"- **{name}**: {DEFINITIONS[name]}." for name in evaluation.scores]
    if evaluation.settings["upstream"] == "true":
        rules = "The published rules hold: texts under 4 characters are left out of BLEU and CIDEr, the "
        rules += "others get a final 。; repetition takes clips with a reference only."
    else:
        rules = (
            "Texts are scored as they are written, and an empty narration counts as one (`--upstream` gives "
        )
        rules += (
            "the published rules: texts under 4 characters left out of BLEU and CIDEr, a final 。 added)."
        )
    lines += [
        "",
        rules,
        "",
        "## Signatures",
        "",
        "Numbers may be compared only where these lines are equal.",
        "",
    ]
    lines += [f"- `{score.signature}`" for score in evaluation.scores.values()]
    lines += ["", "## Inputs", ""]
    lines += [
        f"- {role}: {file['file']} (sha256 {file['sha256']})" for role, file in evaluation.inputs.items()
    ]
    return "\n".join(lines) + "\n"


def check_folder(folder: Path) -> None:
    """Raise `NarratorError` where `folder` cannot be made or written to; makes nothing itself."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "it may not be written to" if there.is_dir() else f"{there} is a file"
        raise NarratorError(f"cannot write results to {folder}: {why}; type --out with another folder")


def write(evaluation: Evaluation, folder: Path) -> dict[str, Path]:
    """Write samples.jsonl, report.md and, last, results.json into `folder`, each whole or not at all."""
    check_folder(folder)
    rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in samples(evaluation.scores.values()))
    content = json.dumps(results(evaluation), ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    texts = {"samples": ("samples.jsonl", rows), "report": ("report.md", markdown(evaluation))}
    texts["results"] = ("results.json", content)
    paths = {}
    for role, (name, text) in texts.items():
        paths[role] = folder / name
        partial = folder / f".{name}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # a key may hold half a character, which as an escape is JSON too
            partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
            partial.replace(paths[role])
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise NarratorError(f"cannot write {paths[role]}: {error.strerror}") from None
    return paths


def _cell(text: str) -> str:
    return text.replace("_", " ")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
