"""What a run tells while it goes: its log, the lines on stderr, the loss curve, TensorBoard's files."""

import json
import re
import sys

import numpy as np
import pytest
from cli_world import fails, run, succeed
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_narrator import FEATURES, clip_tokens, log_of, started_run, train_config
from training_world import after_step, small_files, write_settings

from videonarrator.schema import NarratorError
from videonarrator.training import progress as module
from videonarrator.training.progress import Progress, draw_curve, read_log
from videonarrator.training.run import train

FACTS = {"loss": 2.0, "grad_norm": 1.0, "learning_rate": 1e-3, "epoch": 0.5}
SETTINGS = {"epochs": 3, "samples_per_step": 4, "save_steps": 2}
"""A step is one video's samples: 6 in all."""


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def progress(output, steps=10, first=0, **changes):
    output.mkdir(exist_ok=True)
    return Progress(output, steps, first, **{"tensorboard": False, "writes": True} | changes)


# -------------------- the log


def test_rates_and_time_left_are_those_of_the_clock(tmp_path, clock, capsys):
    told = progress(tmp_path, steps=10)
    for samples, tokens in ((3, 500), (5, 700)):
        clock.now += 2
        told.count(samples, tokens)
    told.step(2, FACTS)
    (line,) = read_log(tmp_path)
    assert line == {"step": 2, **FACTS, "samples_per_second": 2.0, "tokens_per_second": 300.0}
    assert capsys.readouterr().err == "step 2/10  loss 2.000  300 tokens/s  2.0 samples/s  16 s left\n"
    clock.now += 8  # what follows is slower: the rates are those since the last line, the time left is not
    told.count(4, 800)
    told.step(3, FACTS)
    assert read_log(tmp_path)[1]["samples_per_second"] == 0.5
    assert "100 tokens/s  0.5 samples/s  28 s left" in capsys.readouterr().err


def test_time_left_of_a_run_that_goes_on(tmp_path, clock, capsys):
    """Steps that were done before took no time now."""
    told = progress(tmp_path, steps=10, first=6)
    clock.now += 5
    told.count(1, 1)
    told.step(7, FACTS)
    assert "step 7/10" in (line := capsys.readouterr().err) and "15 s left" in line


def test_evaluations_and_the_end_are_lines_too(tmp_path, capsys):
    told = progress(tmp_path)
    told.evaluated(4, 1.25, True)
    told.evaluated(8, 1.5, False)
    told.stopped(8, "nothing better")
    assert read_log(tmp_path) == [
        {"step": 4, "eval_loss": 1.25, "best": True},
        {"step": 8, "eval_loss": 1.5, "best": False},
        {"step": 8, "stopped": "nothing better"},
    ]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "step 4/10  held-out loss 1.250 (best)" and lines[1].endswith("held-out loss 1.500")
    assert lines[2] == "stopped after step 8: nothing better"


def test_only_one_process_tells(tmp_path, capsys):
    told = progress(tmp_path, writes=False, tensorboard=True)
    told.step(1, FACTS)
    told.evaluated(1, 2.0, True)
    told.stopped(1, "nothing better")
    told.close()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().err == ""


