"""What the tests of words share: LAC, its real answers, and real narrations."""

import json
from pathlib import Path
from typing import Any

import pytest

from metrics.words.lac import Lac
from metrics.words.lac_parameters import LacParameters, load_parameters


@pytest.fixture(scope="session")
def parameters() -> LacParameters:
    return load_parameters()


@pytest.fixture(scope="session")
def lac(parameters: LacParameters) -> Lac:
    return Lac(parameters)


@pytest.fixture(scope="session")
def reference(shared: Path) -> list[dict[str, Any]]:
    """270 texts with the words and flags that jieba on PaddlePaddle gave."""
    found = json.loads((shared / "data" / "lac_reference.json").read_text("utf-8"))
    for case in found:
        case["pairs"] = [tuple(pair) for pair in case["pairs"]]
    return found


@pytest.fixture(scope="session")
def narrations(real_samples: list[dict]) -> list[str]:
    """The lines `1.<narration>` of 30 real videos."""
    prompts = [sample["inputs"].split("广告视频：")[1].splitlines() for sample in real_samples[:30]]
    numbered = [line.partition(".") for lines in prompts for line in lines]
    return [text for number, _, text in numbered if number.isdecimal()]
