"""What processes train together in the tests: `accelerate launch ... parallel_jobs.py MATERIAL KIND`.

MATERIAL is a folder with backbone/, shots.json and held_out.json; each run becomes MATERIAL/KIND/<job>, with
what each of its processes worked with in facts-<index>.json.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_narrator import FEATURES, ROOT, clip_samples, clip_tokens, log_of, train_config

import videonarrator.training.run as training
from videonarrator.prompt import EMPTY_SLOT
from videonarrator.schema import NarratorError
from videonarrator.training.plan import orders
from videonarrator.training.progress import Progress

FORMS = {
    "packed": {"tokens_per_sequence": 500},  # parts of one video each, some of half a video
    "padded": {"packed": False, "batch_size": 3},
}
STEPS = {"epochs": 1, "samples_per_step": 8, "clip_norm": 0.3, "weight_decay": 0.1}
JOBS = {
    f"{form} {weighting}": STEPS | how | {"loss_weighting": weighting}
    for form, how in FORMS.items()
    for weighting in ("token", "sample", "microbatch")
}
JOBS["full"] = JOBS["packed token"] | {"adapter": "full", "gradient_checkpointing": True}
JOBS["bf16"] = JOBS["packed token"] | {"precision": "bf16", "projector_learning_rate": 1e-3}
JOBS["unseen"] = STEPS | {"packed": False, "batch_size": 1, "samples_per_step": 2, "order": "samples"}
JOBS["chain"] = STEPS | {"epochs": 3, "save_steps": 2, "evaluate_steps": 2, "dropout": 0.0}
HELD_OUT = ("packed token", "padded token", "chain")
"""Jobs that also measure the loss on the held-out samples, and keep the best weights."""


def config_of(job, material, kind):
    config = train_config(material / "backbone", material / kind / job, **JOBS[job])
    return replace(config, model=replace(config.model, compat="upstream")) if job == "unseen" else config


def shots_of(job, material):
    """The samples of a job; in "unseen" one of the two of each step has no slot, and shows nothing."""
    shots = json.loads((material / "shots.json").read_text("utf-8"))
    if job != "unseen":
        return shots
    (order,) = orders(8, 1, train_config("", "").optimization.seed)
    return [
        shot | {"inputs": shot["inputs"].replace(f"场景：{EMPTY_SLOT}\n", "")}
        if index in order[::2]
        else shot
        for index, shot in enumerate(shots[:8])
    ]


def train_job(job, material, kind, until=None):
    """Train a job (stop it when it has taken `until` steps); the run as it was in memory."""
    runs = []

    class Kept(training.Run):
        def __init__(self, *words):
            super().__init__(*words)
            runs.append(self)

    def stop(self, done, facts):
        real(self, done, facts)
        if done == until:
            raise KeyboardInterrupt

    real = Progress.step
    config, shots = config_of(job, material, kind), shots_of(job, material)
    held_out = json.loads((material / "held_out.json").read_text("utf-8")) if job in HELD_OUT else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "Run", Kept)
        patch.setattr(Progress, "step", stop)
        patch.setattr(Progress, "draw", lambda self, **how: None)  # takes as long as the training
        if until:
            with pytest.raises(KeyboardInterrupt):
                training.train(config, shots, clip_tokens, FEATURES, held_out)
        else:
            training.train(config, shots, clip_tokens, FEATURES, held_out)
    return runs[0]


def facts_of(run):
    """What a process worked with: wrappers, kinds of parameters, tokens of each step's micro-batches."""
    batches = run.loop.batches
    return {
        "wrapper": [one.__name__ for one in type(run.model).__mro__],
        "parameters": sorted({type(one).__name__ for one in run.narrator.parameters()}),
        "device": str(run.processes.device),
        "tokens": [[one.tokens for one in batches[step]] for step in range(len(batches))],
        "shown": [[len(one.tensors["visual"]) for one in batches[step]] for step in range(len(batches))],
    }


def train_all(material, kind, until=None):
    """Train every job (stop "chain" when it has taken `until` steps)."""
    for job in JOBS:
        run = train_job(job, material, kind, until if job == "chain" else None)
        file = material / kind / job / f"facts-{run.processes.index}.json"
        file.write_text(json.dumps(facts_of(run)))


def fail_in_one(material, kind):
    """Train until a process, the second one alone, cannot read the features of the second step."""
    done = []

    def tokens(video, clip):
        if done and os.environ["RANK"] == "1":
            raise NarratorError(f"the features of {video} cannot be read")
        return clip_tokens(video, clip)

    config = train_config(material / "backbone", material / kind / "failed", **STEPS, save_steps=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "step", lambda self, *words: done.append(words))
        training.train(config, shots_of("failed", material), tokens, FEATURES)


