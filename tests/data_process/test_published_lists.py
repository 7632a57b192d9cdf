"""The published sample lists: made again through the commands, and where the project's own lists differ."""

import hashlib
import json
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from cli_world import fails, files, read, run, succeed
from safetensors.torch import load_file

from data_process.annotations import read_annotations, read_split
from data_process.feature_store import ClipStore, FeatureStore
from data_process.prepare import prepare
from data_process.published_lists import published_lists
from videonarrator.prompt import parse_inputs
from videonarrator.schema import Clip, NarratorError, Product, Video
from videonarrator.timeline import clip_positions, clip_positions_by_rank, frame_numbers

PUBLISHED = ("training_data", "train", "test", "train_shots")
SLOT = "<vid_start><vid_end>"


@pytest.fixture(scope="module")
def folders(upstream, upstream_features, tmp_path_factory):
    """The fixture's frames as published files -> store -> lists of both kinds, all by the commands."""
    root = tmp_path_factory.mktemp("published")
    (root / "npy").mkdir()
    for video_id, frames in upstream_features.items():
        for number, frame in frames.items():
            np.save(root / "npy" / f"{video_id}_{number:03d}.jpg.npy", frame.numpy())
    succeed("convert", "features", root / "npy", root / "features")
    options = [
        "--annotations", upstream / "all_video_data.json", "--test-ids", upstream / "test_ids.txt",
        "--features", root / "features", "--out",
    ]  # fmt: skip
    succeed("prepare", *options, root / "upstream", "--compat", "upstream")
    succeed("prepare", *options, root / "own")
    return SimpleNamespace(published=root / "upstream", own=root / "own", features=root / "features")


def test_the_published_lists_are_written(upstream, folders):
    for name in PUBLISHED:
        assert read(folders.published / f"{name}.json") == read(upstream / f"{name}.json"), name
        for mine, theirs in zip(
            read(folders.published / f"{name}.json"), read(upstream / f"{name}.json"), strict=True
        ):
            assert list(mine) == list(theirs)
    ids = (upstream / "test_ids.txt").read_text().split()
    assert (folders.published / "test_ids.txt").read_text().split() == ids


def test_the_published_clip_tensors_are_written(upstream, folders):
    clips = read(upstream / "clips.json")
    for folder in (folders.published, folders.own):  # one and the same: only lists differ
        store = ClipStore.open(folder / "clips")
        tensors = {f"{v}_{c}.pkl": store.read(v, c).numpy() for v in store.ids for c in store.clips(v)}
        found = {
            name: {
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype),
                "sha256": hashlib.sha256(tensor.tobytes()).hexdigest(),
            }
            for name, tensor in tensors.items()
        }
        assert found == {
            name: {field: clip[field] for field in ("shape", "dtype", "sha256")}
            for name, clip in clips.items()
        }
        for name, tensor in load_file(upstream / "clips_full.safetensors").items():
            assert tensors[name].tobytes() == tensor.numpy().tobytes()


def test_test_shots_are_made_like_the_published_train_shots(upstream, folders, tmp_path):
    """The published script makes no such list: with the splits exchanged it is its list of training."""
    train = [entry["id"] for entry in read(upstream / "train.json")]
    (tmp_path / "ids.txt").write_text("".join(f"{video_id}.mp4\n" for video_id in train))
    succeed(
        "prepare", "--annotations", upstream / "all_video_data.json", "--test-ids", tmp_path / "ids.txt",
        "--features", folders.features, "--out", tmp_path / "out", "--compat", "upstream",
    )  # fmt: skip
    assert read(tmp_path / "out" / "test_shots.json") == read(upstream / "train_shots.json")
    assert read(tmp_path / "out" / "train_shots.json") == read(folders.published / "test_shots.json")


# ------------------------------------------------- the project's own lists against the published

REASONS = {
    "doubled stop in a text": "'。。' is one stop in every text; published: only in the per-clip lists, and "
    "there not in the last clip",
    "doubled stop in the product's facts": "they stay; published: mended in the per-clip lists",
    "range of a text": "len -/+ 3 of the text as it stands there, low at least 1; published: of the text "
    "before '。。' is mended, and in the per-clip lists lowered for each '。。' of the clip before",
    "wording of the slot's name": "texts stay as they are; published: '场景描述' becomes '场景'",
    "slot": "every sample shows its clip; published: none does where a clip of the video is left out",
    "images": "of the clips in `frames`; published: of all clips with a text",
    "shot_loc": "the clip's number among all; published: among those that are left",
    "shot_pos": "of the clip itself; published: of the annotated clip whose number is `shot_loc`, rounded "
    "before it is made hundredths, and 99 for a single clip",
}


