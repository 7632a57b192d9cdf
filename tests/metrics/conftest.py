"""What the metrics' tests share: the reference numbers, and small output files."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from metrics import HIGHER_IS_BETTER, Evaluation, evaluate
from metrics.words.segment import Segmenter, jieba_segmenter

if TYPE_CHECKING:
    from metrics.encoders.clip import ClipEncoder
    from metrics.encoders.text import TextEncoder


@pytest.fixture(scope="session")
def fixture_folder(shared: Path) -> Path:
    """Input and numbers of the published metric code."""
    return shared / "data" / "metrics_fixture"


@pytest.fixture(scope="session")
def golden(fixture_folder: Path) -> dict[str, Any]:
    """What the published code gives on the fixture."""
    return json.loads((fixture_folder / "golden.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def models(fixture_folder: Path) -> Path:
    """The folder of the small encoders, chinese-clip and chinese-roberta."""
    return fixture_folder / "models"


@pytest.fixture(scope="session")
def clip_encoder(models: Path) -> "ClipEncoder":
    from metrics.encoders.clip import load_clip_encoder  # not above: torch takes seconds to load

    return load_clip_encoder(str(models / "chinese-clip"))


@pytest.fixture(scope="session")
def text_encoder(models: Path) -> "TextEncoder":
    from metrics.encoders.text import load_text_encoder

    return load_text_encoder(str(models / "chinese-roberta"))


@pytest.fixture(scope="session")
def knowledge_segmenter(shared: Path) -> Segmenter:
    """jieba with the published user dictionary, which takes seconds to load."""
    return jieba_segmenter(shared / "data" / "jieba_knowledge_words.txt")


@pytest.fixture(scope="session")
def everything(fixture_folder: Path, models: Path, shared: Path) -> dict[str, Any]:
    """All inputs of the reference numbers, as `evaluate` takes them."""
    data = fixture_folder / "data"
    return {
        "output": data / "output.json",
        "annotations": data / "annotations.json",
        "ids": data / "test_ids.txt",
        "tokenizer": str(models / "baichuan-tokenizer"),
        "user_dict": shared / "data" / "jieba_knowledge_words.txt",
        "clip_model": str(models / "chinese-clip"),
        "frame_features": data / "frame_features.safetensors",
        "text_model": str(models / "chinese-roberta"),
        "idf": data / "idf.json",
    }


@pytest.fixture(scope="session")
def published(everything: dict[str, Any]) -> Evaluation:
    """The fixture scored with the published arithmetic, METEOR included."""
    return evaluate(**everything, upstream=True)


@pytest.fixture(scope="session")
def corrected(everything: dict[str, Any]) -> Evaluation:
    """The fixture scored as this project does it by default, with intervals; METEOR left out (time)."""
    metrics = [name for name in HIGHER_IS_BETTER if name != "meteor"]
    return evaluate(**everything, metrics=metrics, confidence=200)


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without Java: METEOR is left out, which also saves the time to start it."""
    monkeypatch.setenv("PATH", str(tmp_path / "no-programs"))
    monkeypatch.delenv("JAVA_HOME", raising=False)


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
