"""What goes wrong in training is told in words that name the sample, and costs nothing that was saved."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from cli_world import fails, run, succeed
from safetensors.torch import load_file, save_file
from tiny_narrator import (
    FEATURES,
    as_started,
    clip_tokens,
    log_of,
    started_run,
    ten_samples,
    train_and_keep,
    train_config,
)
from training_world import after_step, contents, write_settings

from data_process.feature_store import ClipStore
from videonarrator.prompt import parse_inputs
from videonarrator.schema import NarratorError
from videonarrator.settings import OptimizationSettings
from videonarrator.training.loop import Prepared, culprits
from videonarrator.training.run import train
from videonarrator.training.states import whole_states

SETTINGS = {"epochs": 4, "samples_per_step": 4, "save_steps": 1, "keep_states": 9}
"""A step is one video's samples: 8 in all."""


def name_of(sample):
    return f"video {sample['id']}, clip {sample['shot_loc']}"


def steps_named(output):
    return [state.name for state in whole_states(output / "states")]


class Source:
    """Visual tokens that may turn out otherwise later on."""

    def __init__(self):
        self.spoiled = {}

    def __call__(self, video_id, clip):
        return self.spoiled.get((video_id, clip), clip_tokens(video_id, clip))

    def spoil(self, sample, value):
        place = sample["id"], sample["shot_loc"] - 1
        self.spoiled[place] = torch.full_like(clip_tokens(*place), value)


def weights(output):
    return load_file(output / "checkpoint/adapter/adapter_model.safetensors")


@pytest.fixture(scope="module")
def expected(backbone, sample_videos, zh, tmp_path_factory):
    """The weights at the end of a run in which nothing went wrong."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    train(train_config(backbone, output, **SETTINGS), ten_samples(sample_videos, zh), clip_tokens, FEATURES)
    return weights(output)


# -------------------- a loss or gradient that is no number


@pytest.mark.parametrize(("value", "packed"), [(math.nan, True), (math.inf, False)])
def test_faulty_samples_are_named_and_no_others(
    backbone, shots, expected, tmp_path, monkeypatch, capsys, value, packed
):
    """Faulty after three steps only; the cause mended, the run goes on and ends as if nothing had been."""
    source = Source()
    config = train_config(backbone, tmp_path / "run", **SETTINGS, packed=packed)
    with monkeypatch.context() as patch, pytest.raises(NarratorError) as caught:
        after_step(patch, 3, lambda: [source.spoil(shots[clip], value) for clip in (2, 4)])
        train(config, shots, source, FEATURES)
    step = int(re.match(r"step (\d+): ", str(caught.value))[1])
    assert step in (4, 5, 6)  # the first in which that video comes again
    assert f"step {step}: the loss is nan. " in str(caught.value)
    sentence = rf"It comes from sample of {name_of(shots[2])}; sample of {name_of(shots[4])}: look at its"
    assert re.search(sentence, str(caught.value))
    assert steps_named(tmp_path / "run") == [f"step-{done:06d}" for done in range(1, step)]
    assert [line["step"] for line in log_of(tmp_path / "run")] == list(range(1, step))
    source.spoiled.clear()
    capsys.readouterr()
    train(config, shots, source, FEATURES)
    assert f"going on from {tmp_path / 'run/states'}/step-{step - 1:06d}" in capsys.readouterr().err
    if packed:
        assert all(weights(tmp_path / "run")[name].equal(tensor) for name, tensor in expected.items())


def projected_as(narrator, sample, value):
    """Visual tokens of which the projector makes a number that large."""
    rows = narrator.projector.linear.weight.detach().double()
    row = rows[rows.abs().sum(1).argmax()]
    tokens = row.sign().expand(len(clip_tokens(sample["id"], sample["shot_loc"] - 1)), -1)
    tokens = (tokens * value / row.abs().sum()).float()
    assert tokens.isfinite().all()
    return tokens


@pytest.mark.parametrize("packed", [True, False])
def test_a_gradient_that_is_no_number_is_its_sample_s(backbone, shots, zh, tmp_path, packed):
    """Finite values whose squares' gradient overflows in float32: the loss is a number."""
    config = train_config(backbone, tmp_path / "run", **SETTINGS, packed=packed)
    source = Source()
    narrator, _, _ = as_started(config, shots, zh)
    source.spoiled[shots[2]["id"], 2] = projected_as(narrator, shots[2], 2.4e38)
    what = r"step \d: the gradient's norm is nan, the loss \d\.\d+\. It comes from sample of "
    with pytest.raises(NarratorError, match=f"{what}{name_of(shots[2])}: look at"):
        train(config, shots, source, FEATURES)


