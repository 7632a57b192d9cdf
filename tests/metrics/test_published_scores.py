"""The published code's numbers on the fixed input, to 1e-9, with the value of every clip and story."""

import json
from pathlib import Path
from typing import Any

import pytest

from metrics import Evaluation, evaluate
from metrics.ngram import upstream_text
from metrics.segment import sentencepiece_tokenizer

NEAR = {"rel": 1e-9, "abs": 1e-12}
GOLDEN_NAMES = {
    "bleu_1": "bleu_1",
    "bleu_2": "bleu_2",
    "bleu_3": "bleu_3",
    "bleu_4": "bleu_4",
    "cider": "cider",
}


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_final_value(published: Evaluation, golden: dict[str, Any], name: str) -> None:
    assert published.scores[name].value == pytest.approx(golden["final"][name], **NEAR)


def test_bleu_of_every_clip(published: Evaluation, golden: dict[str, Any]) -> None:
    captions = golden["per_sample"]["caption"]
    for n, values in enumerate(captions["bleu_1..4"], 1):
        samples = published.scores[f"bleu_{n}"].samples
        assert list(samples) == captions["keys"]
        assert list(samples.values()) == pytest.approx(values, **NEAR)


def test_cider_of_every_clip(published: Evaluation, golden: dict[str, Any]) -> None:
    captions, samples = golden["per_sample"]["caption"], published.scores["cider"].samples
    assert list(samples) == captions["keys"]
    assert list(samples.values()) == pytest.approx(captions["cider"], **NEAR)


def test_repetition_of_every_story(published: Evaluation, golden: dict[str, Any]) -> None:
    stories, score = golden["per_sample"]["intra_repeat"], published.scores["repetition"]
    expected = dict(
        zip((name.removesuffix(".mp4") for name in stories["ids"]), stories["values"], strict=True)
    )
    assert score.samples == pytest.approx(expected, **NEAR)
    assert score.value == pytest.approx(
        golden["variants"]["intra_repeat: upstream (words.txt loaded)"], **NEAR
    )
    assert 0 < score.components["share"] < score.value


def test_counts(published: Evaluation, golden: dict[str, Any]) -> None:
    counts, clips = golden["counts"], published.scores["bleu_4"].as_json()
    assert clips["n_scored"] == counts["caption_samples"]
    assert clips["n_skipped"] == {
        "narration_missing": counts["missing"],
        "narration_under_4_characters": counts["shorter_than_4"],
    }
    stories = published.scores["repetition"].as_json()
    assert stories["n_scored"] == counts["intra_repeat_videos"]
    assert published.scores["label_accuracy"].as_json()["n_scored"] == counts["clips"]


def test_token_ids(fixture_folder: Path) -> None:
    """The ids are those of the published tokenising script, text for text."""
    encode = sentencepiece_tokenizer(
        fixture_folder / "models" / "baichuan-tokenizer" / "tokenizer.model"
    ).encode
    tokens = json.loads((fixture_folder / "data" / "out_tokens.json").read_text(encoding="utf-8"))
    entries = json.loads((fixture_folder / "data" / "output.json").read_text(encoding="utf-8"))
    for key, entry in entries.items():
        for field in ("gt", "0.1"):
            text = upstream_text(entry[field]) if field in entry else None
            assert (None if text is None else list(encode(text))) == tokens[key].get(field)


def test_corrections(fixture_folder: Path, golden: dict[str, Any], published: Evaluation) -> None:
    """No user dictionary: the known variant of repetition. No --upstream: empty narrations count."""
    plain = evaluate(
        fixture_folder / "data" / "output.json",
        tokenizer=str(fixture_folder / "models" / "baichuan-tokenizer"),
        metrics=["bleu", "cider", "repetition"],
    )
    variant = golden["variants"]["intra_repeat: default jieba dictionary (no words.txt)"]
    assert plain.scores["repetition"].value == pytest.approx(variant, **NEAR)
    assert plain.scores["cider"].as_json()["n_skipped"] == {"narration_missing": golden["counts"]["missing"]}
    assert plain.scores["cider"].value < published.scores["cider"].value
    for name, score in plain.scores.items():
        assert str(score.signature) != str(published.scores[name].signature)