@pytest.mark.parametrize("cut", ['{"step": 3, "lo', '{"step": 3}', ""])
def test_a_last_line_that_was_cut_is_passed_over(tmp_path, cut):
    whole = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.25}]
    (tmp_path / "train_log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in whole) + cut)
    assert read_log(tmp_path) == whole
    progress(tmp_path, first=1)  # and dropped, with the lines of steps that are taken again
    assert (tmp_path / "train_log.jsonl").read_text() == '{"step": 1, "loss": 2.5}\n'
    assert read_log(tmp_path / "nowhere") == []


def test_a_log_that_cannot_be_written(tmp_path):
    """What was written before is kept; also where the log is cleared of the steps to be taken again."""
    told = progress(tmp_path)
    told.step(1, FACTS)
    before = read_log(tmp_path)
    size = (tmp_path / "train_log.jsonl").stat().st_size
    message = r"cannot write to .*train_log\.jsonl: File too large: make room, and the same command goes on"
    with small_files(size), pytest.raises(NarratorError, match=message):
        told.step(2, FACTS)
    with small_files(size + 20), pytest.raises(NarratorError, match=message):
        told.step(2, FACTS)  # cut in the midst
    assert read_log(tmp_path) == before
    with small_files(size - 1), pytest.raises(NarratorError, match=message):
        progress(tmp_path, first=5)
    assert read_log(tmp_path) == before
    progress(tmp_path, first=5).step(6, FACTS)
    assert [line["step"] for line in read_log(tmp_path)] == [1, 6]


# -------------------- of a real run


@pytest.mark.parametrize("packed", [True, False])
def test_a_run_counts_what_it_computes(backbone, shots, zh, tmp_path, monkeypatch, packed):
    """Between two lines of the log a second passes: the rates are the sums of those steps."""
    config = train_config(backbone, tmp_path / "run", **SETTINGS, packed=packed, batch_size=3, log_steps=4)
    clock, counted, moved = Clock(monkeypatch), [], []

    def step(self, done, facts):
        clock.now += 1
        moved.append(done)
        real(self, done, facts)

    real = Progress.step
    monkeypatch.setattr(Progress, "step", step)
    count = Progress.count
    monkeypatch.setattr(Progress, "count", lambda self, *words: (counted.append(words), count(self, *words)))
    train(config, shots, clip_tokens, FEATURES)
    log = log_of(tmp_path / "run")
    assert [line["step"] for line in log] == moved == [4, 6]  # every fourth step, and the last
    assert len(counted) == 6
    for line, done in zip(log, (counted[:4], counted[4:]), strict=True):
        assert line["samples_per_second"] == sum(samples for samples, _ in done)
        assert line["tokens_per_second"] == sum(tokens for _, tokens in done)
    assert sum(samples for samples, _ in counted) == 3 * len(shots)
    _, dataset = started_run(config, shots, zh)
    lengths = dataset.lengths if not packed else [tree.length for video in dataset.trees for tree in video]
    assert sum(tokens for _, tokens in counted) == 3 * sum(lengths)
    assert log[-1]["epoch"] == 3 and log[0]["epoch"] == round(sum(s for s, _ in counted[:4]) / 10, 4)


def test_a_logged_loss_is_the_mean_since_the_last_line_wherever_a_run_was_stopped(
    backbone, shots, tmp_path, monkeypatch
):
    """Stopped between two lines: the first line afterwards has the mean of the steps before, too."""
    alone = train_config(backbone, tmp_path / "alone", **SETTINGS)
    train(alone, shots, clip_tokens, FEATURES)
    losses = [line["loss"] for line in log_of(tmp_path / "alone")]
    config = train_config(backbone, tmp_path / "run", **SETTINGS, log_steps=3)

    def stop():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        after_step(patch, 5, stop)
        train(config, shots, clip_tokens, FEATURES)
    train(config, shots, clip_tokens, FEATURES)  # from step 4 on
    assert [line["loss"] for line in log_of(tmp_path / "run")] == pytest.approx(
        [sum(losses[:3]) / 3, sum(losses[3:]) / 3], abs=1e-12
    )


# -------------------- the loss curve


def picture(output):
    with Image.open(output / "loss_curve.png") as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def colours(pixels):
    """How many pixels have each of matplotlib's first two colours."""
    blue, orange = (31, 119, 180), (255, 127, 14)
    return tuple(int((abs(pixels - colour).sum(2) < 30).sum()) for colour in (blue, orange))


def test_the_loss_curve_grows_with_the_log(tmp_path):
    told = progress(tmp_path, steps=40)
    for step in range(1, 4):
        told.step(step, FACTS | {"loss": 5 - step})
    told.draw(now=True)
    first = picture(tmp_path)
    assert first.shape[0] > 300 and first.shape[1] > 500
    blue, orange = colours(first)
    assert blue > 100 and orange == 0
    for step in range(4, 8):
        told.step(step, FACTS | {"loss": 5 - step / 2})
    told.draw()  # the last one is not a minute old
    assert (picture(tmp_path) == first).all()
    told.drawn -= 61
    told.draw()
    second = picture(tmp_path)
    assert (second != first).any() and colours(second)[1] == 0
    told.evaluated(4, 3.0, True)
    told.evaluated(7, 2.0, True)
    told.close()
    assert colours(picture(tmp_path))[0] > 100 and colours(picture(tmp_path))[1] > 100  # both curves
    assert {file.name for file in tmp_path.iterdir()} == {"loss_curve.png", "train_log.jsonl"}


def test_a_curve_without_a_step_and_one_that_cannot_be_written(tmp_path, capsys):
    draw_curve(tmp_path)
    before = (tmp_path / "loss_curve.png").read_bytes()
    told = progress(tmp_path)
    told.step(1, FACTS)
    with small_files(1000):
        told.close()
    assert "loss_curve.png is not drawn: [Errno 27] File too large" in capsys.readouterr().err
    assert (tmp_path / "loss_curve.png").read_bytes() == before


# -------------------- TensorBoard


def scalars(output):
    """What TensorBoard shows: name -> step -> value."""
    events = EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    shown = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    assert all(len({event.step for event in told}) == len(told) for told in shown.values())  # no step twice
    return {name: {event.step: event.value for event in told} for name, told in shown.items()}


def test_tensorboard_reads_what_the_log_has(backbone, shots, tmp_path, monkeypatch):
    """Through the command; also of a run that was stopped and went on."""
    words = write_settings(tmp_path, backbone, shots[:6], shots[6:], **SETTINGS, evaluate_steps=2)
    words += ("optimization.tensorboard=true", "optimization.epochs=5")

    def stop():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        after_step(patch, 4, stop)
        assert run(*words).code == 130
    succeed(*words)
    shown, log = scalars(tmp_path / "run"), log_of(tmp_path / "run")
    names = {name for line in log for name in line} - {"step"}
    assert shown.keys() == names and {"loss", "eval_loss", "best", "tokens_per_second"} <= names
    for name, values in shown.items():
        expected = {line["step"]: float(line[name]) for line in log if name in line}
        assert values.keys() == expected.keys(), name
        if not name.endswith("_per_second"):
            assert values == pytest.approx(expected, rel=1e-6), name


def test_tensorboard_is_not_there_unless_it_is_wanted(backbone, shots, tmp_path, monkeypatch):
    words = write_settings(tmp_path, backbone, shots, epochs=1)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    done = run(*words, "optimization.tensorboard=true")
    fails(done, "tensorboard=true needs the package tensorboard: pip install tensorboard")
    assert not (tmp_path / "run").exists()  # told before anything else, so that the folder is no run's yet
    succeed(*words)
    assert not (tmp_path / "run/tensorboard").exists()


def test_stderr_of_the_command(backbone, shots, tmp_path):
    words = write_settings(tmp_path, backbone, shots[:6], shots[6:], **SETTINGS)
    done = succeed(*words)
    assert done.out == f"{tmp_path / 'run/checkpoint'}\n"
    steps = re.findall(
        r"^step (\d)/3  loss \d+\.\d{3}  \d+ tokens/s  \d+\.\d samples/s  (\d+) s left$", done.err, re.M
    )
    assert [step for step, _ in steps] == ["1", "2", "3"] and steps[-1][1] == "0"
    assert re.search(r"^step 3/3  held-out loss \d\.\d{3} \(best\)$", done.err, re.M)
