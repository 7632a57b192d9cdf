"""Neural words: every text is cut in the batch that was prepared for its metric, none by itself."""

import json
from pathlib import Path
from typing import Any

import pytest

from metrics import evaluate
from metrics.emscore import REFERENCE_CHARACTERS
from metrics.words import segment
from metrics.words.lac import Lac

pytestmark = pytest.mark.usefixtures("no_java")
METRICS = ["bleu", "cider", "emscore", "emscore_ref", "info_sim", "info_diverse", "repetition"]


@pytest.fixture
def output(everything: dict[str, Any], tmp_path: Path) -> Path:
    """Twelve clips of the fixture: narrations with and without a stop, references of all lengths."""
    content = json.loads(everything["output"].read_text("utf-8"))
    whole = [key for key, entry in content.items() if entry.get("gt") and entry.get("0.1")]
    chosen = {key: content[key] for key in whole[:12]}
    for number, entry in enumerate(chosen.values()):
        entry["0.1"] = entry["0.1"].rstrip("。") + "。" * (number % 2)
        entry["gt"] *= 1 + number % 3 * (REFERENCE_CHARACTERS // len(entry["gt"]) + 1)
    lengths = [len(entry["gt"]) > REFERENCE_CHARACTERS for entry in chosen.values()]
    assert True in lengths and False in lengths
    path = tmp_path / "output.json"
    path.write_text(json.dumps(chosen, ensure_ascii=False), "utf-8")
    return path


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("upstream", [False, True])
def test_no_text_is_cut_alone(
    everything: dict[str, Any], output: Path, monkeypatch: pytest.MonkeyPatch, metric: str, upstream: bool
) -> None:
    batches: list[int] = []
    tag = Lac.tag

    def counted(self: Lac, texts: list[str], batch_size: int = 64) -> list[list[tuple[str, str]]]:
        batches.append(len(texts))
        return tag(self, texts, batch_size)

    monkeypatch.setattr(Lac, "tag", counted)
    segment._lac_segmenter.cache_clear()  # what other tests have cut is forgotten
    names = ("annotations", "clip_model", "frame_features", "text_model")
    evaluation = evaluate(
        output,
        **{name: everything[name] for name in names},
        metrics=[metric],
        tokenizer="words",
        segmenter="lac",
        upstream=upstream,
    )
    assert not evaluation.failed and not evaluation.left_out
    assert sum(batches) > 5 and 1 not in batches
