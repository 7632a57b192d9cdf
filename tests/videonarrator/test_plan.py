"""Which samples make a step and which process computes what; learning rates, step by step."""

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from transformers import get_scheduler

from videonarrator.training.plan import batches_of, orders, padded_batches, shares, whole_videos
from videonarrator.training.schedule import rate_factor

few, seeds = some.integers(1, 40), some.integers(0, 5)


# -------------------- epochs


@given(few, some.integers(1, 6), seeds)
def test_every_epoch_has_everything_once(number, epochs, seed):
    made = orders(number, epochs, seed)
    assert len(made) == epochs
    assert all(sorted(order) == list(range(number)) for order in made)
    assert made == orders(number, epochs, seed) == orders(number, epochs + 1, seed)[:epochs]


def test_orders_differ_by_epoch_and_seed():
    made = [tuple(order) for seed in range(3) for order in orders(30, 4, seed)]
    assert len(set(made)) == 12 and tuple(range(30)) not in made


@given(few, some.floats(0.01, 5), seeds)
def test_the_last_epoch_may_be_a_part(number, epochs, seed):
    made, whole = orders(number, epochs, seed), orders(number, math.ceil(epochs), seed)
    assert made[:-1] == whole[:-1]
    assert made[-1] == whole[-1][: len(made[-1])] and made[-1]
    assert abs(sum(map(len, made)) - epochs * number) <= 1  # whole things, and one at least


# -------------------- steps


sizes = some.lists(some.integers(1, 9), min_size=1, max_size=30)


@given(sizes, some.integers(1, 3), some.integers(1, 40), seeds)
def test_steps_are_of_whole_videos_until_there_are_enough(sizes, epochs, samples_per_step, seed):
    epochs = orders(len(sizes), epochs, seed)
    steps = whole_videos(epochs, sizes, samples_per_step)
    assert [video for step in steps for video in step] == [video for order in epochs for video in order]
    for number, step in enumerate(steps):
        held = [sizes[video] for video in step]
        assert step and sum(held[:-1]) < samples_per_step  # one video fewer were too few
        assert sum(held) >= samples_per_step or number + 1 == len(steps)


def test_a_step_may_hold_the_end_of_an_epoch_and_the_begin_of_the_next():
    assert whole_videos([[0, 1, 2], [2, 0, 1]], [2, 2, 2], 4) == [[0, 1], [2, 2], [0, 1]]


@given(few, some.integers(1, 3), some.integers(1, 5), some.integers(1, 20), seeds)
def test_padded_batches_end_with_their_epoch(number, epochs, batch_size, samples_per_step, seed):
    epochs = orders(number, epochs, seed)
    steps = padded_batches(epochs, batch_size, samples_per_step)
    batches = [batch for step in steps for batch in step]
    per_epoch = math.ceil(number / batch_size)
    for place, order in enumerate(epochs):
        own = batches[place * per_epoch : (place + 1) * per_epoch]
        assert [sample for batch in own for sample in batch] == order
        assert all(len(batch) == batch_size for batch in own[:-1])
    assert len(batches) == per_epoch * len(epochs)
    wanted = max(1, samples_per_step // batch_size)
    assert {len(step) for step in steps[:-1]} <= {wanted} and 0 < len(steps[-1]) <= wanted


@given(sizes, some.integers(1, 5))
def test_batches_of_a_step_have_samples_of_like_length(lengths, batch_size):
    samples = list(range(0, len(lengths), 2))
    batches = batches_of(samples, lengths, batch_size)
    assert sorted(sample for batch in batches for sample in batch) == samples
    assert all(len(batch) == batch_size for batch in batches[:-1])
    told = [lengths[sample] for batch in batches for sample in batch]
    assert told == sorted(told, reverse=True)


@given(some.lists(some.integers(1, 1000), max_size=40), some.integers(1, 8))
def test_shares_are_complete_and_balanced(costs, processes):
    given_out = shares(costs, processes)
    assert len(given_out) == processes
    assert Counter(index for one in given_out for index in one) == Counter(range(len(costs)))
    loads = [sum(costs[index] for index in one) for one in given_out]
    assert max(loads) - min(loads) <= max(costs, default=0)


def test_many_things_are_shared_out_almost_evenly():
    costs = random.Random(5).choices(range(500, 4000), k=128)
    loads = [sum(costs[index] for index in one) for one in shares(costs, 4)]
    assert max(loads) < 1.01 * min(loads)
    in_turn = [sum(costs[start::4]) for start in range(4)]
    assert max(in_turn) > 1.01 * min(in_turn)  # as they come would not do


# -------------------- learning rates


def rates(schedule, steps, warmup_steps):
    return [rate_factor(schedule, step, steps, warmup_steps) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant_with_warmup"])
@pytest.mark.parametrize(("steps", "warmup_steps"), [(40, 7), (40, 1), (40, 0), (1, 0), (1, 1), (5, 5)])
def test_rates_are_those_of_transformers(schedule, steps, warmup_steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(schedule, optimizer, warmup_steps, steps)
    theirs = []
    for _ in range(steps):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(schedule, steps, warmup_steps) == pytest.approx(theirs, abs=1e-12)
    assert 1.0 in theirs or steps == warmup_steps


class WarmupDecay:
    """What DeepSpeed's WarmupDecayLR does with its defaults: moved on after each update, begun at -1."""

    def __init__(self, steps, warmup_steps):
        self.steps, self.warmup_steps, self.at = steps, max(2, warmup_steps), -1

    def rate(self):
        if self.at < 0:
            return 0.0  # warmup_min_lr
        if self.at < self.warmup_steps:
            return math.log(self.at + 1) / math.log(self.warmup_steps)
        return max(0.0, (self.steps - self.at) / max(1.0, self.steps - self.warmup_steps))


@pytest.mark.parametrize(("steps", "warmup_steps"), [(40, 7), (40, 2), (40, 1), (40, 0), (4, 6), (1, 1)])
def test_warmup_decay_is_that_of_deepspeed(steps, warmup_steps):
    scheduler, theirs = WarmupDecay(steps, warmup_steps), []
    for _ in range(steps):
        theirs.append(scheduler.rate())
        scheduler.at += 1
    assert rates("warmup_decay", steps, warmup_steps) == pytest.approx(theirs, abs=1e-12)


def test_warmup_decay_as_deepspeed_0_19_8_gave_it():
    """Rates that its own class set before each of 10 updates, with a warm-up of 3."""
    seen = [0.0, 0.0, 0.63093, 1.0, 1.0, 0.857143, 0.714286, 0.571429, 0.428571, 0.285714]
    assert rates("warmup_decay", 10, 3) == pytest.approx(seen, abs=1e-6)
