"""Clip tensors and sample lists: the published ones, but for the differences that are meant."""

import hashlib
import json
import logging
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from data_process.annotations import read_annotations, read_sample_list, read_split
from data_process.feature_store import ClipStore, FeatureStore
from data_process.prepare import prepare, video_story
from videonarrator.clip_inputs import training_inputs
from videonarrator.prompt import parse_inputs
from videonarrator.schema import Clip, NarratorError, Product, Video

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


def test_clip_tensors_are_the_published_ones(upstream, prepared):
    store = ClipStore.open(prepared / "clips")
    written = {
        f"{video_id}_{clip}.pkl": {
            "shape": list(store.read(video_id, clip).shape),
            "sha256": hashlib.sha256(store.read(video_id, clip).numpy().tobytes()).hexdigest(),
        }
        for video_id in store.ids
        for clip in store.clips(video_id)
    }
    published = json.loads((upstream / "clips.json").read_text("utf-8"))
    assert written == {
        name: {"shape": clip["shape"], "sha256": clip["sha256"]} for name, clip in published.items()
    }
    for name, tensor in load_file(upstream / "clips_full.safetensors").items():
        video_id, _, clip = name.removesuffix(".pkl").rpartition("_")
        assert torch.equal(store.read(video_id, int(clip)), tensor)


# What is meant to differ from the published lists, entry by entry: (list, video, entry of that video or None
# for all) -> field -> (what is published, what is written here). In `inputs`, line by line.
DOUBLED_LAST = {  # "。。" in the last clip: neither replaced nor counted there; replaced in every clip here
    "inputs": [
        ("字数要求：7-13个字", "字数要求：6-12个字"),
        ("4.这款护膝值得推荐。。", "4.这款护膝值得推荐。"),
    ]
}
DOUBLED_MIDDLE = {  # "。。" in a middle clip: kept in the lists of whole videos; replaced in every clip here
    "inputs": [
        ("字数要求：16-22个字", "字数要求：15-21个字"),
        ("2.质地温润亲肤，易推开，滋润不易黏腻。。", "2.质地温润亲肤，易推开，滋润不易黏腻。"),
    ]
}
NEXT_RANGE = {  # in the per-clip lists it is replaced, but lowers the range of the next clip, not its own
    "inputs": [
        ("字数要求：16-22个字", "字数要求：15-21个字"),
        ("字数要求：12-18个字", "字数要求：13-19个字"),
    ]
}
NO_SLOT = {"inputs": [(None, "场景：<vid_start><vid_end>")]}  # a left-out clip costs all samples their slot

MEANT = {
    ("training_data", "240182", None): DOUBLED_LAST,
    ("train", "240182", None): DOUBLED_LAST,
    ("train_shots", "240182", None): DOUBLED_LAST,
    ("training_data", "567bb4", None): DOUBLED_MIDDLE,
    ("train", "567bb4", None): DOUBLED_MIDDLE,
    ("train_shots", "567bb4", None): NEXT_RANGE,
    # images of clips without frames are listed although `frames` has none of them: in step here
    ("test", "7335fd", None): {"images": "without clip 2"},
    ("train_shots", "184a5d", 0): NO_SLOT,
    ("train_shots", "184a5d", 1): NO_SLOT,
    # after the left-out clip 3 the published code counts ranks among kept clips, not annotated clips
    ("train_shots", "184a5d", 2): NO_SLOT | {"shot_loc": (3, 4), "shot_pos": (61, 80)},
    ("train_shots", "184a5d", 3): NO_SLOT | {"shot_loc": (4, 5)},
}


def published_in_our_form(name, rank, entry):
    """A published entry with the differences that are meant carried out."""
    for key in ((name, entry["id"][:6], None), (name, entry["id"][:6], rank)):
        for field, change in MEANT.get(key, {}).items():
            if field == "images":
                entry = entry | {"images": [entry["images"][index] for index in (0, 2, 3)]}
            elif field == "inputs":
                text = entry["inputs"]
                for old, new in change:
                    if old is None:
                        clip = int(entry["frames"][0].split("_")[1][:-4]) + 1
                        old, new = f"镜头{clip}/5：", f"镜头{clip}/5：\n{new}"
                    assert text.count(old) == 1
                    text = text.replace(old, new)
                entry = entry | {"inputs": text}
            else:
                assert entry[field] == change[0]
                entry = entry | {field: change[1]}
    return entry


def test_lists_are_the_published_ones_but_for_what_is_meant(upstream, prepared):
    ours, changed = read(prepared), 0
    for name in ("training_data", "train", "test", "train_shots"):
        published = json.loads((upstream / f"{name}.json").read_text("utf-8"))
        assert len(ours[name]) == len(published)
        ranks: dict[str, int] = {}
        for entry, mine in zip(published, ours[name], strict=True):
            rank = ranks[entry["id"]] = ranks.get(entry["id"], -1) + 1
            expected = published_in_our_form(name, rank, entry)
            assert list(mine) == list(expected) and mine == expected
            changed += expected != entry
    assert changed == 2 + 2 + 1 + (4 + 3 + 4)
    assert (prepared / "test_ids.txt").read_bytes() == (upstream / "test_ids.txt").read_bytes()
    train = read_split(prepared / "train_ids.txt")
    assert train == [entry["id"] for entry in ours["train"]] and len(train) == 4


def test_every_clip_sample_has_its_slot(prepared, zh):
    ours = read(prepared)
    assert len(ours["test_shots"]) == 9 and len(ours["train_shots"]) == 16
    for sample in [*ours["train_shots"], *ours["test_shots"]]:
        inputs = training_inputs(sample, torch.zeros(1), zh)
        assert [segment.visual for segment in inputs.segments].count(True) == 1
        assert sample["frames"] == [f"{sample['id']}_{sample['shot_loc'] - 1}.pkl"]
    assert [s["shot_loc"] for s in ours["test_shots"] if s["id"].startswith("7335fd")] == [1, 3, 4]


def test_summary_counts_what_was_left_out(prepared):
    summary = json.loads((prepared / "prepare.json").read_text("utf-8"))
    assert summary["samples"] == {
        "training_data": 6,
        "train": 4,
        "test": 2,
        "train_shots": 16,
        "test_shots": 9,
    }
    assert (summary["videos"], summary["clips"]) == (6, 27)
    assert summary["clips_left_out"] == {"no text": 1, "no frames": 1}
    assert {video_id[:6]: clips for video_id, clips in summary["left_out"].items()} == {
        "7335fd": {"2": "no frames"},
        "184a5d": {"3": "no text"},
    }
    assert {video_id[:6]: clips for video_id, clips in summary["missing_frames"].items()} == {
        "63c39b": {"5": [28]},
        "7335fd": {"2": [7, 8, 9]},
    }
    published = 32 * (84 + 25 - 6)  # kept frames, and one memory frame for every clip but a video's first
    assert summary["visual_tokens"] == published
    assert summary["videos_left_out"] == {"no features": [], "no clip left": []}


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
