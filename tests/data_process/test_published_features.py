"""The published feature files: read as they are, and nothing that lies in one is ever run."""

import base64
import json
import os
import pickle

import numpy as np
import pytest
import torch
from cli_world import fails, files, read, run, states, succeed
from feature_files import Payload, array, same, save_clips, save_frames

from data_process.feature_store import ClipStore, FeatureStore
from data_process.published_features import PUBLISHED, convert_features, find_published, read_npy, read_pickle
from videonarrator.cli.visual_source import check_features
from videonarrator.schema import NarratorError

# pickle.dumps(numpy.array([[1.5, -2.0], [0.25, 3.0]], dtype="float32"), protocol=...) by numpy 1.26.4
NUMPY_1 = {
    0: (
        "Y251bXB5LmNvcmUubXVsdGlhcnJheQpfcmVjb25zdHJ1Y3QKcDAKKGNudW1weQpuZGFycmF5CnAxCihJMAp0cDIKY19jb2RlY3MK"
        "ZW5jb2RlCnAzCihWYgpwNApWbGF0aW4xCnA1CnRwNgpScDcKdHA4ClJwOQooSTEKKEkyCkkyCnRwMTAKY251bXB5CmR0eXBlCnAx"
        "MQooVmY0CnAxMgpJMDAKSTAxCnRwMTMKUnAxNAooSTMKVjwKcDE1Ck5OTkktMQpJLTEKSTAKdHAxNgpiSTAwCmczCihWXHUwMDAw"
        "XHUwMDAwwD9cdTAwMDBcdTAwMDBcdTAwMDDAXHUwMDAwXHUwMDAwgD5cdTAwMDBcdTAwMDBAQApwMTcKZzUKdHAxOApScDE5CnRw"
        "MjAKYi4="
    ),
    1: (
        "Y251bXB5LmNvcmUubXVsdGlhcnJheQpfcmVjb25zdHJ1Y3QKcQAoY251bXB5Cm5kYXJyYXkKcQEoSwB0cQJjX2NvZGVjcwplbmNv"
        "ZGUKcQMoWAEAAABicQRYBgAAAGxhdGluMXEFdHEGUnEHdHEIUnEJKEsBKEsCSwJ0cQpjbnVtcHkKZHR5cGUKcQsoWAIAAABmNHEM"
        "STAwCkkwMQp0cQ1ScQ4oSwNYAQAAADxxD05OTkr/////Sv////9LAHRxEGJJMDAKaAMoWBMAAAAAAMOAPwAAAMOAAADCgD4AAEBA"
        "cRFoBXRxElJxE3RxFGIu"
    ),
    2: (
        "gAJjbnVtcHkuY29yZS5tdWx0aWFycmF5Cl9yZWNvbnN0cnVjdApxAGNudW1weQpuZGFycmF5CnEBSwCFcQJjX2NvZGVjcwplbmNv"
        "ZGUKcQNYAQAAAGJxBFgGAAAAbGF0aW4xcQWGcQZScQeHcQhScQkoSwFLAksChnEKY251bXB5CmR0eXBlCnELWAIAAABmNHEMiYiH"
        "cQ1ScQ4oSwNYAQAAADxxD05OTkr/////Sv////9LAHRxEGKJaANYEwAAAAAAw4A/AAAAw4AAAMKAPgAAQEBxEWgFhnESUnETdHEU"
        "Yi4="
    ),
    3: (
        "gANjbnVtcHkuY29yZS5tdWx0aWFycmF5Cl9yZWNvbnN0cnVjdApxAGNudW1weQpuZGFycmF5CnEBSwCFcQJDAWJxA4dxBFJxBShL"
        "AUsCSwKGcQZjbnVtcHkKZHR5cGUKcQdYAgAAAGY0cQiJiIdxCVJxCihLA1gBAAAAPHELTk5OSv////9K/////0sAdHEMYolDEAAA"
        "wD8AAADAAACAPgAAQEBxDXRxDmIu"
    ),
    4: (
        "gASVmgAAAAAAAACMFW51bXB5LmNvcmUubXVsdGlhcnJheZSMDF9yZWNvbnN0cnVjdJSTlIwFbnVtcHmUjAduZGFycmF5lJOUSwCF"
        "lEMBYpSHlFKUKEsBSwJLAoaUaAOMBWR0eXBllJOUjAJmNJSJiIeUUpQoSwOMATyUTk5OSv////9K/////0sAdJRiiUMQAADAPwAA"
        "AMAAAIA+AABAQJR0lGIu"
    ),
    5: (
        "gAWVhQAAAAAAAACMEm51bXB5LmNvcmUubnVtZXJpY5SMC19mcm9tYnVmZmVylJOUKJYQAAAAAAAAAAAAwD8AAADAAACAPgAAQECU"
        "jAVudW1weZSMBWR0eXBllJOUjAJmNJSJiIeUUpQoSwOMATyUTk5OSv////9K/////0sAdJRiSwJLAoaUjAFDlHSUUpQu"
    ),
}


