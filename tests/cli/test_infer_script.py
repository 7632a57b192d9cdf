"""scripts/infer.sh: two processes give what one gives; interrupted or killed, any number goes on."""

import json
import os
import signal
import subprocess
import time

import pytest
from cli_world import ROOT, run
from many_videos import finished, make_many, spoil

SETTINGS = ("batch=1", "attempts=2")


@pytest.fixture(scope="module")
def many(world, tmp_path_factory):
    """Twelve videos, the features of one are no numbers."""
    root = tmp_path_factory.mktemp("script")
    many = make_many(world, root / "many", 12)
    spoil(many, many.features, "v05", "no numbers")
    return many


@pytest.fixture(scope="module")
def alone(many, tmp_path_factory):
    """The run as one process makes it, without a stop."""
    out = tmp_path_factory.mktemp("alone")
    done = run("infer", *many.options(out), *SETTINGS)
    assert done.code == 3
    return out, done


class Started:
    """`NUM_PROCESSES=2 bash scripts/infer.sh ...`, at work."""

    def __init__(self, many, out, folder):
        self.out, self.err = folder / "stdout", folder / "stderr"
        with self.out.open("w") as out_file, self.err.open("w") as err_file:
            self.process = subprocess.Popen(
                ["bash", ROOT / "scripts/infer.sh", *many.options(out), *SETTINGS],
                env=os.environ | {"OMP_NUM_THREADS": "1", "NUM_PROCESSES": "2"},
                stdout=out_file, stderr=err_file, start_new_session=True,
            )  # fmt: skip

    def wait_for(self, out, videos):
        """Until so many videos are finished."""
        while len(finished(out)) < videos:
            assert self.process.poll() is None, self.err.read_text()
            time.sleep(0.02)

    def workers(self):
        """The process ids of the two."""
        words = ["pgrep", "-P", str(self.process.pid)]
        return [int(line) for line in subprocess.check_output(words, text=True).split()]

    def end(self):
        """Exit code, stdout and the lines of stderr, when it has ended."""
        code = self.process.wait(timeout=300)
        return code, self.out.read_text(), self.err.read_text().splitlines()


@pytest.fixture
def start(many, tmp_path):
    """Start the script; what is still at work in the end is killed."""
    started = []

    def begin(out):
        folder = tmp_path / f"started{len(started)}"
        folder.mkdir()
        started.append(Started(many, out, folder))
        return started[-1]

    yield begin
    for one in started:
        one.process.kill()


def test_two_processes_give_what_one_gives(many, alone, start, tmp_path):
    code, out, err = start(tmp_path / "out").end()
    assert code == 3, err
    result, expected = json.loads(out), alone[1].result
    assert result == expected | {"output": str(tmp_path / "out/output.json")}
    assert list(result["failed"]) == ["v05"]
    assert (tmp_path / "out/output.json").read_bytes() == (alone[0] / "output.json").read_bytes()
    logs = [tmp_path / f"out/generations.{index}.jsonl" for index in range(2)]
    shared = [{json.loads(line)["video"] for line in log.read_text("utf-8").splitlines()} for log in logs]
    assert all(len(share) >= 4 for share in shared) and not shared[0] & shared[1]
    assert shared[0] | shared[1] == finished(alone[0])
    told = [line for line in err if line.startswith("narrated")]
    assert sorted(line.split()[1] for line in told) == sorted(f"{done}/12" for done in range(1, 13))
    assert sum(line.startswith("failed") for line in err) == 1


def test_interrupted_then_killed_then_one_goes_on(many, alone, start, tmp_path):
    """Ctrl-C to both; then one of the two is killed, which ends the other; then one process alone."""
    out = tmp_path / "out"
    both = start(out)
    both.wait_for(out, 2)
    os.killpg(both.process.pid, signal.SIGINT)  # as a terminal does
    code, told, err = both.end()
    assert (code, told) == (130, ""), err
    assert [line for line in err if "interrupted" in line] == [err[-1]] and "Traceback" not in "".join(err)
    first = finished(out)
    assert 2 <= len(first) < 11

    both = start(out)
    both.wait_for(out, len(first) + 2)
    workers = both.workers()
    os.kill(workers[1], signal.SIGKILL)
    code, told, err = both.end()
    assert (code, told) == (137, ""), err
    assert err[-1] == "error: process 1 was ended by SIGKILL"
    assert not any(alive(worker) for worker in workers)
    second = finished(out)
    assert first < second and not (out / "output.json").exists()

    done = run("infer", *many.options(out), *SETTINGS)
    assert done.code == 3 and f"/{12 - len(second)} videos" in done.err
    assert (out / "output.json").read_bytes() == (alone[0] / "output.json").read_bytes()
    lines = [line for log in out.glob("generations*.jsonl") for line in log.read_text("utf-8").splitlines()]
    assert len({json.loads(line)["video"] for line in lines}) == len(lines) == 11  # none twice


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_wrong_words_are_told_once(many, start, tmp_path):
    many.annotations.rename(many.annotations.with_suffix(".away"))
    try:
        code, out, err = start(tmp_path / "out").end()
    finally:
        many.annotations.with_suffix(".away").rename(many.annotations)
    assert (code, out) == (2, "")
    assert len(err) == 1 and err[0].startswith("error: cannot read")
