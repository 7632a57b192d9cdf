"""Mistakes as a new user makes them: one clear message, an exit code, nothing half-written left behind."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from cli_world import HELD_OUT, VIDEOS, fails, files, read, run, save, succeed
from tiny_models import save_tiny_encoder
from video_helpers import shots, write_video

from data_process.feature_store import FeatureStore


@pytest.fixture(scope="module")
def bad_videos(world, tmp_path_factory):
    """Kind of mistake -> a file that is called a video."""
    folder = tmp_path_factory.mktemp("bad")
    whole = (world.videos / "sample39.mp4").read_bytes()
    late_index = write_video(folder / "index_first.mp4", shots([2.0]), faststart=True).read_bytes()
    contents = {
        "text": "這不是影片\n".encode() * 50,
        "truncated": whole[: len(whole) // 2],
        "truncated_after_index": late_index[: len(late_index) * 3 // 4],
        "empty": b"",
    }
    for kind, content in contents.items():
        (folder / f"{kind}.mp4").write_bytes(content)
    return {kind: folder / f"{kind}.mp4" for kind in [*contents, "missing"]}


BAD_VIDEOS = {
    "text": "is not a video file",
    "truncated": "was cut off",
    "truncated_after_index": "was cut off",
    "empty": "is empty (0 bytes)",
    "missing": "there is no video",
}


# -------------------- videos


@pytest.mark.parametrize("kind", BAD_VIDEOS)
def test_bad_video(world, bad_videos, out, kind):
    path = bad_videos[kind]
    for verb in (
        ("cut", path, "--out", out / "cut"),
        ("extract", path, "--encoder", world.encoder, "--out", out / "features"),
    ):
        done = run(*verb)
        assert done.code == 2 and list(done.result["failed"]) == [str(path)]
        (line,) = [line for line in done.err.splitlines() if line.startswith(("failed:", "error:"))]
        assert str(path) in line and BAD_VIDEOS[kind] in line and "Traceback" not in done.err
    assert files(out) == {"features/manifest.json"} and not FeatureStore.open(out / "features").ids
    fails(run(*world.narrate(path, out / "script")), str(path), BAD_VIDEOS[kind])
    assert files(out) == {"features/manifest.json"}


def test_a_batch_with_one_bad_video_does_the_others(world, bad_videos, out):
    videos = [world.videos / "sample39.mp4", bad_videos["truncated"], world.videos / "sample57.mp4"]
    done = run("cut", *videos, "--out", out / "cuts")
    fails(done, "truncated.mp4 was cut off", "cut 2/3 videos", code=3)
    assert list(done.result["failed"]) == [str(videos[1])] and done.result["clips"] == 7
    assert files(out / "cuts") == {f"sample{n}.{kind}" for n in (39, 57) for kind in ("json", "csv")}
    done = run("extract", *videos, "--encoder", world.encoder, "--out", out / "features")
    fails(done, "truncated.mp4 was cut off", "features of 2/3 videos", code=3)
    assert list(done.result["failed"]) == [str(videos[1])]
    assert FeatureStore.open(out / "features").ids == ["sample39", "sample57"]
    assert files(out / "features") == {"manifest.json", "sample39.safetensors", "sample57.safetensors"}


def test_mended_video_is_done_by_the_same_command(world, tmp_path, out):
    video = tmp_path / "video.mp4"
    whole = write_video(video, shots([1.0])).read_bytes()
    video.write_bytes(whole[:300])
    words = ("extract", video, "--encoder", world.encoder, "--out", out)
    assert run(*words).code == 2
    video.write_bytes(whole)
    assert succeed(*words).result["failed"] == {}
    assert FeatureStore.open(out).ids == ["video"]


def test_a_folder_without_videos(world, tmp_path, out):
    empty = tmp_path / "empty"
    empty.mkdir()
    fails(run("cut", empty, "--out", out), str(empty), "holds no video")
    fails(run("extract", empty, "--encoder", world.encoder, "--out", out), str(empty), "holds no video")
    fails(run(*world.narrate(empty, out)), str(empty), "is a folder, not a video file")
    assert not out.exists()


def test_two_videos_of_one_name(world, tmp_path, out):
    copy = tmp_path / "sample39.mp4"
    shutil.copy(world.videos / "sample39.mp4", copy)
    fails(run("cut", world.videos, copy, "--out", out), "would have the same id 'sample39'")


def test_no_ffmpeg_is_needed(world, out, monkeypatch):
    """Nor any other program: rendering, cutting, looking and writing with an empty PATH."""
    monkeypatch.setenv("PATH", "")
    assert shutil.which("ffmpeg") is None
    succeed("sample", "render", "--data", world.data, "--out", out / "videos")
    succeed(*world.narrate(out / "videos" / "sample39.mp4", out / "script"))
    assert read(out / "script" / "env.json")["git"] is None


# -------------------- annotations and ids


def annotated(world, path: Path, change) -> Path:
    """The tiny world's annotations with one change, as a file."""
    everything = read(world.annotations)
    change(everything[f"{HELD_OUT[0]}.mp4"])
    return save(path, everything)


