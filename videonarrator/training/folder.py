"""A run's folder: what the run depends on, and whose the folder is."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from videonarrator.config import save_config
from videonarrator.fingerprint import fingerprint
from videonarrator.prompt import Template
from videonarrator.schema import NarratorError
from videonarrator.settings import TrainConfig

RECORD = "run.json"
"""Inside a run's folder: what the run depends on."""


def record_of(
    config: TrainConfig, samples: Any, features: Mapping[str, Any], template: Template
) -> dict[str, Any]:
    """What a run depends on. A backbone from the hub is known by its name alone."""
    backbone = Path(config.model.backbone)
    if backbone.is_dir() and not (backbone / "config.json").is_file():
        raise NarratorError(f"{backbone} is no language model: it has no config.json")
    told = json.dumps([list(samples), asdict(template)], ensure_ascii=False, sort_keys=True)
    return {
        "settings": repr(config),
        "samples": hashlib.sha256(told.encode()).hexdigest(),
        "features": json.loads(json.dumps(dict(features))),
        "backbone": fingerprint(backbone) if backbone.is_dir() else "",
    }


def claim(output: Path, config: TrainConfig, record: Mapping[str, Any]) -> bool:
    """Whether the folder holds this very run; else it is made ready. Another run's folder is refused."""
    try:
        if (output / RECORD).is_file():
            if json.loads((output / RECORD).read_text("utf-8")) != record:
                raise NarratorError(
                    f"{output} holds a training run with other settings or data: give another output=..., or "
                    f"remove it (rm -r {output})"
                )
            return True
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NarratorError(f"cannot write to {output}: {error}") from error
    save_config(config, output / "config.yaml")
    return False


def write_record(output: Path, record: Mapping[str, Any]) -> None:
    """Make the folder this run's own, once all that could be wrong with it has been tried."""
    partial = output / f"{RECORD}.partial"
    partial.write_text(json.dumps(record, ensure_ascii=False), "utf-8")
    os.replace(partial, output / RECORD)
