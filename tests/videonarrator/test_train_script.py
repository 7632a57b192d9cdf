"""scripts/train.sh: one process or several, on one machine or two, asked to stop, or with bad features."""

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import time

import pytest
from cli_world import succeed
from safetensors.torch import load_file, save_file
from tiny_narrator import FEATURES, ROOT, WIDTH, clip_samples, clip_tokens, log_of

from data_process.feature_store import ClipStore

SETTINGS = """
data: {{samples: {shots}, clips: {clips}}}
model: {{backbone: {backbone}, rank: 4, alpha: 8, dropout: 0.0}}
optimization:
  {{epochs: 6, samples_per_step: 8, learning_rate: 1e-2, log_steps: 1, save_steps: 1000, workers: 1}}
"""


@pytest.fixture(scope="module")
def config(backbone, sample_videos, zh, tmp_path_factory):
    """Settings of a run of 15 steps; `output` is left out."""
    folder = tmp_path_factory.mktemp("script")
    made_from = {"features": FEATURES, "threshold": 0.9, "width": WIDTH, "dtype": "float32"}
    store = ClipStore.create(folder / "clips", made_from)
    videos = list(sample_videos.values())[:5]
    for video in videos:
        store.write(video.id, {clip: clip_tokens(video.id, clip) for clip in range(len(video.clips))}, "")
    shots = [shot for video in videos for shot in clip_samples(video, zh)]
    (folder / "shots.json").write_text(json.dumps(shots))
    told = SETTINGS.format(shots=folder / "shots.json", clips=folder / "clips", backbone=backbone)
    (folder / "train.yaml").write_text(told)
    return folder / "train.yaml"


class Started:
    """`bash scripts/train.sh CONFIG output=OUTPUT ...`, at work; what it says goes into files in `folder`."""

    def __init__(self, folder, config, output, *settings, **environment):
        folder.mkdir()
        self.out, self.err, self.output = folder / "out", folder / "err", output
        words = [config, f"output={output}", *settings]
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                ["bash", ROOT / "scripts/train.sh", *map(str, words)],
                env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def wait_for_steps(self):
        """Until two steps are done."""
        while len(self.steps) < 2:
            assert self.process.poll() is None, self.err.read_text()
            time.sleep(0.05)

    @property
    def steps(self):
        """The lines of stderr that tell of steps."""
        return [line for line in self.err.read_text().splitlines() if line.startswith("step")]

    def end(self):
        """Exit code, stdout and lines of stderr, when it has ended."""
        code = self.process.wait(timeout=300)
        return code, self.out.read_text(), self.err.read_text().splitlines()


@pytest.fixture(scope="module")
def start(config, tmp_path_factory):
    """Start the script on the settings; what is still at work in the end is killed."""
    folder, started = tmp_path_factory.mktemp("started"), []

    def begin(output, *settings, **environment):
        started.append(Started(folder / str(len(started)), config, output, *settings, **environment))
        return started[-1]

    yield begin
    for one in started:
        one.process.kill()


def last_state(run):
    return max(int(state.name[5:]) for state in (run / "states").glob("step-*"))


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    """The run as one process makes it, without a stop."""
    run = tmp_path_factory.mktemp("alone") / "run"
    assert succeed("train", "--config", config, f"output={run}").out == f"{run}/checkpoint\n"
    return run


def check_same(run, alone):
    lines, expected = log_of(run), log_of(alone)
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    for line, other in zip(lines, expected, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)


def two_machines(start, run, **environment):
    """The script on two machines, which are one here."""
    environment |= {"NUM_MACHINES": "2", "MAIN_PROCESS_IP": "127.0.0.1"}
    environment |= {"MAIN_PROCESS_PORT": str(free_port())}
    return [start(run, MACHINE_RANK=str(rank), **environment) for rank in range(2)]


def test_a_run_interrupted_goes_on_on_two_machines(start, alone, tmp_path):
    """Ctrl-C, with two processes and DDP; then FSDP, in a process on each of two machines."""
    run = tmp_path / "run"
    first = start(run, NUM_PROCESSES="2")
    first.wait_for_steps()
    os.killpg(first.process.pid, signal.SIGINT)  # as a terminal does
    code, out, err = first.end()
    assert (code, out) == (130, "") and "interrupted: what is done is kept" in err[-1]
    assert sum(line.startswith("stopping after this step") for line in err) == 1
    began = last_state(run)

    (code, out, err), other = [one.end() for one in two_machines(start, run, ACCELERATE="fsdp")]
    assert (code, out) == (0, f"{run}/checkpoint\n"), err
    assert other == (0, "", [])
    assert f"going on from {run}/states/step-{began:06d}" in err
    check_same(run, alone)


@pytest.mark.slow
def test_what_ends_one_machine_ends_the_other(start, alone, tmp_path):
    """SIGTERM to one: both save and stop. A process of one is killed: both say so. Then it goes on."""
    run = tmp_path / "run"
    here, there = two_machines(start, run)
    here.wait_for_steps()
    there.process.send_signal(signal.SIGTERM)
    for one in (here, there):
        code, out, err = one.end()
        assert (code, out) == (130, ""), err
    began = last_state(run)

    here, there = two_machines(start, run)
    here.wait_for_steps()
    (child,) = subprocess.check_output(["pgrep", "-P", str(there.process.pid)], text=True).split()
    os.kill(int(child), signal.SIGKILL)
    code, out, err = there.end()
    assert (code, out, err) == (137, "", ["error: process 1 was ended by SIGKILL"])
    code, out, err = here.end()
    assert (code, out) == (2, "") and err[0] == f"going on from {run}/states/step-{began:06d}"
    assert err[-1].startswith("error: another process of this run is gone")

    code, out, err = start(run, NUM_PROCESSES="2").end()
    assert (code, out) == (0, f"{run}/checkpoint\n"), err
    check_same(run, alone)


def test_a_finished_run_is_only_named(start, alone):
    code, out, err = start(alone, NUM_PROCESSES="1").end()
    assert (code, out) == (0, f"{alone}/checkpoint\n")
    assert err == [f"{alone}/checkpoint is already trained with these settings"]


def test_bad_features_in_one_process_end_both_with_one_message(start, config, tmp_path):
    """They are no numbers all at once; only one process has the sample."""
    shutil.copytree(config.parent / "clips", tmp_path / "clips")
    file = ClipStore.open(tmp_path / "clips").file("sample04")
    tensors = load_file(file)
    both = start(tmp_path / "run", f"data.clips={tmp_path / 'clips'}", NUM_PROCESSES="2")
    both.wait_for_steps()
    save_file(tensors | {"1": tensors["1"] * math.nan}, tmp_path / "spoiled")
    os.replace(tmp_path / "spoiled", file)
    code, out, err = both.end()
    assert (code, out) == (2, "")
    (message,) = [line for line in err if not line.startswith("step")]
    assert re.match(r"error: step \d+: the loss is nan\. It comes from .* sample04, clip 2: look", message)
