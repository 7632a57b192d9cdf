"""`narrate` on videos of other kinds than the sample's: cuts, and lengths that fit the clips.

The model is a tiny random one: what it writes means nothing here, what it is asked for does.
"""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from cli_world import files, read, succeed
from video_helpers import real_footage, shots, write_video

from data_process.video_file import probe
from videonarrator.length import DEFAULT_RATE
from videonarrator.storyline import SCRIPT_LABELS


def check_script(folder: Path, seconds: float, rate: float = DEFAULT_RATE["zh"]) -> list[dict]:
    """The lines of script.json: one a clip, no clip past the video, lengths that fit the clips."""
    script = read(folder / "script.json")
    lines = script["lines"]
    assert [line["clip"] for line in lines] == list(range(len(lines))) and lines and not script["skipped"]
    for line in lines:
        assert 0 <= line["start"] < line["end"] <= seconds
        fits = rate * (line["end"] - line["start"]) + 1e-6
        assert 1 <= line["low"] <= line["high"] <= max(1, fits)
        assert line["high"] > fits - 1
    made = {"script.json", "script.md", "decoding.yaml", "speaking_rate.yaml", "env.json"}
    assert files(folder) == made
    return lines


def narrate(world, video: Path, out: Path, *more: object, rate: float = DEFAULT_RATE["zh"]) -> list[dict]:
    done = succeed(*world.narrate(video, out, *more))
    lines = check_script(out, probe(video).duration_s, rate)
    assert len(done.out.splitlines()) == 2 + len(lines) + 1  # head, clips, path
    return lines


def covers(lines: list[dict], seconds: float) -> bool:
    """Whether the clips follow each other without gaps, from the start to the end."""
    times = [0.0, *(line["end"] for line in lines)]
    return [line["start"] for line in lines] == times[:-1] and times[-1] == pytest.approx(seconds, abs=1e-3)


def test_bikes(world, tmp_path):
    bikes = real_footage("bikes.mp4")
    product = tmp_path / "product.yaml"
    product.write_text(
        "name: 【城市骑行】轻风公路车\ninfo:\n  质量/特性: [车架轻, 变速顺]\n  人群: 通勤的你\n", "utf-8"
    )
    done = succeed(*world.narrate(bikes, tmp_path / "out", product=product))
    lines = check_script(tmp_path / "out", probe(bikes).duration_s)
    cuts = [line["start"] for line in lines[1:]]
    for expected in (1.2, 3.0, 5.5, 7.5):
        assert min(abs(cut - expected) for cut in cuts) <= 0.2, (expected, cuts)
    assert len(cuts) <= 5 and covers(lines, probe(bikes).duration_s)
    assert all(1.0 <= line["end"] - line["start"] <= 15.0 for line in lines)
    assert read(tmp_path / "out" / "script.json")["product"]["name"] == "【城市骑行】轻风公路车"
    assert done.out.count("\n") == 2 + len(lines) + 1


def test_ntsc_rate(world, tmp_path):
    """29.97 pictures a second: times are those of the file, not of a rounded rate."""
    video = write_video(tmp_path / "ntsc.mp4", shots([2.0, 3.0, 1.5], 30), fps=Fraction(30000, 1001))
    lines = narrate(world, video, tmp_path / "out")
    assert [line["start"] for line in lines] == pytest.approx([0, 2 * 1.001, 5 * 1.001], abs=0.02)


def test_variable_rate(world, tmp_path):
    """Pictures 0.04 and 0.2 s apart: the cut lies where it is seen, not where the pictures' numbers say."""
    pictures = shots([2.0, 1.0], 25)
    times = [step * 0.04 for step in range(50)] + [2.0 + step * 0.2 for step in range(25)]
    video = write_video(tmp_path / "phone.mp4", pictures, times=times, end=7.0, b_frames=0)
    lines = narrate(world, video, tmp_path / "out")
    assert [(line["start"], line["end"]) for line in lines] == [
        (0.0, pytest.approx(2.0, abs=0.1)),
        (pytest.approx(2.0, abs=0.1), pytest.approx(7.0, abs=0.1)),
    ]


def test_without_a_cut(world, tmp_path):
    video = write_video(tmp_path / "one.mp4", shots([4.0]))
    (line,) = narrate(world, video, tmp_path / "out")
    assert (line["start"], line["end"], line["low"], line["high"]) == (0.0, 4.0, 18, 24)


def test_long_shots_are_split(world, tmp_path):
    still = np.full((48, 64, 3), 90, np.uint8)
    video = write_video(tmp_path / "long.mp4", [still] * 80, fps=4)
    lines = narrate(world, video, tmp_path / "out")
    assert [(line["start"], line["end"]) for line in lines] == [(0.0, 10.0), (10.0, 20.0)]


def test_shorter_than_a_second(world, tmp_path):
    video = write_video(tmp_path / "blink.mp4", shots([0.4]))
    (line,) = narrate(world, video, tmp_path / "out")
    assert (line["end"], line["low"], line["high"]) == (0.4, 1, 2)


def test_one_picture(world, tmp_path):
    video = write_video(tmp_path / "still.mp4", shots([0.04]))
    (line,) = narrate(world, video, tmp_path / "out")
    assert (line["low"], line["high"]) == (1, 1)


def test_own_cuts_and_storyline(world, tmp_path):
    video = write_video(tmp_path / "video.mp4", shots([2.0, 3.0]))
    cuts, storyline = tmp_path / "cuts.csv", tmp_path / "storyline.txt"
    cuts.write_text("start,end,label\n0.5,1.25,产品试用\n1.5,4,\n4,5.05,\n", "utf-8")
    lines = narrate(world, video, tmp_path / "labels", "--cuts", cuts, "--rate", "4.5", rate=4.5)
    assert [(line["start"], line["end"]) for line in lines] == [(0.5, 1.25), (1.5, 4.0), (4.0, 5.0)]
    assert lines[0]["label"] == "产品试用"
    wanted = [SCRIPT_LABELS[1], "外观设计+产品功效", SCRIPT_LABELS[2]]
    storyline.write_text("\n".join(wanted), "utf-8")
    lines = narrate(world, video, tmp_path / "both", "--cuts", cuts, "--storyline", storyline)
    assert [line["label"] for line in lines] == wanted


def test_cuts_that_the_command_wrote(world, tmp_path):
    """`cut`, then a label written by hand into its JSON, then `narrate --cuts`."""
    video = write_video(tmp_path / "video.mp4", shots([2.0, 3.0]))
    succeed("cut", video, "--out", tmp_path)
    made = read(tmp_path / "video.json")
    made["clips"][1]["label"] = "引导购买"
    (tmp_path / "video.json").write_text(json.dumps(made), "utf-8")
    lines = narrate(world, video, tmp_path / "out", "--cuts", tmp_path / "video.json")
    assert [line["end"] for line in lines] == [2.0, 5.0] and lines[1]["label"] == "引导购买"


def test_the_same_seed_gives_the_same_script(world, tmp_path):
    video = write_video(tmp_path / "video.mp4", shots([2.0]))
    texts = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        more = ("greedy=false", "temperature=1.0", f"seed={seed}")
        texts.append([line["text"] for line in narrate(world, video, tmp_path / name, *more)])
    assert texts[0] == texts[1] != texts[2]
