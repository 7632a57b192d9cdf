"""The metrics command on 4,000 narrations and on the reference fixture; the bootstrap; the segmenters.

Each evaluation is a process of its own, as a user starts it; a metric's time is told from its progress lines.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jieba
import jieba.posseg
import numpy as np
from safetensors.numpy import save_file

from data_process.annotations import read_sample_list
from metrics.words.lac import Lac
from videonarrator.config import load_template
from videonarrator.schema import Video, output_entry, output_key

PARTS = ("many", "bootstrap", "fixture", "segmenters")
DIM = 32
"""Of the fixture's tiny CLIP."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--narrations", type=int, default=4000, help="at least as many (default: 4000)")
    parser.add_argument(
        "--parts", default=",".join(PARTS), help="which to measure, by comma (default: %(default)s)"
    )


def run(args: argparse.Namespace, data: Path) -> dict[str, Any]:
    parts = args.parts.split(",")
    if not {*parts} <= {*PARTS}:
        raise SystemExit(f"--parts {args.parts}: there are {', '.join(PARTS)}")
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {"many", "bootstrap"} & {*parts}:
            large = _large(folder, data, args.narrations)
            measures = {"many": _many, "bootstrap": _bootstrap}
            results = {part: measure(large, args.runs) for part, measure in measures.items() if part in parts}
        if "fixture" in parts:
            results["fixture"] = _fixture(folder, data, args.runs)
        if "segmenters" in parts:
            results["segmenters"] = _segmenters(data, args.runs)
    return results


def _large(folder: Path, data: Path, narrations: int) -> list[str]:
    """The command on the 300 real videos, repeated under other ids; predictions are other clips' texts."""
    videos = [v.video for v in read_sample_list(data / "esyncvidstory_test_300.json", load_template("zh"))]
    random_order, numbers = random.Random(0), np.random.default_rng(0)
    texts = [clip.text for video in videos for clip in video.clips if clip.text]
    output: dict[str, Any] = {}
    features: dict[str, np.ndarray] = {}
    annotations: dict[str, Any] = {}
    copy = 0
    while len(output) < narrations:
        for video in videos:
            name = f"{video.id}x{copy}"
            annotations[f"{name}.mp4"] = _annotation(video)
            for i, clip in enumerate(video.clips):
                if clip.text:
                    key = output_key(name, i)
                    label = clip.label or "产品功效"
                    output[key] = output_entry(clip.text, label, label, random_order.choice(texts))
                    frames = numbers.normal(size=(random_order.randint(1, 14), DIM)).astype(np.float32)
                    features[key] = frames / np.linalg.norm(frames, axis=1, keepdims=True)
        copy += 1
    for name, content in (("output.json", output), ("annotations.json", annotations)):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    save_file(features, folder / "frames.safetensors")
    fixture = data / "metrics_fixture"
    command = [sys.executable, "-m", "metrics", str(folder / "output.json"), "--out", str(folder / "eval")]
    command += ["--annotations", str(folder / "annotations.json")]
    command += ["--frame-features", str(folder / "frames.safetensors")]
    return command + _models(fixture, data)


def _annotation(video: Video) -> dict[str, Any]:
    frames = [
        {"time": [clip.start, clip.end], "label": clip.label, "new_text": clip.text} for clip in video.clips
    ]
    return {"p_name": video.product.name, "p_info": video.product.info, "frames": frames}


def _models(fixture: Path, data: Path) -> list[str]:
    words = ["--tokenizer", str(fixture / "models/baichuan-tokenizer")]
    words += ["--user-dict", str(data / "jieba_knowledge_words.txt")]
    models = ["--clip-model", str(fixture / "models/chinese-clip")]
    return [*words, *models, "--text-model", str(fixture / "models/chinese-roberta")]


NO_METEOR = "bleu,cider,emscore,emscore_ref,info_sim,info_diverse,repetition,length_in_range,length_mae"
NO_METEOR += ",label_accuracy"