# ------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_frames(tmp_path, dtype):
    """Ids with "_", frames that lack, numbers over 999, subfolders; dtype and every byte stay."""
    source, out = tmp_path / "npy", tmp_path / "store"
    a = save_frames(source / "part" / "one", "a_b_7", [2, 3, 7, 1000], dtype)
    b = save_frames(source, "b", [1], dtype, seed=5)
    (source / "readme.txt").write_text("x")
    (source / "._b_001.jpg.npy").write_bytes(b"left by another system")
    done = succeed("convert", "features", source, out)
    assert done.result == {"out": str(out), "kind": "frame features", "videos": 2, "failed": {}}
    assert "passed over 1 other files, first readme.txt" in done.err and "2/2 videos" in done.err
    store = FeatureStore.open(out)
    assert store.ids == ["a_b_7", "b"]
    for video_id, saved in (("a_b_7", a), ("b", b)):
        numbers, frames = store.read(video_id)
        assert numbers.tolist() == list(saved) and same(frames, saved.values())
    assert store.settings == {
        "encoder": PUBLISHED, "encoder_sha256": "", "fps": 1, "preprocessing": "", "dtype": dtype, "width": 3,
        "tokens": 4,
    }  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_clips(tmp_path, dtype):
    source, out = tmp_path / "pkl", tmp_path / "store"
    a = save_clips(source, "a_1", {0: 4, 2: 12}, dtype)
    b = save_clips(source / "more", "b", {1: 8}, dtype, seed=5)
    done = succeed("convert", "features", source, out)
    assert done.result == {"out": str(out), "kind": "clip tensors", "videos": 2, "failed": {}}
    store = ClipStore.open(out)
    for video_id, saved in (("a_1", a), ("b", b)):
        assert store.clips(video_id) == list(saved)
        assert same([store.read(video_id, index) for index in saved], saved.values())
    assert store.settings["features"]["encoder"] == PUBLISHED
    assert (store.settings["threshold"], store.settings["memory"]) == (0.9, "tokens")
    assert (store.settings["dtype"], store.settings["width"]) == (dtype, 3)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_both_numpys(tmp_path, protocol):
    file = tmp_path / "v_0.pkl"
    file.write_bytes(base64.b64decode(NUMPY_1[protocol]))
    assert b"numpy.core" in file.read_bytes()
    found = read_pickle(file)
    assert found.dtype == np.float32 and np.array_equal(found, [[1.5, -2.0], [0.25, 3.0]])
    whole = array(6, 4)
    kinds = [whole, whole.astype("float16"), whole.astype("float64"), whole.astype(">f4")]
    kinds += [np.asfortranarray(whole), whole[::2, ::-1], whole.copy()[:1]]
    for one in kinds:
        file.write_bytes(pickle.dumps(one, protocol=protocol))
        found = read_pickle(file)
        assert np.array_equal(found, one) and found.dtype == one.dtype.newbyteorder("=")
        assert found.flags.c_contiguous and found.flags.writeable


def test_byte_orders_of_npy(tmp_path):
    file = tmp_path / "v_001.jpg.npy"
    for one in (array().astype(">f2"), np.asfortranarray(array()), array()[::2]):
        np.save(file, one)
        found = read_npy(file)
        assert np.array_equal(found, one) and found.dtype.isnative and found.flags.c_contiguous


# --------------------------------------------------------------------- bad videos, and going on


