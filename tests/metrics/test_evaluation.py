"""All metrics on a small output with tiny encoders: what counts, what is skipped and why, how sure it is."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from metrics import HIGHER_IS_BETTER, Evaluation, evaluate
from metrics.__main__ import main
from metrics.scoring.context import Settings
from videonarrator.schema import NarratorError

pytestmark = pytest.mark.usefixtures("no_java")
ENCODED = ["emscore", "emscore_ref", "info_sim", "info_diverse"]

Small = Callable[..., Evaluation]


@pytest.fixture
def inputs(output_file: Path, fixture_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Everything that the encoded metrics need, for the output of `content`."""

    def video(name: str, info: str, texts: list[str]) -> dict[str, Any]:
        frames = [
            {"time": [2 * i, 2 * i + 2], "label": "产品功效", "new_text": t} for i, t in enumerate(texts)
        ]
        return {"p_name": name, "p_info": info, "type": "", "link": "", "frames": frames}

    annotations = {
        "红_a.mp4": video("【热卖】轻薄面霜", "质地：轻薄、不油腻\n功效：好吸收", ["一句话。"] * 3),
        "b.mp4": video("保温杯", "外观：蓝色\n功效：单手开盖", ["一句话。"] * 3),
    }
    (tmp_path / "annotations.json").write_text(json.dumps(annotations), encoding="utf-8")
    numbers = np.random.default_rng(0)
    features = {
        key: numbers.normal(size=(frames, 32)).astype(np.float32)
        for key, frames in {"红_a_0": 3, "红_a_1": 12, "红_a_2": 2, "b_0": 1, "b_1": 4, "b_2": 5}.items()
    }
    save_file(features, tmp_path / "frames.safetensors")
    return {
        "output": output_file,
        "annotations": tmp_path / "annotations.json",
        "frame_features": tmp_path / "frames.safetensors",
        "clip_model": str(fixture_folder / "models" / "chinese-clip"),
        "text_model": str(fixture_folder / "models" / "chinese-roberta"),
    }


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def skipped(evaluation: Evaluation, name: str) -> dict[str, int]:
    return evaluation.scores[name].as_json()["n_skipped"]


def test_everything_the_inputs_allow(inputs: dict[str, Any]) -> None:
    evaluation = evaluate(**inputs)
    assert list(evaluation.scores) == [name for name in HIGHER_IS_BETTER if name != "meteor"]
    assert evaluation.failed == {} and list(evaluation.left_out) == ["meteor"]
    assert "apt-get install" in evaluation.left_out["meteor"]
    assert skipped(evaluation, "emscore") == {"narration_empty": 1, "narration_missing": 1}
    for name, score in evaluation.scores.items():
        entry = score.as_json()
        if score.unit == "clip":
            assert entry["n_scored"] + sum(entry["n_skipped"].values()) == 6, name
    assert evaluation.scores["info_diverse"].as_json()["n_scored"] == 2
    without = evaluate(inputs["output"])
    assert [name for name in ENCODED if name in without.left_out] == ENCODED
    assert "type --clip-model" in without.left_out["emscore"]


def test_clips_without_good_features_are_counted(inputs: dict[str, Any]) -> None:
    path = inputs["frame_features"]
    numbers = np.random.default_rng(0)
    features = {key: numbers.normal(size=(3, 32)).astype(np.float32) for key in ("红_a_0", "红_a_1", "b_2")}
    features["b_0"] = np.full((2, 32), np.nan, np.float32)
    features["红_a_1"] = np.zeros((0, 32), np.float32)
    del features["b_2"]
    save_file(features, path)
    evaluation = evaluate(**inputs, metrics=["emscore"])
    assert list(evaluation.scores["emscore"].samples) == ["红_a_0"]
    assert skipped(evaluation, "emscore") == {
        "frame_features_empty": 1,
        "frame_features_missing": 1,
        "frame_features_not_finite": 1,
        "narration_empty": 1,
        "narration_missing": 1,
    }


