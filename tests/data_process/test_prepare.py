"""Clip tensors and sample lists: the published ones, but for the differences that are meant."""

import json
import logging
from dataclasses import replace

import pytest
import torch

from data_process.annotations import read_annotations, read_sample_list, read_split
from data_process.feature_store import ClipStore, FeatureStore
from data_process.prepare import prepare, video_story
from videonarrator.clip_inputs import training_inputs
from videonarrator.prompt import parse_inputs
from videonarrator.schema import Clip, NarratorError, Product, Video
from videonarrator.timeline import frame_numbers

SPLITS = ("train", "test")
LISTS = ("training_data", "train", "test", "train_shots", "test_shots")


def settings(**changed):
    known = {"encoder": "made up", "encoder_sha256": "-", "fps": 1, "preprocessing": "-"}
    return known | {"dtype": "float32", "width": 768} | changed


def read(folder):
    return {name: json.loads((folder / f"{name}.json").read_text("utf-8")) for name in LISTS}


@pytest.fixture(scope="module")
def fixture_store(upstream_features, tmp_path_factory):
    store = FeatureStore.create(tmp_path_factory.mktemp("features"), settings())
    for video_id, frames in upstream_features.items():
        store.write(video_id, list(frames), torch.stack(list(frames.values())))
    return store


@pytest.fixture(scope="module")
def annotated(upstream):
    return read_annotations(upstream / "all_video_data.json")


