"""LAVIS's own code in an environment of its own."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from lavis_helpers import NEAR, ROOT, largest, write_pair


def test_the_environments_script_says_what_it_lacks(tmp_path):
    """Another Python than LAVIS can have: 1. Packages that cannot be fetched: 75. Pythons are played here."""

    def run(python):
        (tmp_path / "python").write_text(f"#!/bin/sh\n{python}\n")
        (tmp_path / "python").chmod(0o755)
        return subprocess.run(
            ["bash", str(ROOT / "scripts" / "setup_lavis_env.sh"), str(tmp_path / "python")],
            env=os.environ | {"VIDEONARRATOR_LAVIS_ENV": str(tmp_path / "env")},
            capture_output=True,
            text=True,
        )

    refused = run("exit 1")
    assert refused.returncode == 1 and "Python 3.11" in refused.stderr and not (tmp_path / "env").exists()
    pip = r"for file; do :; done; cat $file >&2; exit 1"  # it only says what it was asked for
    venv = rf"mkdir -p $3/bin; printf '#!/bin/sh\n{pip}\n' > $3/bin/python; chmod +x $3/bin/python"
    lacking = run(f'if [ "$2" = venv ]; then {venv}; fi')
    assert lacking.returncode == 75 and lacking.stdout == ""
    listed = yaml.safe_load((ROOT / "environment-lavis.yml").read_text("utf-8"))["dependencies"][-1]["pip"]
    assert [line for line in lacking.stderr.splitlines() if not line.startswith("setup:")] == listed


@pytest.mark.slow
def test_lavis_own_code_gives_the_same_features(tensors, converted, tmp_path):
    """In LAVIS's environment, on a video, with the same frames and store (scripts/setup_lavis_env.sh)."""
    from video_helpers import write_video

    from data_process.extract import extract
    from data_process.feature_store import FeatureStore

    python = Path(os.environ.get("VIDEONARRATOR_LAVIS_ENV") or ROOT / ".venv-lavis") / "bin" / "python"
    if not python.is_file():
        pytest.skip("no environment of LAVIS's: scripts/setup_lavis_env.sh makes it (some 7 GB)")
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (96, 128, 3), dtype=np.uint8) for _ in range(12)]
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "v.mp4", pictures, fps=5)
    words = tensors["Qformer.bert.embeddings.word_embeddings.weight"].shape[0] - 1  # LAVIS adds [DEC]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{n}" for n in range(words))][:words]
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    pair = write_pair(tmp_path / "pair", tensors)
    command = [
        str(python), "-W", "ignore", "-m", "data_process.lavis_features", str(tmp_path / "videos"),
        "--out", str(tmp_path / "theirs"), "--checkpoint", str(pair), "--bert", str(tmp_path / "bert"),
        "--sizes", str(converted / "config.json"),
    ]  # fmt: skip
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert json.loads(ended.stdout.splitlines()[-1])["failed"] == {}
    assert extract([tmp_path / "videos" / "v.mp4"], str(converted), tmp_path / "ours") == {}
    ours, theirs = FeatureStore.open(tmp_path / "ours"), FeatureStore.open(tmp_path / "theirs")
    moves = ("encoder", "encoder_sha256")
    assert {k: v for k, v in ours.settings.items() if k not in moves} == {
        k: v for k, v in theirs.settings.items() if k not in moves
    }
    (numbers, features), (their_numbers, their_features) = ours.read("v")[:2], theirs.read("v")[:2]
    assert numbers.equal(their_numbers) and features.shape == their_features.shape
    assert largest(features, their_features) < NEAR
