"""A step's micro-batches: what each token's loss counts, whose it is, and which process computes it."""

from collections import Counter

import pytest
import torch
from tiny_narrator import started_run, ten_samples, train_config

from videonarrator.clip_inputs import IGNORED
from videonarrator.dataset import collate
from videonarrator.training.batches import Packed, Padded, StepBatches, padded_steps

STEPS = [[1, 0], [0, 1, 0]]
"""The videos of two steps; the second has one of them twice, as where an epoch ends and the next begins."""

FORMS = ("packed", "packed, videos divided", "padded")
WEIGHTINGS = ("token", "sample", "microbatch")
PROCESSES = (1, 2, 3, 5)

form = pytest.mark.parametrize("form", FORMS)
weighting = pytest.mark.parametrize("weighting", WEIGHTINGS)


@pytest.fixture(scope="module")
def started(backbone, sample_videos, zh, tmp_path_factory):
    """A run before its first step, and its data set: two videos, of six samples and of four."""
    config = train_config(backbone, tmp_path_factory.mktemp("runs") / "run")
    return started_run(config, ten_samples(sample_videos, zh), zh)


@pytest.fixture(scope="module")
def dataset(started):
    return started[1]


@pytest.fixture(scope="module")
def videos(dataset):
    """The samples of each video."""
    found = [[branch.sample for tree in video for branch in tree.branches] for video in dataset.trees]
    assert list(map(len, found)) == [6, 4]
    return found


@pytest.fixture(scope="module")
def prepared(started, dataset, videos):
    """All micro-batches of a step, by process, and what made them."""

    def prepare(form, step, weighting="token", processes=1):
        if form == "padded":
            made = Padded(dataset, padded_steps(dataset, videos, STEPS, 3), 0)
        else:
            made = Packed(dataset, dataset.trees, STEPS, 500 if "divided" in form else 4096)
        batches = [
            StepBatches(made, dataset, started[0].narrator.patch_id, weighting, process, processes)
            for process in range(processes)
        ]
        assert len(batches[0]) == len(STEPS)
        return [one[step] for one in batches], batches[0]

    return prepare


def learnt(micro_batch):
    return micro_batch.tensors["labels"] != IGNORED


@form
@pytest.mark.parametrize("step", [0, 1])
def test_owners_name_the_right_samples(dataset, videos, prepared, form, step):
    """The learnt tokens that a sample owns are its labels, in order."""
    labels = {item["name"]: [one for one in item["labels"] if one != IGNORED] for item in dataset.items}
    found = Counter()
    for micro_batch in prepared(form, step)[0][0]:
        own = {}
        told = micro_batch.tensors["labels"][learnt(micro_batch)].tolist()
        for owner, token in zip(micro_batch.owners, told, strict=True):
            own.setdefault(micro_batch.names[owner], []).append(token)
        times = Counter(micro_batch.names)
        assert own == {name: labels[name] * number for name, number in times.items()}
        found += times
    assert found == Counter(dataset.items[one]["name"] for video in STEPS[step] for one in videos[video])


@form
@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("processes", PROCESSES)
def test_processes_cover_each_sample_once(dataset, videos, prepared, form, step, processes):
    given, batches = prepared(form, step, processes=processes)
    real = [[one for one in share if one.tokens] for share in given]
    names = Counter(name for share in real for one in share for name in one.names)
    samples = [one for video in STEPS[step] for one in videos[video]]
    assert names == Counter(dataset.items[one]["name"] for one in samples)
    assert len({len(share) for share in given}) == 1  # as many for each, idle ones among them
    assert any(len(share) == len(all_) for share, all_ in zip(real, given, strict=True))  # and no more
    assert batches.samples(step) == len(samples)
    assert batches.step_samples(step) == list(dict.fromkeys(batches.form.samples_of_step(step)))
    assert sorted(batches.step_samples(step)) == sorted(set(samples))
    assert batches.tokens(step) == sum(one.tokens for share in real for one in share)
    if form == "padded":
        assert batches.tokens(step) == sum(dataset.lengths[one] for one in samples)
        real_tokens = sum(int(one.tensors["attention_mask"].sum()) for share in real for one in share)
        assert real_tokens == batches.tokens(step)


