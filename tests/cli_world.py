"""Running `videonarrator` in tests, and where everything of the tiny world (cli/conftest.py) lies."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from videonarrator.cli import main

ROOT = Path(__file__).resolve().parents[1]
VIDEOS = ("sample02", "sample09", "sample39", "sample40", "sample53", "sample57")
HELD_OUT = ("sample53", "sample57")
QUICK = "max_new_tokens=8"
PRODUCT = "name: 云汀保温杯\ninfo:\n  材质: [不锈钢, 双层真空]\n  功效: 全天保温\n"


@dataclass(frozen=True)
class Run:
    """What a command gave: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        (line,) = self.out.splitlines()
        return json.loads(line)


def run(*words: object) -> Run:
    """`videonarrator WORDS`, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert isinstance(ended.value.code, int)
    return Run(ended.value.code, out.getvalue(), err.getvalue())


def start(*words: object, before: Sequence[str] = (), **environment: str) -> subprocess.Popen[str]:
    """`videonarrator WORDS` as a process of its own, started from another folder than the repository's.

    before: a program that starts it, with its own words.
    """
    command = "import sys; from videonarrator.cli import main; main()"
    return subprocess.Popen(
        [*before, sys.executable, "-c", command, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
    )


def succeed(*words: object) -> Run:
    done = run(*words)
    assert done.code == 0, done.err
    return done


def fails(done: Run, *words: str, code: int = 2) -> str:
    """Check that a run failed with one message that holds all of `words`; what it wrote to stderr."""
    assert done.code == code, (done.code, done.err)
    assert "Traceback" not in done.err
    messages = [line for line in done.err.splitlines() if line.lower().startswith(("error:", "failed:"))]
    assert len(messages) == 1, done.err
    for word in words:
        assert word in done.err, (word, done.err)
    if code == 2:
        assert done.out == ""
    return done.err


def files(folder: Path) -> set[str]:
    """Every file below `folder`, by its path in it."""
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def states(folder: Path) -> dict[str, tuple[int, int]]:
    """Of every file below `folder`, what changes when it is written anew: inode and time."""
    return {name: ((s := (folder / name).stat()).st_ino, s.st_mtime_ns) for name in files(folder)}


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


@dataclass(frozen=True)
class World:
    """Where everything of the tiny world lies. Tests leave it as it is."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "sample"

    @property
    def annotations(self) -> Path:
        return self.data / "annotations.json"

    @property
    def test_ids(self) -> Path:
        return self.data / "test_ids.txt"

    @property
    def videos(self) -> Path:
        return self.root / "videos"

    @property
    def cuts(self) -> Path:
        return self.root / "cuts"

    @property
    def encoder(self) -> Path:
        return self.root / "models" / "blip2"

    @property
    def backbone(self) -> Path:
        return self.root / "models" / "backbone"

    @property
    def features(self) -> Path:
        return self.root / "features"

    @property
    def prepared(self) -> Path:
        return self.root / "prepared"

    @property
    def config(self) -> Path:
        return self.root / "train.yaml"

    @property
    def training(self) -> Path:
        return self.root / "train"

    @property
    def checkpoint(self) -> Path:
        return self.training / "checkpoint"

    @property
    def inferred(self) -> Path:
        return self.root / "infer"

    @property
    def narrated(self) -> Path:
        return self.root / "narrate"

    @property
    def product(self) -> Path:
        return self.root / "product.yaml"

    def infer(self, out: Path, *more: object, **changed: object) -> tuple[object, ...]:
        """The words of `infer` on the held-out videos; changed: other values of its options."""
        options = {
            "annotations": self.annotations, "ids": self.test_ids, "features": self.features,
            "checkpoint": self.checkpoint, "out": out, **changed,
        }  # fmt: skip
        return "infer", *_options(options), QUICK, *more

    def narrate(self, video: Path, out: Path, *more: object, **changed: object) -> tuple[object, ...]:
        """The words of `narrate`."""
        options = {"product": self.product, "checkpoint": self.checkpoint, "out": out, **changed}
        return "narrate", video, *_options(options), QUICK, "attempts=2", *more

    def prepare(self, out: Path, **changed: object) -> tuple[object, ...]:
        options = {
            "annotations": self.annotations, "test-ids": self.test_ids, "features": self.features, "out": out,
        }  # fmt: skip
        return "prepare", *_options({**options, **{k.replace("_", "-"): v for k, v in changed.items()}})


def _options(options: dict[str, object]) -> list[object]:
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def write_sample(folder: Path) -> None:
    """data/sample, with six of its videos."""
    folder.mkdir(parents=True)
    for name in ("annotations.json", "scenes.json"):
        everything = read(ROOT / "data" / "sample" / name)
        chosen = {f"{video}.mp4": everything[f"{video}.mp4"] for video in VIDEOS}
        (folder / name).write_text(json.dumps(chosen, ensure_ascii=False), "utf-8")
    (folder / "test_ids.txt").write_text("".join(f"{video}.mp4\n" for video in HELD_OUT), "utf-8")


@dataclass(frozen=True)
class Made:
    """The tiny world, and what each of the commands that made it gave."""

    world: World
    runs: dict[str, Run]


def save(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), "utf-8")
    return path
