"""`python -m metrics` and `evaluate`: files, counts, signatures, exit codes, and a new user's mistakes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from metrics import HIGHER_IS_BETTER, evaluate
from metrics.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = ["meteor", "emscore", "emscore_ref", "info_sim", "info_diverse"]  # without Java and encoders
WITHOUT_JAVA = [name for name in HIGHER_IS_BETTER if name not in LEFT_OUT]

pytestmark = pytest.mark.usefixtures("no_java")
ANNOTATION = {"p_name": "杯子", "p_info": "", "type": "", "link": ""}


def save(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def clip(text: str | None) -> dict[str, Any]:
    return {"time": [0, 1], "label": "产品功效"} | ({} if text is None else {"new_text": text})


def test_files_and_exit_code(output_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(output_file)]) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    folder = output_file.parent / "eval"
    assert sorted(path.name for path in folder.iterdir()) == ["report.md", "results.json", "samples.jsonl"]
    assert summary["results"] == str(folder / "results.json")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert list(results["metrics"]) == WITHOUT_JAVA
    assert list(results["left_out"]) == LEFT_OUT
    assert {
        "comparison",
        "created",
        "failed",
        "inputs",
        "left_out",
        "metrics",
        "notes",
        "settings",
        "versions",
    } == results.keys()
    assert len(results["inputs"]["output"]["sha256"]) == 64
    for name, metric in results["metrics"].items():
        assert metric.keys() >= {"value", "n_scored", "n_skipped", "signature", "ci95", "higher_is_better"}
        assert metric["value"] == summary["scores"][name] and metric["ci95"] is None
        assert metric["signature"].startswith(f"{name}|version:1|")
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert all(metric["signature"] in report for metric in results["metrics"].values())
    assert "reference -/+3 characters" in report
    assert "cider: 6 entries" in printed.err


def test_every_entry_is_accounted_for(output_file: Path) -> None:
    evaluation = evaluate(output_file)
    for score in evaluation.scores.values():
        entry = score.as_json()
        if score.unit == "clip":
            assert entry["n_scored"] + sum(entry["n_skipped"].values()) == 6
    assert evaluation.scores["bleu_4"].as_json()["n_skipped"] == {"narration_missing": 1}
    assert evaluation.scores["label_accuracy"].value == pytest.approx(4 / 6)
    assert list(evaluation.scores["repetition"].samples) == ["红_a", "b"]
    short = evaluate(output_file, upstream=True).scores["cider"].as_json()["n_skipped"]
    assert short == {"narration_missing": 1, "narration_under_4_characters": 2}


def test_story_follows_clip_numbers(output_file: Path, content: dict[str, Any]) -> None:
    """Repetition looks at earlier clips by number, not by place in the file; "10" comes after "9"."""
    value = evaluate(output_file, metrics=["repetition"]).scores["repetition"].value
    save(output_file, dict(reversed(content.items())))
    assert evaluate(output_file, metrics=["repetition"]).scores["repetition"].value == value
    texts = {f"v_{i}": {"gt": "x", "0.1": text} for i, text in ((10, "红色 红色"), (9, "红色"), (2, "蓝色"))}
    save(output_file, texts)
    assert (
        evaluate(output_file, metrics=["repetition"]).scores["repetition"].value == 2 / 5
    )  # 3 units in the last


def test_same_input_same_bytes(output_file: Path, tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        assert main([str(output_file), "--out", str(tmp_path / name)]) == 0
        results = json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8"))
        del results["created"]
        rest = [(tmp_path / name / file).read_bytes() for file in ("samples.jsonl", "report.md")]
        contents.append([json.dumps(results), *rest])
    assert contents[0] == contents[1]


def test_every_setting_moves_the_signature(
    output_file: Path, content: dict[str, Any], tmp_path: Path
) -> None:
    for entry in content.values():
        entry["other"] = entry["gt"]
    save(output_file, content)
    words = tmp_path / "words.txt"
    words.write_text("轻薄不油腻\n", encoding="utf-8")
    frames = [clip("文字")] * 3
    annotations = save(
        tmp_path / "a.json", {f"{v}.mp4": ANNOTATION | {"frames": frames} for v in ("红_a", "b")}
    )
    ngram = {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "cider"}
    length = {"length_in_range", "length_mae"}
    every = ngram | length | {"repetition", "label_accuracy"}
    plain = evaluate(output_file).scores
    for changed, settings in (
        (ngram, {"tokenizer": "words"}),
        ({"repetition"}, {"user_dict": words}),
        (ngram | {"repetition"}, {"upstream": True}),
        (every - {"label_accuracy"}, {"key": "other"}),
        (every - {"label_accuracy"}, {"language": "en"}),
        (every, {"annotations": annotations}),
    ):
        scores = evaluate(output_file, **settings).scores
        assert changed == {n for n in plain if str(plain[n].signature) != str(scores[n].signature)}, settings
    both = [evaluate(output_file, tokenizer="words", user_dict=d, metrics=["cider"]) for d in (None, words)]
    assert str(both[0].scores["cider"].signature) != str(both[1].scores["cider"].signature)


def test_reference_as_narration_is_perfect(output_file: Path) -> None:
    scores = evaluate(output_file, key="gt").scores
    assert scores["cider"].value == pytest.approx(10) and scores["bleu_4"].value == pytest.approx(1, abs=1e-6)
    assert scores["length_in_range"].value == 1 and scores["length_mae"].value == 0


def test_annotations_decide_which_clips_count(output_file: Path, tmp_path: Path) -> None:
    videos = {
        "红_a.mp4": ANNOTATION | {"frames": [clip("这款面霜质地轻薄不油腻。"), clip("另一句。"), clip(None)]},
        "c.mp4": ANNOTATION | {"frames": [clip("没有输出。"), clip(None)]},
    }
    evaluation = evaluate(output_file, annotations=save(tmp_path / "a.json", videos))
    assert evaluation.scores["length_mae"].as_json()["n_scored"] == 3
    assert evaluation.scores["length_mae"].as_json()["n_skipped"] == {
        "not_in_annotations": 3,
        "not_in_output": 1,
    }
    assert evaluation.notes == [
        '1 entries have another "gt" than the annotations; the output\'s "gt" is used.'
    ]


def test_duplicates_and_malformed_entries_are_counted(output_file: Path) -> None:
    good = '{"gt": "一二三四五", "label": "产品功效", "out_label": "产品功效", "0.1": "一二三四"}'
    output_file.write_text(
        f'{{"a_0": {good}, "a_0": {good}, "a_1": {good}, "nokey": {good}, "a_00": {good}, "a_2": null, '
        '"a_3": {"gt": null, "0.1": "x", "label": "", "out_label": "产品功效"}, '
        '"a_4": {"gt": "一二", "0.1": 3}, "a_5": {"gt": "一二", "0.1": "\\ud83d"}, '
        '"a_6": {"gt": " ", "0.1": ""}, '
        f'"a_7": {{"gt": "一", "0.1": "一", "0.1": "二"}}, "\\ud83d_1": {good}}}',
        encoding="utf-8",
    )
    assert main([str(output_file), "--metrics", "bleu_1,label_accuracy"]) == 0
    results = json.loads((output_file.parent / "eval" / "results.json").read_text(encoding="utf-8"))
    metric = results["metrics"]["bleu_1"]
    assert metric["n_scored"] == 3
    assert metric["n_skipped"] == {
        "duplicate_entry": 1,
        "entry_not_an_object": 1,
        "entry_with_repeated_key": 1,
        "key_not_video_and_clip": 2,
        "narration_not_text": 2,
        "reference_empty": 1,
        "reference_not_text": 1,
    }
    assert results["metrics"]["label_accuracy"]["n_skipped"]["label_empty"] == 1
    assert "1 entries stand more than once" in results["notes"][0]
    lines = (output_file.parent / "eval" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {row["key"]: row for row in map(json.loads, lines)}
    assert rows["a_0"]["scores"]["label_accuracy"] == 1 and rows["a_0"]["skipped"]["bleu_1"] == [
        "duplicate_entry"
    ]


def test_one_failing_metric_costs_no_other(
    output_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no more memory")

    monkeypatch.setattr("metrics.ngram.cider", broken)
    assert main([str(output_file)]) == 3
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert summary["failed"] == ["cider"] and len(summary["scores"]) == len(WITHOUT_JAVA) - 1
    assert "cider failed: RuntimeError: no more memory" in captured.err
    assert "**cider failed**" in (output_file.parent / "eval" / "report.md").read_text(encoding="utf-8")


def test_left_out_metric(output_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without labels label_accuracy has no value: exit code 3 only where it was asked for by name."""
    save(
        output_file,
        {"a_0": {"gt": "一二三四五", "0.1": "一二三四"}, "a_1": {"gt": "五六七", "0.1": "五六七"}},
    )
    assert main([str(output_file)]) == 0
    assert "label_accuracy" in json.loads(capsys.readouterr().out)["left_out"]
    assert main([str(output_file), "--metrics", "cider,label_accuracy"]) == 3
    captured = capsys.readouterr()
    assert "label_accuracy left out: nothing to score: label_missing 2" in captured.err
    assert json.loads(captured.out)["scores"] == {
        "cider": pytest.approx(7.5, abs=2.5),
        "label_accuracy": None,
    }