def expected_range(text):
    return max(1, len(text) - 3), len(text) + 3


def line_reasons(video, kept, ours, theirs, per_clip):
    """Reasons for the lines of `inputs` that differ; asserts each from the annotation, not from the lists."""
    head = r"镜头(\d+)/\d+：\n"
    mine, other = (re.split(head, inputs) for inputs in (ours, theirs))
    assert mine[1::2] == other[1::2] == [str(index + 1) for index in kept]
    reasons = set()
    if mine[0] != other[0]:
        reasons |= text_reasons(mine[0], other[0], per_clip, product=True)
    before = mine[0].count("。。")
    for place, index in enumerate(kept):
        told, published = mine[2::2][place], other[2::2][place]
        slot = f"场景：{SLOT}\n"
        if (slot in told) != (slot in published):
            assert per_clip and len(kept) < len(video.clips) and slot in told
            reasons.add("slot")
        told, published = told.replace(slot, ""), published.replace(slot, "")
        last, text = place == len(kept) - 1, video.clips[index].text
        assert told.startswith("字数要求：{}-{}个字\n".format(*expected_range(text.replace("。。", "。"))))
        lowered = before if per_clip else 0
        wanted = f"字数要求：{len(text) - 3 - lowered}-{len(text) + 3 - lowered}个字\n"
        assert published.startswith(wanted)
        if not told.startswith(wanted):
            reasons.add("range of a text")
        before = text.count("。。")
        told, published = told.partition("\n")[2], published.partition("\n")[2]
        if told != published:
            assert "。。" in published or "场景描述" in told
            assert not per_clip or last or "。。" not in published
            reasons |= text_reasons(told, published, per_clip, product=False)
    return reasons


def text_reasons(told, published, per_clip, product):
    found = set()
    if "场景描述" in told:
        assert "场景描述" not in published
        found.add("wording of the slot's name")
    if product and per_clip and "。。" in told:
        assert "。。" not in published
        found.add("doubled stop in the product's facts")
    elif not product and "。。" in published:
        assert "。。" not in told
        found.add("doubled stop in a text")
    plain = [text.replace("场景描述", "场景").replace("。。", "。") for text in (told, published)]
    assert plain[0] == plain[1] and found, (told, published)
    return found


def reasons_of(name, video, kept, ours, theirs):
    """Field -> reasons for which an entry differs; asserts that each difference is one of these."""
    found = set()
    assert list(ours) == list(theirs)
    per_clip = name.endswith("shots")
    for field in ours:
        if ours[field] == theirs[field]:
            continue
        if field == "inputs":
            found |= line_reasons(video, kept, ours[field], theirs[field], per_clip)
        elif field == "images" and not per_clip:
            told = [index for index, clip in enumerate(video.clips) if clip.text is not None]
            assert told != kept and [theirs[field][told.index(index)] for index in kept] == ours[field]
            found.add("images")
        elif field == "images":
            (index,) = (int(frame.rpartition("_")[2][:-4]) for frame in ours["frames"])
            told = [place for place, clip in enumerate(video.clips) if clip.text is not None]
            clip = video.clips[told[kept.index(index)]]
            assert told != kept and len(theirs[field][0]) == len(frame_numbers(clip.start, clip.end))
            found.add("images")
        elif field == "shot_loc":
            assert kept[theirs[field] - 1] + 1 == ours[field] and len(kept) < len(video.clips)
            found.add("shot_loc")
        else:
            assert field == "shot_pos", (name, video.id, field)
            durations = [clip.duration for clip in video.clips]
            assert ours[field] == clip_positions(durations, kept)[theirs["shot_loc"] - 1]
            assert theirs[field] == clip_positions_by_rank(durations, len(kept))[theirs["shot_loc"] - 1]
            found.add("shot_pos")
    return found


def differences(videos, kept, own, published):
    """How many entries of which list differ for which reason."""
    counts = Counter()
    for name in own:
        assert len(own[name]) == len(published[name])
        for ours, theirs in zip(own[name], published[name], strict=True):
            video = videos[ours["id"]]
            found = reasons_of(name, video, kept[video.id], ours, theirs)
            assert bool(found) == (ours != theirs)
            counts.update((name, reason) for reason in found)
    assert {reason for _, reason in counts} <= set(REASONS)
    return counts


def read_lists(folder, names=PUBLISHED):
    return {name: read(folder / f"{name}.json") for name in names}


