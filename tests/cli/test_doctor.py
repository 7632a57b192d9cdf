"""`videonarrator doctor`: sizes and checks, without loading weights; each thing that is broken is named."""

import json
import shutil

import pytest
import torch
from cli_world import fails, read, run, save, succeed
from safetensors.torch import load_file, save_file

from videonarrator.checkpoint import load_checkpoint


def checks(done):
    return {one["check"]: one for one in done.result["checks"]}


def wrong(done):
    """The one check that failed of a run that says so."""
    assert done.code == 3, done.err
    (one,) = [one for one in done.result["checks"] if one["ok"] is False]
    assert f"WRONG {one['check']}" in done.err and one["found"] in done.err
    return one


@pytest.fixture
def copy(world, tmp_path):
    """The world's models and checkpoint, to be broken: (checkpoint, backbone)."""
    shutil.copytree(world.root / "models", tmp_path / "models")
    shutil.copytree(world.checkpoint, tmp_path / "train" / "checkpoint")
    return tmp_path / "train" / "checkpoint", tmp_path / "models" / "backbone"


def test_config_and_checkpoint_of_the_same_run(world, monkeypatch):
    from safetensors import torch as tensors
    from transformers import PreTrainedModel

    trained = load_checkpoint(world.checkpoint, merge=False).narrator
    lora = sum(p.numel() for name, p in trained.named_parameters() if "lora_" in name)
    everything = sum(p.numel() for p in trained.parameters())
    for module, name in ((PreTrainedModel, "from_pretrained"), (tensors, "load_file"), (torch, "load")):
        monkeypatch.setattr(module, name, None)  # no weight is loaded
    lengths = ("--tokens", 64, "--tokens", 128)
    by_config = succeed("doctor", "--config", world.config, *lengths)
    by_checkpoint = succeed("doctor", "--checkpoint", world.checkpoint, *lengths, "--batch", 3)
    for done in (by_config, by_checkpoint):
        assert all(one["ok"] for one in done.result["checks"]), done.err
        assert {"packages", "template", "encoder", "backbone", "tokenizer", "vocabulary"} <= checks(
            done
        ).keys()
        parameters = done.result["parameters"]
        assert parameters["lora"]["trained"] == lora and parameters["total"]["all"] == everything
        assert f"{everything:,}" in done.err
        assert [row["tokens"] for row in done.result["narration"]] == [64, 128]
    assert by_checkpoint.result["parameters"] == by_config.result["parameters"]
    assert [(row["batch"], row["packed"]) for row in by_config.result["training"]] == [(1, True)] * 2
    padded = succeed("doctor", "--config", world.config, *lengths, "optimization.packed=false").result
    assert [(row["batch"], row["packed"]) for row in padded["training"]] == [(4, False)] * 2
    assert [row["batch"] for row in by_config.result["narration"]] == [1, 1]
    assert {row["batch"] for key in ("training", "narration") for row in by_checkpoint.result[key]} == {3}
    assert by_config.result["versions"]["torch"] == torch.__version__


def test_precision_and_settings(world):
    words = ("doctor", "--config", world.config, "--tokens", 1024, "optimization.precision=bf16")
    full = succeed(*words).result
    half = succeed(*words, "--precision", "bfloat16", "optimization.gradient_checkpointing=true").result
    (before,), (after,) = full["narration"], half["narration"]
    assert after["gib"]["kv_cache"] == pytest.approx(before["gib"]["kv_cache"] / 2, abs=1e-3)
    assert (before["precision"], after["precision"]) == ("float32", "bfloat16")
    assert half["training"][0]["gib"]["activations"] < full["training"][0]["gib"]["activations"]
    assert half["training"][0] | {"gib": 0} == full["training"][0] | {
        "gib": 0,
        "gradient_checkpointing": True,
    }


def test_the_published_size_without_its_weights(tmp_path, monkeypatch):
    """In an empty folder; without --shape the same settings lack their backbone."""
    monkeypatch.chdir(tmp_path)
    words = ("doctor", "--config", "train_zh", "--tokens", 256)
    done = succeed(*words, "--shape", "baichuan-7b")
    assert done.result["backbone"] == "baichuan-7b"
    assert done.result["parameters"]["total"]["all"] == 7_146_949_632
    (row,) = done.result["training"]
    assert row["precision"] == "bf16" and row["gradient_checkpointing"]
    assert row["gib"]["total"] == pytest.approx(sum(list(row["gib"].values())[:-1]), abs=2e-3)
    without = run(*words)
    assert without.code == 3 and "parameters" not in without.result
    failed = {name for name, one in checks(without).items() if one["ok"] is False}
    assert failed == {"samples", "clips", "backbone"}
    assert "--shape baichuan-7b" in checks(without)["backbone"]["found"]


# -------------------- what is not whole


