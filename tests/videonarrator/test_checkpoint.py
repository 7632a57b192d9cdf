"""The checkpoint folder: reloaded it writes the same, it can be moved, and what is none is refused."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_narrator import FEATURES, PIECES, clip_tokens

from videonarrator.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_trained,
    read_info,
    save_checkpoint,
    trained_tensors,
)
from videonarrator.clip_inputs import encode, training_inputs
from videonarrator.generation.engine import narrate_video
from videonarrator.generation.jobs import ClipTask
from videonarrator.schema import NarratorError
from videonarrator.settings import DecodingSettings


@pytest.fixture(params=["lora", "full"])
def run(request):
    """Checkpoint folder of a run, and its narrator as training left it."""
    output, narrator = request.getfixturevalue(f"{request.param}_run")
    return output / "checkpoint", narrator.eval()


@pytest.fixture
def movable(lora_run, backbone, tmp_path):
    """Copies of a checkpoint and its backbone, as far from each other as the originals were."""
    checkpoint = lora_run[0] / "checkpoint"
    root = backbone.parents[1]
    for folder in (checkpoint, backbone):
        shutil.copytree(folder, tmp_path / "here" / folder.relative_to(root))
    return tmp_path / "here" / checkpoint.relative_to(root), tmp_path / "here" / backbone.relative_to(root)


@torch.no_grad()
def logits(narrator, tokenizer, shots, template):
    """Next-token logits [tokens, vocabulary] along a training sample."""
    visual = clip_tokens(shots[1]["id"], 1)
    inputs = training_inputs(shots[1], visual, template)
    ids, _ = encode(inputs.segments, tokenizer, len(visual))
    positions = torch.full((len(visual),), inputs.positions[0])
    embeddings = narrator.embed(torch.tensor([ids]), visual, positions)
    return narrator.base(inputs_embeds=embeddings).logits[0]


def written(checkpoint, video):
    tasks = [ClipTask(index, 8, 14, clip_tokens(video.id, index), 40 * index) for index in range(2)]
    results = narrate_video(checkpoint, video.product, tasks, len(video.clips), DecodingSettings())
    return [(result.label, result.text, result.raw) for result in results]


def test_loaded_checkpoint_writes_what_the_trained_model_does(run, shots, sample_videos, zh):
    folder, narrator = run
    loaded = [load_checkpoint(folder, merge=merge) for merge in (True, False)]
    info = read_info(folder)
    video = sample_videos[shots[0]["id"]]
    before = written(Checkpoint(narrator, loaded[0].tokenizer, zh, info), video)
    expected = logits(narrator, loaded[0].tokenizer, shots, zh)
    assert any(text for _, text, _ in before) and expected.std() > 0.1
    for checkpoint in loaded:
        found = logits(checkpoint.narrator, checkpoint.tokenizer, shots, zh)
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
        assert written(checkpoint, video) == before
        assert checkpoint.template == zh and checkpoint.info == info
        assert not checkpoint.narrator.training
        assert not any(parameter.requires_grad for parameter in checkpoint.narrator.parameters())
    names = [[n for n, _ in checkpoint.narrator.named_parameters() if "lora_" in n] for checkpoint in loaded]
    assert not names[0] and bool(names[1]) == (info.adapter == "lora")
    assert info.features == FEATURES and info.feature_width == 16 and info.positions == 100


def test_unmerged_checkpoint_is_bit_for_bit_the_trained_one(run):
    folder, narrator = run
    found = load_checkpoint(folder, merge=False).narrator.state_dict()
    expected = narrator.state_dict()
    assert found.keys() == expected.keys()
    assert all(found[name].equal(tensor) for name, tensor in expected.items())


def test_training_is_in_the_checkpoint(lora_run, backbone, shots, zh):
    """Without the adapter, or without the trained tensors, the model is another one."""
    loaded = load_checkpoint(lora_run[0] / "checkpoint", merge=False)
    expected = logits(loaded.narrator, loaded.tokenizer, shots, zh)
    with loaded.narrator.language_model.disable_adapter():
        assert (logits(loaded.narrator, loaded.tokenizer, shots, zh) - expected).abs().max() > 0.1
    stored = load_file(lora_run[0] / "checkpoint/trained.safetensors")
    base = load_file(backbone / "model.safetensors")
    assert not stored["embed_tokens.weight"][:PIECES].equal(base["model.embed_tokens.weight"])


def test_other_precisions_load(run, shots, sample_videos):
    loaded = load_checkpoint(run[0], dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.narrator.parameters()} == {torch.bfloat16}
    assert len(written(loaded, sample_videos[shots[0]["id"]])) == 2


def test_folder_holds_data_and_nothing_that_runs(run):
    folder, _ = run
    info = json.loads((folder / "narrator.json").read_text())
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    kinds = {name.rpartition(".")[2] for name in files}
    assert kinds <= {"json", "yaml", "safetensors", "model"}
    assert info["sha256"].keys() == files - {"narrator.json"}
    for name in files:
        if name.endswith(".safetensors"):
            load_file(folder / name)
        else:
            (folder / name).read_text("utf-8")  # text: neither pickle nor archive
    weights = {name for name in files if name.endswith(".safetensors")}
    if info["adapter"] == "lora":
        assert weights == {"adapter/adapter_model.safetensors", "trained.safetensors"}
        adapter = load_file(folder / "adapter/adapter_model.safetensors")
        assert len(adapter) == 20 and all("lora_" in name for name in adapter)
    else:
        assert weights == {"backbone/model.safetensors", "trained.safetensors"} and info["backbone"] == ""


# -------------------- moved and mistaken


def test_checkpoint_and_backbone_may_be_moved_together(movable, lora_run, tmp_path, shots, sample_videos):
    checkpoint, backbone = movable
    first = written(load_checkpoint(checkpoint), sample_videos[shots[0]["id"]])
    (tmp_path / "here").rename(tmp_path / "there")
    assert not backbone.exists()
    moved = tmp_path / "there" / checkpoint.relative_to(tmp_path / "here")
    assert written(load_checkpoint(moved), sample_videos[shots[0]["id"]]) == first


def test_a_moved_backbone_is_asked_for(movable, tmp_path):
    checkpoint, backbone = movable
    backbone.rename(tmp_path / "elsewhere")
    with pytest.raises(NarratorError, match=r"the backbone of checkpoint .* is not at \.\..*--backbone"):
        load_checkpoint(checkpoint)
    assert load_checkpoint(checkpoint, backbone=str(tmp_path / "elsewhere")).info.adapter == "lora"
    for wrong in (str(tmp_path / "nowhere"), f"{tmp_path}/elsewhere/config.json"):
        with pytest.raises(NarratorError, match=r"no backbone can be loaded from"):
            load_checkpoint(checkpoint, backbone=wrong)


def test_another_backbone_is_refused(movable, tmp_path):
    checkpoint, backbone = movable
    other = tmp_path / "other"
    shutil.copytree(backbone, other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"][3] += 1e-3
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    message = "is not the backbone that the checkpoint was trained on .*--backbone"
    with pytest.raises(NarratorError, match=f"other {message}"):
        load_checkpoint(checkpoint, backbone=str(other))
    shutil.rmtree(backbone)
    other.rename(backbone)  # in the right place, but another one
    with pytest.raises(NarratorError, match=message):
        load_checkpoint(checkpoint)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NarratorError, match=f"empty {message}"):
        load_checkpoint(checkpoint, backbone=str(tmp_path / "empty"))


@pytest.mark.parametrize(
    "name",
    ["prompt.yaml", "trained.safetensors", "adapter/adapter_model.safetensors", "tokenizer/tokenizer.json"],
)
def test_missing_and_changed_files_are_named(movable, name):
    checkpoint, _ = movable
    file = checkpoint / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(NarratorError, match=f"is damaged: {name} is not the file that was written"):
        load_checkpoint(checkpoint)
    file.unlink()
    with pytest.raises(NarratorError, match=f"is incomplete: {name} is missing"):
        load_checkpoint(checkpoint)
    file.write_bytes(whole)
    assert read_info(checkpoint).adapter == "lora"


def test_folders_of_something_else_are_refused(movable, tmp_path):
    checkpoint, backbone = movable
    with pytest.raises(NarratorError, match=r"is no checkpoint folder: .*found: config\.json"):
        load_checkpoint(backbone)
    with pytest.raises(NarratorError, match="is no checkpoint folder"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(NarratorError, match="is no checkpoint folder"):
        load_checkpoint(checkpoint / "prompt.yaml")
    description = checkpoint / "narrator.json"
    told = json.loads(description.read_text())
    for text in ("{", "[]", "{}", json.dumps({**told, "surprise": 1}), json.dumps({**told, "sha256": 3})):
        description.write_text(text)
        with pytest.raises(NarratorError, match=r"narrator\.json"):
            load_checkpoint(checkpoint)
    description.write_text(json.dumps({**told, "format": 2, "news": 1}))
    with pytest.raises(NarratorError, match="has format 2, this version reads 1"):
        load_checkpoint(checkpoint)


def test_trained_tensors_must_be_there_and_fit(run):
    narrator = load_checkpoint(run[0], merge=False).narrator
    tensors = trained_tensors(narrator)
    with pytest.raises(NarratorError, match=r"here: trained\.safetensors holds .*expected"):
        load_trained(narrator, {n: t for n, t in tensors.items() if n != "projector.position.weight"}, "here")
    rows = PIECES + 4  # [PAD] and the three visual tokens
    message = rf"lm_head\.weight is \[{rows - 1}, 32\], the model wants \[{rows}, 32\]"
    with pytest.raises(NarratorError, match=message):
        load_trained(narrator, tensors | {"lm_head.weight": tensors["lm_head.weight"][:-1]}, "here")


# -------------------- written as a whole


def test_an_interrupted_save_leaves_no_checkpoint_behind(lora_run, tmp_path, monkeypatch):
    loaded = load_checkpoint(lora_run[0] / "checkpoint", merge=False)
    words = (loaded.narrator, loaded.tokenizer, loaded.template, loaded.info)
    folder = tmp_path / "checkpoint"

    def stop(*rest, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loaded.narrator.language_model, "save_pretrained", stop)
        save_checkpoint(folder, *words)
    assert not folder.exists()
    save_checkpoint(folder, *words)
    first = (folder / "trained.safetensors").read_bytes()
    with torch.no_grad():
        loaded.narrator.projector.linear.bias += 1
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loaded.narrator.language_model, "save_pretrained", stop)
        save_checkpoint(folder, *words)
    assert (folder / "trained.safetensors").read_bytes() == first
    read_info(folder)  # still whole
    save_checkpoint(folder, *words)
    assert (folder / "trained.safetensors").read_bytes() != first
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    digest = json.loads((folder / "narrator.json").read_text())["sha256"]["trained.safetensors"]
    assert digest == hashlib.sha256((folder / "trained.safetensors").read_bytes()).hexdigest()


def test_others_may_read_it(lora_run, full_run, tmp_path):
    """safetensors writes files for their owner alone; a checkpoint's have the mode of any new file."""
    (tmp_path / "new").touch()
    mode = (tmp_path / "new").stat().st_mode
    for output, _ in (lora_run, full_run):
        files = [file for file in (output / "checkpoint").rglob("*") if file.is_file()]
        assert {file.stat().st_mode for file in files} == {mode} and len(files) > 5
