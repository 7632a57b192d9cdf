"""CLIP features in the feature store, and clip tensors whose memory is merged by them."""

import json
from dataclasses import replace

import pytest
import torch

from data_process.annotations import read_sample_list
from data_process.feature_store import ClipStore, FeatureStore
from data_process.prepare import prepare
from videonarrator.config import load_template
from videonarrator.schema import Clip, NarratorError, Product, Video
from videonarrator.visual_memory import video_clip_tokens

SETTINGS = {
    "encoder": "small", "encoder_sha256": "abc", "fps": 1, "preprocessing": "-", "dtype": "float16",
    "width": 4,
}  # fmt: skip
CLIP = {"model": "clip", "sha256": "def", "dtype": "float32", "width": 3}
CLIPS = (
    Clip(0, 3, text="One."),
    Clip(2.5, 4, text="Two."),
    Clip(4, 5),  # left out: no text
    Clip(5, 9, text="Four."),
    Clip(9, 10, text="Five."),
)
VIDEO = Video("v", Product("v"), CLIPS)
NUMBERS = [1, 2, 3, 4, 5, 6, 8, 9, 10]  # frame 7 lacks


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FRAMES, KEYS = draw(9, 32, 4).half(), draw(9, 3, seed=1)


@pytest.fixture
def store(tmp_path):
    store = FeatureStore.create(tmp_path / "features", SETTINGS | {"clip": CLIP})
    store.write("v", NUMBERS, FRAMES, KEYS)
    return store


def test_written_clip_features_are_read_back(store):
    store = FeatureStore.open(store.folder)
    numbers, frames = store.read("v")
    assert store.has_clip and numbers.tolist() == NUMBERS
    assert torch.equal(frames, FRAMES) and torch.equal(store.read_clip("v"), KEYS)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (None, r"video w: CLIP features none, but .* is for \[9, clip dim\]"),
        (KEYS[:8], r"video w: CLIP features \(8, 3\), but .* is for \[9, clip dim\]"),
        (KEYS[:, :2], "video w: width 2, but .* is for 3"),
        (KEYS.half(), "video w: dtype float16, but .* is for float32"),
        (KEYS.index_fill(0, torch.tensor([6]), torch.inf), r"video w: the features of frames \[8\] hold NaN"),
    ],
)
def test_wrong_clip_features_are_refused(store, clip, message):
    with pytest.raises(NarratorError, match=message):
        store.write("w", NUMBERS, FRAMES, clip)
    assert not store.has("w")


def test_a_store_without_clip_features(tmp_path, store):
    plain = FeatureStore.create(tmp_path / "plain", SETTINGS)
    plain.write("v", NUMBERS, FRAMES)
    with pytest.raises(NarratorError, match=r"CLIP features \(9, 3\), but .* is for none"):
        plain.write("w", NUMBERS, FRAMES, KEYS)
    with pytest.raises(NarratorError, match=r"holds no CLIP features, .*: extract into another"):
        plain.read_clip("v")
    with pytest.raises(NarratorError, match="holds no CLIP features"):
        prepare({"v": VIDEO}, [], plain, tmp_path / "out", load_template("en"), memory="clip")
    assert not (tmp_path / "out").exists()
    with pytest.raises(NarratorError, match=r"clip is 'absent' there, .*'model': 'clip'.* here"):
        FeatureStore.create(plain.folder, SETTINGS | {"clip": CLIP})
    with pytest.raises(NarratorError, match=r"clip\.sha256 is 'def' there, 'other' here"):
        FeatureStore.create(store.folder, SETTINGS | {"clip": CLIP | {"sha256": "other"}})
    with pytest.raises(ValueError, match=r"feature settings lack clip\.sha256"):
        FeatureStore.create(tmp_path / "new", SETTINGS | {"clip": {"model": "m", "dtype": "d", "width": 1}})


def own(tensor, *places):
    return tensor[list(places)]


def by_clip(tensor):
    """Of each clip, its rows by hand: frame k is at second k-1, frame 7 lacks."""
    return [own(tensor, *places) for places in ((0, 1, 2), (2, 3), (4,), (5, 6, 7), (8,))]


@pytest.mark.parametrize("threshold", [None, -0.5])
@pytest.mark.parametrize("memory", ["tokens", "clip"])
def test_prepared_clip_tensors(tmp_path, store, memory, threshold):
    prepare({"v": VIDEO}, [], store, tmp_path / "out", load_template("en"), threshold, memory=memory)
    clips = ClipStore.open(tmp_path / "out" / "clips")
    assert clips.settings["memory"] == memory and clips.settings["threshold"] == threshold
    assert clips.settings["features"]["clip"] == CLIP
    summary = json.loads((tmp_path / "out" / "prepare.json").read_text())
    assert (summary["memory"], summary["threshold"]) == (memory, threshold)
    shown = [None if clip.text is None else rows for clip, rows in zip(CLIPS, by_clip(FRAMES), strict=True)]
    expected = video_clip_tokens(shown, threshold, by_clip(KEYS) if memory == "clip" else None)
    assert clips.clips("v") == [0, 1, 3, 4]
    for index in clips.clips("v"):
        assert torch.equal(clips.read("v", index), expected[index])
    if threshold is None:
        assert [clips.tokens("v", index) // 32 for index in clips.clips("v")] == [3, 1 + 2, 1 + 3, 1 + 1]
    others = video_clip_tokens(shown, threshold, None if memory == "clip" else by_clip(KEYS))
    assert not torch.equal(expected[3], others[3])


def test_other_memory_settings_are_named(tmp_path, store):
    template = load_template("en")
    prepare({"v": VIDEO}, [], store, tmp_path, template)
    with pytest.raises(
        NarratorError, match=r"threshold is 0\.9 there, None here; memory is 'tokens' there, "
    ):
        prepare({"v": VIDEO}, [], store, tmp_path, template, None, memory="clip")


def test_sample_lists_in_english(tmp_path, store):
    prepare({"v": VIDEO}, [], store, tmp_path, load_template("en"), None, memory="clip")
    shots = json.loads((tmp_path / "train_shots.json").read_text())
    assert [shot["shot_loc"] for shot in shots] == [1, 2, 4, 5]
    assert shots[2]["inputs"] == (
        "Video shot 1:\nword count requirement: 1-6 words\nNarrative 1: One.\n"
        "Video shot 2:\nword count requirement: 1-6 words\nNarrative 2: Two.\n"
        "Video shot 4:\nvisual scene: <vid_start><vid_end>\nword count requirement: 1-6 words\n"
        "Narrative 4: Four.\n"
        "Video shot 5:\nword count requirement: 1-6 words\nNarrative 5: Five."
    )
    (told,) = read_sample_list(tmp_path / "train.json", load_template("en"))
    assert told.timed and told.story.product.name == "" and told.story.total == len(CLIPS)
    assert [clip.text for clip in told.video.clips] == [clip.text for clip in CLIPS]


def test_a_last_clip_that_is_left_out_is_not_told_of(tmp_path, store):
    """The prompt does not tell how many clips there are, so none is missed."""
    video = replace(VIDEO, clips=(*CLIPS[:4], replace(CLIPS[4], text=None)))
    prepare({"v": video}, [], store, tmp_path, load_template("en"), None, memory="clip")
    (told,) = read_sample_list(tmp_path / "train.json", load_template("en"))
    assert told.story.total == 4 and [clip.number for clip in told.story.clips] == [1, 2, 4]
    assert [clip.text for clip in told.video.clips] == ["One.", "Two.", None, "Four."]
