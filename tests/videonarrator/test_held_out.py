"""Held-out samples: their loss, the best weights, stopping early; and that none of this changes training."""

import pytest
import torch
from cli_world import succeed
from safetensors.torch import load_file
from tiny_narrator import (
    FEATURES,
    clip_samples,
    clip_tokens,
    log_of,
    started_run,
    ten_samples,
    train_and_keep,
    train_config,
)
from training_world import after_step, write_settings

from videonarrator.checkpoint import load_checkpoint
from videonarrator.dataset import collate
from videonarrator.schema import NarratorError
from videonarrator.training.evaluation import Best, held_out_loss
from videonarrator.training.run import Run, train
from videonarrator.training.states import read_state

FEW = {"epochs": 8, "samples_per_step": 4, "evaluate_steps": 2, "save_steps": 3, "dropout": 0.1}
FEW |= {"learning_rate": 3e-2, "schedule": "constant_with_warmup"}
"""A step is one video's samples: 16 in all, the last of which overfit."""


@pytest.fixture(scope="module")
def lists(sample_videos, zh):
    """Ten training samples of two videos, and the samples of two others."""
    held_out = [one for video in list(sample_videos.values())[2:4] for one in clip_samples(video, zh)]
    trained = ten_samples(sample_videos, zh)
    assert not {one["id"] for one in trained} & {one["id"] for one in held_out}
    return trained, held_out


class Kept:
    """A run whose weights, as they were at each evaluation, are kept: step -> name -> tensor."""

    def __init__(self, folder, backbone, lists, **changes):
        self.weights, self.output, self.config = {}, folder, train_config(backbone, folder, **changes)
        real = Run.after_step

        def keep(run, done, stopping):
            named = run.narrator.named_parameters()
            self.weights[done] = {n: p.detach().clone() for n, p in named if p.requires_grad}
            return real(run, done, stopping)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Run, "after_step", keep)
            train(self.config, lists[0], clip_tokens, FEATURES, lists[1])
        self.log = log_of(folder)
        self.evaluated = [line for line in self.log if "eval_loss" in line]


@pytest.fixture(scope="module")
def overfitted(backbone, lists, tmp_path_factory):
    """A run whose held-out loss rises again."""
    folder = tmp_path_factory.mktemp("runs") / "overfitted"
    return Kept(folder, backbone, lists, **FEW)


def saved_weights(output):
    files = [
        output / "checkpoint/trained.safetensors",
        output / "checkpoint/adapter/adapter_model.safetensors",
    ]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def same(saved, kept):
    """Whether the tensors of a checkpoint are the trained parameters of that time."""
    own = {}
    for name, tensor in kept.items():
        short = name.removeprefix("language_model.base_model.model.")
        own[short.replace("model.embed_tokens", "embed_tokens")] = tensor
        own[name.removeprefix("language_model.").replace(".default.", ".")] = tensor
    assert saved.keys() <= own.keys(), saved.keys() - own.keys()
    return all(tensor.equal(own[name]) for name, tensor in saved.items())


def plain_loss(narrator, dataset):
    """The mean over all learnt tokens, each sample computed by itself."""
    narrator.eval()
    with torch.no_grad():
        losses = [
            narrator(**collate([item], 0))["token_losses"].double()
            for item in (dataset[index] for index in range(len(dataset)))
        ]
    assert sum(map(len, losses)) == sum(item["targets"] for item in dataset.items)
    return torch.cat(losses).mean().item()


# -------------------- the loss


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("samples_per_step", [1, 4, 100])
def test_the_held_out_loss_is_the_mean_over_learnt_tokens(
    backbone, lists, zh, tmp_path, packed, samples_per_step
):
    """Packed or not, in however many parts; dropout is off for it, and on again afterwards."""
    config = train_config(
        backbone, tmp_path, dropout=0.5, packed=packed, samples_per_step=samples_per_step, batch_size=3
    )
    run, _ = started_run(config, lists[0], zh, lists[1])
    run.model.train()
    found = held_out_loss(run.model, run.held_out, run.processes)
    assert run.model.training and run.narrator.language_model.training
    assert found == held_out_loss(run.model, run.held_out, run.processes)
    run.model.eval()
    held_out_loss(run.model, run.held_out, run.processes)
    assert not run.model.training
    assert found == pytest.approx(plain_loss(run.narrator, run.held_out.dataset), abs=1e-5)
    means = [  # another mean would be another number
        run.narrator(**collate([run.held_out.dataset[one]], 0))["token_losses"].mean().item()
        for one in range(len(lists[1]))
    ]
    assert abs(sum(means) / len(means) - found) > 1e-4


