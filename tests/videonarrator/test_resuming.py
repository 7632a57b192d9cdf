"""A training run that was stopped or killed goes on from its last state and ends the same."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_narrator import FEATURES, as_started, clip_tokens, log_of, ten_samples, train_config

import videonarrator.training as training
from videonarrator.schema import NarratorError
from videonarrator.training import train

RESUMED = {"epochs": 3, "save_steps": 2, "dropout": 0.1}  # 3 updates an epoch, 9 in all


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
    assert [step for step, _ in lines] == list(range(1, 10))
    assert not (run / "states").exists()


@pytest.mark.parametrize(("step", "state"), [(3, 2), (7, 6), (9, 8)])
def test_a_stopped_run_goes_on_and_ends_the_same(
    backbone, shots, uninterrupted, tmp_path, monkeypatch, capsys, step, state
):
    """Stopped in the first epoch, at an epoch's first step (6 is the end of the second), at the last one."""
    config = train_config(backbone, tmp_path / "run", **RESUMED)

    def stop(self, args, state, control, logs=None, **kwargs):
        real(self, args, state, control, logs=logs, **kwargs)
        if state.global_step == step:
            raise KeyboardInterrupt

    real = training.Progress.on_log
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Progress, "on_log", stop)
        train(config, shots, clip_tokens, FEATURES)
    assert [line["step"] for line in log_of(tmp_path / "run")][-1] == step
    check_resumed(tmp_path / "run", uninterrupted, config, shots, capsys, f"checkpoint-{state}")


def test_a_state_half_written_is_passed_over(backbone, shots, uninterrupted, tmp_path, monkeypatch, capsys):
    config = train_config(backbone, tmp_path / "run", **RESUMED)

    def stop(self, output_dir):
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        real(self, output_dir)

    real = training.NarratorTrainer._save_rng_state
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.NarratorTrainer, "_save_rng_state", stop)
        train(config, shots, clip_tokens, FEATURES)
    assert (tmp_path / "run/states/checkpoint-4/optimizer.pt").is_file()
    with (tmp_path / "run/train_log.jsonl").open("a") as log:
        log.write('{"step": 4, "lo')  # and a line that the kill cut off
    check_resumed(tmp_path / "run", uninterrupted, config, shots, capsys, "checkpoint-2")


KILLED = """
import json, os, signal, sys
sys.path[:0] = sys.argv[1:3]
import torch
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
from tiny_narrator import FEATURES, clip_tokens, train_config
import videonarrator.training as training

def kill(self, args, state, control, logs=None, **kwargs):
    real(self, args, state, control, logs=logs, **kwargs)
    if state.global_step == 5:
        os.kill(os.getpid(), signal.SIGKILL)

real, training.Progress.on_log = training.Progress.on_log, kill
backbone, run, shots, settings = sys.argv[3:]
config = train_config(backbone, run, **json.loads(settings))
with open(shots) as file:
    training.train(config, json.load(file), clip_tokens, FEATURES)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_run_goes_on_and_ends_the_same(backbone, shots, uninterrupted, tmp_path, capsys):
    """kill -9 in the middle of the second epoch, one update after the last state."""
    here = Path(__file__).parent
    run = tmp_path / "run"
    (tmp_path / "shots.json").write_text(json.dumps(shots))
    words = [here, here.parents[1], backbone, run, tmp_path / "shots.json", json.dumps(RESUMED)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, words)], env=environment, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [line["step"] for line in log_of(run)] == [1, 2, 3, 4, 5]
    config = train_config(backbone, run, **RESUMED)
    check_resumed(run, uninterrupted, config, shots, capsys, "checkpoint-4")


def test_states_of_another_model_are_refused(backbone, shots, tmp_path, monkeypatch):
    run = tmp_path / "run"
    config = train_config(backbone, run, epochs=1, save_steps=1)
    monkeypatch.setattr(training, "save_checkpoint", None)  # so that the states stay
    with pytest.raises(TypeError):
        train(config, shots, clip_tokens, FEATURES)
    state = training.last_state(run / "states")
    assert state == run / "states/checkpoint-3"
    other, _, _ = as_started(
        replace(config, model=replace(config.model, adapter="full")), shots, training.load_template("zh")
    )
    trainer = training.NarratorTrainer(
        model=other, args=training.training_arguments(config.optimization, tmp_path / "x")
    )
    with pytest.raises(NarratorError, match="checkpoint-3 is a state of another model"):
        trainer._load_from_checkpoint(str(state))
    assert training.last_state(tmp_path / "nowhere") is None