def test_features_of_another_model_fail_alone(
    inputs: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"红_a_0": np.ones((2, 7), np.float32)}, inputs["frame_features"])
    words = [f"--{name.replace('_', '-')}={path}" for name, path in inputs.items() if name != "output"]
    assert main([str(inputs["output"]), *words]) == 3
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert summary["failed"] == ["emscore", "emscore_ref"] and "same CLIP model" in printed.err
    assert summary["scores"]["info_sim"] is not None
    assert "**emscore failed**" in Path(summary["report"]).read_text(encoding="utf-8")


def test_products_without_points_are_counted(inputs: dict[str, Any], tmp_path: Path) -> None:
    idf = tmp_path / "idf.json"
    idf.write_text(json.dumps({"保温杯": {"保温杯": 1.0, "蓝色": 0}}), encoding="utf-8")
    evaluation = evaluate(**inputs, idf=idf, metrics=["info_sim", "info_diverse"])
    assert skipped(evaluation, "info_sim") == {
        "narration_empty": 1,
        "narration_missing": 1,
        "product_not_in_idf": 2,
    }
    assert skipped(evaluation, "info_diverse") == {"narration_missing": 1, "product_not_in_idf": 1}
    change(inputs["annotations"], lambda videos: videos["红_a.mp4"].pop("p_name"))
    change(inputs["annotations"], lambda videos: videos["b.mp4"]["frames"][0].pop("time"))
    evaluation = evaluate(**inputs, metrics=["info_sim", "info_diverse"])
    assert skipped(evaluation, "info_sim")["product_without_name"] == 2
    assert skipped(evaluation, "info_diverse")["clip_without_time"] == 1
    assert evaluation.scores["info_diverse"].value is None
    assert "nothing to score" in evaluation.left_out["info_diverse"]


def test_idf_file_and_annotations_give_the_same_points(inputs: dict[str, Any], tmp_path: Path) -> None:
    words = ["--annotations", str(inputs["annotations"]), "--out", str(tmp_path / "x/i.json")]
    assert main(["build-idf", *words]) == 0
    built = evaluate(**inputs, idf=tmp_path / "x/i.json", metrics=["info_sim", "info_diverse"]).scores
    for name, score in evaluate(**inputs, metrics=["info_sim", "info_diverse"]).scores.items():
        assert score.value == built[name].value
        assert str(score.signature) != str(built[name].signature)


def test_long_and_odd_narrations(inputs: dict[str, Any]) -> None:
    odd = {"红_a_0": "面霜很轻薄。" * 900, "红_a_1": "😀 \t​", "红_a_2": "   ", "b_0": "x", "b_2": "。" * 9}

    def write(content: dict[str, Any]) -> None:
        for key, text in odd.items():
            content[key]["0.1"] = text

    change(inputs["output"], write)
    for upstream in (False, True):
        evaluation = evaluate(**inputs, upstream=upstream)
        assert evaluation.failed == {}
        assert all(score.value is not None for score in evaluation.scores.values())
    assert any("longer than the clip encoder takes" in note for note in evaluation.notes)


