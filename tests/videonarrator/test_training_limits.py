"""Memory and disks that are full: a message that says what to do, and all that was saved is whole."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_world import ROOT, succeed
from safetensors.torch import load_file
from tiny_narrator import FEATURES, clip_tokens, log_of, started_run, train_config
from training_world import after_step, contents, small_files, write_settings

from videonarrator.checkpoint import load_checkpoint, read_info, save_checkpoint
from videonarrator.schema import NarratorError
from videonarrator.training.loop import naming_memory
from videonarrator.training.plan import orders
from videonarrator.training.run import train
from videonarrator.training.states import whole_states

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits are set as on Linux")

SETTINGS = {"epochs": 3, "samples_per_step": 4, "save_steps": 1, "keep_states": 9}
"""A step is one video's samples: 6 in all."""


def steps_saved(output):
    return [int(state.name[5:]) for state in whole_states(output / "states")]


def weights(output):
    return load_file(output / "checkpoint/adapter/adapter_model.safetensors")


# -------------------- memory

LIMITED = """
import json, resource, sys
from cli_world import run
from training_world import after_step
from pytest import MonkeyPatch

def limit():
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]), hard))

told, hard = [], resource.getrlimit(resource.RLIMIT_AS)[1]
for words in sys.argv[2:]:
    with MonkeyPatch.context() as patch:
        after_step(patch, 1, limit)
        done = run(*words.split("\\n"))
        told.append({"code": done.code, "out": done.out, "err": done.err})
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
print(json.dumps(told))
"""
"""Commands, each of which may take only so many bytes more than it has after its first step."""


def long_video(shots, times):
    """The first video's samples with its product told at great length, under another name."""
    video = [shot for shot in shots if shot["id"] == shots[0]["id"]]
    head, told, rest = re.match(r"(.*?\n)(痛点.*?\n)(.*)", video[0]["inputs"], re.DOTALL).groups()
    assert video[0]["inputs"] == head + told + rest
    return [
        shot | {"id": "long", "inputs": shot["inputs"].replace(told, told * times, 1)} for shot in video[:1]
    ]