ANNOTATION_MISTAKES = {
    "no p_info": (lambda video: video.pop("p_info"), ("video sample53.mp4", "no p_info")),
    "end before start": (
        lambda video: video["frames"][1].update(time=[9, 5]),
        ("video sample53.mp4, clip 2", "time ends at 5 s, not after its start at 9 s"),
    ),
    "unknown label": (
        lambda video: video["frames"][2].update(label="产品功郊"),
        ("video sample53.mp4, clip 3", "label", "unknown script label '产品功郊'", "did you mean 产品功效?"),
    ),
}


@pytest.mark.parametrize("mistake", ANNOTATION_MISTAKES)
def test_annotation_mistakes(world, tmp_path, out, mistake):
    change, words = ANNOTATION_MISTAKES[mistake]
    path = annotated(world, tmp_path / "annotations.json", change)
    for done in (run(*world.prepare(out, annotations=path)), run(*world.infer(out, annotations=path))):
        fails(done, str(path), "1 mistake", *words)
    assert not out.exists()


def test_annotations_that_are_something_else(world, tmp_path, out):
    for path, words in (
        (tmp_path / "nowhere.json", "No such file"),
        (save(tmp_path / "text.json", "[1, 2"), "is not JSON"),
        (world.prepared / "train.json", "found an array"),
        (tmp_path, "Is a directory"),
    ):
        fails(run(*world.prepare(out, annotations=path)), str(path), words)
        fails(run(*world.infer(out, annotations=path)), str(path), words)
    assert not out.exists()


def test_ids_that_are_not_annotated(world, tmp_path, out):
    ids = save(tmp_path / "ids.txt", "sample53.mp4\nsample99.mp4\n")
    for done in (run(*world.prepare(out, test_ids=ids)), run(*world.infer(out, ids=ids))):
        fails(done, str(ids), "1 of 2 ids are not in the annotations: sample99")
    ids.write_text("\n")
    fails(run(*world.infer(out, ids=ids)), str(ids), "names no videos")
    assert not out.exists()


def last_clip_ends(seconds):
    return lambda video: video["frames"][-1].update(time=[9.0, seconds])


def test_clip_past_the_end_of_the_video(world, tmp_path, out):
    """sample53 has 12 frames, so that it lasts at most 12 s."""
    path = annotated(world, tmp_path / "annotations.json", last_clip_ends(12.5))
    words = ("video sample53, clip 3, is 9-12.5 s", "lasts at most 12 s")
    fails(run(*world.prepare(out / "prepared", annotations=path)), *words)
    assert not [name for name in files(out) if name.endswith(("txt", "train.json", "shots.json"))]
    done = run(*world.infer(out / "infer", annotations=path))
    fails(done, *words, "narrated 1/1 videos", code=3)  # the other video is done
    assert list(done.result["failed"]) == ["sample53"] and words[0] in done.result["failed"]["sample53"]
    output = read(out / "infer" / "output.json")
    assert {key.split("_")[0] for key in output} == {"sample57"}


def test_nothing_is_written_where_no_video_can_be_narrated(world, tmp_path, out):
    path = annotated(world, tmp_path / "annotations.json", last_clip_ends(60))
    ids = save(tmp_path / "ids.txt", "sample53.mp4\n")
    fails(run(*world.infer(out, annotations=path, ids=ids)), "clip 3, is 9-60 s")
    assert files(out) == set()


def test_clip_that_ends_with_the_last_frame(world, tmp_path, out):
    path = annotated(world, tmp_path / "annotations.json", last_clip_ends(12.0))
    assert succeed(*world.infer(out / "infer", annotations=path)).result["clips"] == 7
    succeed(*world.prepare(out / "prepared", annotations=path))


@pytest.fixture
def features_with_a_gap(world, tmp_path):
    """The features without sample53's frames 3 (of clip 1) and 6 to 9 (all of clip 2)."""
    store = FeatureStore.open(world.features)
    gaps = FeatureStore.create(tmp_path / "gaps", store.settings)
    for video in store.ids:
        numbers, frames = store.read(video)
        lacking = torch.tensor([3, 6, 7, 8, 9] if video == "sample53" else [])
        there = ~torch.isin(numbers, lacking)
        gaps.write(video, numbers[there], frames[there])
    return tmp_path / "gaps"