def spoil_frames(kind, folder):
    """Spoil video `bad`; what the error says."""
    file = folder / "bad_002.jpg.npy"
    if kind == "cut short":
        file.write_bytes(file.read_bytes()[:-5])
        return "cannot be read as a .npy file of numbers"
    if kind == "twice":
        np.save(folder / "bad_2.jpg.npy", array())
        return "are both number 2; keep one"
    if kind == "frame 0":
        np.save(folder / "bad_000.jpg.npy", array())
        return "frame numbers must ascend from 1"
    change = {
        "dtype": (array(dtype="float64"), "holds float64 [4, 3], most of the folder float32 [4, 3]"),
        "width": (array(dim=5), "holds float32 [4, 5], most of the folder float32 [4, 3]"),
        "tokens": (array(rows=5), "holds float32 [5, 3], most of the folder float32 [4, 3]"),
        "no float": (
            np.ones((4, 3), dtype=np.int32),
            "holds int32 [4, 3], expected [tokens, dim] of float16",
        ),
        "flat": (array()[0], "holds float32 [3], expected [tokens, dim]"),
        "nothing": (array()[:0], "holds float32 [0, 3], expected [tokens, dim]"),
        "not a number": (array() * np.nan, "holds NaN or infinite values"),
    }[kind]
    np.save(file, change[0])
    return change[1]


@pytest.mark.parametrize(
    "kind",
    [
        "cut short",
        "twice",
        "frame 0",
        "dtype",
        "width",
        "tokens",
        "no float",
        "flat",
        "nothing",
        "not a number",
    ],
)
def test_a_bad_video_stops_no_other(tmp_path, kind):
    source, out = tmp_path / "npy", tmp_path / "store"
    good = {video: save_frames(source, video, [1, 2], seed=9) for video in ("a", "z")}
    save_frames(source, "bad", [1, 2, 3])
    says = spoil_frames(kind, source)
    done = run("convert", "features", source, out)
    fails(done, says, "bad", code=3)
    if kind not in ("frame 0",):
        assert "bad_002.jpg.npy" in done.result["failed"]["bad"] or "bad_2.jpg.npy" in done.err
    assert list(done.result["failed"]) == ["bad"] and done.result["videos"] == 3
    store = FeatureStore.open(out)
    assert store.ids == ["a", "z"]
    assert all(same(store.read(video)[1], saved.values()) for video, saved in good.items())
    # mended, the next run makes it and keeps the others
    before = states(out)
    for file in source.glob("bad_*"):
        file.unlink()
    save_frames(source, "bad", [1, 2, 3])
    succeed("convert", "features", source, out)
    assert FeatureStore.open(out).ids == ["a", "z", "bad"]
    assert {name: states(out)[name] for name in ("a.safetensors", "z.safetensors")} == {
        name: before[name] for name in ("a.safetensors", "z.safetensors")
    }


def test_bad_clips_stop_no_others(tmp_path):
    source, out, marker = tmp_path / "pkl", tmp_path / "store", tmp_path / "ran"
    saved = save_clips(source, "good", {0: 4, 1: 8})
    save_clips(source, "fine", {0: 4})
    for video in ("evil", "wide", "nan"):
        save_clips(source, video, {0: 4, 1: 4})
    (source / "evil_1.pkl").write_bytes(pickle.dumps(Payload(marker)))
    (source / "wide_1.pkl").write_bytes(pickle.dumps(array(dim=5)))
    (source / "nan_1.pkl").write_bytes(pickle.dumps(array() * np.inf))
    done = run("convert", "features", source, out)
    assert done.code == 3 and set(done.result["failed"]) == {"evil", "wide", "nan"} and not marker.exists()
    assert "evil_1.pkl holds more than an array" in done.result["failed"]["evil"]
    assert "asks for posix.system" in done.result["failed"]["evil"]
    assert "wide_1.pkl holds float32 [4, 5], most of the folder float32 [tokens, 3]" in done.err
    store = ClipStore.open(out)
    assert store.ids == ["fine", "good"]
    assert same([store.read("good", index) for index in saved], saved.values())


@pytest.mark.parametrize("kind", ["npy", "pkl"])
def test_only_what_changed_is_made_anew(tmp_path, kind):
    source, out = tmp_path / "source", tmp_path / "store"

    def save(video, count, seed):
        if kind == "npy":
            return save_frames(source, video, range(1, count + 1), seed=seed)
        return save_clips(source, video, dict.fromkeys(range(count), 4), seed=seed)

    for video in ("a", "b", "c", "d"):
        save(video, 2, 0)
    old = {file: file.stat() for file in source.iterdir()}
    succeed("convert", "features", source, out)
    first = states(out)
    succeed("convert", "features", source, out)
    assert states(out) == first
    changed = save("a", 2, 7)  # other values, and as old as before
    for file, stat in old.items():
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns)) if file.name.startswith("a_") else None
    save("b", 3, 0)  # one more
    (out / "c.safetensors").write_bytes(b"harmed")
    succeed("convert", "features", source, out)
    now = states(out)
    assert {name for name in now if now[name] != first[name]} == {
        "manifest.json", "a.safetensors", "b.safetensors", "c.safetensors",
    }  # fmt: skip
    store = FeatureStore.open(out) if kind == "npy" else ClipStore.open(out)
    if isinstance(store, FeatureStore):
        assert same(store.read("a")[1], changed.values()) and store.read("b")[0].tolist() == [1, 2, 3]
    else:
        assert same([store.read("a", index) for index in changed], changed.values())
        assert store.clips("b") == [0, 1, 2]
    assert all(store.has(video) for video in "abcd")
    # one fewer
    os.unlink(next(file for file in sorted(source.iterdir(), reverse=True) if file.name.startswith("b_")))
    succeed("convert", "features", source, out)
    assert states(out)["b.safetensors"] != now["b.safetensors"]