def test_each_difference_of_the_own_lists_has_its_reason(upstream, folders):
    videos = read_annotations(upstream / "all_video_data.json")
    store = ClipStore.open(folders.own / "clips")
    kept = {video_id: store.clips(video_id) if video_id in store.ids else [] for video_id in videos}
    own, published = read_lists(folders.own), read_lists(upstream)
    counts = differences(videos, kept, own, published)
    for (name, reason), count in sorted(counts.items()):  # shown by pytest -s
        print(f"{name}: {count} entries: {reason} ({REASONS[reason]})")
    # what the annotations hold must show, and nothing else may
    train = [video for video in videos.values() if video.id in {entry["id"] for entry in own["train"]}]
    gaps = [v for v in train if len(kept[v.id]) < len(v.clips)]
    assert counts["train_shots", "slot"] == sum(len(kept[video.id]) for video in gaps)
    doubled = [v for v in videos.values() if any("。。" in (v.clips[i].text or "") for i in kept[v.id])]
    assert counts["training_data", "doubled stop in a text"] == len(doubled)
    assert not counts["training_data", "slot"] and not counts["train", "shot_loc"]
    # an unexplained difference is found: one character, one image, one number
    changes = {"inputs": lambda text: text.replace("，", ",", 1), "shot_pos": lambda position: position ^ 1}
    changes |= {"shot_loc": lambda number: number + 1, "images": lambda images: images[:-1]}
    changes |= {"frames": lambda names: names[:-1]}
    for name in own:
        for field in set(changes) & set(own[name][0]):
            entry = dict(own[name][0])
            entry[field] = changes[field](entry[field])
            harmed = own | {name: [entry, *own[name][1:]]}
            if entry != own[name][0]:
                with pytest.raises((AssertionError, ValueError, IndexError)):
                    differences(videos, kept, harmed, published)


# ------------------------------------------------------------- what no fixture need happen to show

PRODUCT = Product("杯。。", "外观：白\n场景描述：好。。")


def clip(start, end, text, label="产品推荐"):
    return Clip(start, end, label, text)


def made(video, kept, zh, test=()):
    return published_lists([(video, kept)], test, zh)


def test_doubled_stops_lower_the_range_that_follows(zh):
    texts = ["一二三四五。。六。。", "一二三四五六。", "一。。", "末。。"]
    video = Video("v", PRODUCT, tuple(clip(n, n + 1, text) for n, text in enumerate(texts)))
    lists = made(video, [0, 1, 2, 3], zh)
    whole, shot = (
        parse_inputs(lists["train"][0]["inputs"], zh),
        parse_inputs(lists["train_shots"][1]["inputs"], zh),
    )
    assert [c.text for c in whole.clips] == texts
    assert [(c.low, c.high) for c in whole.clips] == [(len(t) - 3, len(t) + 3) for t in texts]
    assert whole.clips[2].low == 0  # no floor of 1
    assert [c.text for c in shot.clips] == ["一二三四五。六。", "一二三四五六。", "一。", "末。。"]
    lowered = [2, 2, 0, 1]  # by the product's, by the clip before
    assert [(c.low, c.high) for c in shot.clips] == [
        (len(t) - 3 - n, len(t) + 3 - n) for t, n in zip(texts, lowered, strict=True)
    ]
    assert shot.product == Product("杯。", "外观：白\n场景：好。")


def test_the_slots_older_name_is_replaced_but_in_the_first_list(zh):
    video = Video("v", PRODUCT, (clip(0, 1, "看场景描述。"),))
    lists = made(video, [0], zh)
    assert lists["training_data"][0]["inputs"].count("场景描述") == 2
    for name in ("train", "train_shots"):
        assert "场景描述" not in lists[name][0]["inputs"] and "看场景。" in lists[name][0]["inputs"]
    assert lists["train"][0]["p_info"] == PRODUCT.info
    assert "字数要求：3-9个字" in lists["train"][0]["inputs"]  # the length of the text before


