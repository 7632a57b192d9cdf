"""The published code's variants: whole videos as samples, the projector alone, no storyline."""

import json
from dataclasses import replace

import pytest
import torch
from plain_narration import narrate_plainly
from safetensors.torch import load_file
from scripted import play
from tiny_narrator import (
    FEATURES,
    WIDTH,
    as_started,
    clip_samples,
    clip_tokens,
    train_and_keep,
    train_config,
)

from videonarrator.checkpoint import load_checkpoint, read_info
from videonarrator.clip_inputs import IGNORED
from videonarrator.config import load_config
from videonarrator.dataset import ClipSamples, collate
from videonarrator.generation.engine import narrate_video
from videonarrator.generation.jobs import ClipTask
from videonarrator.prompt import inputs_text, parse_inputs
from videonarrator.schema import NarratorError
from videonarrator.settings import DecodingSettings, TrainConfig
from videonarrator.training.building import build_narrator
from videonarrator.training.run import train
from videonarrator.visual_memory import fit_tokens

TOKENS = 3


def whole_samples(videos, template):
    """Entries of train.json for `videos`."""
    samples = []
    for video in videos:
        shots = clip_samples(video, template)
        story = parse_inputs(shots[0]["inputs"], template)
        frames = [shot["frames"][0] for shot in shots]
        samples.append({"inputs": inputs_text(story, template), "id": video.id, "frames": frames})
    return samples


def whole_config(backbone, output, **changes):
    config = train_config(backbone, output, **changes)
    return replace(config, data=replace(config.data, whole_videos=True, clip_tokens=TOKENS))


def test_tokens_are_cut_or_padded_with_zeros():
    tokens = torch.arange(6.0).view(3, 2)
    assert fit_tokens(tokens, 2).equal(tokens[:2]) and fit_tokens(tokens, 3).equal(tokens)
    assert fit_tokens(tokens, 5).equal(torch.cat([tokens, torch.zeros(2, 2)]))


def test_a_whole_video_is_one_sample(backbone, sample_videos, zh, tmp_path):
    """Every clip's slot, so many tokens each, no position, and all labels and narrations are learnt."""
    video = sample_videos["sample01"]
    narrator, tokenizer = build_narrator(whole_config(backbone, tmp_path), WIDTH)
    dataset = ClipSamples(
        whole_samples([video], zh), clip_tokens, tokenizer, zh, WIDTH, whole_video_tokens=TOKENS
    )
    item = dataset[0]
    patch = tokenizer.convert_tokens_to_ids("<vid_patch>")
    clips = len(video.clips)
    assert item["ids"].count(patch) == TOKENS * clips == len(item["visual"])
    for index in range(clips):
        part = item["visual"][TOKENS * index : TOKENS * (index + 1)]
        assert part.equal(fit_tokens(clip_tokens(video.id, index), TOKENS))
    learnt = tokenizer.decode([label for label in item["labels"] if label != IGNORED])
    assert learnt == "".join(f"{c.label}\n{i}.{c.text}\n" for i, c in enumerate(video.clips, 1))
    batch = collate([item], tokenizer.pad_token_id)
    assert set(batch["positions"].tolist()) == {-1}
    with torch.no_grad():  # no position: neither its vector nor the bias a second time
        embedded = narrator.embed(batch["input_ids"], batch["visual"], batch["positions"])
        wanted = narrator.projector.linear(batch["visual"])
    assert embedded[0][batch["input_ids"][0] == patch].equal(wanted)


def test_whole_videos_train_save_and_narrate_with_all_slots_shown(
    backbone, sample_videos, zh, tmp_path, monkeypatch
):
    """The prompts of narration are the training sample's ids up to each target."""
    video = sample_videos["sample01"]
    samples = whole_samples([video], zh)
    config = whole_config(backbone, tmp_path / "run")
    train_and_keep(config, samples)
    checkpoint = load_checkpoint(tmp_path / "run/checkpoint")
    assert checkpoint.info.whole_video_tokens == TOKENS
    dataset = ClipSamples(samples, clip_tokens, checkpoint.tokenizer, zh, WIDTH, whole_video_tokens=TOKENS)
    texts = [text for clip in video.clips for text in (clip.label, clip.text)]
    story = parse_inputs(samples[0]["inputs"], zh)
    tasks = [ClipTask(i, c.low, c.high, clip_tokens(video.id, i), 0) for i, c in enumerate(story.clips)]
    _, asked = play(checkpoint, video.product, tasks, len(video.clips), texts)
    ids, labels = dataset[0]["ids"], dataset[0]["labels"]
    starts = [p for p, label in enumerate(labels) if label != IGNORED and labels[p - 1] == IGNORED]
    assert len(starts) == len(video.clips) == len(asked) // 2
    for index, start in enumerate(starts):
        prompt = asked[2 * index].prompt
        assert prompt.ids == ids[:start] and set(prompt.positions) == {-1}
        assert prompt.visual.equal(dataset[0]["visual"][: TOKENS * (index + 1)])
    exact = replace(checkpoint, narrator=checkpoint.narrator.double())
    tasks = [replace(task, visual=task.visual.double()) for task in tasks]
    settings = DecodingSettings(attempts=1)
    made = narrate_video(exact, video.product, tasks, len(video.clips), settings)
    plain = narrate_plainly(exact, video.product, tasks, len(video.clips), settings)
    assert [(one.label, one.raw) for one in made] == [(one.label, one.raw) for one in plain]