def test_folders_that_hold_nothing_to_convert(tmp_path):
    source, out = tmp_path / "source", tmp_path / "store"
    fails(run("convert", "features", source, out), f"no folder {source}")
    source.mkdir()
    fails(run("convert", "features", source, out), "<video id>_001.jpg.npy", "it holds nothing")
    np.save(source / "a.npy", array())
    fails(run("convert", "features", source, out), "it holds a.npy")
    save_frames(source, "a", [1])
    save_clips(source, "a", {0: 4})
    fails(run("convert", "features", source, out), "a_001.jpg.npy", "a_0.pkl", "one kind of them")
    (source / "a_0.pkl").unlink()
    (source / "a_001.jpg.npy").write_bytes(b"")
    fails(run("convert", "features", source, out), "a_001.jpg.npy", "is no .npy file")
    assert files(out) == set()


def test_a_store_of_something_else_is_left_alone(tmp_path):
    source, out = tmp_path / "source", tmp_path / "store"
    save_frames(source, "a", [1], "float16")
    succeed("convert", "features", source, out)
    before = states(out)
    save_frames(source, "a", [1], "float32")
    fails(run("convert", "features", source, out), "dtype is 'float16' there, 'float32' here")
    for file in source.iterdir():
        file.unlink()
    save_clips(source, "a", {0: 4})
    fails(run("convert", "features", source, out), "is not a manifest of clip tensors")
    assert states(out) == before


def test_the_fixture_goes_in_and_comes_out(upstream, upstream_features, tmp_path):
    """The recipe's files, written as the published scripts name them."""
    source = tmp_path / "npy"
    source.mkdir()
    for video_id, frames in upstream_features.items():
        for number, frame in frames.items():
            np.save(source / f"{video_id}_{number:03d}.jpg.npy", frame.numpy())
    kind, count, failed = convert_features(source, tmp_path / "store")
    assert (kind, count, failed) == (FeatureStore.what, len(upstream_features), {})
    store = FeatureStore.open(tmp_path / "store")
    for video_id, frames in upstream_features.items():
        numbers, stored = store.read(video_id)
        assert numbers.tolist() == list(frames) and torch.equal(stored, torch.stack(list(frames.values())))


def test_a_video_with_no_file_that_can_be_read_says_nothing_of_the_form(tmp_path):
    """The form is that of most videos, whichever comes first."""
    source = tmp_path / "npy"
    save_frames(source, "a", [1], "float16")
    save_frames(source, "b", [1])
    save_frames(source, "c", [1])
    (source / "0_001.jpg.npy").write_bytes(b"broken")
    _, count, failed = convert_features(source, tmp_path / "store")
    assert count == 4 and set(failed) == {"0", "a"}
    assert list(find_published(source)[0]) == ["0", "a", "b", "c"]
    assert read(tmp_path / "store" / "manifest.json")["settings"]["dtype"] == "float32"


def test_an_unknown_encoder_is_compared_with_none():
    known = {"encoder": "blip2", "encoder_sha256": "abc", "width": 768, "preprocessing": "bicubic"}
    published = json.loads(
        json.dumps(known | {"encoder": PUBLISHED, "encoder_sha256": "", "preprocessing": ""})
    )
    for trained, given in ((known, published), (published, known), (published, published), (known, known)):
        check_features(trained, given, "features", "checkpoint")
    for field, other in (("encoder_sha256", "abd"), ("preprocessing", "bilinear"), ("width", 64)):
        with pytest.raises(NarratorError, match=f"{field} is "):
            check_features(known, known | {field: other}, "features", "checkpoint")
    with pytest.raises(NarratorError, match="width is 64"):
        check_features(published, known | {"width": 64}, "features", "checkpoint")
