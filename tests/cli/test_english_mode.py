"""English mode end to end with the real commands, on three rendered videos: product videos, and the text-file
annotations; memory by CLIP features, no compression.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from cli_world import ROOT, fails, read, run, save, succeed
from tiny_clip import save_tiny_clip
from tiny_models import save_tiny_encoder, save_tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from data_process.annotations import read_annotations
from data_process.clip_features import clip_fingerprint, load_clip
from data_process.feature_store import ClipStore, FeatureStore
from data_process.frames import read_frames
from videonarrator.checkpoint import load_checkpoint
from videonarrator.clip_inputs import encode, encode_text, training_inputs
from videonarrator.config import load_template
from videonarrator.generation.jobs import VideoTask
from videonarrator.generation.story import Writing
from videonarrator.schema import output_key
from videonarrator.settings import DecodingSettings
from videonarrator.tasks import annotated_tasks

VIDEOS = ("english01", "english04", "english09")
HELD_OUT = VIDEOS[-1]
QUICK = "max_new_tokens=6"


@dataclass(frozen=True)
class English:
    root: Path

    def __getattr__(self, name):
        return self.root / name

    @property
    def annotations(self):
        return self.root / "annotations_en.json"

    def prepare(self, out, *more, template="en_product", annotations=None, features=None):
        return (
            "prepare", "--annotations", annotations or self.annotations, "--test-ids", self.ids, "--features",
            features or self.features, "--out", out, "--template", template, *more,
        )  # fmt: skip

    def train(self, prepared, template, out):
        config = save(
            out.with_suffix(".yaml"),
            f"output: {out}\n"
            f"data: {{samples: {prepared}/train_shots.json, clips: {prepared}/clips}}\n"
            f"model: {{backbone: {self.backbone}, template: {template}, rank: 2, alpha: 4}}\n"
            "optimization: {epochs: 1, samples_per_step: 4, learning_rate: 1e-3}\n",
        )
        return succeed("train", "--config", config)

    def infer(self, checkpoint, out, annotations=None, features=None):
        return (
            "infer", "--annotations", annotations or self.annotations, "--ids", self.ids, "--features",
            features or self.features, "--checkpoint", checkpoint, "--out", out, QUICK,
        )  # fmt: skip

    def narrate(self, out, *more):
        return (
            "narrate", self.videos / f"{HELD_OUT}.mp4", "--product", self.product, "--cuts",
            self.root / "cuts.json", "--checkpoint", self.run / "checkpoint", "--out", out, QUICK, *more,
        )  # fmt: skip


def save_llama(folder, texts):
    tokenizer = save_tiny_tokenizer(folder, texts)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).eval().save_pretrained(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Product videos: from rendering to output.json."""
    world = English(tmp_path_factory.mktemp("english"))
    for name in ("annotations_en.json", "scenes_en.json"):
        everything = read(ROOT / "data" / "sample" / name)
        save(world.root / name, {f"{video}.mp4": everything[f"{video}.mp4"] for video in VIDEOS})
    annotated = read(world.annotations)
    save(world.ids, f"{HELD_OUT}.mp4\n")
    save(world.product, "name: Pine umbrella\ninfo:\n  Material: [carbon fibre]\n")
    spans = [clip["time"] for clip in annotated[f"{HELD_OUT}.mp4"]["frames"]]
    save(world.root / "cuts.json", {"clips": [{"start": start, "end": end} for start, end in spans]})
    save_tiny_encoder(world.blip2)
    save_tiny_clip(world.clip)
    texts = [video["p_info"] for video in annotated.values()]
    save_llama(world.backbone, texts + [c["new_text"] for v in annotated.values() for c in v["frames"]])
    succeed("sample", "render", "--english", "--data", world.root, "--out", world.videos)
    succeed(
        "extract", world.videos, "--encoder", world.blip2, "--clip-model", world.clip, "--out", world.features
    )
    succeed(*world.prepare(world.prepared, "--memory", "clip", "--no-compress"))
    world.train(world.prepared, "en_product", world.run)
    succeed(*world.infer(world.run / "checkpoint", world.inferred))
    return world


@pytest.fixture
def seen(monkeypatch):
    """What the narrator is shown: the tasks of every video it is given."""
    from videonarrator.generation.story import Writing

    def lines(writing, video):
        tasks.extend(video.clips)
        return real(writing, video)

    tasks, real = [], Writing.lines
    monkeypatch.setattr(Writing, "lines", lines)
    return tasks


def test_extracted_clip_features(made):
    store, clip = FeatureStore.open(made.features), load_clip(str(made.clip))
    assert store.settings["clip"] == {
        "model": str(made.clip), "sha256": clip_fingerprint(str(made.clip)), "dtype": "float32",
        "width": clip.width,
    }  # fmt: skip
    for video in VIDEOS:
        numbers, _ = store.read(video)
        stills = read_frames(made.videos / f"{video}.mp4", numbers.tolist())
        expected = clip.encode([stills[number] for number in numbers.tolist()])
        torch.testing.assert_close(store.read_clip(video), expected)
        assert not torch.allclose(expected[0], expected[-1])  # the CLIP sees what changes


