"""Many short videos for `infer`: clips of the sample videos, features drawn at random; a nursery of runs."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cli_world import ROOT, VIDEOS, World, read, save
from safetensors.torch import load_file, save_file

from data_process.feature_store import FeatureStore


@dataclass(frozen=True)
class Many:
    """annotations.json, ids.txt and features/ in `root`; `checkpoint` narrates them."""

    root: Path
    checkpoint: Path

    @property
    def annotations(self) -> Path:
        return self.root / "annotations.json"

    @property
    def features(self) -> Path:
        return self.root / "features"

    def options(self, out: Path, features: Path | None = None) -> list[str]:
        """The options of `infer`."""
        options = {
            "annotations": self.annotations, "ids": self.root / "ids.txt", "out": out,
            "features": features or self.features, "checkpoint": self.checkpoint,
        }  # fmt: skip
        return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def make_many(world: World, root: Path, number: int) -> Many:
    """`number` videos of one or two clips of the tiny world's, their narrations cut short."""
    clips = [clip for video in VIDEOS for clip in read(world.annotations)[f"{video}.mp4"]["frames"]]
    texts = [(clip["label"], clip["new_text"][:5] + "。") for clip in clips]
    annotated: dict[str, Any] = {}
    own = FeatureStore.open(world.features)
    tokens, width = own.read(VIDEOS[0])[1].shape[1:]
    root.mkdir()
    store = FeatureStore.create(root / "features", own.settings)
    draw = torch.Generator().manual_seed(3)
    for index in range(number):
        frames, second = [], 0
        for clip in range(1 + index % 2):
            label, text = texts[(5 * index + clip) % len(texts)]
            frames.append({"time": [second, second + 1 + clip % 2], "label": label, "new_text": text})
            second += 1 + clip % 2
        annotated[f"v{index:02d}.mp4"] = {
            "p_name": f"商品{index}", "p_info": "功效：全天保温", "type": "", "link": "", "frames": frames,
        }  # fmt: skip
        drawn = torch.randn(second, tokens, width, generator=draw)
        store.write(f"v{index:02d}", range(1, second + 1), drawn)
    many = Many(root, world.checkpoint)
    save(many.annotations, annotated)
    save(root / "ids.txt", "".join(f"{name}\n" for name in annotated))
    return many


def spoil(many: Many, features: Path, video: str, how: str) -> None:
    """A copy of the features, in which those of one video are no numbers, cut off or missing."""
    if not features.exists():
        shutil.copytree(many.features, features)
    file = features / f"{video}.safetensors"
    if how == "missing":
        file.unlink()
        return
    if how == "cut off":
        file.write_bytes(file.read_bytes()[:-7])
        return
    tensors = load_file(file)
    save_file(tensors | {"frames": tensors["frames"] * math.nan}, file)
    manifest = read(features / "manifest.json")
    manifest["videos"][video]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    save(features / "manifest.json", manifest)


def finished(out: Path) -> set[str]:
    """The videos that the logs of a run name as finished."""
    found = set()
    for file in out.glob("generations*.jsonl"):
        for line in file.read_bytes().split(b"\n"):
            if line.endswith(b"}"):
                found.add(json.loads(line)["video"])
    return found


NURSERY = """
import contextlib, json, os, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from videonarrator.cli import main

with contextlib.suppress(SystemExit), contextlib.redirect_stdout(sys.stderr):
    main(json.loads(sys.argv[2]))
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.dup2(2, 1)
        main(json.loads(line))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Each line it is given, the words of a command, becomes a process."""


@contextmanager
def nursery(first: list[str], said: Path) -> Iterator[Callable[[list[str]], tuple[int, Callable[[], int]]]]:
    """Start commands: gives a process's id, and a function that waits for its exit code.

    first: the words of a command that is run before, so that all libraries are loaded. said: a file for what
    all of them write.
    """
    with said.open("w") as told:
        process = subprocess.Popen(
            [sys.executable, "-c", NURSERY, str(ROOT), json.dumps(first)],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=told,
        )  # fmt: skip
    assert process.stdin and process.stdout
    commands, codes = process.stdin, process.stdout

    def start(words: list[str]) -> tuple[int, Callable[[], int]]:
        commands.write(json.dumps(words) + "\n")
        commands.flush()
        return int(codes.readline()), lambda: int(codes.readline())

    try:
        yield start
    finally:
        commands.close()
        process.wait()
