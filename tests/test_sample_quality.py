"""What the sample model has to reach when the quickstart trains it in full. Slow: several minutes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The full quickstart in a folder of its own, and the grounding measure on its checkpoint."""
    folder = tmp_path_factory.mktemp("full") / "run"
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}
    subprocess.run(["bash", "scripts/quickstart.sh", str(folder)], cwd=ROOT, env=environment, check=True)
    command = [
        sys.executable,
        "scripts/measure_grounding.py",
        "--checkpoint",
        str(folder / "train/checkpoint"),
    ]
    done = subprocess.run(
        [*command, "--features", str(folder / "features")],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return folder, json.loads(done.stdout)


def test_lengths_and_labels(measured):
    folder, _ = measured
    metrics = json.loads((folder / "eval/results.json").read_text("utf-8"))["metrics"]
    assert metrics["length_in_range"]["value"] >= 0.70
    assert metrics["label_accuracy"]["value"] >= 0.80


def test_narrations_say_what_is_seen(measured):
    _, conditions = measured
    true, shuffled = (conditions[name]["grounding"]["all"]["right"] for name in ("true", "shuffled"))
    assert true >= 0.80
    assert true - shuffled >= 0.40


def test_what_an_earlier_clip_showed_comes_from_memory(measured):
    _, conditions = measured
    own, other = (conditions[name]["grounding"]["gift"]["right"] for name in ("true", "memory"))
    assert own > other


@pytest.fixture(scope="module")
def lengths(measured, shared, tmp_path_factory):
    """The length measure on the quickstart's checkpoint: held-out sample videos, and 200 real products."""
    folder, _ = measured
    words = ["--checkpoint", str(folder / "train/checkpoint"), "--features", str(folder / "features")]
    words += ["--products", str(shared / "data/esyncvidstory_test_300.json")]
    done = subprocess.run(
        [sys.executable, "scripts/measure_length.py", *words],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("mode", ["constrained", "best_of"])
@pytest.mark.parametrize(("videos", "number"), [("samples", 52), ("products", 200)])
def test_lengths_and_labels_hold(lengths, videos, number, mode):
    numbers = lengths[videos][mode]
    assert numbers["narrations"] == number
    assert [numbers[share] for share in ("in_range", "labels_valid", "closed")] == [1, 1, 1]
    assert numbers["inside_word"] == 0


def test_lengths_that_are_only_asked_for_are_missed(lengths):
    assert lengths["products"]["prompt"]["in_range"] < 0.9


def test_narrations_that_hold_are_as_likely(lengths):
    assert lengths["samples"]["constrained"]["perplexity_ratio"] <= 1.5
    assert lengths["products"]["constrained"]["perplexity_ratio"] <= 2


def test_real_footage_gets_a_script_that_fits(measured, tmp_path):
    from video_helpers import real_footage

    folder, _ = measured
    product = tmp_path / "product.yaml"
    product.write_text(
        "name: 轻骑山地车\ninfo:\n  材质: [铝合金车架, 防滑轮胎]\n  功效: [骑行更轻松]\n", "utf-8"
    )
    verb = [str(Path(sys.executable).parent / "videonarrator"), "narrate", str(real_footage("bikes.mp4"))]
    words = [
        "--product",
        str(product),
        "--checkpoint",
        str(folder / "train/checkpoint"),
        "--out",
        str(tmp_path),
    ]
    subprocess.run([*verb, *words], cwd=ROOT, check=True)
    lines = json.loads((tmp_path / "script.json").read_text("utf-8"))["lines"]
    assert len(lines) == 5 and all(line["in_range"] for line in lines)
