"""The stores: what is written is read, what is broken is named, a killed run goes on."""

import json
import os

import pytest
import torch

from data_process.feature_store import ClipStore, FeatureStore, select_frames
from videonarrator.schema import NarratorError

SETTINGS = {
    "encoder": "small",
    "encoder_sha256": "abc",
    "fps": 1,
    "preprocessing": {"size": 112, "resample": "bicubic"},
    "dtype": "float32",
    "width": 4,
}


def frames(count, seed=0, dtype=torch.float32):
    return torch.randn(count, 32, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)


def filled(folder, count=3):
    store = FeatureStore.create(folder, SETTINGS)
    for index in range(count):
        store.write(f"v{index}", range(1, 4 + index), frames(3 + index, index))
    return store


def test_written_features_are_read_back(tmp_path):
    filled(tmp_path / "new" / "features")
    store = FeatureStore.open(tmp_path / "new" / "features")
    assert store.ids == ["v0", "v1", "v2"] and store.has("v1") and not store.has("v9")
    numbers, stored = store.read("v1")
    assert numbers.dtype == torch.int64 and numbers.tolist() == [1, 2, 3, 4]
    assert torch.equal(stored, frames(4, 1))
    manifest = json.loads((store.folder / "manifest.json").read_text())
    assert manifest["settings"] == SETTINGS and manifest["videos"]["v2"]["frames"] == 5
    assert len(store.checksum("v2")) == 64 and store.file("v2").name == "v2.safetensors"
    assert sorted(os.listdir(store.folder)) == [
        "manifest.json",
        "v0.safetensors",
        "v1.safetensors",
        "v2.safetensors",
    ]


def test_a_video_can_be_written_again(tmp_path):
    store = filled(tmp_path)
    store.write("v0", [2], frames(1, 9))
    assert torch.equal(FeatureStore.open(tmp_path).read("v0")[1], frames(1, 9))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(tmp_path, dtype):
    store = FeatureStore.create(tmp_path, SETTINGS | {"dtype": str(dtype).removeprefix("torch.")})
    store.write("v", [1, 2], frames(2, dtype=dtype))
    assert store.read("v")[1].dtype == dtype
    with pytest.raises(NarratorError, match=r"video w: dtype float32, but .* is for"):
        store.write("w", [1], frames(1))


def test_frames_of_a_clip(tmp_path, caplog):
    store = FeatureStore.create(tmp_path, SETTINGS)
    stored = frames(5)
    store.write("v", [1, 2, 4, 5, 8], stored)
    assert torch.equal(store.frames_of("v", 0.4, 2.9), stored[:2]) and not caplog.text
    assert torch.equal(store.frames_of("v", 1, 5), stored[1:4])
    assert "video v, clip 1-5 s: no features of frames [3]" in caplog.text
    assert store.frames_of("v", 5, 7).shape == (0, 32, 4)
    assert torch.equal(store.frames_of("v", 7.2, 7.9), stored[4:])
    assert select_frames(*store.read("v"), 3, 8)[1] == [6, 7]


@pytest.mark.parametrize(
    ("numbers", "tensor", "message"),
    [
        ([1, 2], frames(3), r"video v: expected frames .* got \(3, 32, 4\) and \(2,\)"),
        ([], frames(0), r"video v: expected frames \[frames >= 1"),
        ([1], frames(1)[0], "video v: expected frames"),
        ([0, 1], frames(2), r"video v: frame numbers must ascend from 1, got \[0, 1\]"),
        ([2, 2], frames(2), "must ascend"),
        ([1], frames(1).double(), "video v: dtype float64, but .* is for float32"),
        ([1], frames(1)[..., :3], "video v: width 3, but .* is for 4"),
        (
            [4, 5, 6],
            frames(3) / torch.tensor([1.0, 0.0, 1.0])[:, None, None],
            r"video v: the features of frames \[5\] hold NaN or infinite values",
        ),
    ],
)
def test_wrong_features_are_refused_and_leave_nothing(tmp_path, numbers, tensor, message):
    store = FeatureStore.create(tmp_path, SETTINGS)
    with pytest.raises(NarratorError, match=message):
        store.write("v", numbers, tensor)
    assert os.listdir(tmp_path) == ["manifest.json"] and not store.has("v")


