"""Two processes, by DDP and by FSDP, train as one does: on CPUs, started by `accelerate launch`."""

import sys

import parallel_jobs
import pytest
from parallel_jobs import (
    HELD_OUT,
    JOBS,
    assert_same_parts,
    assert_same_run,
    check_failure,
    launch,
    make_material,
    move_chain,
    notes_of,
)
from tiny_narrator import WIDTH, clip_samples, clip_tokens, log_of, train_config

from videonarrator.checkpoint import load_checkpoint
from videonarrator.dataset import ClipSamples
from videonarrator.schema import NarratorError
from videonarrator.training.building import build_narrator
from videonarrator.training.forms import form_of
from videonarrator.training.parallel import Processes

KINDS = ("ddp", "fsdp")
CHAIN = {"one": 3, "ddp": 5, "fsdp": 7}
"""The run that goes on and on: each kind stops after that step, with a state of the step before."""


@pytest.fixture(scope="module")
def material(backbone, sample_videos, zh, tmp_path_factory):
    """The folder in which one process has trained every job; and then two processes, of either kind."""
    folder = tmp_path_factory.mktemp("parallel")
    make_material(folder, backbone, list(sample_videos.values()), zh)
    for before, kind in zip(CHAIN, KINDS, strict=False):
        move_chain(folder, before, kind)
        launch(kind, folder, kind, CHAIN[kind])
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("job", [job for job in JOBS if job not in ("bf16", "chain")])
def test_two_processes_train_as_one_does(material, kind, job):
    assert_same_run(material / kind / job, material / "whole" / job)
    assert_same_parts(material, kind, job)
    lines = log_of(material / kind / job)
    assert sum(line.get("grad_norm", 0) > JOBS[job]["clip_norm"] for line in lines) > 1  # clipping matters
    assert any("eval_loss" in line for line in lines) == (job in HELD_OUT)


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_two_processes_train_nearly_as_one_does(material, kind):
    """Frozen weights of 16 bits and trained ones of 32 in the same layer."""
    assert_same_run(material / kind / "bf16", material / "whole/bf16", loss=1e-3, norm=2e-2, weight=3e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_that_shows_nothing_may_be_all_that_a_process_has(material, kind):
    """Each step has a sample for each process, and what trains the projector is in one of them only."""
    first, second = notes_of(material / kind / "unseen")
    for here, there in zip(first["shown"], second["shown"], strict=True):
        assert sorted(map(bool, here + there)) == [False, True]


def test_processes_work_together_as_the_configuration_says(material):
    """accelerate itself makes DDP of an FSDP configuration on CPUs, and of DDP's processes that are alone."""
    for job in JOBS:
        whole, ddp, fsdp = (notes_of(material / kind / job) for kind in ("whole", *KINDS))
        assert len(whole) == 1 and len(ddp) == len(fsdp) == 2
        assert whole[0]["wrapper"][0] == "Narrator" and whole[0]["parameters"] == ["Parameter"]
        for one in ddp:
            assert one["wrapper"][0] == "DistributedDataParallel" and one["parameters"] == ["Parameter"]
        for one in fsdp:
            assert "FSDPModule" in one["wrapper"] and one["parameters"] == ["DTensor"]


def test_a_run_goes_on_with_other_processes_than_it_began_with(material):
    """One process, then two by DDP, two by FSDP, one again; each reads the state that the last one wrote."""
    move_chain(material, "fsdp", "one again")
    parallel_jobs.train_job("chain", material, "one again")
    assert_same_run(material / "one again/chain", material / "whole/chain")
    states = {
        kind: sorted(path.name for path in (material / kind / "chain/states").glob("step-*"))
        for kind in CHAIN
    }
    steps = {"one": (2,), "ddp": (2, 4), "fsdp": (4, 6)}  # the newest two are kept
    assert states == {kind: [f"step-{step:06d}" for step in done] for kind, done in steps.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_in_one_process_ends_all_with_one_message(material, kind):
    check_failure(material, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_their_checkpoint_is_one_like_any_other(material, kind):
    checkpoint = load_checkpoint(material / kind / "packed token/checkpoint")
    assert checkpoint.narrator.projector.position.weight.shape == (100, WIDTH)


@pytest.mark.parametrize(
    ("environment", "precision", "message"),
    [
        ({}, "fp32", r"DeepSpeed, which cannot be imported.*pip install .*or launch with ACCELERATE=ddp"),
        ({"ZERO_STAGE": "3"}, "fp32", r"zero_stage 3.*expected zero_stage 1 or 2 and nothing else"),
        ({"OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "fp32", "offload_optimizer_device cpu.*expected"),
        ({}, "fp16", "fp16"),
    ],
)
def test_deepspeed_that_cannot_be_had_is_an_error(monkeypatch, environment, precision, message):
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # as where it is not installed
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    for name, value in environment.items():
        monkeypatch.setenv(f"ACCELERATE_DEEPSPEED_{name}", value)
    with pytest.raises(NarratorError, match=message):
        Processes(precision)


def test_the_tokens_of_a_step_are_shared_out_evenly(backbone, sample_videos, zh, tmp_path):
    """No process has much more to do than the mean, and so none waits long."""
    config = train_config(backbone, tmp_path, samples_per_step=128, tokens_per_sequence=4096, epochs=3)
    _, tokenizer = build_narrator(config, WIDTH)
    shots = [shot for video in sample_videos.values() for shot in clip_samples(video, zh)]
    dataset = ClipSamples(shots, clip_tokens, tokenizer, zh, WIDTH)
    form = form_of(config.optimization, dataset, tokenizer.pad_token_id, packed=True)
    for step in range(len(form) - 1):  # the last one has what is left
        groups = form.groups(step, 2)
        tokens = [sum(tree.length for group in given for tree in group) for given in groups]
        assert max(tokens) < 1.03 * sum(tokens) / 2
