"""A training run that was stopped or killed goes on from its last state and ends the same."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_narrator import FEATURES, clip_tokens, log_of, started_run, ten_samples, train_config

import videonarrator.training.run as training
from videonarrator.schema import NarratorError
from videonarrator.training.loop import Stopped
from videonarrator.training.progress import Progress
from videonarrator.training.run import train
from videonarrator.training.states import last_state, whole_states, write_state

RESUMED = {"epochs": 4, "save_steps": 2, "evaluate_steps": 3, "dropout": 0.1}  # 2 updates an epoch, 8 in all


@pytest.fixture(scope="module", autouse=True)
def threads_set():
    """Said, not only found: the number of threads, once set, makes sums in another order than by default."""
    torch.set_num_threads(torch.get_num_threads())


@pytest.fixture(scope="module")
def uninterrupted(backbone, sample_videos, zh, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    shots = ten_samples(sample_videos, zh)
    train(train_config(backbone, run, **RESUMED), shots, clip_tokens, FEATURES)
    return run


def weights(run):
    files = [run / "checkpoint/trained.safetensors", run / "checkpoint/adapter/adapter_model.safetensors"]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def check_resumed(run, uninterrupted, config, shots, capsys, state):
    """The run goes on from `state` and ends as the uninterrupted one did."""
    assert not (run / "checkpoint").exists()
    capsys.readouterr()
    train(config, shots, clip_tokens, FEATURES)
    assert f"going on from {run / 'states' / state}" in capsys.readouterr().err
    expected = weights(uninterrupted)
    found = weights(run)
    assert found.keys() == expected.keys()
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    lines = [(line["step"], line["loss"]) for line in log_of(run) if "loss" in line]
    assert lines == [(line["step"], line["loss"]) for line in log_of(uninterrupted) if "loss" in line]
    assert [step for step, _ in lines] == list(range(1, 9))
    assert not (run / "states").exists()


@pytest.mark.parametrize(("step", "state"), [(3, 2), (5, 4), (7, 6), (8, 6)])
def test_a_stopped_run_goes_on_and_ends_the_same(
    backbone, shots, uninterrupted, tmp_path, monkeypatch, capsys, step, state
):
    """Stopped at once: inside an epoch, at an epoch's first step, at the last step of all."""
    config = train_config(backbone, tmp_path / "run", **RESUMED)

    def stop(self, done, facts):
        real(self, done, facts)
        if done == step:
            raise KeyboardInterrupt

    real = Progress.step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Progress, "step", stop)
        train(config, shots, clip_tokens, FEATURES)
    assert [line["step"] for line in log_of(tmp_path / "run")][-1] == step
    check_resumed(tmp_path / "run", uninterrupted, config, shots, capsys, f"step-{state:06d}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_asked_to_stop_finishes_its_step_and_saves(
    backbone, shots, uninterrupted, tmp_path, monkeypatch, capsys, number
):
    """Step 5 is no multiple of save_steps: its state is written because of the signal."""
    config = train_config(backbone, tmp_path / "run", **RESUMED)
    before = signal.getsignal(number)

    def ask(self, samples, tokens):
        if self.steps and len(log_of(tmp_path / "run")) == 4:
            os.kill(os.getpid(), number)
        real(self, samples, tokens)

    real = Progress.count
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Progress, "count", ask)
        train(config, shots, clip_tokens, FEATURES)
    assert signal.getsignal(number) is before
    assert "stopping after this step" in capsys.readouterr().err
    # asked for after the fifth step's processes had agreed to go on: the sixth is the last
    check_resumed(tmp_path / "run", uninterrupted, config, shots, capsys, "step-000006")


def test_a_state_half_written_is_passed_over(backbone, shots, uninterrupted, tmp_path, monkeypatch, capsys):
    config = train_config(backbone, tmp_path / "run", **RESUMED)

    def stop(source, target):
        if str(target).endswith("step-000004"):
            raise KeyboardInterrupt
        real(source, target)

    real = os.replace
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", stop)
        train(config, shots, clip_tokens, FEATURES)
    assert (tmp_path / "run/states/step-000004.partial/exp_avg.safetensors").is_file()
    with (tmp_path / "run/train_log.jsonl").open("a") as log:
        log.write('{"step": 4, "lo')  # and a line that the kill cut off
    check_resumed(tmp_path / "run", uninterrupted, config, shots, capsys, "step-000002")


@pytest.mark.parametrize("file", ["weights.safetensors", "exp_avg.safetensors", "state.json"])
def test_a_damaged_state_is_passed_over(file, backbone, shots, tmp_path):
    run, _ = started_run(train_config(backbone, tmp_path / "run"), shots, training.load_template("zh"))
    run.loop.model.train()
    run.loop.step(0, run.loop.batches[0])
    for step in (1, 2):
        run.done = step
        run._write(run.states / f"step-{step:06d}", with_optimizer=True)
    assert [state.name for state in whole_states(run.states)] == ["step-000001", "step-000002"]
    damaged = run.states / "step-000002" / file
    damaged.write_bytes(damaged.read_bytes()[:20])
    assert last_state(run.states) == run.states / "step-000001"