def test_other_settings_are_named(tmp_path):
    filled(tmp_path)
    assert FeatureStore.create(tmp_path, dict(reversed(SETTINGS.items()))).ids == ["v0", "v1", "v2"]
    other = SETTINGS | {
        "encoder_sha256": "abd",
        "preprocessing": {"size": 224, "resample": "bicubic"},
        "x": 1,
    }
    with pytest.raises(NarratorError) as error:
        FeatureStore.create(tmp_path, other)
    message = str(error.value)
    assert "encoder_sha256 is 'abc' there, 'abd' here" in message
    assert "preprocessing.size is 112 there, 224 here" in message and "x is 'absent' there" in message
    assert "resample" not in message and "Name another folder" in message
    with pytest.raises(ValueError, match="feature settings lack fps, dtype"):
        FeatureStore.create(tmp_path / "b", {k: v for k, v in SETTINGS.items() if k not in ("fps", "dtype")})


def test_no_store(tmp_path):
    with pytest.raises(NarratorError, match=r"no frame features in .*none: there is no such folder\. Run"):
        FeatureStore.open(tmp_path / "none")
    with pytest.raises(NarratorError, match=r"the folder has no manifest.json\. Run `videonarrator extract`"):
        FeatureStore.open(tmp_path)
    ClipStore.create(tmp_path / "clips", SETTINGS)
    with pytest.raises(NarratorError, match="is not a manifest of frame features"):
        FeatureStore.open(tmp_path / "clips")
    with pytest.raises(NarratorError, match=r"no frame features of video v9 in .*, which holds 3 videos"):
        filled(tmp_path / "features").read("v9")


@pytest.mark.parametrize("harm", ["byte", "cut", "gone", "empty"])
def test_harmed_files_are_seen(tmp_path, harm):
    file = filled(tmp_path).file("v1")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes({"byte": data, "cut": data[:100], "empty": b""}[harm])
    store = FeatureStore.open(tmp_path)
    assert not store.has("v1") and store.has("v0") and store.has("v2")
    with pytest.raises(
        NarratorError, match=r"v1\.safetensors \(video v1\) is missing or not as it was written"
    ):
        store.read("v1")
    store.write("v1", [1, 2, 3, 4], frames(4, 1))
    assert store.has("v1") and len(store.read("v1")[0]) == 4


@pytest.mark.parametrize("killed_at", range(1, 8))
def test_a_killed_run_loses_at_most_the_video_in_work(tmp_path, killed_at):
    """The process ends without any cleaning up, just before or just after a file is put in its place."""
    tensors = {f"v{index}": frames(2, index) for index in range(3)}
    child = os.fork()
    if not child:  # pragma: no cover
        calls, replace = [0], os.replace

        def deadly(source, target):
            calls[0] += 1
            if calls[0] == killed_at:
                if killed_at % 2:
                    replace(source, target)
                os._exit(9)
            replace(source, target)

        os.replace = deadly
        store = FeatureStore.create(tmp_path, SETTINGS)
        for name, tensor in tensors.items():
            store.write(name, [1, 2], tensor)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    # the manifest comes first, then a file and the manifest for each video; odd ones were put in their place
    done = [f"v{index}" for index in range((killed_at - 1) // 2)]
    store = FeatureStore.create(tmp_path, SETTINGS)
    assert [name for name in tensors if store.has(name)] == done
    for name, tensor in tensors.items():
        if not store.has(name):
            store.write(name, [1, 2], tensor)
    again = FeatureStore.open(tmp_path)
    assert all(torch.equal(again.read(name)[1], tensor) for name, tensor in tensors.items())


def test_clip_tensors(tmp_path):
    settings = {"threshold": 0.9, "dtype": "float32", "width": 4, "features": SETTINGS}
    store = ClipStore.create(tmp_path, settings)
    first, third = frames(1).flatten(0, 1), frames(3).flatten(0, 1)
    store.write("v", {0: first, 2: third}, "made of this")
    store = ClipStore.open(tmp_path)
    assert store.clips("v") == [0, 2] and store.tokens("v", 2) == 96
    assert torch.equal(store.read("v", 0), first) and torch.equal(store.read("v", 2), third)
    assert store.has_from("v", "made of this") and not store.has_from("v", "made of that")
    assert not store.has_from("w", "made of this")
    with pytest.raises(NarratorError, match=r"video v, clip 2: no tensor in .* it holds clips 1, 3 \(clips"):
        store.read("v", 1)
    with pytest.raises(NarratorError, match="no clip tensors of video w"):
        store.read("w", 0)
    with pytest.raises(NarratorError, match="video w, clip 3: width 3"):
        store.write("w", {2: third[:, :3]}, "x")
    with pytest.raises(NarratorError, match=r"threshold is 0\.9 there, 0\.8 here"):
        ClipStore.create(tmp_path, settings | {"threshold": 0.8})
    with pytest.raises(NarratorError, match=r"features\.encoder is 'small' there, 'big' here"):
        ClipStore.create(tmp_path, settings | {"features": SETTINGS | {"encoder": "big"}})