def test_a_damaged_checkpoint(copy):
    checkpoint, _ = copy
    file = checkpoint / "tokenizer" / "tokenizer.json"
    file.write_bytes(file.read_bytes() + b" ")
    done = run("doctor", "--checkpoint", checkpoint)
    assert wrong(done)["check"] == "checkpoint" and "tokenizer.json" in wrong(done)["found"]
    file.unlink()
    assert "tokenizer.json is missing" in wrong(run("doctor", "--checkpoint", checkpoint))["found"]


def test_a_moved_backbone_and_another_one(copy, tmp_path):
    checkpoint, backbone = copy
    words = ("doctor", "--checkpoint", checkpoint, "--tokens", 32)
    succeed(*words)
    backbone.rename(tmp_path / "elsewhere")
    moved = run(*words)
    assert wrong(moved)["check"] == "backbone" and "--backbone DIR" in wrong(moved)["found"]
    assert "parameters" not in moved.result
    found = checks(succeed(*words, "--backbone", tmp_path / "elsewhere"))["backbone"]["found"]
    assert "the one the checkpoint was trained on" in found
    weights = tmp_path / "elsewhere" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    other = wrong(run(*words, "--backbone", tmp_path / "elsewhere"))
    assert other["check"] == "backbone" and "is not the backbone" in other["found"]


def test_a_backbone_with_holes(copy, world):
    _, backbone = copy
    words = ("doctor", "--config", world.config, f"model.backbone={backbone}", "--tokens", 32)
    succeed(*words)
    weights = backbone / "model.safetensors"
    whole, tensors = weights.read_bytes(), load_file(weights)
    weights.write_bytes(whole[:-100])
    assert "model.safetensors is cut short" in wrong(run(*words))["found"]
    lost = tensors.pop("model.norm.weight")
    save_file(tensors, weights)
    assert "lacks 1 of the weights, first model.norm.weight" in wrong(run(*words))["found"]
    save_file({**tensors, "model.norm.weight": lost[:-1]}, weights)
    assert "model.norm.weight is [31], config.json says [32]" in wrong(run(*words))["found"]
    weights.unlink()
    assert "has no weights" in wrong(run(*words))["found"]


def test_a_tokenizer_that_does_not_fit(copy, world):
    _, backbone = copy
    words = ("doctor", "--config", world.config, f"model.backbone={backbone}", "--tokens", 32)
    told = read(backbone / "tokenizer_config.json")
    save(backbone / "tokenizer_config.json", {**told, "bos_token": None})
    assert "model.bos=false" in wrong(run(*words, "model.bos=true"))["found"]
    save(backbone / "tokenizer_config.json", told)
    tokenizer = read(backbone / "tokenizer.json")
    pieces = tokenizer["model"]["vocab"]
    pieces |= {f"piece{number}": len(pieces) + number for number in range(5)}
    save(backbone / "tokenizer.json", tokenizer)
    assert wrong(run(*words))["check"] == "vocabulary"


def test_encoder_template_and_lists(copy, world, tmp_path):
    words = ("doctor", "--config", world.config, "--tokens", 32)
    assert "zh.yaml" in wrong(run(*words, "model.template=zn"))["found"]
    assert wrong(run(*words, f"data.samples={tmp_path}/none.json"))["check"] == "samples"
    assert "no sample list" in wrong(run(*words, f"data.samples={world.prepared}/prepare.json"))["found"]
    assert wrong(run(*words, f"data.clips={tmp_path}"))["check"] == "clips"
    checkpoint, _ = copy
    told = read(checkpoint / "narrator.json")
    save(checkpoint / "narrator.json", {**told, "features": {**told["features"], "encoder_sha256": "0"}})
    other = wrong(run("doctor", "--checkpoint", checkpoint, "--tokens", 32))
    assert other["check"] == "encoder" and "is not the encoder" in other["found"]
    save(checkpoint / "narrator.json", {**told, "features": {**told["features"], "encoder": "./gone"}})
    done = succeed("doctor", "--checkpoint", checkpoint, "--tokens", 32)
    assert checks(done)["encoder"]["ok"] is None and "./gone" in done.err


# -------------------- mistakes in what is typed


def test_what_is_typed(world):
    config = ("doctor", "--config", world.config)
    fails(run("doctor"), "--checkpoint DIR", "--config")
    fails(run(*config, "--shape", "baichuan-8b"), "no shape baichuan-8b", "baichuan-7b")
    fails(run(*config, "--precision", "int8"), "int8", "bfloat16")
    fails(run(*config, "--backbone", world.backbone), "--checkpoint DIR")
    fails(run(*config, "model.rnk=3"), "did you mean model.rank?")
    limit = json.loads((world.backbone / "config.json").read_text())["max_position_embeddings"]
    fails(run(*config, "--tokens", limit + 1), f"--tokens {limit + 1}", f"at most {limit}")
    done = run("doctor", "--checkpoint", world.root, "--tokens", 32)
    assert "is no checkpoint folder" in wrong(done)["found"]
