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
from metrics.explain import EXPLANATIONS
from metrics.scoring.corrections import CORRECTIONS
from videonarrator.schema import NarratorError

PACKAGES = ("videonarrator", "pycocoevalcap", "jieba", "sentencepiece", "numpy", "torch", "transformers")


def results(evaluation: Evaluation, created: str | None = None) -> dict[str, Any]:
    """The content of results.json. Equal runs differ in `created` only (default: now, UTC)."""
    return {
        "created": created or datetime.now(UTC).isoformat(timespec="seconds"),
        "metrics": {name: score.as_json() for name, score in evaluation.scores.items()},
        "left_out": evaluation.left_out,
        "failed": evaluation.failed,
        "comparison": evaluation.comparison,
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
    """The report: a table of the scores, what was skipped and corrected, what each number means."""
    sections = [
        _table(evaluation),
        _remarks(evaluation),
        _comparison(evaluation),
        _corrections(evaluation),
        ["## What the numbers mean", ""]
        + [f"- **{name}**: {EXPLANATIONS[name].definition}." for name in evaluation.scores],
        ["## Signatures", "", "Numbers may be compared only where these lines are equal.", ""]
        + [f"- `{score.signature}`" for score in evaluation.scores.values()],
        ["## Inputs", ""]
        + [f"- {role}: {file['file']} (sha256 {file['sha256']})" for role, file in evaluation.inputs.items()],
    ]
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def _table(evaluation: Evaluation) -> list[str]:
    lines = [
        "# Scores",
        "",
        "| metric | value | 95% interval | published rules | better | scored | skipped | parts |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, score in evaluation.scores.items():
        entry = score.as_json()
        interval = "" if score.ci95 is None else f"{score.ci95[0]:.4f} to {score.ci95[1]:.4f}"
        published = "" if score.published is None else f"{score.published:.4f}"
        better = "higher" if entry["higher_is_better"] else "lower"
        unit = f"{entry['n_scored']} {'stories' if score.unit == 'story' else 'clips'}"
        skipped = ", ".join(f"{_cell(reason)} {n}" for reason, n in entry["n_skipped"].items()) or "none"
        parts = ", ".join(f"{part} {number:.4f}" for part, number in score.components.items())
        row = [name, _number(score.value), interval, published, better, unit, skipped, parts]
        lines.append("| " + " | ".join(row) + " |")
    return lines


def _remarks(evaluation: Evaluation) -> list[str]:
    lines = [f"- **{name} failed**: {reason}" for name, reason in evaluation.failed.items()]
    lines += [f"- **{name} left out**: {reason}" for name, reason in evaluation.left_out.items()]
    return lines + [f"- {note}" for note in evaluation.notes]


def _comparison(evaluation: Evaluation) -> list[str]:
    if not evaluation.comparison:
        return []
    lines = [
        f"## Compared with {evaluation.inputs['compare']['file']}",
        "",
        "Paired bootstrap over the videos that both have; difference: this output minus the other.",
        "",
        "| metric | this | other | difference | 95% interval | p-value | videos |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, test in evaluation.comparison.items():
        low, high = test["ci95"] or (None, None)
        numbers = [evaluation.scores[name].value, test["other"], test["difference"]]
        row = [name, *map(_number, numbers), f"{_number(low)} to {_number(high)}", _number(test["p_value"])]
        lines.append("| " + " | ".join([*row, str(test["videos"])]) + " |")
    return lines


def _corrections(evaluation: Evaluation) -> list[str]:
    """One line for each rule and metric that it concerns: what is done instead, and how far it moved it."""
    if evaluation.settings["upstream"] == "true":
        return ["The published rules hold (`--upstream`); without it each is corrected and its effect told."]
    lines = []
    for rule, (metrics, what) in CORRECTIONS.items():
        moved = {
            name: evaluation.scores[name].moved.get(rule) for name in metrics if name in evaluation.scores
        }
        told = [f"{name} {by:+.6f}" for name, by in moved.items() if by is not None and abs(by) >= 5e-7]
        if moved:
            lines.append(f"- `{rule}`: {what}: {', '.join(told) or 'no number moved'}.")
    return ["## What was corrected, and how far it moved the numbers", "", *lines] if lines else []


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


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
