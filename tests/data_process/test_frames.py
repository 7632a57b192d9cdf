"""Stills at one a second by time stamp, the two back ends against each other, and unusable files."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from video_helpers import number_of, numbered, real_footage, write_video

from data_process import frames
from data_process.frames import iter_frames, probe, read_frames
from data_process.video_file import VideoInfo, VideoScan, decode_pictures, scan_video
from videonarrator.schema import NarratorError
from videonarrator.timeline import frame_numbers

NTSC = Fraction(30000, 1001)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


def _has_decord():
    try:
        import decord  # noqa: F401
    except ImportError:
        return False
    return True


needs_decord = pytest.mark.skipif(not _has_decord(), reason="no decord here")
BACKENDS = ["pyav", pytest.param("decord", marks=needs_decord)]
FILES = [("mp4", "pyav"), pytest.param("mp4", "decord", marks=needs_decord), ("mkv", "auto")]


def shown(times, second):
    """Plain restatement: the last picture whose time is not later than `second`."""
    return max(i for i, t in enumerate(times) if t <= second)


def vfr_times(seed, count, start=0):
    steps = np.random.default_rng(seed).choice([20, 33, 50, 100, 700, 1600], count - 1)
    return [Fraction(int(t), 1000) for t in np.concatenate([[start], start + np.cumsum(steps)])]


@pytest.mark.parametrize(("ending", "backend"), FILES)
@pytest.mark.parametrize("fps", [25, NTSC, 24, 12])
def test_constant_rate(folder, backend, ending, fps):
    count = round(5 * fps)
    video = write_video(folder / f"cfr{float(fps):.0f}_{backend}.{ending}", numbered(count), fps=fps)
    info = probe(video)
    assert info.n_pictures == count and (info.width, info.height) == (160, 64)
    assert info.duration_s == pytest.approx(count / fps, abs=0.002)
    assert info.fps == pytest.approx(float(fps), rel=1e-3)
    stills = read_frames(video, range(1, 6), backend=backend)
    times = [Fraction(i) / fps for i in range(count)]
    if ending == "mkv":  # Matroska stores whole milliseconds
        times = [Fraction(round(time * 1000), 1000) for time in times]
    assert {k: number_of(still) for k, still in stills.items()} == {
        k: shown(times, k - 1) for k in range(1, 6)
    }
    assert all(still.dtype == np.uint8 and still.shape == (64, 160, 3) for still in stills.values())


@pytest.mark.parametrize(("ending", "backend"), FILES)
@pytest.mark.parametrize("b_frames", [0, 3])
def test_variable_rate(folder, backend, ending, b_frames):
    times = vfr_times(b_frames, 50)
    end = times[-1] + Fraction(3, 2)
    name = f"vfr{b_frames}{backend}.{ending}"
    video = write_video(folder / name, numbered(50), times=times, end=end, b_frames=b_frames)
    info = probe(video)
    if not b_frames:
        assert info.duration_s == pytest.approx(float(end), abs=0.002)
    assert info.n_pictures == 50 and float(times[-1]) < info.duration_s
    stills = read_frames(video, range(1, info.n_frames + 1), backend=backend)
    assert {k: number_of(still) for k, still in stills.items()} == {
        k: shown(times, k - 1) for k in range(1, info.n_frames + 1)
    }


def test_time_counts_from_the_first_picture(folder):
    times = vfr_times(3, 30, start=730)
    video = write_video(folder / "late.mkv", numbered(30), times=times)
    last = probe(video).n_frames
    got = {k: number_of(still) for k, still in read_frames(video, range(1, last + 1)).items()}
    assert got == {k: shown(times, k - 1 + times[0]) for k in range(1, last + 1)}


@given(st.lists(st.integers(1, 3_000), max_size=40), st.sampled_from([1000, 600, 12800]), st.integers(0, 50))
@settings(deadline=None, max_examples=100)
def test_choice_is_the_last_picture_not_later(steps, rate, second):
    ticks = [0, *np.cumsum(steps, dtype=int).tolist()]
    scan = VideoScan(VideoInfo(1, 1, 1, 1, len(ticks)), ticks, Fraction(1, rate), True)
    assert scan.shown_at(second) == shown([Fraction(t, rate) for t in ticks], second)


@needs_decord
@pytest.mark.parametrize("name", ["bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4"])
def test_back_ends_agree_on_real_footage_to_the_last_bit(name):
    video = real_footage(name)
    every = range(1, probe(video).n_frames + 1)
    ours, theirs = read_frames(video, every, backend="pyav"), read_frames(video, every, backend="decord")
    assert list(ours) == list(theirs) == list(every)
    assert all(np.array_equal(ours[k], theirs[k]) for k in every)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_is_applied(folder, backend, rotation):
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:32, :48] = 255
    video = write_video(folder / f"rot{rotation}{backend}.mp4", [picture] * 10, rotation=rotation)
    want = np.rot90(picture, rotation // 90)
    info = probe(video)
    assert info.rotation == rotation and (info.height, info.width) == want.shape[:2]
    still = read_frames(video, [1], backend=backend)[1]
    assert still.shape == want.shape
    assert np.abs(still.astype(int) - want).mean() < 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_portrait_and_shorter_than_a_second(folder, backend):
    video = write_video(folder / f"short_{backend}.mp4", numbered(15, width=90, height=162))
    info = probe(video)
    assert (info.width, info.height, info.duration_s, info.n_frames) == (90, 162, 0.6, 1)
    assert read_frames(video, frame_numbers(0, 0.6), backend=backend)[1].shape == (162, 90, 3)
    one = write_video(folder / f"one_{backend}.mp4", numbered(1))
    assert number_of(read_frames(one, [1], backend=backend)[1]) == 0


def test_frames_past_the_end_are_named(folder):
    video = write_video(folder / "five.mp4", numbered(125))
    assert list(read_frames(video, frame_numbers(0, 5.0))) == [1, 2, 3, 4, 5]
    with pytest.raises(NarratorError, match=r"five\.mp4 lasts 5 s and has frames 1\.\.5 .*not there: 6, 7"):
        iter_frames(video, [5, 6, 7])
    with pytest.raises(NarratorError, match="not there: 0"):
        iter_frames(video, [0, 1])
    assert read_frames(video, []) == {}


def test_frames_are_streamed_in_order_and_once(folder):
    video = write_video(folder / "order.mp4", numbered(75))
    stills = iter_frames(video, [3, 1, 3, 2])
    assert not isinstance(stills, (list, dict))
    assert [k for k, _ in stills] == [1, 2, 3]


@needs_decord
def test_edit_lists(folder):
    """This one starts a second into the pictures and shows three seconds of them; decord passes over it."""
    whole = write_video(folder / "whole.mp4", numbered(125), times=[Fraction(i, 25) for i in range(125)])
    data = bytearray(whole.read_bytes())
    entry = data.find(b"elst") + 12
    media_time = int.from_bytes(data[entry + 4 : entry + 8], "big")
    data[entry : entry + 8] = (3000).to_bytes(4, "big") + (media_time + 90000).to_bytes(4, "big")
    edited = folder / "edited.mp4"
    edited.write_bytes(data)
    assert probe(edited).duration_s == pytest.approx(3.0)
    assert [number_of(s) for s in read_frames(edited, [1, 2, 3]).values()] == [25, 50, 75]
    with pytest.raises(NarratorError, match="decord cannot be used"):
        iter_frames(edited, [1], backend="decord")


@needs_decord
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("fragmented.mp4", {"fragmented": True}),
        ("ten_bits.mp4", {"pixels": "yuv420p10le"}),
        ("stream.ts", {}),
        ("b_pictures.mp4", {"codec": "mpeg4", "options": {"bf": "2"}}),
        ("b_pictures.avi", {}),
    ],
)
def test_decord_is_left_aside_where_it_errs(folder, name, how):
    """Each of these it opens without complaint and gives other pictures than those asked for."""
    video = write_video(folder / name, numbered(400, 80, 32), **how)
    stills = read_frames(video, range(1, 17))
    assert [number_of(still) for still in stills.values()] == list(range(0, 400, 25))
    with pytest.raises(NarratorError, match=r"decord cannot be used for .*: it is only right about H\.264"):
        iter_frames(video, [1], backend="decord")


@needs_decord
@pytest.mark.parametrize(
    "coding", ["open-gop=1:keyint=20:bframes=3", "keyint=infinite:intra-refresh=1", "keyint=1"]
)
def test_decord_over_many_groups_of_pictures(folder, coding):
    video = write_video(folder / f"{coding[:8]}.mp4", numbered(400, 80, 32), options={"x264-params": coding})
    for wanted in (range(1, 17), [16], [2, 3, 11], [1, 16]):
        stills = read_frames(video, wanted, backend="decord")
        assert {k: number_of(still) for k, still in stills.items()} == {k: (k - 1) * 25 for k in wanted}


def test_without_decord_auto_is_pyav(folder, monkeypatch):
    video = write_video(folder / "nodecord.mp4", numbered(30))
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    assert [number_of(s) for s in read_frames(video, [1, 2]).values()] == [0, 25]
    with pytest.raises(NarratorError, match="not installed"):
        iter_frames(video, [1], backend="decord")
    monkeypatch.setattr(frames, "decode_pictures", lambda path: iter(()))
    with pytest.raises(NarratorError, match=r"damaged: the pictures at 1\.000 s"):
        read_frames(video, [2], backend="pyav")


def test_avi_without_presentation_times(folder):
    video = write_video(folder / "old.avi", numbered(60), codec="mpeg4")
    info = probe(video)
    assert info.duration_s == pytest.approx(2.4) and info.n_frames == 3
    assert [number_of(s) for s in read_frames(video, [1, 2, 3]).values()] == [0, 25, 50]


# -------------------- unusable files


def _audio_only(path):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _bad_files(folder):
    good = write_video(folder / "good.mp4", numbered(100, 320, 128), faststart=True).read_bytes()
    media = good.find(b"mdat")
    plain = write_video(folder / "good2.mp4", numbered(100)).read_bytes()
    matroska = write_video(folder / "good.mkv", numbered(100)).read_bytes()
    (folder / "text.mp4").write_text("this is no video\n" * 40, "utf-8")
    (folder / "empty.mp4").touch()
    (folder / "folder").mkdir()
    (folder / "index_lost.mp4").write_bytes(plain[: len(plain) // 2])
    (folder / "cut_half.mp4").write_bytes(good[: media + (len(good) - media) // 2])
    (folder / "cut_tail.mp4").write_bytes(good[:-15])
    (folder / "cut_early.mp4").write_bytes(good[: media + 10])
    (folder / "cut.mkv").write_bytes(matroska[: len(matroska) // 2])
    _audio_only(folder / "sound.mp4")


BAD = {
    "missing.mp4": r"there is no video .*missing\.mp4; .* holds .*: give the path of one of them",
    "nowhere/missing.mp4": "there is no folder",
    "text.mp4": "is not a video file",
    "empty.mp4": r"is empty \(0 bytes\)",
    "folder": "is a folder, not a video file",
    "index_lost.mp4": "was cut off: its index is missing",
    "cut_half.mp4": "was cut off",
    "cut_tail.mp4": "was cut off",
    "cut_early.mp4": "was cut off",
    "cut.mkv": "was cut off",
    "sound.mp4": r"has no video stream \(it holds audio\)",
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    _bad_files(folder)
    return folder


@pytest.mark.parametrize("name", BAD)
def test_unusable_files(bad, name):
    for use in (
        probe,
        lambda path: read_frames(path, [1]),
        lambda path: read_frames(path, [1], backend="pyav"),
    ):
        with pytest.raises(NarratorError, match=BAD[name]) as caught:
            use(bad / name)
        assert "\n" not in str(caught.value)


def test_damage_in_the_middle_is_found_when_decoding(folder):
    rng = np.random.default_rng(0)
    noise = [
        np.kron(rng.integers(0, 256, (8, 10, 3)), np.ones((12, 12, 1))).astype(np.uint8) for _ in range(30)
    ]
    video = write_video(folder / "noise.mp4", noise, faststart=True)
    data = bytearray(video.read_bytes())
    middle = data.find(b"mdat") + 3000
    data[middle : middle + 2000] = b"\xff" * 2000
    video.write_bytes(data)
    with pytest.raises(NarratorError, match=r"damaged|cut off"):
        for _ in decode_pictures(video):
            pass


def test_scan_counts_what_is_decoded():
    video = real_footage("carphone_pristine.mp4")
    scan = scan_video(video)
    times = [time for time, _ in decode_pictures(video)]
    assert [scan.time(i) for i in range(len(scan.ticks))] == times
    assert scan.info.n_frames == math.ceil(scan.info.duration_s) == 5