def test_logged_losses_are_those_of_the_weights_of_their_step(overfitted, lists, zh):
    run, _ = started_run(overfitted.config, lists[0], zh, lists[1])
    steps = [line["step"] for line in overfitted.evaluated]
    assert steps == list(range(2, 17, 2))
    assert [line["step"] for line in overfitted.log if "loss" in line] == list(range(1, 17))
    for line in overfitted.evaluated:
        with torch.no_grad():
            for name, parameter in run.narrator.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(overfitted.weights[line["step"]][name])
        expected = plain_loss(run.narrator, run.held_out.dataset)
        assert line["eval_loss"] == pytest.approx(expected, abs=1e-5)


def test_a_held_out_loss_that_is_no_number_names_the_sample(backbone, lists, tmp_path, monkeypatch):
    bad = lists[1][1]
    spoiled = []

    def visual_of(video_id, clip):
        tokens = clip_tokens(video_id, clip)
        return tokens * float("nan") if spoiled == [(video_id, clip)] else tokens

    after_step(monkeypatch, 3, lambda: spoiled.append((bad["id"], bad["shot_loc"] - 1)))
    message = (
        rf"held-out samples is no number\. It comes from sample of video {bad['id']}, clip {bad['shot_loc']}:"
    )
    with pytest.raises(NarratorError, match=message):
        train(train_config(backbone, tmp_path / "run", **FEW), lists[0], visual_of, FEATURES, lists[1])
    assert (tmp_path / "run/states/step-000003").is_dir()


# -------------------- the best weights


def test_the_checkpoint_has_the_weights_of_the_best_evaluation(overfitted):
    losses = {line["step"]: line["eval_loss"] for line in overfitted.evaluated}
    best = min(losses, key=losses.__getitem__)
    assert best not in (min(losses), max(losses))  # neither the first nor the last
    told = [line["step"] for line in overfitted.evaluated if line["best"]]
    lowest = [step for step in losses if losses[step] == min(losses[one] for one in losses if one <= step)]
    assert told == lowest and told[-1] == best
    saved = saved_weights(overfitted.output)
    assert [step for step, kept in overfitted.weights.items() if same(saved, kept)] == [best]
    load_checkpoint(overfitted.output / "checkpoint")


@pytest.mark.parametrize("at", [5, 9])
def test_the_best_weights_outlive_a_stop(overfitted, backbone, lists, tmp_path, monkeypatch, at):
    """Stopped at once after any step; also where the newest state is of a step before the best one."""
    config = train_config(backbone, tmp_path / "run", **FEW)

    def stop():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        after_step(patch, at, stop)
        train(config, lists[0], clip_tokens, FEATURES, lists[1])
    better = [line["step"] for line in overfitted.evaluated if line["best"] and line["step"] < at]
    saved = range(FEW["save_steps"], at, FEW["save_steps"])
    kept = {max(step for step in better if step <= state) for state in saved}
    kept |= {step for step in better if step > max(saved)}
    found = {path.name for path in (tmp_path / "run/states").iterdir()}
    assert found == {f"step-{state:06d}" for state in saved} | {f"best-{step:06d}" for step in kept}
    train(config, lists[0], clip_tokens, FEATURES, lists[1])
    found, expected = saved_weights(tmp_path / "run"), saved_weights(overfitted.output)
    assert found.keys() == expected.keys() and all(found[name].equal(expected[name]) for name in found)
    told = ("step", "eval_loss", "best")
    assert [[line[key] for key in told] for line in log_of(tmp_path / "run") if "best" in line] == [
        [line[key] for key in told] for line in overfitted.evaluated
    ]


