"""`infer` on clip tensors: our own, and those of people who have the published .pkl files only."""

import json
import pickle

import numpy as np
import pytest
from cli_world import HELD_OUT, fails, files, read, run, states, succeed

from data_process.feature_store import ClipStore, FeatureStore


@pytest.fixture(scope="module")
def published(world, tmp_path_factory):
    """The tiny world's features in the published form, converted: frames and clips."""
    root = tmp_path_factory.mktemp("published")
    for folder in ("npy", "pkl"):
        (root / folder).mkdir()
    frames, clips = FeatureStore.open(world.features), ClipStore.open(world.prepared / "clips")
    for video in frames.ids:
        numbers, features = frames.read(video)
        for number, frame in zip(numbers.tolist(), features, strict=True):
            np.save(root / "npy" / f"{video}_{number:03d}.jpg.npy", frame.numpy())
        for clip in clips.clips(video):
            (root / "pkl" / f"{video}_{clip}.pkl").write_bytes(pickle.dumps(clips.read(video, clip).numpy()))
    for kind in ("npy", "pkl"):
        succeed("convert", "features", root / kind, root / f"from_{kind}")
    return root


@pytest.mark.parametrize("source", ["prepared", "from_npy", "from_pkl"])
def test_the_same_is_written_whatever_holds_the_features(world, published, out, source):
    features = world.prepared / "clips" if source == "prepared" else published / source
    done = succeed(*world.infer(out, features=features))
    assert (out / "output.json").read_bytes() == (world.inferred / "output.json").read_bytes()
    assert done.result["skipped"] == {} and done.result["videos"] == len(HELD_OUT)
    kept = states(out)["generations.jsonl"]
    succeed(*world.infer(out, features=features))  # goes on where it stopped: nothing to do
    assert states(out)["generations.jsonl"] == kept


def test_clip_tensors_decide_what_is_seen(world, published, out, tmp_path):
    """Other tensors of the same shape are what the narrator is shown."""
    store, other = ClipStore.open(published / "from_pkl"), tmp_path / "other"
    shown = ClipStore.create(other, store.settings)
    for video in store.ids:
        shown.write(video, {clip: -3 * store.read(video, clip) for clip in store.clips(video)}, "other")
    succeed(*world.infer(out, features=other))
    ours, theirs = read(out / "output.json"), read(world.inferred / "output.json")
    assert list(ours) == list(theirs) and ours != theirs


def test_clips_without_a_tensor_are_left_out(world, published, out, tmp_path):
    store, fewer = ClipStore.open(published / "from_pkl"), tmp_path / "fewer"
    first, second = HELD_OUT
    kept = ClipStore.create(fewer, store.settings)
    for video, clips in ((first, store.clips(first)[1:]), (second, store.clips(second))):
        kept.write(video, {clip: store.read(video, clip) for clip in clips}, "fewer")
    done = succeed(*world.infer(out, features=fewer))
    assert list(done.result["skipped"]) == [first] and list(done.result["skipped"][first]) == ["0"]
    assert f"{first}_0" not in read(out / "output.json") and f"{first}_1" in read(out / "output.json")


def test_tensors_that_do_not_fit_are_named(world, published, out, tmp_path):
    store = ClipStore.open(published / "from_pkl")
    first, second = HELD_OUT
    count = len(read(world.annotations)[f"{first}.mp4"]["frames"])
    whole = {clip: store.read(second, clip) for clip in store.clips(second)}

    def made(name, video, clips):
        folder = ClipStore.create(tmp_path / name, store.settings)
        folder.write(second, whole, "x")
        folder.write(video, clips, "x")
        return folder

    beyond = made("beyond", first, {count: store.read(first, 0)})
    says = f"holds a tensor of clip {count + 1}, the annotations have {count} clips"
    fails(run(*world.infer(out, features=beyond.folder)), first, says, code=3)
    harmed = made("harmed", first, {0: store.read(first, 0)})
    harmed.file(first).write_bytes(b"harmed")
    fails(run(*world.infer(out, features=harmed.folder)), first, "not as it was written", code=3)
    absent = ClipStore.create(tmp_path / "absent", store.settings)
    absent.write(second, whole, "x")
    fails(run(*world.infer(out, features=absent.folder)), f"no clip tensors of video {first}", code=3)


def test_tensors_of_another_encoder_are_refused(world, out, tmp_path):
    store = ClipStore.open(world.prepared / "clips")
    settings = json.loads(json.dumps(store.settings))
    settings["features"]["encoder_sha256"] = "another"
    ClipStore.create(tmp_path / "other", settings)
    fails(run(*world.infer(out, features=tmp_path / "other")), "encoder_sha256 is 'another'")
    fails(run(*world.infer(out, features=tmp_path / "nowhere")), "there is no such folder")
    assert files(out) == set()