def test_frames_lacking_inside_are_only_reported(world, out, features_with_a_gap):
    done = succeed(*world.prepare(out / "prepared", features=features_with_a_gap))
    assert "clips left out: 0 with no text, 1 with no frames; clips that lack frames: 2" in done.err
    summary = read(out / "prepared" / "prepare.json")
    assert summary["missing_frames"] == {"sample53": {"1": [3], "2": [6, 7, 8, 9]}}
    done = succeed(*world.infer(out / "infer", features=features_with_a_gap))
    assert done.result["skipped"] == {"sample53": {"1": "no frames, or no reference narration"}}
    assert "sample53_1" not in read(out / "infer" / "output.json")
    script = (out / "infer" / "scripts" / "sample53" / "script.md").read_text("utf-8")
    assert "Clip 2 has no narration" in script


def test_offered_labels_must_be_there(world, tmp_path, out):
    path = annotated(world, tmp_path / "annotations.json", lambda video: video["frames"][1].pop("label"))
    done = run(*world.infer(out, "--offered-label", annotations=path))
    fails(done, "video sample53, clip 2, has no label to be offered", code=3)
    fails(run(*world.prepare(out / "prepared", annotations=path)), "video sample53, clip 2", "no label")


def test_a_video_that_fails_while_it_is_narrated(world, tmp_path, out):
    """Product facts longer than the model takes."""
    much = {"p_info": "功效：" + "好" * 3000}
    path = annotated(world, tmp_path / "annotations.json", lambda video: video.update(much))
    done = run(*world.infer(out, annotations=path))
    fails(done, "video sample53: clip 1: the prompt has", "shorten the product facts", code=3)
    assert list(done.result["failed"]) == ["sample53"] and done.result["clips"] == 4
    assert files(out / "scripts") == {"sample57/script.json", "sample57/script.md"}


def test_videos_and_clips_that_are_left_out(world, tmp_path, out):
    """No text at all in one video; a limit of clips in the other: what is left out is said, and why."""

    def silence(video):
        for clip in video["frames"]:
            del clip["new_text"]

    path = annotated(world, tmp_path / "annotations.json", silence)
    done = succeed(*world.infer(out, "max_clips=3", "windows=false", annotations=path))
    assert done.result["clips"] == 3 and done.result["skipped"] == {
        "sample53": dict.fromkeys("012", "no frames, or no reference narration"),
        "sample57": {"3": "over the limit of clips a video"},
    }


def test_sample_data_that_is_not_there(tmp_path, out):
    fails(run("sample", "render", "--data", tmp_path, "--out", out), "annotations.json", "No such file")
    assert not out.exists()


# -------------------- features and other folders of the wrong kind


def test_features_of_one_video_are_missing(world, tmp_path, out):
    features = tmp_path / "features"
    videos = [world.videos / f"{video}.mp4" for video in VIDEOS if video != "sample57"]
    succeed("extract", *videos, "--encoder", world.encoder, "--out", features)
    done = run(*world.prepare(out / "prepared", features=features))
    assert done.code == 3 and done.err == f"left out: video sample57 has no features in {features}\n"
    assert done.result["failed"] == {"sample57": f"no features in {features}"}
    assert done.result["samples"]["test"] == 1
    done = run(*world.infer(out / "infer", features=features))
    fails(done, "no frame features of video sample57", "videonarrator extract", code=3)
    assert done.result["clips"] == 3 and list(done.result["failed"]) == ["sample57"]
    succeed("extract", world.videos, "--encoder", world.encoder, "--out", features)
    assert "narrated 1/1 videos" in succeed(*world.infer(out / "infer", features=features)).err


def test_damaged_feature_file(world, tmp_path, out):
    features = tmp_path / "features"
    shutil.copytree(world.features, features)
    file = features / "sample57.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-8] + b"damaged!")
    fails(run(*world.infer(out, features=features)), "sample57", "not as it was written", code=3)
    fails(run(*world.prepare(out / "prepared", features=features)), "sample57", "not as it was written")
    succeed("extract", world.videos, "--encoder", world.encoder, "--out", features)
    assert file.read_bytes() == whole


def test_features_of_a_video_that_has_changed(world, tmp_path, out):
    """A new video under the old name: its features are made anew, and its cuts."""
    video = tmp_path / "video.mp4"
    for seconds in (2, 3):
        write_video(video, shots([seconds]))
        later = video.stat().st_mtime + 100 * (seconds - 2)  # than what was made of the first one
        os.utime(video, (later, later))
        succeed("extract", video, "--encoder", world.encoder, "--out", out / "features")
        numbers, _ = FeatureStore.open(out / "features").read("video")
        assert len(numbers) == seconds
        assert succeed("cut", video, "--out", out / "cuts").result["kept"] == 0
        assert read(out / "cuts" / "video.json")["duration"] == seconds