def test_memory_that_runs_out(backbone, shots, tmp_path):
    """A real one: the second step's sequence, or that of a held-out sample, is much longer than the first."""
    large = tmp_path / "backbone"
    shutil.copytree(backbone, large)
    config = json.loads((large / "config.json").read_text())
    (large / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
    long = long_video(shots, 250)
    seed = next(seed for seed in range(20) if orders(2, 1, seed) == [[0, 1]])
    changes = {"epochs": 1, "samples_per_step": 1, "save_steps": 1, "tokens_per_sequence": 8192, "seed": seed}
    trained = write_settings(tmp_path / "trained", large, [*shots[:6], *long], **changes)
    held_out = write_settings(tmp_path / "held_out", large, shots, long, **changes, evaluate_steps=1)
    done = in_a_process(LIMITED, 24 << 20, *("\n".join(map(str, words)) for words in (trained, held_out)))
    for told, folder, saved in zip(done, ("trained", "held_out"), ([1], []), strict=True):
        assert (told["code"], told["out"]) == (2, ""), told["err"]
        (said,) = [line for line in told["err"].splitlines() if line.startswith("error:")]
        found = re.search(r"out of memory on sample of video long, clip 1: 1 x (\d+) tokens at once", said)
        assert found and int(found[1]) > 3000, said
        for setting in ("tokens_per_sequence", "batch_size", "gradient_checkpointing=true", "precision bf16"):
            assert setting in said
        assert steps_saved(tmp_path / folder / "run") == saved
        assert [line["step"] for line in log_of(tmp_path / folder / "run")] == [1]
    assert "going on from" in succeed(*trained).err  # where there is memory, from there
    assert [line["step"] for line in log_of(tmp_path / "trained/run")] == [1, 2]


def in_a_process(program, *words, before=()):
    """What a program (see above) printed, as JSON."""
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{here}:{here.parent}", "OMP_NUM_THREADS": "1"}
    command = [*before, sys.executable, "-c", program, *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_only_memory_errors_are_taken_for_such(backbone, shots, zh, tmp_path):
    run_, _ = started_run(train_config(backbone, tmp_path / "run"), shots, zh)
    micro_batch = run_.loop.batches[0][0]
    others = len(micro_batch.names) - 1
    message = rf"out of memory on {micro_batch.names[0]} and {others} more: 1 x \d+ tokens at once\. Lower"
    with pytest.raises(NarratorError, match=message), naming_memory(micro_batch):
        torch.empty(1 << 60)
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("std::bad_alloc"),
    ):
        with pytest.raises(NarratorError, match=message), naming_memory(micro_batch):
            raise error
    with pytest.raises(RuntimeError, match="cannot be multiplied"), naming_memory(micro_batch):
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    micro_batch.tensors["visual"] = micro_batch.tensors["visual"][:-1]
    with pytest.raises(ValueError, match="visual slots in the text"):
        run_.loop.step(0, [micro_batch])


# -------------------- disks


@pytest.fixture(scope="module")
def whole(backbone, sample_videos, zh, tmp_path_factory):
    """A run that nothing happened to."""
    from tiny_narrator import ten_samples

    output = tmp_path_factory.mktemp("runs") / "whole"
    samples = ten_samples(sample_videos, zh)
    train(train_config(backbone, output, **SETTINGS), samples, clip_tokens, FEATURES, samples[:3])
    return output


@pytest.mark.parametrize("held_out", [0, 3])
def test_states_that_cannot_be_written(backbone, shots, whole, tmp_path, monkeypatch, capsys, held_out):
    """The state's file, or that of the best weights, cannot grow: safetensors fails as on a full disk."""
    output = tmp_path / "run"
    settings = SETTINGS | {"evaluate_steps": 4}
    words = (train_config(backbone, output, **settings), shots, clip_tokens, FEATURES, shots[:held_out])
    limits = []

    def fill():
        limits.append(small_files(100_000))
        limits[0].__enter__()

    with monkeypatch.context() as patch:
        after_step(patch, 4, fill)
        try:
            with pytest.raises(NarratorError) as caught:
                train(*words)
        finally:
            limits[0].__exit__(None, None, None)
    lost = "best-000004" if held_out else "step-000004"
    assert f"cannot write the state {output / 'states' / lost}: " in str(caught.value)
    assert "File too large" in str(caught.value)
    kept = output / "states/step-000003"
    assert f"The last one, {kept}, is whole: make room, and the same" in str(caught.value)
    assert steps_saved(output) == [1, 2, 3]
    assert {path.name for path in (output / "states").iterdir()} == {f"step-{n:06d}" for n in (1, 2, 3)}
    capsys.readouterr()
    train(*words)
    assert f"going on from {kept}" in capsys.readouterr().err
    if not held_out:
        losses = [[line["loss"] for line in log_of(one) if "loss" in line] for one in (output, whole)]
        assert losses[0] == losses[1]


def test_a_last_state_or_checkpoint_that_cannot_be_written(backbone, shots, tmp_path):
    """The last weights are small here (the projector's), the checkpoint's are not."""
    output = tmp_path / "run"
    config = train_config(backbone, output, **SETTINGS, adapter="projector")
    for limit, message in (
        (3_000, "cannot write the state .*step-000001.*There is none before it"),
        (
            30_000,
            r"cannot write the checkpoint .*/run/checkpoint: .*File too large.* type the same command again",
        ),
    ):
        with small_files(limit), pytest.raises(NarratorError, match=message):
            train(config, shots, clip_tokens, FEATURES)
        assert not [path.name for path in output.iterdir() if path.name.startswith("checkpoint")]
    assert steps_saved(output) == [1, 2, 3, 4, 5]
    train(config, shots, clip_tokens, FEATURES)
    read_info(output / "checkpoint")  # whole


@pytest.mark.parametrize("file", ["tokenizer/tokenizer.json", "adapter/adapter_model.safetensors"])
def test_a_checkpoint_is_written_whole_or_not_at_all(lora_run, tmp_path, file):
    loaded = load_checkpoint(lora_run[0] / "checkpoint", merge=False)
    words = (loaded.narrator, loaded.tokenizer, loaded.template, loaded.info)
    folder = tmp_path / "checkpoint"
    limit = (lora_run[0] / "checkpoint" / file).stat().st_size - 1
    with small_files(limit), pytest.raises(NarratorError, match=r"cannot write the checkpoint .* Make room"):
        save_checkpoint(folder, *words)
    assert list(tmp_path.iterdir()) == []
    save_checkpoint(folder, *words)
    before = contents(folder)
    with torch.no_grad():
        loaded.narrator.projector.linear.bias += 1
    with small_files(limit), pytest.raises(NarratorError, match="cannot write the checkpoint"):
        save_checkpoint(folder, *words)
    assert contents(tmp_path) == before
    read_info(folder)


FULL_DISK = """
import json, subprocess, sys
from pathlib import Path
from cli_world import run
from training_world import after_step
from pytest import MonkeyPatch

disk, words = Path(sys.argv[1]), sys.argv[2:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
ballast = disk / "ballast"

def fill():
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass

def facts(done):
    states = [state.name for state in (disk / "run/states").glob("*")]
    log = (disk / "run/train_log.jsonl").read_text().splitlines()
    return {"code": done.code, "out": done.out, "err": done.err, "states": sorted(states), "log": log}

with MonkeyPatch.context() as patch:
    after_step(patch, 3, fill)
    first = facts(run(*words))
ballast.unlink()
second = facts(run(*words))
whole = (disk / "run/checkpoint/narrator.json").is_file()
print(json.dumps([first, second, whole]))
"""
"""The command on a disk of its own that is full after three steps; then with room."""


@pytest.fixture(scope="module")
def unshared():
    """Words before a program that may then mount disks which nobody else sees."""
    words = ["unshare", "--user", "--map-root-user", "--mount"]
    trial = [*words, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if not shutil.which("unshare") or subprocess.run(trial, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    return words


def test_a_full_disk(unshared, backbone, shots, tmp_path):
    words, disk = write_settings(tmp_path, backbone, shots, **SETTINGS), tmp_path / "disk"
    disk.mkdir()
    output = disk / "run"
    first, second, whole = in_a_process(FULL_DISK, disk, *words, f"output={output}", before=unshared)
    saved = [f"step-{step:06d}" for step in (1, 2)]
    assert (first["code"], first["out"], first["states"]) == (2, "", saved), first["err"]
    assert "Traceback" not in first["err"] and first["err"].count("error:") == 1
    lost, last = (disk / f"run/states/step-{step:06d}" for step in (3, 2))
    assert f"error: cannot write the state {lost}: No space left on device: " in first["err"]
    assert f"The last one, {last}, is whole" in first["err"]
    assert "loss_curve.png is not drawn: [Errno 28] No space left" in first["err"]
    assert [json.loads(line)["step"] for line in first["log"]] == [1, 2, 3]
    assert f"going on from {last}" in second["err"]
    assert (second["code"], second["out"], whole) == (0, f"{disk / 'run/checkpoint'}\n", True), second["err"]
    assert [json.loads(line)["step"] for line in second["log"]] == list(range(1, 7))
