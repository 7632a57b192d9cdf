"""What the speech tests share: a speech engine, and real videos with times."""

import os
import shutil

import pytest

from data_process.annotations import read_sample_list


@pytest.fixture(scope="session")
def espeak() -> None:
    """espeak-ng, a speech engine that is small enough for tests."""
    if shutil.which("espeak-ng") is None:
        reason = "no espeak-ng: apt-get install espeak-ng"
        if os.environ.get("VIDEONARRATOR_REQUIRE_SHARED"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def real_videos(shared, zh):
    """300 real videos with the times of their clips."""
    samples = read_sample_list(shared / "data" / "esyncvidstory_test_300.json", zh)
    return [sample.video for sample in samples]