def test_images_and_positions_out_of_step(zh):
    """Clip 1 has a text but no frames, clip 4 no text: ranks 1, 2, 3 stand for clips 2, 3, 5."""
    times = [(0, 10), (10, 12), (12, 20), (20, 30), (30, 40)]
    texts = ["一。", "二。", "三。", None, "五。"]
    video = Video("v", PRODUCT, tuple(clip(*time, text) for time, text in zip(times, texts, strict=True)))
    lists = made(video, [1, 2, 4], zh)
    assert lists["train"][0]["frames"] == ["v_1.pkl", "v_2.pkl", "v_4.pkl"]
    images = lists["train"][0]["images"]
    assert [len(shown) for shown in images] == [10, 2, 8, 10]
    shots = lists["train_shots"]
    assert [shot["frames"] for shot in shots] == [["v_1.pkl"], ["v_2.pkl"], ["v_4.pkl"]]
    assert [shot["images"] for shot in shots] == [[shown] for shown in images[:3]]
    assert [shot["shot_loc"] for shot in shots] == [1, 2, 3]
    assert [shot["shot_pos"] for shot in shots] == [0, int(11 / 40 * 100), 99]
    assert not any(SLOT in shot["inputs"] for shot in shots)
    assert lists["train"][0]["inputs"].count(SLOT) == 3
    assert made(video, [1, 2, 4], zh, test={"v"})["test_shots"] == shots


def test_positions_by_rank():
    assert clip_positions_by_rank([4, 6, 10], 3) == clip_positions([4, 6, 10], [0, 1, 2]) == [0, 35, 99]
    assert clip_positions_by_rank([5], 1) == [99] and clip_positions([5], [0]) == [0]
    assert clip_positions_by_rank([4, 6, 10, 20], 3) == [0, 17, 99]
    # 14.5 of 50 seconds is 29%, but 0.29 * 100 is less than 29
    durations = [10, 9, 31]
    assert clip_positions_by_rank(durations, 3) == [0, 28, 99]
    assert clip_positions(durations, [0, 1, 2]) == [0, 29, 99]


def test_the_video_whose_start_is_moved(zh):
    clips = tuple(clip(*time, "好。") for time in ((0, 10), (10, 20), (20, 30)))
    moved, other = (
        made(Video(name, PRODUCT, clips), [0, 1, 2], zh)["train_shots"] for name in ("411766054621", "v")
    )
    assert [shot["shot_pos"] for shot in moved] == [0, 40, 99]
    assert [shot["shot_pos"] for shot in other] == [0, 50, 99]
    assert moved[0]["images"][0][0].endswith("_001.jpg") and len(moved[0]["images"][0]) == 10


def published_store(folder, counts):
    settings = {
        "encoder": "-",
        "encoder_sha256": "",
        "fps": 1,
        "preprocessing": "",
        "dtype": "float32",
        "width": 2,
    }
    store = FeatureStore.create(folder, settings)
    import torch

    for video_id, count in counts.items():
        store.write(video_id, range(1, count + 1), torch.randn(count, 4, 2))
    return store


def test_the_last_frames_of_published_features_may_lack(tmp_path, zh):
    """Only features of our own say how long a video is."""
    video = Video("v", PRODUCT, (clip(0, 3, "好。"), clip(3, 5.5, "好。")))
    store = published_store(tmp_path / "published", {"v": 4})
    for compat in ("none", "upstream"):
        summary = prepare({"v": video}, [], store, tmp_path / compat, zh, compat=compat)
        assert summary["compat"] == compat
        assert summary["missing_frames"] == {"v": {"2": [5]}} and summary["samples"]["train_shots"] == 2
    own = store.settings | {"encoder_sha256": "abc"}
    (store.folder / "manifest.json").write_text(
        json.dumps(read(store.folder / "manifest.json") | {"settings": own}), "utf-8"
    )
    store = FeatureStore.open(store.folder)
    with pytest.raises(
        NarratorError, match=r"clip 2, is 3-5\.5 s, but by its features the video lasts at most 4"
    ):
        prepare({"v": video}, [], store, tmp_path / "strict", zh)
    prepare({"v": video}, [], store, tmp_path / "upstream_own", zh, compat="upstream")


def test_what_is_typed_wrong(upstream, folders, tmp_path):
    options = [
        "--annotations", upstream / "all_video_data.json", "--test-ids", upstream / "test_ids.txt",
        "--features", folders.features, "--out", tmp_path / "out", "--compat",
    ]  # fmt: skip
    fails(run("prepare", *options, "upsteam"), "unknown --compat 'upsteam': none or upstream")
    english = run("prepare", *options, "upstream", "--template", "en_product")
    fails(english, "the published lists are Chinese, the template is for 'en'")
    assert files(tmp_path) == set()


def test_ids_of_the_split_files(upstream, folders):
    videos = read_annotations(upstream / "all_video_data.json")
    test = read_split(folders.published / "test_ids.txt", videos)
    train = read_split(folders.published / "train_ids.txt", videos)
    assert sorted([*test, *train]) == sorted(videos) and test == read_split(upstream / "test_ids.txt")
