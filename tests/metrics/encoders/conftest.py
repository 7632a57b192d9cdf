"""What the encoders' tests share: real texts, pictures, and copies of models to change."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def real_texts(fixture_folder: Path) -> list[str]:
    output = json.loads((fixture_folder / "data" / "output.json").read_text("utf-8"))
    texts = [value["0.1"] for value in output.values() if "0.1" in value]
    return [*texts[:100], *sorted({*"".join(texts)})[::5]]


@pytest.fixture
def model_copy(models: Path, tmp_path: Path) -> Callable[..., Path]:
    def copy(name: str, *left_out: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(models / name, folder, ignore=shutil.ignore_patterns(*left_out))
        for path in (folder, *folder.iterdir()):
            path.chmod(0o755)
        return folder

    return copy


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Noise, wide, tall, square and smaller than the model's pictures; grey, with alpha, with a palette."""
    generator = np.random.default_rng(0)
    sizes = ((64, 48), (48, 65), (120, 201), (32, 32), (20, 28))
    made = [Image.fromarray(generator.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]
    return [*made, made[0].convert("L"), made[1].convert("RGBA"), made[2].convert("P")]