@pytest.fixture(scope="module")
def other_encoder(tmp_path_factory):
    return save_tiny_encoder(tmp_path_factory.mktemp("models") / "other", seed=1)


def test_features_of_another_encoder(world, other_encoder, tmp_path, out):
    features = tmp_path / "features"
    succeed("extract", world.videos, "--encoder", other_encoder, "--out", features)
    fails(run(*world.infer(out, features=features)), str(features), "encoder_sha256", str(world.encoder))
    fails(
        run(*world.narrate(world.videos / "sample39.mp4", out, "--encoder", other_encoder)),
        str(other_encoder), "encoder_sha256",
    )  # fmt: skip
    before = (features / "manifest.json").read_bytes()
    words = ("extract", world.videos, "--encoder", world.encoder, "--out", features)
    fails(run(*words), "made with other settings", "encoder_sha256")
    assert (features / "manifest.json").read_bytes() == before
    shutil.copytree(world.prepared, tmp_path / "prepared")
    fails(run(*world.prepare(tmp_path / "prepared", features=features)), "made with other settings")
    assert files(out) == set()


@pytest.mark.parametrize("kind", ["backbone", "nowhere", "no weights", "not whole"])
def test_encoder_of_something_else(world, tmp_path, out, kind):
    folder = tmp_path / "encoder"
    words = {
        "backbone": "not a BLIP-2",
        "nowhere": "no folder",
        "no weights": "has no weights: expected model.safetensors",
        "not whole": "does not hold this BLIP-2 whole",
    }[kind]
    if kind == "backbone":
        folder = world.backbone
    elif kind != "nowhere":
        folder.mkdir()
        shutil.copy(world.encoder / "config.json", folder)
        if kind == "not whole":
            shutil.copy(world.backbone / "model.safetensors", folder)
    fails(run("extract", world.videos, "--encoder", folder, "--out", out), str(folder), words)
    fails(run(*world.narrate(world.videos / "sample39.mp4", out, "--encoder", folder)), str(folder), words)
    assert files(out) == set()


# -------------------- checkpoints


@pytest.fixture
def bad_checkpoints(world, tmp_path):
    """Kind of mistake -> folder."""
    kinds = {"empty": tmp_path / "empty", "backbone": world.backbone, "file": world.config}
    kinds["training folder"], kinds["nowhere"] = world.training, tmp_path / "nowhere"
    kinds["empty"].mkdir()
    for kind in ("damaged", "incomplete", "no JSON"):
        kinds[kind] = tmp_path / kind
        shutil.copytree(world.checkpoint, kinds[kind])
    weights = kinds["damaged"] / "trained.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\1\2\3")
    (kinds["incomplete"] / "adapter" / "adapter_model.safetensors").unlink()
    (kinds["no JSON"] / "narrator.json").write_text("{}")
    return kinds


def test_checkpoint_folder_of_something_else(world, bad_checkpoints, out):
    reasons = {"damaged": "is damaged", "incomplete": "is incomplete", "no JSON": "cannot be read"}
    for kind, folder in bad_checkpoints.items():
        words = (str(folder), reasons.get(kind, "is no checkpoint folder"))
        fails(run(*world.infer(out, checkpoint=folder)), *words)
        fails(run(*world.narrate(world.videos / "sample39.mp4", out, checkpoint=folder)), *words)
    assert files(out) == set()


def test_backbone_that_was_moved(world, tmp_path, out):
    """The checkpoint alone, copied elsewhere: the backbone must be named."""
    shutil.copytree(world.checkpoint, tmp_path / "copied" / "checkpoint")
    moved = {"checkpoint": tmp_path / "copied" / "checkpoint"}
    fails(run(*world.infer(out, **moved)), "backbone", "--backbone")
    fails(run(*world.infer(out, "--backbone", world.encoder, **moved)), "is not the backbone", "--backbone")
    assert not (out / "output.json").exists() and not files(out) - {"decoding.yaml", "env.json"}
    succeed(*world.infer(out, "--backbone", world.backbone, **moved))
    assert read(out / "output.json") == read(world.inferred / "output.json")


def test_encoder_that_was_moved(world, tmp_path, out):
    """The checkpoint names where its encoder lay."""
    shutil.copytree(world.checkpoint, tmp_path / "checkpoint")
    described = read(world.checkpoint / "narrator.json")
    described["features"]["encoder"] = "moved/blip2"
    described["backbone"] = str(world.backbone)
    save(tmp_path / "checkpoint" / "narrator.json", described)
    video, moved = world.videos / "sample39.mp4", {"checkpoint": tmp_path / "checkpoint"}
    fails(run(*world.narrate(video, out, **moved)), "moved/blip2", "give --encoder")
    succeed(*world.narrate(video, out, "--encoder", world.encoder, **moved))