def test_per_clip_lists_and_whole_lists_are_not_mixed_up(backbone, sample_videos, zh, tmp_path):
    video = sample_videos["sample01"]
    with pytest.raises(NarratorError, match=r"no shot_loc, shot_pos; .*data.whole_videos=true"):
        train(train_config(backbone, tmp_path / "a"), whole_samples([video], zh), clip_tokens, FEATURES)
    with pytest.raises(NarratorError, match="sample of video sample01: not every clip has its slot"):
        train(whole_config(backbone, tmp_path / "b"), clip_samples(video, zh), clip_tokens, FEATURES)


def test_only_the_projector_is_trained(backbone, shots, zh, tmp_path):
    """Language model and embeddings stay bit by bit; what was trained is loaded again."""
    config = train_config(backbone, tmp_path / "run", adapter="projector")
    started, _, _ = as_started(config, shots, zh)
    trained = train_and_keep(config, shots)
    before = dict(started.named_parameters())
    moved = {name for name, p in trained.named_parameters() if not p.equal(before[name])}
    assert moved == {"projector.linear.weight", "projector.linear.bias", "projector.position.weight"}
    assert {name for name, p in trained.named_parameters() if p.requires_grad} == moved
    folder = tmp_path / "run/checkpoint"
    assert not (folder / "adapter").exists() and not (folder / "backbone").exists()
    loaded = load_checkpoint(folder)
    for name, parameter in loaded.narrator.named_parameters():
        assert parameter.equal(dict(trained.named_parameters())[name]), name
    assert read_info(folder).adapter == "projector"


def test_lora_on_a_frozen_projector(backbone, shots, zh, tmp_path):
    """compat: upstream trains the projector's LoRA and leaves its own weights; saved, loaded, merged."""
    config = train_config(backbone, tmp_path / "run")
    config = replace(config, model=replace(config.model, compat="upstream"))
    started = dict(as_started(config, shots, zh)[0].named_parameters())
    trained = train_and_keep(config, shots)
    own = dict(trained.named_parameters())
    still = {name for name in own if name.startswith("projector.linear.base_layer")}
    assert len(still) == 2 and all(own[name].equal(started[name]) for name in still)
    assert not own["projector.linear.lora_B.default.weight"].equal(
        torch.zeros_like(own["projector.linear.lora_B.default.weight"])
    )
    folder = tmp_path / "run/checkpoint"
    stored = load_file(folder / "trained.safetensors")
    assert {n for n in stored if n.startswith("projector.")} == {
        "projector.linear.weight", "projector.linear.bias", "projector.position.weight",
        "projector.linear.lora_A.weight", "projector.linear.lora_B.weight",
    }  # fmt: skip
    info = read_info(folder)
    assert info.compat == "upstream" and info.strip_around_added_tokens
    tokens, places = torch.randn(5, WIDTH), torch.tensor([0, 3, 99, 7, -1])
    with torch.no_grad():
        wanted = trained.eval().projector(tokens, places)
        for merge in (False, True):
            made = load_checkpoint(folder, merge=merge).narrator.projector(tokens, places)
            assert (made - wanted).abs().max() < 1e-5


@pytest.mark.parametrize(
    "name", ["train_projector", "train_global", "train_zh_nolabel", "train_zh", "train_en"]
)
def test_shipped_settings_load(name):
    config = load_config(TrainConfig, name)
    assert config.optimization == load_config(TrainConfig, "train_zh").optimization
    assert (config.model.adapter == "projector") == (name == "train_projector")
    assert config.data.whole_videos == (name == "train_global")
    assert json.dumps(config.model.template)