def _timed(command: list[str]) -> dict[str, float]:
    """Seconds of the whole process, and between its progress lines: start-up and each group of metrics."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    steps, last, name = {}, begin, "start-up and reading"
    beside = {}
    for line in process.stderr:
        now, said = time.perf_counter(), line.split(":")[0].strip()
        if said.startswith("meteor"):
            beside[said] = now
            if said == "meteor":
                continue
        steps[name] = steps.get(name, 0) + now - last
        last, name = now, said
    code = process.wait()
    steps[name] = steps.get(name, 0) + time.perf_counter() - last
    if code:
        raise RuntimeError(f"{' '.join(command)}: exit code {code}")
    steps["whole"] = time.perf_counter() - begin
    if "meteor done" in beside:
        steps["meteor, beside the others"] = beside["meteor done"] - beside["meteor"]
    return steps


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(median(one[name] for one in runs), 2) for name in runs[0]}


def _many(command: list[str], runs: int) -> dict[str, Any]:
    """All metrics but METEOR: seconds, and each part's share."""
    steps = _medians([_timed([*command, "--metrics", NO_METEOR]) for _ in range(runs)])
    whole = steps["whole"]
    return {"seconds": steps, "share": {name: round(s / whole, 3) for name, s in steps.items()}}


def _fixture(folder: Path, data: Path, runs: int) -> dict[str, Any]:
    """Everything on the fixture, METEOR included: how far the whole run goes beyond METEOR's own time."""
    fixture = data / "metrics_fixture"
    command = [sys.executable, "-m", "metrics", str(fixture / "data/output.json")]
    command += ["--annotations", str(fixture / "data/annotations.json")]
    command += ["--ids", str(fixture / "data/test_ids.txt"), "--idf", str(fixture / "data/idf.json")]
    command += ["--frame-features", str(fixture / "data/frame_features.safetensors")]
    command += ["--out", str(folder / "fixture"), *_models(fixture, data)]
    kinds = {"corrected and published": [], "--upstream": ["--upstream"]}
    results = {}
    for name, option in kinds.items():
        steps = _medians([_timed(command + option) for _ in range(runs)])
        beyond = steps["whole"] - steps["meteor, beside the others"]
        results[name] = {"seconds": steps, "seconds beyond METEOR": round(beyond, 2)}
    return results


def _bootstrap(command: list[str], runs: int) -> dict[str, float]:
    """What 1,000 resamples add to a run, as a share of the run's metrics (the issue's limit: 2)."""
    command = [*command, "--metrics", NO_METEOR]
    pairs = [(_timed(command), _timed([*command, "--confidence", "1000"])) for _ in range(runs)]
    added = median(with_them["whole"] - without["whole"] for without, with_them in pairs)
    metrics_alone = median(without["whole"] - without["start-up and reading"] for without, _ in pairs)
    return {"seconds added": round(added, 2), "share of the metrics": round(added / metrics_alone, 3)}


def _segmenters(data: Path, runs: int) -> dict[str, Any]:
    """Narrations a second, loading not counted: jieba's default tagger, and its neural mode by 64."""
    jieba.setLogLevel(logging.WARNING)
    default, neural = jieba.posseg.POSTokenizer(jieba.Tokenizer()), Lac.load()
    videos = read_sample_list(data / "esyncvidstory_test_300.json", load_template("zh"))
    texts = list(dict.fromkeys(c.text for v in videos for c in v.video.clips if c.text))
    work: dict[str, Callable[[], object]] = {
        "jieba": lambda: [list(default.cut(text)) for text in texts],
        "lac": lambda: neural.tag(texts, batch_size=64),
    }
    rates: dict[str, list[float]] = {name: [] for name in work}
    for tag in work.values():
        tag()  # tables are loaded and filled here
    for _ in range(runs):
        for name, tag in work.items():
            begin = time.perf_counter()
            tag()
            rates[name].append(len(texts) / (time.perf_counter() - begin))
    ratios = [lac / plain for lac, plain in zip(rates["lac"], rates["jieba"], strict=True)]
    per_second = {name: round(median(values)) for name, values in rates.items()}
    return {"narrations a second": per_second, "lac / jieba": round(median(ratios), 2)}
