"""Two processes by DeepSpeed (ZeRO-2) train as one does, on CPUs.

By the Python in $VIDEONARRATOR_DEEPSPEED_PYTHON, or the running one. The first time DeepSpeed compiles an
operator, which takes minutes.
"""

import os
import subprocess
import sys
from pathlib import Path

import parallel_jobs
import pytest
from parallel_jobs import (
    JOBS,
    assert_same_parts,
    assert_same_run,
    check_failure,
    launch,
    make_material,
    move_chain,
    notes_of,
)
from tiny_narrator import WIDTH

from videonarrator.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def material(backbone, sample_videos, zh, tmp_path_factory):
    """The folder in which one process has trained every job, and then two processes."""
    python = os.environ.get("VIDEONARRATOR_DEEPSPEED_PYTHON", sys.executable)
    tried = subprocess.run([python, "-c", "import deepspeed"], capture_output=True, text=True)
    if tried.returncode:
        last = tried.stderr.strip().splitlines()[-1]
        pytest.skip(f"{python} cannot import deepspeed ({last}): set VIDEONARRATOR_DEEPSPEED_PYTHON")
    folder = tmp_path_factory.mktemp("deepspeed")
    make_material(folder, backbone, list(sample_videos.values()), zh)
    move_chain(folder, "one", "zero")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}")  # for ninja
        launch("deepspeed_zero2", folder, "zero", 5, python)
    return folder


@pytest.mark.parametrize("job", [job for job in JOBS if job not in ("bf16", "chain")])
def test_two_processes_train_as_one_does(material, job):
    assert_same_run(material / "zero" / job, material / "whole" / job)
    assert_same_parts(material, "zero", job)
    for one in notes_of(material / "zero" / job):
        assert one["wrapper"][0] == "DeepSpeedEngine" and one["parameters"] == ["Parameter"]


def test_in_bfloat16_two_processes_train_nearly_as_one_does(material):
    assert_same_run(material / "zero/bf16", material / "whole/bf16", loss=1e-3, norm=2e-2, weight=3e-2)


def test_a_run_goes_on_with_other_processes_than_it_began_with(material):
    """One process, then two by DeepSpeed, then one again; each reads the state that the last one wrote."""
    states = sorted(path.name for path in (material / "zero/chain/states").glob("step-*"))
    assert states == ["step-000002", "step-000004"]
    move_chain(material, "zero", "one again")
    parallel_jobs.train_job("chain", material, "one again")
    assert_same_run(material / "one again/chain", material / "whole/chain")


def test_an_error_in_one_process_ends_both_with_one_message(material):
    check_failure(material, "zero")


def test_their_checkpoint_is_one_like_any_other(material):
    checkpoint = load_checkpoint(material / "zero/packed token/checkpoint")
    assert checkpoint.narrator.projector.position.weight.shape == (100, WIDTH)