def test_prepared_lists_and_checkpoint(made):
    settings = ClipStore.open(made.prepared / "clips").settings
    assert (settings["memory"], settings["threshold"]) == ("clip", None)
    checkpoint = read(made.run / "checkpoint" / "narrator.json")
    assert checkpoint["features"] == settings["features"] | {"memory": "clip", "threshold": None}
    shots = read(made.prepared / "train_shots.json")
    facts = read(made.annotations)[f"{VIDEOS[0]}.mp4"]
    start = (
        f"Product information:\nName: {facts['p_name']}\n{facts['p_info']}\n\nProduct video:\nVideo shot 1:\n"
    )
    assert shots[0]["inputs"].startswith(
        start + "visual scene: <vid_start><vid_end>\nword count requirement: "
    )
    assert load_template(made.run / "checkpoint" / "prompt.yaml") == load_template("en_product")


def check_output(path, annotated):
    """Every clip of the held-out video: English reference, no label, some text."""
    clips = annotated[f"{HELD_OUT}.mp4"]["frames"]
    output = read(path)
    assert list(output) == [output_key(HELD_OUT, index) for index in range(len(clips))]
    for entry, clip in zip(output.values(), clips, strict=True):
        assert entry["gt"] == clip["new_text"] and entry["out_label"] == ""
        assert isinstance(entry["0.1"], str)


def test_output(made):
    check_output(made.inferred / "output.json", read(made.annotations))
    script = read(made.inferred / "scripts" / HELD_OUT / "script.json")
    for line in script["lines"]:
        assert line["written"] == len(line["text"].split())


@pytest.mark.parametrize("verb", ["infer", "narrate"])
def test_both_verbs_show_what_prepare_made(made, tmp_path, seen, verb):
    """The clips' visual tokens: memory by CLIP, nothing compressed."""
    words = made.infer(made.run / "checkpoint", tmp_path) if verb == "infer" else made.narrate(tmp_path)
    succeed(*words)
    store = ClipStore.open(made.prepared / "clips")
    assert [task.index for task in seen] == store.clips(HELD_OUT)
    for task in seen:
        torch.testing.assert_close(task.visual, store.read(HELD_OUT, task.index))
    succeed(*made.prepare(tmp_path / "other", "--no-compress"))
    tokens = ClipStore.open(tmp_path / "other" / "clips").read(HELD_OUT, seen[-1].index)
    assert tokens.shape == seen[-1].visual.shape and not torch.allclose(tokens, seen[-1].visual)


def test_prompts_are_the_samples_up_to_the_first_word(made):
    """Token for token, where each clip's narration is the annotated one; its first word has its blank."""
    checkpoint = load_checkpoint(made.run / "checkpoint")
    video = read_annotations(made.annotations)[HELD_OUT]
    store = FeatureStore.open(made.features)
    frames = [store.frames_of(HELD_OUT, clip.start, clip.end) for clip in video.clips]
    tasks = annotated_tasks(video, frames, None, language="en")
    shots = read(made.prepared / "test_shots.json")

    settings = DecodingSettings(length="prompt", attempts=1)
    lines, asked = Writing(checkpoint, settings).lines(VideoTask("", video.product, tasks, len(tasks))), []
    for clip, line in zip(video.clips, lines, strict=True):
        asked.append(line.prompt.ids)
        line.written = encode_text(f" {clip.text}", checkpoint.tokenizer)
    rules = checkpoint.info.token_rules
    for ids, task, shot, clip in zip(asked, tasks, shots, video.clips, strict=True):
        sample = training_inputs(shot, task.visual, checkpoint.template, later=False)
        whole, labels = encode(sample.segments, checkpoint.tokenizer, len(task.visual), rules)
        told = encode_text(f" {clip.text}", checkpoint.tokenizer) + encode_text("\n", checkpoint.tokenizer)
        assert whole == [*ids, *told] and labels[-len(told) :] == told


def test_narrate_in_english(made, tmp_path):
    succeed(*made.narrate(tmp_path))
    script = read(tmp_path / "script.json")
    for line in script["lines"]:
        high = max(1, int(2.5 * (line["end"] - line["start"])))
        assert (line["low"], line["high"]) == (max(1, high - 10), high)
        assert line["written"] == len(line["text"].split())


