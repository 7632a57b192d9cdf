"""`infer` killed or interrupted goes on where it stopped, and its output.json is that of a run left alone."""

import contextlib
import os
import random
import signal
import time

import pytest
from cli_world import files
from many_videos import finished, make_many, nursery

KINDS = {
    "greedy": (12, "batch=2", "attempts=1"),
    "sampled": (8, "batch=3", "greedy=false", "temperature=0.9", "length=prompt", "max_new_tokens=12"),
}
"""How often it is killed, 20 times in all, and with what settings."""


@pytest.fixture(scope="module")
def many(world, tmp_path_factory):
    return make_many(world, tmp_path_factory.mktemp("resume") / "many", 8)


@pytest.fixture(scope="module")
def begin(many, tmp_path_factory):
    """Start a command as a process: see `nursery`."""
    folder = tmp_path_factory.mktemp("nursery")
    with nursery(["infer", *many.options(folder / "first")], folder / "said") as start:
        yield start


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_again_and_again_ends_the_same(many, begin, tmp_path, kind):
    """SIGKILL at random moments, start to end: also while a log, output.json or a script is written."""
    wanted, *settings = KINDS[kind]

    def words(out):
        return ["infer", *many.options(out), *settings]

    code = begin(words(tmp_path / "whole"))[1]()
    assert code in (0, 3)
    draw, kills, runs, counts = random.Random(kind), 0, 0, set()
    while kills < wanted:
        out, runs, found = tmp_path / f"run{runs}", runs + 1, None
        while found != code:  # a run that came to its end is followed by another
            process, ended = begin(words(out))
            if kills < wanted:
                wait_for(out, len(finished(out)) + draw.randint(0, 3), process)
                time.sleep(draw.uniform(0, 0.3))
                kill(process)
            found = ended()
            assert found in (code, -signal.SIGKILL)
            if found != code:
                kills += 1
                counts.add(len(finished(out)))
        assert_same(out, tmp_path / "whole")
    assert len(counts) > 3  # the kills fell between different videos


def wait_for(out, videos, process):
    """Until so many videos are finished, or the process is."""
    with contextlib.suppress(ProcessLookupError):
        while len(finished(out)) < videos:
            os.kill(process, 0)
            time.sleep(0.005)


def kill(process):
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def assert_same(out, whole):
    """output.json and the scripts, byte by byte."""
    expected = {name for name in files(whole) if not name.startswith("generations")}
    assert files(out) - {"generations.jsonl"} == expected
    for name in expected - {"env.json"}:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