@pytest.fixture(scope="module")
def prepared(upstream, annotated, fixture_store, zh, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared")
    prepare(annotated, read_split(upstream / "test_ids.txt", annotated), fixture_store, out, zh)
    return out


@pytest.fixture(scope="module")
def kept(annotated, fixture_store):
    """Of each video the clips that have text and frames, found one by one."""
    stored = {video_id: set(fixture_store.read(video_id)[0].tolist()) for video_id in fixture_store.ids}
    return {
        video.id: [
            index
            for index, clip in enumerate(video.clips)
            if clip.text and stored[video.id] & set(frame_numbers(clip.start, clip.end))
        ]
        for video in annotated.values()
    }


def test_every_clip_sample_has_its_slot(prepared, kept, zh):
    ours = read(prepared)
    shots = [*ours["train_shots"], *ours["test_shots"]]
    for sample in shots:
        inputs = training_inputs(sample, torch.zeros(1), zh)
        assert [segment.visual for segment in inputs.segments].count(True) == 1
        assert sample["frames"] == [f"{sample['id']}_{sample['shot_loc'] - 1}.pkl"]
    numbers = {video_id: [s["shot_loc"] - 1 for s in shots if s["id"] == video_id] for video_id in kept}
    assert numbers == kept and min(map(len, kept.values())) > 0


def test_summary_counts_what_was_left_out(prepared, annotated, fixture_store, kept):
    summary = json.loads((prepared / "prepare.json").read_text("utf-8"))
    test = set(read_split(prepared / "test_ids.txt"))
    shots = {split: sum(len(kept[v]) for v in kept if (v in test) == (split == "test")) for split in SPLITS}
    assert summary["samples"] == {
        "training_data": len(annotated),
        "train": len(annotated) - len(test),
        "test": len(test),
        "train_shots": shots["train"],
        "test_shots": shots["test"],
    }
    clips = sum(len(video.clips) for video in annotated.values())
    assert (summary["videos"], summary["clips"]) == (len(annotated), clips)
    left_out = {
        video.id: {
            str(index + 1): "no frames" if clip.text else "no text"
            for index, clip in enumerate(video.clips)
            if index not in kept[video.id]
        }
        for video in annotated.values()
    }
    assert summary["left_out"] == {video_id: found for video_id, found in left_out.items() if found} != {}
    reasons = [reason for found in left_out.values() for reason in found.values()]
    counts = {reason: reasons.count(reason) for reason in ("no text", "no frames")}
    assert summary["clips_left_out"] == counts
    missing = {
        video.id: {
            str(number): lacking
            for number, clip in enumerate(video.clips, 1)
            if (
                lacking := sorted(
                    set(frame_numbers(clip.start, clip.end)) - stored_of(fixture_store, video.id)
                )
            )
        }
        for video in annotated.values()
    }
    assert summary["missing_frames"] == {video_id: found for video_id, found in missing.items() if found}
    store = ClipStore.open(prepared / "clips")
    assert summary["visual_tokens"] == sum(len(store.read(v, c)) for v in kept for c in kept[v])
    assert summary["videos_left_out"] == {"no features": [], "no clip left": []}


def stored_of(store, video_id):
    return set(store.read(video_id)[0].tolist())


def test_a_second_run_keeps_clip_tensors_and_gives_the_same(
    upstream, annotated, fixture_store, zh, prepared, monkeypatch
):
    before = {file.name: file.read_bytes() for file in prepared.iterdir() if file.is_file()}
    test_ids = read_split(upstream / "test_ids.txt")
    written = []
    monkeypatch.setattr(ClipStore, "write", lambda store, video_id, *rest: written.append(video_id))
    prepare(annotated, test_ids, fixture_store, prepared, zh)
    assert written == []
    assert before == {file.name: file.read_bytes() for file in prepared.iterdir() if file.is_file()}
    monkeypatch.undo()
    with pytest.raises(NarratorError, match=r"threshold is 0\.9 there, 0\.8 here"):
        prepare(annotated, test_ids, fixture_store, prepared, zh, threshold=0.8)


def small(tmp_path, videos, width=4):
    """A store with random features of these videos, a frame a second."""
    store = FeatureStore.create(tmp_path / "features", settings(width=width))
    for seed, video in enumerate(videos):
        count = max(int(clip.end) + 1 for clip in video.clips)
        generator = torch.Generator().manual_seed(seed)
        store.write(video.id, range(1, count + 1), torch.randn(count, 32, width, generator=generator))
    return store


PRODUCT = Product("杯", "外观：白")
ONE = Video("one", PRODUCT, (Clip(0, 3, "产品推荐", "看。"), Clip(3, 5, "产品功效", "好。")))
TWO = Video("two", PRODUCT, (Clip(0, 2, "产品推荐", "看。"),))


def test_changed_clips_and_features_are_made_anew(tmp_path, zh, monkeypatch):
    store = small(tmp_path, [ONE, TWO])
    out, written = tmp_path / "out", []
    write = ClipStore.write
    monkeypatch.setattr(
        ClipStore, "write", lambda self, name, *rest: (written.append(name), write(self, name, *rest))
    )
    prepare({"one": ONE, "two": TWO}, ["two"], store, out, zh)
    moved = replace(ONE, clips=(ONE.clips[0], replace(ONE.clips[1], start=2)))
    prepare({"one": moved, "two": TWO}, ["two"], store, out, zh)
    store.write("two", [1, 2], torch.ones(2, 32, 4))
    prepare({"one": moved, "two": TWO}, ["two"], store, out, zh)
    assert written == ["one", "two", "one", "two"]
    reworded = replace(moved, clips=tuple(replace(clip, text="新。") for clip in moved.clips))
    prepare({"one": reworded, "two": TWO}, ["two"], store, out, zh)
    assert len(written) == 4 and "新。" in read(out)["train"][0]["inputs"]
    # a harmed file is made anew, too
    ClipStore.open(out / "clips").file("one").write_bytes(b"")
    prepare({"one": reworded, "two": TWO}, ["two"], store, out, zh)
    assert written[4:] == ["one"] and ClipStore.open(out / "clips").read("one", 1).shape[1] == 4


def test_videos_without_features_or_text_are_counted(tmp_path, zh, caplog):
    silent = Video("silent", PRODUCT, (Clip(0, 2, "产品推荐"),))
    store = small(tmp_path, [ONE, silent])
    videos = {video.id: video for video in (ONE, TWO, silent)}
    with caplog.at_level(logging.WARNING):
        summary = prepare(videos, ["one", "one"], store, tmp_path / "out", zh)
    assert "counted once: one" in caplog.text
    assert summary["videos_left_out"] == {"no features": ["two"], "no clip left": ["silent"]}
    lists = read(tmp_path / "out")
    assert [entry["id"] for entry in lists["training_data"]] == ["one"]
    assert lists["train"] == lists["train_shots"] == [] and len(lists["test_shots"]) == 2
    assert read_split(tmp_path / "out" / "train_ids.txt") == ["two", "silent"]


def test_errors_come_before_anything_is_written(tmp_path, zh, zh_nolabel):
    store, out = small(tmp_path, [ONE]), tmp_path / "out"
    with pytest.raises(NarratorError, match=r"test split: 1 ids are not in the annotations: \['three'\]"):
        prepare({"one": ONE}, ["three"], store, out, zh)
    with pytest.raises(
        NarratorError, match=r"holds features of none of the 1 annotated videos, but of \['one'\]"
    ):
        prepare({"two": TWO}, [], store, out, zh)
    bare = replace(ONE, clips=(ONE.clips[0], replace(ONE.clips[1], label="")))
    with pytest.raises(NarratorError, match="1 clips have a text but no label, first video one, clip 2: add"):
        prepare({"one": bare}, [], store, out, zh)
    assert not out.exists()
    assert prepare({"one": bare}, [], store, out, zh_nolabel)["samples"]["train_shots"] == 2


def test_progress_and_story(tmp_path, zh):
    seen = []

    def track(videos):
        for video in videos:
            seen.append(video.id)
            yield video

    prepare({"one": ONE}, [], small(tmp_path, [ONE]), tmp_path / "out", zh, track=track)
    assert seen == ["one"]
    assert parse_inputs(read(tmp_path / "out")["train"][0]["inputs"], zh) == video_story(ONE, [0, 1], zh)


def test_all_real_videos_come_out_as_they_went_in(shared, real_samples, zh, tmp_path):
    imported = read_sample_list(shared / "data" / "esyncvidstory_test_300.json", zh)
    videos = {one.video.id: one.video for one in imported}
    store = small(tmp_path, videos.values(), width=1)
    test = [sample["id"] for sample in real_samples]
    summary = prepare(videos, test, store, tmp_path / "out", zh)
    lists = read(tmp_path / "out")
    assert [{k: v for k, v in entry.items() if k != "link"} for entry in lists["test"]] == [
        {k: sample[k] for k in ("inputs", "id", "frames", "images", "p_info")} for sample in real_samples
    ]
    assert lists["train"] == [] and summary["clips_left_out"] == {"no text": 0, "no frames": 0}
    assert len(lists["test_shots"]) == summary["clips"] == 2161