def test_video_story_files(made, tmp_path):
    """The published second mode: text files, no product."""
    annotated = read(made.annotations)
    (tmp_path / "story").mkdir()
    for name, video in annotated.items():
        lines = [name]
        for clip in video["frames"]:
            times = " ".join(f"{int(t) // 60:02d}:{int(t) % 60:02d}" for t in clip["time"])
            lines.append(f"{times} {clip['new_text']}")
        save(tmp_path / "story" / f"{Path(name).stem}.txt", "\n".join(lines) + "\n")
    story = tmp_path / "story.json"
    result = succeed("convert", "video-story", tmp_path / "story", story).result
    clips = sum(len(video["frames"]) for video in annotated.values())
    expected = {"out": str(story), "videos": len(VIDEOS), "clips": clips}
    assert result == expected | {"lengthened": 0, "out_of_order": 0}
    succeed(
        *made.prepare(
            tmp_path / "prepared", "--memory", "clip", "--no-compress", template="en", annotations=story
        )
    )
    prepared = read(tmp_path / "prepared" / "train_shots.json")
    assert prepared[0]["inputs"].startswith("Video shot 1:\nvisual scene: <vid_start><vid_end>\n")
    stores = [ClipStore.open(folder / "clips") for folder in (tmp_path / "prepared", made.prepared)]
    assert torch.equal(*(store.read(HELD_OUT, 2) for store in stores))
    made.train(tmp_path / "prepared", "en", tmp_path / "run")
    succeed(*made.infer(tmp_path / "run" / "checkpoint", tmp_path / "out", annotations=story))
    check_output(tmp_path / "out" / "output.json", annotated)


def test_video_story_mistakes(tmp_path):
    (tmp_path / "in").mkdir()
    save(tmp_path / "in" / "a.txt", "a.mp4\nno times\n")
    out = tmp_path / "out.json"
    fails(run("convert", "video-story", tmp_path / "in", out), "1 mistake", "a.txt, line 2", "mm:ss mm:ss")
    assert not out.exists()
    save(tmp_path / "in" / "a.txt", "a.mp4\n00:07 00:07 Now.\n00:03 00:05 Before.\n")
    done = succeed("convert", "video-story", tmp_path / "in", out)
    assert done.result == {
        "out": str(out), "videos": 1, "clips": 2, "lengthened": 1, "out_of_order": 1,
    }  # fmt: skip
    assert "given it whole: 1 (a.txt, line 2)" in done.err
    assert "left where they stand: 1 (a.txt, line 3)" in done.err


# -------------------- what does not fit together


@pytest.fixture(scope="module")
def plain_features(made, tmp_path_factory):
    """The same features without CLIP's."""
    folder = tmp_path_factory.mktemp("plain") / "features"
    held_out = made.videos / f"{HELD_OUT}.mp4"
    succeed("extract", held_out, "--encoder", made.blip2, "--out", folder)
    return folder


def test_features_without_clip(made, plain_features, tmp_path):
    words = made.prepare(tmp_path / "out", "--memory", "clip", features=plain_features)
    fails(run(*words), "holds no CLIP features", "--clip-model")
    words = made.infer(made.run / "checkpoint", tmp_path / "out", features=plain_features)
    fails(run(*words), "merges its memory by features of the CLIP", f"{plain_features} holds none")
    words = ("extract", made.videos, "--encoder", made.blip2, "--clip-model", made.clip, "--out")
    fails(run(*words, plain_features), "clip is 'absent' there", "Name another folder")


def test_another_clip(made, tmp_path):
    other = tmp_path / "other_clip"
    save_tiny_clip(other, seed=1)
    shutil.copytree(made.features, tmp_path / "features")
    manifest = read(tmp_path / "features" / "manifest.json")
    manifest["settings"]["clip"] |= {"model": str(other), "sha256": clip_fingerprint(str(other))}
    save(tmp_path / "features" / "manifest.json", manifest)
    words = made.infer(made.run / "checkpoint", tmp_path / "out", features=tmp_path / "features")
    fails(run(*words), f"the CLIP {made.clip}; those given are of {other}", "--clip-model")
    fails(run(*made.narrate(tmp_path / "out", "--clip-model", other)), f"those given are of {other}")
    moved = tmp_path / "moved_clip"
    shutil.copytree(made.clip, moved)
    succeed(*made.narrate(tmp_path / "out", "--clip-model", moved))


def test_a_clip_that_was_moved_is_asked_for(made, tmp_path):
    shutil.copytree(made.run / "checkpoint", tmp_path / "run" / "checkpoint")
    file = tmp_path / "run" / "checkpoint" / "narrator.json"
    described = read(file)
    described["features"]["clip"]["model"] = str(tmp_path / "gone")
    described["backbone"] = str(made.backbone)
    file.write_text(json.dumps(described), "utf-8")
    words = ["narrate", made.videos / f"{HELD_OUT}.mp4", "--product", made.product, "--out", tmp_path / "out"]
    words += ["--cuts", made.root / "cuts.json", "--checkpoint", tmp_path / "run" / "checkpoint", QUICK]
    fails(run(*words), str(tmp_path / "gone"), "if it was moved, give --clip-model")
    succeed(*words, "--clip-model", made.clip)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--memory", "clips"), "unknown --memory 'clips': tokens or clip"),
        (("--no-compress", "--threshold", "0.8"), "--threshold is for compression"),
    ],
)
def test_wrong_words(made, tmp_path, words, message):
    fails(run(*made.prepare(tmp_path / "out", *words)), message)
    assert not (tmp_path / "out").exists()


def test_another_model_is_no_clip(made, tmp_path):
    words = ("extract", made.videos, "--encoder", made.blip2, "--clip-model", made.backbone)
    fails(run(*words, "--out", tmp_path), "holds a model of type 'llama', not a CLIP")
