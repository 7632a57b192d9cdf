"""The verb `doctor`: how large a narrator is and whether all it needs is there, without loading weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import typer

from videonarrator.cli import PARTLY, say
from videonarrator.cli.devices import DTYPES
from videonarrator.cli.doctor_checks import (
    Subject,
    check,
    installed_packages,
    look_at_checkpoint,
    look_at_config,
)
from videonarrator.config import load_config
from videonarrator.environment import environment
from videonarrator.modeling.narrator import Narrator
from videonarrator.schema import NarratorError
from videonarrator.settings import TrainConfig
from videonarrator.sizing import (
    GIB,
    empty_narrator,
    narration_memory,
    parameter_counts,
    shape_file,
    training_memory,
    without_lora,
)

UNSET = ("output=", "data.samples=", "data.clips=", "model.backbone=")
"""Settings that a checkpoint does without."""


def doctor(
    checkpoint: Path | None,
    config: str | None,
    shape: str | None,
    backbone: str | None,
    tokens: Sequence[int],
    batch: int | None,
    precision: str,
    overrides: list[str],
) -> None:
    if checkpoint is None and config is None:
        raise NarratorError("nothing to look at: give --checkpoint DIR, or --config FILE_OR_NAME")
    if backbone is not None and (checkpoint is None or shape is not None):
        raise NarratorError("--backbone says where a checkpoint's language model lies: give --checkpoint DIR")
    if precision not in DTYPES:
        raise NarratorError(f"unknown precision {precision!r}: {', '.join(DTYPES)}")
    source = None if shape is None else str(shape_file(shape))
    unset = UNSET if config is None else ()
    settings = load_config(TrainConfig, config, [*unset, *overrides])
    checks = [check("packages", installed_packages)]
    if checkpoint is not None:
        subject = look_at_checkpoint(checkpoint, settings, source, backbone, checks)
    else:
        subject = look_at_config(str(config), settings, source, checks)
    report: dict[str, Any] = {"model": subject.name, "backbone": shape or subject.backbone}
    if subject.backbone is not None:
        report |= _sizes(subject, tokens, batch, precision)
    described = environment()
    report |= {
        "checks": [asdict(one) for one in checks],
        "device": {"name": described["device"], "memory_gib": _device_memory()},
        "versions": {"python": described["python"], **described["versions"]},
    }
    _print_table(report)
    print(json.dumps(report, ensure_ascii=False))
    if any(one.ok is False for one in checks):
        raise typer.Exit(PARTLY)


def _device_memory() -> float:
    """GiB of the first CUDA device, else of this machine."""
    if torch.cuda.is_available():
        size = torch.cuda.get_device_properties(0).total_memory
    else:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return round(size / GIB, 1)


def _sizes(subject: Subject, tokens: Sequence[int], batch: int | None, precision: str) -> dict[str, Any]:
    narrator = empty_narrator(
        subject.config,
        subject.feature_width,
        source=subject.backbone,
        tokenizer=subject.tokenizer,
        positions=subject.positions,
    )
    _check_tokens(tokens, narrator)
    settings = subject.config.optimization
    ready = without_lora(narrator, DTYPES[precision])
    packed = settings.packed and batch is None
    samples, prompts = batch or (1 if packed else settings.batch_size), batch or 1
    return {
        "parameters": parameter_counts(narrator),
        "training": [
            {
                "tokens": length,
                "batch": samples,
                "packed": packed,
                "precision": settings.precision,
                "gradient_checkpointing": settings.gradient_checkpointing,
                "gib": _gib(training_memory(narrator, length, samples, settings.precision, packed=packed)),
            }
            for length in tokens
        ],
        "narration": [
            {
                "tokens": length,
                "batch": prompts,
                "precision": precision,
                "gib": _gib(narration_memory(ready, length, prompts)),
            }
            for length in tokens
        ],
    }


def _check_tokens(tokens: Sequence[int], narrator: Narrator) -> None:
    limit = int(getattr(narrator.base.config, "max_position_embeddings", 0) or 0)
    for length in tokens:
        if limit and length > limit:
            raise NarratorError(f"--tokens {length}: the backbone takes at most {limit}")


def _gib(sizes: Mapping[str, int]) -> dict[str, float]:
    return {name: round(size / GIB, 3) for name, size in sizes.items()}


def _print_table(report: Mapping[str, Any]) -> None:
    marks = {True: "ok", False: "WRONG", None: "?"}
    for one in report["checks"]:
        say(f"{marks[one['ok']]:6}{one['check']:12}{one['found']}")
    device = report["device"]
    say(f"{'':6}{'device':12}{device['name']}, {device['memory_gib']} GiB")
    if "parameters" not in report:
        return
    say(f"\n{'parameters':16}{'all':>16}{'trained':>16}")
    for part, counts in report["parameters"].items():
        say(f"{part.replace('_', ' '):16}{counts['all']:>16,}{counts['trained']:>16,}")
    for kind in ("training", "narration"):
        parts = list(report[kind][0]["gib"])
        say(f"\n{kind}, GiB{'':4}" + "".join(f"{part.replace('_', ' '):>13}" for part in parts))
        for row in report[kind]:
            saved = ", packed" if row.get("packed") else ""
            saved += ", checkpointing" if row.get("gradient_checkpointing") else ""
            say(
                f"{row['batch']} x {row['tokens']:<10}"
                + "".join(f"{row['gib'][part]:13.2f}" for part in parts)
                + f"  {row['precision']}{saved}"
            )