def test_finite_values_that_overflow_in_the_model_are_named(backbone, shots, zh, tmp_path):
    run, dataset = started_run(train_config(backbone, tmp_path / "run", samples_per_step=10), shots, zh)
    with torch.no_grad():
        run.narrator.projector.linear.weight.mul_(20)
    dataset.visual_of = source = Source()
    source.spoiled[shots[2]["id"], 2] = projected_as(run.narrator, shots[2], 1e39)
    with pytest.raises(
        NarratorError, match=rf"the loss is nan. It comes from sample of {name_of(shots[2])}:"
    ):
        run.loop.step(0, run.loop.batches[0])


def test_a_nan_spreads_in_a_packed_sequence_but_not_to_the_message(backbone, shots, zh, tmp_path):
    """Two videos under one mask; every loss of the sequence is NaN, two samples are guilty."""
    config = train_config(backbone, tmp_path / "run", epochs=1, samples_per_step=10)
    run, dataset = started_run(config, shots, zh)
    run.narrator.base.set_attn_implementation("sdpa")  # branch by branch it would not spread
    source = Source()
    dataset.visual_of = source
    for sample in (shots[1], shots[8]):
        source.spoil(sample, math.nan)
    (micro_batch,) = run.loop.batches[0]
    run.model.train()
    assert run.model(**micro_batch.tensors)["token_losses"].isnan().all()
    with pytest.raises(NarratorError) as caught:
        run.loop.step(0, [micro_batch])
    assert str(caught.value).count("sample of video") == 2
    assert all(name_of(sample) in str(caught.value) for sample in (shots[1], shots[8]))


def test_a_fault_in_a_trunk_is_that_of_its_video(backbone, shots, zh, tmp_path):
    """A word that only one video's product has: all samples of that video, which share it, are named."""
    config = train_config(backbone, tmp_path / "run", epochs=1, samples_per_step=10)
    run, dataset = started_run(config, shots, zh)
    others = {token for item in dataset.items if item["id"] != shots[9]["id"] for token in item["ids"]}
    trunk = next(tree.trunk for video in dataset.trees for tree in video if tree.branches[0].sample == 6)
    word = next(token for token in trunk if token not in others)
    with torch.no_grad():
        run.narrator.base.get_input_embeddings().weight[word] = math.nan
    with pytest.raises(NarratorError) as caught:
        run.loop.step(0, run.loop.batches[0])
    named = "; sample of ".join(name_of(sample) for sample in shots[6:9])
    assert f"It comes from sample of {named} and 1 more: look" in str(caught.value)


@pytest.mark.parametrize(("rate", "what"), [(1e2, "the gradient's norm is nan"), (1e30, "the loss is nan")])
def test_diverged_weights_are_not_a_sample_s_fault(backbone, shots, tmp_path, rate, what):
    config = train_config(backbone, tmp_path / "run", **SETTINGS | {"learning_rate": rate, "warmup": 0})
    message = rf"{what}.* Every sample has that: the weights have diverged\. Lower .*learning_rate$"
    with pytest.raises(NarratorError, match=message) as caught:
        train(config, shots, clip_tokens, FEATURES)
    assert "video" not in str(caught.value)
    step = int(re.match(r"step (\d+): ", str(caught.value))[1])
    saved = contents(tmp_path / "run/states")
    assert len(steps_named(tmp_path / "run")) == step - 1
    lower = replace(config, optimization=replace(config.optimization, learning_rate=1e-3, epochs=1))
    with pytest.raises(NarratorError, match="other settings"):
        train(lower, shots, clip_tokens, FEATURES)
    assert contents(tmp_path / "run/states") == saved
    train(replace(lower, output=str(tmp_path / "other")), shots, clip_tokens, FEATURES)


def test_a_step_of_faulty_samples_only_is_not_taken_for_diverged_weights(backbone, shots, zh, tmp_path):
    """Samples of other steps are numbers."""
    run, dataset = started_run(train_config(backbone, tmp_path / "run"), shots, zh)
    dataset.visual_of = source = Source()
    (step,) = (step for step in (0, 1) if run.loop.batches.samples(step) == 6)
    for sample in shots[:6]:
        source.spoil(sample, math.nan)
    with pytest.raises(
        NarratorError, match=rf"comes from sample of {name_of(shots[0])}; .* and 3 more: look"
    ):
        run.loop.step(step, run.loop.batches[step])


