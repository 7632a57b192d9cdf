"""The back ends cn_clip and open_clip give what transformers gives; run in an environment of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from metrics.encoders.clip import load_clip_encoder
from videonarrator.schema import NarratorError

ROOT = Path(__file__).resolve().parents[3]
NOT_FETCHED = 75


@pytest.fixture(scope="session")
def clip_python() -> str:
    """The python of .venv-clip, which is made here where it is not there."""
    command = ["bash", str(ROOT / "scripts" / "setup_clip_env.sh"), sys.executable]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode == NOT_FETCHED and not os.environ.get("VIDEONARRATOR_REQUIRE_SHARED"):
        pytest.skip(f"no environment with cn_clip and open_clip: {made.stderr.strip().splitlines()[-1]}")
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def test_all_back_ends_agree(clip_python: str) -> None:
    checks = Path(__file__).with_name("clip_backends") / "check_backends.py"
    done = subprocess.run(
        [clip_python, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(checks)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+ passed(?!.*skipped)", done.stdout, re.MULTILINE), done.stdout


def test_a_failed_download_leaves_nothing_behind(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$2" != pip ] || exit 1\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    failed = subprocess.run(
        ["bash", str(ROOT / "scripts" / "setup_clip_env.sh"), str(python)],
        env=os.environ | {"VIDEONARRATOR_CLIP_ENV": str(tmp_path / "environment")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (failed.returncode, failed.stdout) == (NOT_FETCHED, "")
    assert "pip could not install cn_clip" in failed.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["python"]


def test_setting_up_again_is_free(clip_python: str) -> None:
    command = ["bash", str(ROOT / "scripts" / "setup_clip_env.sh"), sys.executable]
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (again.stdout.strip(), again.stderr) == (clip_python, "")


@pytest.mark.parametrize(("backend", "package"), [("cn_clip", "cn_clip"), ("open_clip", "open_clip_torch")])
def test_a_package_that_is_not_there_is_named(
    backend: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == backend]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, backend, None)  # what an import that finds nothing sees
    with pytest.raises(NarratorError, match=rf'{package} .*pip install "videonarrator\[clip\]"'):
        load_clip_encoder("anything", backend)