def test_single_clip(output_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(
        output_file,
        {"a_0": {"gt": "一二三四五", "label": "产品功效", "out_label": "产品功效", "0.1": "一二三四五"}},
    )
    assert main([str(output_file)]) == 0
    assert {"cider", "repetition"} < {*json.loads(capsys.readouterr().out)["left_out"]}


def test_metrics_that_need_no_reference(output_file: Path) -> None:
    save(output_file, {"a_0": {"0.1": "质地很轻薄"}, "a_1": {"0.1": "质地很轻薄"}})
    assert main([str(output_file), "--metrics", "repetition"]) == 0
    assert main([str(output_file), "--metrics", "repetition", "--upstream"]) == 3


def test_english(output_file: Path) -> None:
    story = {
        "v_0": {"gt": "A red cup.", "0.1": "A red cup!"},
        "v_1": {"gt": "It holds water.", "0.1": "The red cup."},
    }
    scores = evaluate(save(output_file, story), language="en").scores
    assert scores["bleu_1"].value == pytest.approx(3 / 6, abs=1e-6)
    assert scores["repetition"].value == pytest.approx(2 / 6)
    assert scores["length_mae"].value == 0


def run_badly(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command, assert exit code 2 and one error line without traceback, return that line."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ('{"a": ' + "1" * 5000 + "}", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[1, 2]", "expected a JSON object, found a list"),
        ("{}", "is empty"),
        ('{"a.mp4": {"frames": []}}', 'expected "<video id>_<clip index from 0>"'),
        ('{"a_0": 3}', "none of its 1 keys"),
        ('{"a_0": {"0.1": "x", "label": "y"}}', 'no entry has a reference narration under "gt"'),
        ('{"a_0": {"gt": "x", "0.7": "y"}}', "keys are: gt, 0.7; type --key 0.7"),
        ('{"a_0": {"gt": "x", "0.1": null}}', 'no entry has a narration under "0.1"'),
    ],
)
def test_bad_output_files(
    text: str, expected: str, output_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output_file.write_text(text, encoding="utf-8")
    assert expected in run_badly([str(output_file)], capsys)
    assert not (output_file.parent / "eval").exists()


def test_output_that_is_no_text_file(output_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output_file.write_bytes(b'{"a_0": "\xff"}')
    assert "not UTF-8" in run_badly([str(output_file)], capsys)
    assert "a folder" in run_badly([str(output_file.parent)], capsys)
    assert "no such file; there are:" in run_badly([str(output_file.with_name("outputs.json"))], capsys)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--metrics", "blue_4"], "did you mean bleu_4?"),
        (["--metrics", ""], "no metric named"),
        (["--tokenizer", "no/such"], "type chars, words, a SentencePiece file"),
        (["--tokenizer", "."], "type chars, words, a SentencePiece file"),
        (["--tokenizer", "README_OR_OTHER"], "neither file nor folder"),
        (["--user-dict", "no_such.txt"], "user dictionary no_such.txt: no such file"),
        (["--user-dict", "no_such.txt", "--lang", "en"], "is for Chinese"),
        (["--annotations", "no_such.json"], "annotation file no_such.json: no such file"),
        (["--segmenter", "thulac"], "invalid choice: 'thulac'"),
        (["--metrics", "emscore"], "emscore needs a CLIP model: type --clip-model"),
        (["--metrics", "emscore_ref", "--clip-model", "x"], "type --frame-features FILE.safetensors"),
        (["--metrics", "emscore", "--clip-model", "x", "--frames", "y"], "type --annotations FILE"),
        (["--metrics", "info_sim"], "info_sim needs a text encoder: type --text-model"),
        (["--metrics", "info_diverse", "--text-model", "x"], "type --annotations FILE"),
        (["--ids", "no_such.txt"], "id list no_such.txt"),
        (["--compare", "no_such.json"], "output file no_such.json: no such file"),
        (["--confidence", "7"], "100 or more"),
        (["--frames", "a", "--frame-features", "b"], "not allowed with"),
        (["--lang", "fr"], "invalid choice: 'fr'"),
        (["--key", "0.3"], "type --key 0.1"),
    ],
)
def test_bad_arguments(
    arguments: list[str],
    expected: str,
    output_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in run_badly([str(output_file), *arguments], capsys)
    assert not (output_file.parent / "eval").exists()


def test_bad_side_files(output_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = save(tmp_path / "other.json", {"zzz.mp4": ANNOTATION | {"frames": [clip("x")]}})
    message = run_badly([str(output_file), "--annotations", str(other)], capsys)
    assert "none of the output's clips" in message and "zzz" in message
    assert 'no list of clips under "frames"' in run_badly(
        [str(output_file), "--annotations", str(output_file)], capsys
    )
    assert "not a SentencePiece model" in run_badly([str(output_file), "--tokenizer", str(other)], capsys)
    binary = tmp_path / "words.bin"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "user dictionary" in run_badly([str(output_file), "--user-dict", str(binary)], capsys)
    assert "is a file; type --out" in run_badly([str(output_file), "--out", str(other / "sub")], capsys)


def test_as_a_process(output_file: Path) -> None:
    """The module as it is typed; importing it brings in no heavy library and nothing else of the project."""
    command = [sys.executable, "-m", "metrics", str(output_file), "--metrics", "bleu,length_mae"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["scores"]) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "length_mae"]
    code = (
        "import sys, metrics; print(*sorted(m for m in sys.modules if '.' not in m or m.startswith('video')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    modules = set(done.stdout.split())
    assert not modules & {"torch", "transformers", "data_process", "jieba", "sentencepiece"}
    facts = {"schema", "storyline", "timeline", "length", "version"}
    assert {m for m in modules if m.startswith("videonarrator")} <= {"videonarrator"} | {
        f"videonarrator.{name}" for name in facts
    }