def test_the_only_sample_there_is_is_named(backbone, shots, zh, tmp_path):
    run, dataset = started_run(train_config(backbone, tmp_path / "run", epochs=1), shots[:1], zh)
    source = Source()
    dataset.visual_of = source
    source.spoil(shots[0], math.nan)
    message = (
        rf"comes from sample of {name_of(shots[0])}: look .*, or lower optimization.learning_rate: there"
    )
    with pytest.raises(NarratorError, match=message):
        run.loop.step(0, run.loop.batches[0])


def test_what_no_sample_has_alone_is_said_so(backbone, shots, zh, tmp_path):
    run, _ = started_run(train_config(backbone, tmp_path / "run", epochs=1), shots, zh)
    for gradients in (False, True):
        found = culprits(run.model, run.loop.batches, 0, run.processes, gradients=gradients)
        assert found.startswith("No sample alone explains it (the step's first: sample of video ")
        assert found.endswith("set optimization.packed=false")


# -------------------- samples that cannot be learnt from


def without_text(sample, template, *, label=True):
    """The sample with nothing said in its clip (and no label)."""
    told = next(c for c in parse_inputs(sample["inputs"], template).clips if c.number == sample["shot_loc"])
    assert sample["inputs"].count(told.text) == 1
    inputs = sample["inputs"].replace(told.text, "")
    if not label:
        head, tail = inputs.rsplit(told.label, 1)
        inputs = head + tail
    return sample | {"inputs": inputs}


def test_samples_that_cannot_be_learnt_from(backbone, shots, zh, tmp_path):
    """Named before anything is begun: no run has the folder, no state is there."""
    config = train_config(backbone, tmp_path / "run", tokens_per_sequence=200)
    message = rf"{name_of(shots[3])}: clip 4 has no narration: there is nothing to learn"
    for spoiled in (without_text(shots[3], zh), without_text(shots[3], zh, label=False)):
        with pytest.raises(NarratorError, match=message):
            train(config, [*shots[:3], spoiled], clip_tokens, FEATURES)
    with pytest.raises(NarratorError, match="list of training samples is empty: run `videonarrator prepare`"):
        train(config, [], clip_tokens, FEATURES)
    long = r"sample of video \S+, clip \d, has \d+ tokens; a sequence takes 200: raise .*tokens_per_sequence"
    with pytest.raises(NarratorError, match=long):
        train(config, shots, clip_tokens, FEATURES)
    with pytest.raises(NarratorError, match=long):
        train(config, shots[:1], clip_tokens, FEATURES, shots[1:])
    assert {file.name for file in (tmp_path / "run").iterdir()} <= {"config.yaml"}
    train(train_config(backbone, tmp_path / "run", epochs=1), shots[:4], clip_tokens, FEATURES)  # not claimed


def test_mistakes_in_the_lists_and_the_store(backbone, shots, zh, tmp_path):
    """Through the command: each is one message and exit code 2, and leaves no run behind."""
    words = write_settings(tmp_path, backbone, shots, shots[:2], epochs=1)
    store = ClipStore.open(tmp_path / "clips")
    video = shots[0]["id"]
    lists = {"empty": [], "silent": [without_text(shots[3], zh)], "unknown": [shots[0] | {"id": "nobody"}]}
    for name, samples in lists.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(samples), "utf-8")
    given = {name: f"data.samples={tmp_path / name}.json" for name in lists}
    fails(run(*words, given["empty"]), "list of training samples is empty")
    fails(run(*words, given["silent"]), name_of(shots[3]), "has no narration")
    fails(run(*words, given["unknown"]), "no clip tensors of video nobody")
    fails(run(*words, f"data.held_out={tmp_path}/empty.json"), "empty.json is empty", "leave it out")
    fails(run(*words, f"data.held_out={tmp_path}/silent.json"), name_of(shots[3]), "has no narration")
    clips = {clip: store.read(video, clip) for clip in store.clips(video)}
    store.write(video, {clip: tokens for clip, tokens in clips.items() if clip != 2}, "tiny")
    fails(run(*words), f"video {video}, clip 3: no tensor in", "holds clips 1, 2, 4, 5, 6")
    store.file(video).unlink()
    fails(run(*words), f"(video {video}) is missing or not as it was written. Run `videonarrator prepare`")
    assert not any((tmp_path / "run" / name).exists() for name in ("run.json", "states", "checkpoint"))
    store.write(video, clips, "tiny")
    succeed(*words)


