"""What a result was made with: versions, device, state of the repository."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from videonarrator.version import VERSION

PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy")


def environment() -> dict[str, Any]:
    """Versions, platform, device and git state (null outside a checkout)."""
    import torch

    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "videonarrator": VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "versions": versions,
        "git": _git_state(),
    }


def write_environment(folder: Path) -> None:
    """Write env.json into a results folder."""
    (folder / "env.json").write_text(json.dumps(environment(), indent=1) + "\n", "utf-8")


def _git_state() -> dict[str, Any] | None:
    def git(*words: str) -> str:
        here = Path(__file__).resolve().parent
        return subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "."))}
    except (OSError, subprocess.CalledProcessError):
        return None