@form
@weighting
@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("processes", PROCESSES)
def test_weights_sum_to_what_they_should(prepared, form, weighting, step, processes):
    """Gradients are averaged over processes: what a loss counts is its weight / processes."""
    given, batches = prepared(form, step, weighting, processes)
    real = [one for share in given for one in share if one.tokens]
    tokens, number = sum(len(one.owners) for one in real), batches.samples(step)
    total, samples = 0.0, Counter()
    for micro_batch in real:
        weights = micro_batch.tensors["weights"].double() / processes
        assert weights.shape == micro_batch.tensors["labels"].shape
        assert not weights[~learnt(micro_batch)].any()
        own = weights[learnt(micro_batch)]
        if weighting == "token":
            assert torch.allclose(own, torch.full_like(own, 1 / tokens))
        elif weighting == "microbatch":
            assert own.sum().item() == pytest.approx(1 / len(real), rel=1e-6)
            assert own.max() == own.min()
        for owner, weight in zip(micro_batch.owners, own.tolist(), strict=True):
            samples[micro_batch.names[owner]] += weight
        total += own.sum().item()
    assert total == pytest.approx(1, rel=1e-6)
    if weighting == "sample":
        times = Counter(name for one in real for name in one.names)
        assert samples == {name: pytest.approx(times[name] / number, rel=1e-6) for name in times}


@pytest.fixture(scope="module")
def losses(started, dataset):
    """The losses of each sample's learnt tokens, computed alone."""
    run = started[0]
    run.model.eval()
    with torch.no_grad():
        alone = [run.narrator(**collate([dataset[one]], 0))["token_losses"] for one in range(len(dataset))]
    return {item["name"]: own.double() for item, own in zip(dataset.items, alone, strict=True)}


@form
@weighting
def test_the_step_s_loss_is_the_same_on_any_number_of_processes(started, prepared, losses, form, weighting):
    """The mean over processes of the sums of weighted losses."""
    run = started[0]
    run.model.eval()
    for processes in PROCESSES:
        given, _ = prepared(form, 0, weighting, processes)
        groups = {
            "token": [list(losses)],
            "sample": [[name] for name in losses],
            "microbatch": [one.names for share in given for one in share if one.tokens],
        }
        means = [torch.cat([losses[name] for name in names]).mean() for names in groups[weighting]]
        with torch.no_grad():
            sums = [sum(run.model(**one.tensors)["loss"].item() for one in share) for share in given]
        assert sum(sums) / processes == pytest.approx(torch.stack(means).mean().item(), rel=1e-5)


@form
def test_idle_micro_batches_count_nothing(started, prepared, form):
    """Loss and gradients are zeros, and every trained parameter has one: other processes wait for it."""
    run = started[0]
    given, _ = prepared(form, 0, processes=11)
    idle = next(one for share in given for one in share if not one.tokens)
    run.model.zero_grad(set_to_none=True)
    made = run.model(**idle.tensors, whole=True)
    made["loss"].backward()
    assert made["loss"].item() == 0
    trained = [one for one in run.narrator.parameters() if one.requires_grad]
    assert trained and all(one.grad is not None and not one.grad.any() for one in trained)
    run.model.zero_grad(set_to_none=True)


@form
def test_samples_alone_are_tried_by_all_processes_alike(dataset, prepared, form):
    samples = [7, 2, 3]
    for processes in (1, 2):
        made = [prepared(form, 0, processes=processes)[1]]
        made += [
            StepBatches(made[0].form, dataset, made[0].patch_id, "token", process, processes)
            for process in range(1, processes)
        ]
        alone = [one.alone(samples)[0] for one in made]
        assert len({len(share) for share in alone}) == 1
        names = [one.names for share in alone for one in share if one.tokens]
        assert sorted(names) == sorted([dataset.items[sample]["name"]] for sample in samples)