@pytest.mark.parametrize(
    ("fault", "workers"), [("no numbers", 0), ("cut short", 0), ("cut short", 1), ("gone", 1)]
)
def test_a_store_spoiled_while_it_is_used(backbone, shots, tmp_path, monkeypatch, fault, workers):
    """Its files were whole when they were first read. Told alike from the processes that prepare batches."""
    words = write_settings(tmp_path, backbone, shots, **SETTINGS, workers=workers)
    store = ClipStore.open(tmp_path / "clips")
    video, file = shots[0]["id"], store.file(shots[0]["id"])
    whole = file.read_bytes()

    def spoil():
        if fault == "gone":
            file.unlink()
        elif fault == "cut short":
            file.write_bytes(whole[:-100])
        else:
            save_file(load_file(file) | {"1": store.read(video, 1) * math.nan}, file)

    with monkeypatch.context() as patch:
        after_step(patch, 3, spoil)
        done = run(*words)
    expected = {
        "no numbers": f"video {video}, clip 2: look",
        "cut short": f"video {video}, clip",
        "gone": video,
    }
    said = fails(done, "error: step ", expected[fault])
    assert said.splitlines()[-1].startswith("error: step ")  # in one line
    assert steps_named(tmp_path / "run")[:3] == ["step-000001", "step-000002", "step-000003"]
    file.write_bytes(whole)
    assert "going on from" in succeed(*words).err


def test_errors_of_our_own_are_handed_over_and_others_raised(backbone, shots, zh, tmp_path):
    run_, dataset = started_run(train_config(backbone, tmp_path / "run"), shots, zh)

    def fault(video_id, clip):
        raise ValueError("a mistake in the code")

    dataset.visual_of = fault
    with pytest.raises(ValueError, match="a mistake in the code"):
        Prepared(run_.loop.batches)[0]


# -------------------- precision and settings


def test_fp16_without_a_gpu(backbone, shots, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    words = write_settings(tmp_path, backbone, shots)
    fails(run(*words, "optimization.precision=fp16"), "precision=fp16 needs a GPU: take bf16 or fp32")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bf16_trains_on_a_cpu(backbone, shots, tmp_path, checkpointing):
    """Frozen weights are kept in bfloat16, trained ones in float32; the loss is near float32's."""
    settings = {"epochs": 6, "samples_per_step": 4, "learning_rate": 3e-3}
    train(train_config(backbone, tmp_path / "fp32", **settings), shots, clip_tokens, FEATURES)
    config = train_config(
        backbone, tmp_path / "bf16", **settings, precision="bf16", gradient_checkpointing=checkpointing
    )
    narrator = train_and_keep(config, shots)
    kinds = {parameter.dtype: 0 for parameter in narrator.parameters()}
    for name, parameter in narrator.named_parameters():
        trained = torch.float32 if parameter.requires_grad else torch.bfloat16
        assert parameter.dtype == trained, name
        kinds[trained] += parameter.numel()
    assert set(kinds) == {torch.float32, torch.bfloat16}
    half, full = ([line["loss"] for line in log_of(tmp_path / name)] for name in ("bf16", "fp32"))
    assert half[-1] < half[0] - 1
    assert max(abs(a - b) for a, b in zip(half, full, strict=True)) < 0.1
    assert half != full


@pytest.mark.parametrize(
    "setting",
    [
        *("epochs=0", "samples_per_step=0", "tokens_per_sequence=0", "batch_size=-1", "learning_rate=0"),
        *("learning_rate=nan", "epochs=inf", "warmup=nan"),
        *("clip_norm=0", "save_steps=0", "keep_states=0", "evaluate_steps=0", "log_steps=0", "workers=-1"),
        *("patience=-1", "warmup=-0.1", "warmup=1", "weight_decay=-1"),
    ],
)
def test_settings_out_of_range(setting):
    name, _, value = setting.partition("=")
    number = float(value)
    with pytest.raises(NarratorError, match=rf"^optimization\.{name}={value}: it "):
        OptimizationSettings(**{name: int(number) if number.is_integer() else number})


def test_packed_sequences_keep_videos_together():
    with pytest.raises(
        NarratorError, match=r"order=samples takes videos apart.*set optimization\.packed=false"
    ):
        OptimizationSettings(order="samples", packed=True)
    OptimizationSettings(order="samples", packed=False)
