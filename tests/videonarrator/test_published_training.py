"""The published Trainer's own runs, step by step: losses, learning rates, and the weights they end with."""

import math
from dataclasses import replace

import pytest
from published_world import before_training, published_name

from videonarrator.training.batches import Padded, StepBatches
from videonarrator.training.building import optimizer_of
from videonarrator.training.loop import Loop
from videonarrator.training.parallel import Processes
from videonarrator.training.plan import padded_batches

RUNS = ("trajectory", "trajectory_epoch_end")


def loop_of(published, facts, **changes):
    """Our loop over the published run's samples, in its order, with its settings; the narrator."""
    told = facts["args"]
    assert told["optim"] == "adamw_torch" and (told["adam_beta1"], told["adam_beta2"]) == (0.9, 0.999)
    narrator, dataset, tokenizer = before_training(published)
    config = published.train_config()
    optimization = replace(
        config.optimization,
        learning_rate=told["learning_rate"],
        weight_decay=told["weight_decay"],
        clip_norm=told["max_grad_norm"],
        schedule=told["lr_scheduler_type"],
        warmup=told["warmup_ratio"],
    )
    config = replace(config, optimization=optimization)
    batch_size, accumulated = told["per_device_train_batch_size"], told["gradient_accumulation_steps"]
    order, size = facts["order"], len(dataset)
    epochs = [order[start : start + size] for start in range(0, len(order), size)]
    steps = padded_batches(epochs, batch_size, batch_size * accumulated)[: told["max_steps"]]
    settings = {"loss_weighting": "microbatch"} | changes
    form = Padded(dataset, settings.get("steps", lambda same: same)(steps), tokenizer.pad_token_id)
    processes = Processes("fp32")
    model, optimizer = processes.prepare(narrator, lambda model: optimizer_of(model, config))
    loop = Loop(
        model,
        optimizer,
        StepBatches(form, dataset, narrator.patch_id, settings["loss_weighting"]),
        processes,
        schedule=optimization.schedule,
        warmup_steps=math.ceil(optimization.warmup * len(steps)),
        clip_norm=optimization.clip_norm,
        seed=optimization.seed,
    )
    model.train()  # dropout is 0
    return loop, narrator


@pytest.mark.parametrize("run", RUNS)
def test_the_published_run_is_followed(run, published):
    """Plain padded batches, the mean of micro-batch means, q, k and v fused, over epochs' ends."""
    facts = published.json(f"train/{run}.json")
    loop, narrator = loop_of(published, facts)
    log = [line for line in facts["log"] if "loss" in line]
    assert loop.steps == len(log) == facts["args"]["max_steps"]
    for step, line in enumerate(log):
        loss, _, _ = loop.step(step, loop.batches[step])
        assert abs(loss - line["loss"]) <= 5e-5 + 1e-9, step
        following = loop.rates[0] * loop._factor(step + 1)  # the published log tells the next step's
        assert following == pytest.approx(line["learning_rate"], rel=1e-12, abs=1e-15)
    ours = {published_name(n): p.detach().double() for n, p in narrator.named_parameters() if p.requires_grad}
    assert ours.keys() == facts["final"].keys()
    for name, wanted in facts["final"].items():
        assert ours[name].norm().item() == pytest.approx(wanted["norm"], rel=1e-6), name
        assert abs(ours[name].sum().item() - wanted["sum"]) < 1e-5 * ours[name].abs().sum().item(), name


def far_from(published, facts, **changes):
    """How far losses and final norms come from the published ones, relative to what the test allows."""
    loop, narrator = loop_of(published, facts, **changes)
    log = [line["loss"] for line in facts["log"] if "loss" in line]
    losses = [loop.step(step, loop.batches[step])[0] for step in range(loop.steps)]
    ours = {published_name(n): p.detach().double() for n, p in narrator.named_parameters() if p.requires_grad}
    norms = [abs(ours[n].norm().item() / wanted["norm"] - 1) for n, wanted in facts["final"].items()]
    return max(abs(a - b) for a, b in zip(losses, log, strict=True)) / 5e-5, max(norms) / 1e-6


def test_other_ways_to_train_are_seen(published):
    """The mean over tokens in place of the mean of means; a step at each epoch's end."""
    facts = published.json("train/trajectory_epoch_end.json")
    assert max(far_from(published, facts)) <= 1
    assert max(far_from(published, facts, loss_weighting="token")) > 10
    _, dataset, _ = before_training(published)
    per_epoch = math.ceil(len(dataset) / facts["args"]["per_device_train_batch_size"])
    accumulated = facts["args"]["gradient_accumulation_steps"]
    assert per_epoch % accumulated  # else the two are the same

    def stepping_there(steps):
        batches = [batch for step in steps for batch in step]
        epochs = [batches[start : start + per_epoch] for start in range(0, len(batches), per_epoch)]
        made = [
            epoch[start : start + accumulated]
            for epoch in epochs
            for start in range(0, len(epoch), accumulated)
        ]
        return made[: len(steps)]

    assert max(far_from(published, facts, steps=stepping_there)) > 10