NURSERY = """
import json, os, sys
sys.path[:0] = sys.argv[1:3]
import torch
torch.set_num_threads(1)
from tiny_narrator import FEATURES, clip_tokens, train_config
from videonarrator.training.run import train

backbone, shots, settings = sys.argv[3:]
with open(shots) as file:
    samples = json.load(file)
for line in sys.stdin:
    child = os.fork()
    if not child:
        config = train_config(backbone, line.strip(), **json.loads(settings))
        train(config, samples, clip_tokens, FEATURES, samples[:3])
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Each line it is given, a run's folder, becomes a process that trains there (loading torch takes longer)."""


@pytest.fixture
def start(backbone, shots, tmp_path):
    """Start a training process in a folder: its pid, and a function that waits for its exit code."""
    here = Path(__file__).parent
    (tmp_path / "shots.json").write_text(json.dumps(shots))
    words = [here, here.parents[1], backbone, tmp_path / "shots.json", json.dumps(OFTEN)]
    with (tmp_path / "stderr").open("w") as errors:
        nursery = subprocess.Popen(
            [sys.executable, "-c", NURSERY, *map(str, words)],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip

        def begin(run):
            nursery.stdin.write(f"{run}\n")
            nursery.stdin.flush()
            return int(nursery.stdout.readline()), lambda: int(nursery.stdout.readline())

        yield begin
        nursery.stdin.close()
        nursery.wait()


OFTEN = RESUMED | {"epochs": 12, "save_steps": 1}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_run_killed_twenty_times_ends_the_same(start, tmp_path):
    """SIGKILL at random moments, start to end: also while a state, the log or the checkpoint is written.

    With held-out samples, whose best weights are kept, and dropout.
    """
    _, ended = start(tmp_path / "whole")
    began = time.monotonic()
    assert ended() == 0, (tmp_path / "stderr").read_text()
    seconds = time.monotonic() - began
    draw, kills, steps, run = random.Random(5), 0, set(), tmp_path / "run"
    while True:
        pid, ended = start(run)
        if kills < 20:
            kill_after(draw.uniform(0.05, 0.7) * seconds, pid)
        code = ended()
        assert code in (0, -signal.SIGKILL), (tmp_path / "stderr").read_text()
        kills += code != 0
        if code == 0:
            assert_same(run, tmp_path / "whole")
            if kills == 20:
                break
            run = tmp_path / f"run{kills}"  # it came to its end: from here the next one is killed
            seconds *= 0.8  # the whole run was slow, beside others
        elif state := last_state(run / "states"):
            steps.add(int(state.name[5:]))
    assert len(steps) > 5  # the kills fell into different steps


def kill_after(seconds, pid):
    """Kill a process at that moment, unless it has come to its end before."""
    moment = time.monotonic() + seconds
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < moment:
            os.kill(pid, 0)  # is it there?
            time.sleep(0.02)
        os.kill(pid, signal.SIGKILL)


def assert_same(run, whole):
    expected, found = weights(whole), weights(run)
    assert found.keys() == expected.keys()
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    told = ("step", "loss", "grad_norm", "learning_rate", "eval_loss", "best")
    lines = [
        [{key: line[key] for key in told if key in line} for line in log_of(one)] for one in (run, whole)
    ]
    assert lines[0] == lines[1] and len(lines[0]) > 2 * OFTEN["epochs"]


def test_states_of_another_model_are_refused(backbone, shots, tmp_path, zh):
    config = train_config(backbone, tmp_path / "run")
    run, _ = started_run(config, shots, zh)
    run._write(run.states / "step-000003", with_optimizer=True)
    assert last_state(run.states) == tmp_path / "run/states/step-000003"
    assert last_state(tmp_path / "nowhere") is None
    other, _ = started_run(replace(config, model=replace(config.model, adapter="full")), shots, zh)
    with pytest.raises(NarratorError, match="step-000003 is a state of another model"):
        other.go_on()


def test_what_cannot_be_written_keeps_the_last_state(backbone, shots, tmp_path, zh, monkeypatch):
    run, _ = started_run(train_config(backbone, tmp_path / "run"), shots, zh)
    run._write(run.states / "step-000001", with_optimizer=True)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("videonarrator.training.states.shutil.disk_usage", lambda folder: usage)
    message = r"step-000002: No space left on device.*The last one, .*step-000001, is whole: make room"
    with pytest.raises(NarratorError, match=message):
        write_state(run.states / "step-000002", run.narrator, run.optimizer, {})
    assert [path.name for path in run.states.iterdir()] == ["step-000001"]
    assert last_state(run.states) == run.states / "step-000001"
