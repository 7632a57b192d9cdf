"""What the metrics' tests share: the reference numbers, and small output files."""

import json
from pathlib import Path
from typing import Any

import pytest

from metrics import Evaluation, evaluate


@pytest.fixture(scope="session")
def fixture_folder(shared: Path) -> Path:
    """Input and numbers of the published metric code."""
    return shared / "data" / "metrics_fixture"


@pytest.fixture(scope="session")
def golden(fixture_folder: Path) -> dict[str, Any]:
    """What the published code gives on the fixture."""
    return json.loads((fixture_folder / "golden.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def published(fixture_folder: Path, shared: Path) -> Evaluation:
    """The fixture scored with the published arithmetic, tokenizer and user dictionary."""
    return evaluate(
        fixture_folder / "data" / "output.json",
        annotations=fixture_folder / "data" / "annotations.json",
        tokenizer=str(fixture_folder / "models" / "baichuan-tokenizer"),
        user_dict=shared / "data" / "jieba_knowledge_words.txt",
        upstream=True,
    )


@pytest.fixture
def content() -> dict[str, dict[str, Any]]:
    """Two videos of an output.json: good, repeated, empty, short and missing narrations."""

    def entry(reference: str, narration: str | None, label: str, generated: str) -> dict[str, str]:
        value = {"gt": reference, "label": label, "out_label": generated}
        return value if narration is None else value | {"0.1": narration}

    return {
        "红_a_0": entry("这款面霜质地轻薄不油腻。", "这款面霜质地轻薄不油腻。", "产品功效", "产品功效"),
        "红_a_1": entry(
            "每天早晚各用一次就够了。", "这款面霜质地轻薄好吸收。", "产品功效+产品试用", "产品试用+产品功效"
        ),
        "红_a_2": entry("喜欢的姐妹赶紧下单吧！", "", "引导购买", "产品推荐"),
        "b_0": entry("杯身是蓝色的。", "好看。", "外观设计", "外观设计+产品推荐"),
        "b_1": entry("容量足足有五百毫升。", None, "其他", "其他/通用卖点"),
        "b_2": entry("一键开盖单手就能喝水。", "一键开盖单手就能喝水", "产品功效", "产品功效"),
    }


@pytest.fixture
def output_file(tmp_path: Path, content: dict[str, dict[str, Any]]) -> Path:
    path = tmp_path / "run" / "output.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path