# -------------------- for the tests


def make_material(folder, backbone, videos, template):
    """The folder in which one process has trained every job, and begun "chain" in "one"."""
    (folder / "backbone").symlink_to(backbone)
    for name, chosen in (("shots", videos[:5]), ("held_out", videos[5:7])):
        samples = [shot for video in chosen for shot in clip_samples(video, template)]
        (folder / f"{name}.json").write_text(json.dumps(samples))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train_all(folder, "whole")
    train_job("chain", folder, "one", 3)
    torch.set_num_threads(threads)


def launch(configuration, material, kind, until, python=sys.executable):
    """Two processes, by `accelerate launch`, train every job in `material/kind`; what they said is in `told`.

    until: the step after which they stop "chain".
    """
    options = {"config_file": ROOT / f"configs/accelerate/{configuration}.yaml", "num_processes": 2}
    options |= {"num_machines": 1, "main_process_port": 0}
    done = subprocess.run(
        [
            *(python, "-m", "accelerate.commands.launch"),
            *(str(word) for name, value in options.items() for word in (f"--{name}", value)),
            *map(str, (__file__, material, kind, until)),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert (material / kind / "failed").is_dir(), done.stderr  # that comes last
    (material / kind / "told").write_text(f"{done.returncode}\n{done.stderr}")


def check_failure(material, kind):
    """What `fail_in_one` failed of was told once; nothing saved before is lost."""
    code, *lines = (material / kind / "told").read_text().splitlines()
    assert code == "1"  # which `accelerate launch` makes of every other
    (message,) = [line for line in lines if "NarratorError" in line]
    assert re.search(r"\[rank1\].*: step 2: the features of sample\d+ cannot be read", message)
    assert "[rank0]" not in "".join(lines)
    assert [path.name for path in (material / kind / "failed/states").iterdir()] == ["step-000001"]


def move_chain(material, source, target):
    """A stopped run's folder to where another kind goes on with it."""
    shutil.copytree(material / source / "chain", material / target / "chain")
    record = material / target / "chain/run.json"
    record.write_text(record.read_text().replace(f"/{source}/chain", f"/{target}/chain"))


def notes_of(run):
    """Of a run, what each of its processes worked with."""
    return [json.loads(file.read_text()) for file in sorted(run.glob("facts-*.json"))]


def weights_of(checkpoint):
    files = checkpoint.rglob("*.safetensors")
    return {f"{file.name} {name}": tensor for file in files for name, tensor in load_file(file).items()}


LOSS, NORM, WEIGHT = 1e-6, 1e-5, 1e-4
"""How far two processes may be from one in float32: losses and gradient norms relatively, weights (which a
step moves by the learning rate, 1e-2) absolutely; the mean of a tensor's a tenth of that."""


def assert_same_run(run, whole, loss=LOSS, norm=NORM, weight=WEIGHT):
    """The same losses, gradient norms, learning rates and weights, as far as arithmetic goes."""
    lines, expected = log_of(run), log_of(whole)
    assert len(lines) == len(expected) > 2
    for line, other in zip(lines, expected, strict=True):
        assert line.keys() == other.keys()
        for name, far in {"loss": loss, "eval_loss": loss, "grad_norm": norm}.items():
            if name in line:
                assert line[name] == pytest.approx(other[name], rel=far), (line["step"], name)
        for name in {"step", "learning_rate", "epoch", "best"} & line.keys():
            assert line[name] == other[name]
    found, known = weights_of(run / "checkpoint"), weights_of(whole / "checkpoint")
    assert found.keys() == known.keys()
    for name, tensor in known.items():
        far = (found[name].float() - tensor.float()).abs()
        assert far.max() < weight and far.mean() < weight / 10, name


def assert_same_parts(material, kind, job):
    """The two processes computed the micro-batches that one does, each as often, some of these idle."""
    one, (first, second) = notes_of(material / "whole" / job)[0], notes_of(material / kind / job)
    for alone, here, there in zip(one["tokens"], first["tokens"], second["tokens"], strict=True):
        assert len(here) == len(there) < len(alone)
        assert sorted(tokens for tokens in here + there if tokens) == sorted(alone)
    idle = [0 in step for step in first["tokens"] + second["tokens"]]
    assert any(idle) == (job != "unseen") and not all(idle)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    train_all(folder, kind, int(sys.argv[3]))
    fail_in_one(folder, kind)