def test_best_weights_are_kept_while_a_state_has_them(backbone, lists, zh, tmp_path):
    """And no longer. A kill while better ones are written leaves those of the newest state."""
    run, _ = started_run(train_config(backbone, tmp_path / "run"), lists[0], zh, lists[1])

    def evaluate(step, loss):
        run.done = step
        if run.best.is_better(loss, step):
            run._write(run._best(step), with_optimizer=False)

    def save():
        run._write(run.states / f"step-{run.done:06d}", with_optimizer=True)
        run._drop_old_best()

    def found():
        return {path.name for path in run.states.glob("best-*")}

    evaluate(1, 3.0)
    save()
    evaluate(2, 2.0)
    assert found() == {"best-000001", "best-000002"}  # killed here, the run goes on with the first
    run.done = 3
    save()
    assert found() == {"best-000001", "best-000002"}  # of step 1's state and of step 3's
    (run.states / "step-000001/state.json").unlink()
    save()
    assert found() == {"best-000002"}
    read_state(run._best(2), run.narrator)


# -------------------- when to stop


def test_patience():
    best = Best(patience=2)
    told = [(best.is_better(loss, step), best.enough) for step, loss in enumerate([3, 2, 2, 1, 1.5, 1], 1)]
    assert told == [*[(True, False)] * 2, (False, False), (True, False), (False, False), (False, True)]
    assert (best.loss, best.step) == (1, 4) and Best(**best.facts()) == best
    forever = Best(patience=0)
    for step in range(1, 9):
        forever.is_better(step, step)
        assert forever.step == 1 and not forever.enough


def test_a_run_stops_where_nothing_is_learnt_any_more(
    overfitted, backbone, lists, tmp_path, capsys, monkeypatch
):
    """After two evaluations without a better loss; started again it goes no further."""
    config = train_config(backbone, tmp_path / "run", **FEW, patience=2)
    losses = [line["eval_loss"] for line in overfitted.evaluated]
    last = next(at for at in range(2, len(losses)) if min(losses[: at + 1]) == min(losses[: at - 1]))
    best, last = (overfitted.evaluated[at]["step"] for at in (last - 2, last))
    assert last < 16
    words = (config, lists[0], clip_tokens, FEATURES, lists[1])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "final_weights", interrupted)
        train(*words)
    reason = f"2 evaluations without a better one than that of step {best}"
    assert f"stopped after step {last}: {reason}\n" in capsys.readouterr().err
    log = log_of(tmp_path / "run")
    assert [line["step"] for line in log if "loss" in line] == list(range(1, last + 1))
    assert [line["eval_loss"] for line in log if "best" in line] == losses[: last // 2]
    assert log[-1] == {"step": last, "stopped": reason}
    train(*words)
    told = capsys.readouterr().err
    assert f"going on from {tmp_path / 'run/states'}/step-{last:06d}" in told and "step 1" not in told
    assert log_of(tmp_path / "run") == log
    assert same(saved_weights(tmp_path / "run"), overfitted.weights[best])
    train(*words)
    assert "is already trained with these settings" in capsys.readouterr().err


def interrupted(run):
    raise KeyboardInterrupt


# -------------------- training is as it would be without


def test_evaluating_does_not_change_the_training(overfitted, backbone, lists, tmp_path):
    """Dropout is on: a random number drawn for an evaluation would be missing afterwards."""
    config = train_config(backbone, tmp_path / "run", **FEW)
    narrator = train_and_keep(config, lists[0])
    last = overfitted.weights[16]
    assert all(last[name].equal(own) for name, own in narrator.named_parameters() if own.requires_grad)
    own = [(line["loss"], line["grad_norm"]) for line in log_of(tmp_path / "run")]
    assert own == [(line["loss"], line["grad_norm"]) for line in overfitted.log if "loss" in line]


def test_through_the_command(backbone, lists, tmp_path, overfitted):
    words = write_settings(tmp_path, backbone, *lists, **FEW)
    held_out = f"data.held_out={tmp_path / 'held_out.json'}"
    done = succeed(*words, held_out, f"output={tmp_path / 'other'}")
    assert done.out == f"{tmp_path / 'other/checkpoint'}\n"
    losses = [line["eval_loss"] for line in log_of(tmp_path / "other") if "best" in line]
    assert losses == [line["eval_loss"] for line in overfitted.evaluated]
    best = min(overfitted.evaluated, key=lambda line: line["eval_loss"])
    assert f"the best held-out loss, {best['eval_loss']:.3f}, is of step {best['step']}" in done.err
    expected = saved_weights(overfitted.output)
    assert all(tensor.equal(expected[name]) for name, tensor in saved_weights(tmp_path / "other").items())