def test_stills_serve_as_well_as_their_features(
    inputs: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--frames`: the features come from the stills, are kept, and give what a file of them gives."""
    numbers, stills = np.random.default_rng(0), tmp_path / "stills"
    for video, seconds in (("红_a", 6), ("b", 4)):  # b lacks its last clip
        (stills / video).mkdir(parents=True)
        for k in range(1, seconds + 1):
            pixels = numbers.integers(0, 255, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(stills / video / f"{video}_{k:03d}.png")
    words = [f"--{name.replace('_', '-')}={path}" for name, path in inputs.items() if name != "output"]
    words = [word for word in words if not word.startswith("--frame-features")]
    words += ["--metrics=emscore", f"--frames={stills}"]
    assert main([str(inputs["output"]), *words]) == 0
    results = json.loads(Path(json.loads(capsys.readouterr().out)["results"]).read_text(encoding="utf-8"))
    score = results["metrics"]["emscore"]
    assert score["n_scored"] == 3 and score["n_skipped"]["still_missing"] == 1
    kept = inputs["output"].parent / "eval" / "frame_features.safetensors"
    again = evaluate(**inputs | {"frame_features": kept}, metrics=["emscore"]).scores["emscore"]
    assert again.value == score["value"]
    assert str(again.signature) != score["signature"]


def test_what_info_sim_never_scored(inputs: dict[str, Any]) -> None:
    """The published loop loses the last narration, or where the file ends without one the last video."""

    def scored() -> list[str]:
        return list(evaluate(**inputs, metrics=["info_sim"], upstream=True).scores["info_sim"].samples)

    assert scored() == ["红_a_0", "红_a_1", "b_0"]  # 红_a_2 is empty, b_1 has none, b_2 is the last
    change(inputs["output"], lambda content: content["b_2"].pop("0.1"))
    assert scored() == ["红_a_0", "红_a_1"]
    change(inputs["output"], lambda content: content["b_2"].update({"0.1": ""}))
    assert scored() == ["红_a_0", "红_a_1"]
    everything = evaluate(**inputs, metrics=["info_sim"]).scores["info_sim"]
    assert list(everything.samples) == ["红_a_0", "红_a_1", "b_0"]
    assert everything.moved["last_entry_left_out"] != 0


def test_the_published_value_beside_is_upstreams_own(inputs: dict[str, Any]) -> None:
    """Also where a rule leaves out clips but no whole story: nothing computed before is taken for it."""
    change(inputs["output"], lambda content: [content[key].pop("gt") for key in ("红_a_0", "b_0")])
    metrics = [*ENCODED, "repetition", "cider"]
    published = evaluate(**inputs, metrics=metrics, upstream=True).scores
    beside = evaluate(**inputs, metrics=metrics).scores
    for name, score in beside.items():
        assert score.published == published[name].value, name
    assert beside["info_diverse"].moved["references_needed"] != 0


# -------------------- METEOR's program


def fake_java(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Java that tells its version and then dies."""
    folder.mkdir()
    (folder / "java").write_text('#!/bin/sh\n[ "$1" = -version ] && exit 0\necho "no heap" >&2\nexit 7\n')
    (folder / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_meteor_asked_for_without_java(inputs: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(inputs["output"]), "--metrics", "meteor,bleu_1"]) == 3
    printed = capsys.readouterr()
    assert "meteor left out: METEOR needs Java" in printed.err and "apt-get install" in printed.err
    assert json.loads(printed.out)["scores"]["bleu_1"] is not None
    assert main([str(inputs["output"])]) == 0


def test_a_java_that_dies_costs_meteor_alone(
    output_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_java(tmp_path / "bin", monkeypatch)
    assert main([str(output_file)]) == 3
    printed = capsys.readouterr()
    assert "meteor failed: RuntimeError: METEOR's Java process ended with exit code 7: no heap" in printed.err
    summary = json.loads(printed.out)
    assert summary["failed"] == ["meteor"] and summary["scores"]["cider"] is not None
    assert Path(summary["results"]).is_file()


# -------------------- the other commands


def test_tokenize_writes_the_published_tokens(fixture_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "tokens.json"
    words = ["--tokenizer", str(fixture_folder / "models" / "baichuan-tokenizer"), "--out", str(out)]
    assert main(["tokenize", str(fixture_folder / "data" / "output.json"), *words]) == 0
    expected = json.loads((fixture_folder / "data" / "out_tokens.json").read_text(encoding="utf-8"))
    assert json.loads(out.read_text(encoding="utf-8")) == expected


def test_build_idf_gives_the_published_file(fixture_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "idf.json"
    annotations = str(fixture_folder / "data" / "annotations.json")
    assert main(["build-idf", "--annotations", annotations, "--out", str(out)]) == 0
    built = json.loads(out.read_text(encoding="utf-8"))
    published = json.loads((fixture_folder / "data" / "idf.json").read_text(encoding="utf-8"))
    assert list(built) == list(published)
    for product, points in published.items():
        assert list(built[product].items()) == [(p, pytest.approx(w, abs=1e-12)) for p, w in points.items()]


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain"]) == 0
    told = capsys.readouterr().out
    for name in HIGHER_IS_BETTER:
        assert f"{name}\n  definition:" in told
    assert main(["explain", "info_sim"]) == 0
    assert "last_entry_left_out" in capsys.readouterr().out
    assert main(["explain", "infosim"]) == 2
    assert "did you mean info_sim?" in capsys.readouterr().err
    for words in (["tokenize", "nothing.json", "--tokenizer", "chars"], ["build-idf", "--annotations", "x"]):
        with pytest.raises(SystemExit) if "build-idf" in words else nullcontext():
            assert main(words) == 2
    assert "Traceback" not in capsys.readouterr().err


# -------------------- ids


def test_ids_restrict_every_metric(inputs: dict[str, Any], tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("b.mp4\nnobody.mp4\nb.mp4\n", encoding="utf-8")
    evaluation = evaluate(**inputs, ids=ids)
    assert evaluation.notes[1:3] == [
        "1 ids of ids.txt are in no input: nobody.",
        "1 ids stand more than once in ids.txt: each video is counted once.",
    ]
    for name, score in evaluation.scores.items():
        assert set(score.videos) <= {"b"}, name
        assert skipped(evaluation, name)["not_in_ids"] == 3, name
    ids.write_text("nobody.mp4\n", encoding="utf-8")
    with pytest.raises(NarratorError, match="none of its 1 ids"):
        evaluate(**inputs, ids=ids)


def test_ids_as_published(inputs: dict[str, Any], tmp_path: Path) -> None:
    """Two metrics only; an id that stands twice counts twice; the last line needs its line break."""
    change(inputs["output"], lambda content: content["b_2"].update({"0.1": "杯身是蓝色的，蓝色的。"}))
    values = evaluate(**inputs, metrics=["repetition", "bleu_1"], upstream=True).scores
    first, second = values["repetition"].samples.values()
    ids = tmp_path / "ids.txt"
    ids.write_text("b.mp4\n红_a.mp4\nb.mp4\n红_a.mp4", encoding="utf-8")
    scores = evaluate(**inputs, ids=ids, metrics=["repetition", "bleu_1"], upstream=True).scores
    assert first != second
    assert scores["repetition"].value == pytest.approx((first + 2 * second) / 3)
    ids.write_text("b.mp4\n", encoding="utf-8")
    scores = evaluate(**inputs, ids=ids, metrics=["repetition", "bleu_1"], upstream=True).scores
    assert scores["bleu_1"].value == values["bleu_1"].value
    assert scores["repetition"].value == pytest.approx(second)
    moved = evaluate(**inputs, ids=ids, metrics=["repetition", "bleu_1"]).scores["bleu_1"].moved
    assert moved["ids_for_stories_only"] != 0


# -------------------- how sure


def test_intervals(inputs: dict[str, Any]) -> None:
    scores = evaluate(**inputs, confidence=200).scores
    for name, score in scores.items():
        assert score.ci95 is not None and score.value is not None
        assert score.ci95[0] - 1e-9 <= score.value <= score.ci95[1] + 1e-9, name
    assert evaluate(**inputs, confidence=200).scores["cider"].ci95 == scores["cider"].ci95
    perfect = evaluate(**inputs | {"key": "gt"}, metrics=["bleu_1", "length_in_range"], confidence=200).scores
    assert perfect["length_in_range"].ci95 == (1, 1)
    assert perfect["bleu_1"].ci95 == pytest.approx((1, 1), abs=1e-6)


def test_compared_with_itself(inputs: dict[str, Any]) -> None:
    evaluation = evaluate(**inputs, compare=inputs["output"])
    assert list(evaluation.comparison) == list(evaluation.scores)
    for name, test in evaluation.comparison.items():
        assert test["p_value"] == 1 and test["difference"] == 0 and test["ci95"] == (0, 0), name
        assert test["other"] == evaluation.scores[name].value


def test_compared_with_a_corrupted_copy(everything: dict[str, Any], tmp_path: Path) -> None:
    """Every second narration of the real fixture loses its last half: worse in all that compare texts."""
    content = json.loads(Path(everything["output"]).read_text(encoding="utf-8"))
    for entry in list(content.values())[::2]:
        entry["0.1"] = entry.get("0.1", "")[: len(entry.get("0.1", "")) // 2]
    other = tmp_path / "corrupted.json"
    other.write_text(json.dumps(content), encoding="utf-8")
    metrics = ["bleu", "cider", "length_in_range", "emscore_ref"]
    evaluation = evaluate(**everything, compare=other, metrics=metrics)
    for name, test in evaluation.comparison.items():
        assert test["p_value"] < 0.01 and test["difference"] > 0, name
        low, high = test["ci95"]
        assert 0 < low < test["difference"] < high
    # an equal measure: the labels were left alone
    same = evaluate(**everything, compare=other, metrics=["label_accuracy"]).comparison["label_accuracy"]
    assert same["p_value"] == 1


# -------------------- signatures


def altered(model: str, copy: Path) -> str:
    """A copy of a model in which one number is another."""
    shutil.copytree(model, copy)
    for path in (copy, *copy.iterdir()):
        path.chmod(0o755)
    weights = load_file(copy / "model.safetensors")
    name = next(name for name, weight in weights.items() if weight.ndim == 1)
    weights[name][0] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return str(copy)


def test_every_setting_of_the_encoded_metrics_moves_their_signatures(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    words, ids = tmp_path / "words.txt", tmp_path / "ids.txt"
    words.write_text("不油腻 l\n", encoding="utf-8")
    ids.write_text("b.mp4\n红_a.mp4\n", encoding="utf-8")
    change(inputs["output"], lambda content: [e.update(other=e["gt"]) for e in content.values()])
    idf = tmp_path / "idf.json"
    assert main(["build-idf", "--annotations", str(inputs["annotations"]), "--out", str(idf)]) == 0
    ems, infos = set(ENCODED[:2]), set(ENCODED[2:])
    features = tmp_path / "other.safetensors"
    save_file({key: rows + 1 for key, rows in load_file(inputs["frame_features"]).items()}, features)
    plain = evaluate(**inputs, metrics=ENCODED).scores
    cases: list[tuple[set[str], dict[str, Any]]] = [
        (ems, {"clip_model": altered(inputs["clip_model"], tmp_path / "clip")}),
        (infos, {"text_model": altered(inputs["text_model"], tmp_path / "text")}),
        (ems, {"frame_features": features}),
        (ems | infos, {"key": "other"}),
        (ems | infos, {"segmenter": "lac"}),
        (ems | infos, {"segmenter": "lac-normalized"}),
        (ems | infos, {"language": "en"}),
        (ems | infos, {"ids": ids}),
        (ems | infos, {"upstream": True}),
        (infos, {"user_dict": words}),
        (infos, {"idf": idf}),
    ]
    # tokenizer: the n-gram metrics' (test_metrics_command); frames: above; clip_backend: test_clip_backends
    elsewhere = {"tokenizer", "frames", "clip_backend", "device"}
    tried = {name for _, settings in cases for name in settings}
    assert tried | elsewhere >= {item.name for item in fields(Settings)}
    for changed, settings in cases:
        for name, score in evaluate(**inputs | settings, metrics=ENCODED).scores.items():
            assert (str(score.signature) != str(plain[name].signature)) == (name in changed), (name, settings)
