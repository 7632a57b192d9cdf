"""Whole runs, packed against padded: the same losses step by step; and models that packing does not fit."""

import pytest
import torch
from tiny_narrator import FEATURES, clip_tokens, log_of, started_run, ten_samples, train_config

import videonarrator.modeling.narrator as narrator_module
from videonarrator.modeling.attention import TREE_SDPA
from videonarrator.modeling.backbones import load_tokenizer
from videonarrator.schema import NarratorError
from videonarrator.settings import OptimizationSettings
from videonarrator.training.batches import Packed, Padded
from videonarrator.training.run import train

STEPS = 20


def run_of(backbone, shots, folder, **settings):
    """20 steps without dropout, in float32; the losses."""
    config = train_config(
        backbone, folder, epochs=STEPS, learning_rate=3e-3, samples_per_step=len(shots), **settings
    )
    train(config, shots, clip_tokens, FEATURES)
    return torch.tensor([line["loss"] for line in log_of(folder)], dtype=torch.float64)


def test_twenty_steps_packed_and_padded(backbone, shots, tmp_path):
    """Two videos a step, in one sequence or divided into several; a wrong mean is seen."""
    padded = run_of(backbone, shots, tmp_path / "padded", packed=False, batch_size=3)
    assert len(padded) == STEPS and padded[-1] < padded[0] - 1
    for name, settings in (("packed", {}), ("divided", {"tokens_per_sequence": 500})):
        packed = run_of(backbone, shots, tmp_path / name, **settings)
        far = (packed - padded).abs()
        print(f"{name}: losses differ by at most {far.max():.1e}, on average by {far.mean():.1e}")
        assert far.max() < 1e-5 and far.mean() < 3e-6
    other = run_of(
        backbone, shots, tmp_path / "means", packed=False, batch_size=3, loss_weighting="microbatch"
    )
    assert (other - padded).abs().max() > 1e-3


def test_gradient_checkpointing_changes_no_packed_step(backbone, shots, tmp_path):
    plain = run_of(backbone, shots, tmp_path / "plain")
    saved = run_of(backbone, shots, tmp_path / "saved", gradient_checkpointing=True)
    assert (plain - saved).abs().max() < 1e-5


def form_and_words(backbone, shots, zh, folder, capsys):
    run, _ = started_run(train_config(backbone, folder), shots, zh)
    return run.loop.batches.form, capsys.readouterr().err


def test_a_model_whose_attention_does_not_follow_is_trained_padded(
    backbone, shots, zh, tmp_path, capsys, monkeypatch
):
    form, told = form_and_words(backbone, shots, zh, tmp_path, capsys)
    assert isinstance(form, Packed) and "packed" not in told
    monkeypatch.setattr(narrator_module, "tree_segments", lambda tree: [(0, 0, [(0, tree.shape[1], 0)])])
    form, told = form_and_words(backbone, shots, zh, tmp_path, capsys)
    assert isinstance(form, Padded) and "does not take packed sequences" in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which flex_attention is for")
def test_flex_attention_without_a_gpu_is_sdpa_branch_by_branch(backbone, shots, zh, tmp_path, capsys):
    run, _ = started_run(train_config(backbone, tmp_path, attention="flex"), shots, zh)
    assert "attention=flex needs a GPU" in capsys.readouterr().err
    assert run.narrator.base.config._attn_implementation == TREE_SDPA


@pytest.mark.parametrize(("window", "kind"), [(4096, Packed), (40, Padded)])
def test_a_window_shorter_than_a_sample_is_trained_padded(
    window, kind, backbone, shots, zh, tmp_path, capsys
):
    from transformers import MistralConfig, MistralForCausalLM

    tokenizer = load_tokenizer(str(backbone))
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=window, max_position_embeddings=2048,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path / "mistral")
    tokenizer.save_pretrained(tmp_path / "mistral")
    form, _ = form_and_words(tmp_path / "mistral", shots, zh, tmp_path / "run", capsys)
    assert isinstance(form, kind)


def test_a_step_takes_whole_videos_until_it_has_its_samples(backbone, sample_videos, zh, tmp_path):
    shots = ten_samples(sample_videos, zh)
    for packed in (True, False):
        run, dataset = started_run(
            train_config(backbone, tmp_path, samples_per_step=5, epochs=3, packed=packed), shots, zh
        )
        batches = run.loop.batches
        sizes = [batches.samples(step) for step in range(len(batches))]
        assert sum(sizes) == 3 * len(shots)
        assert all(5 <= size <= 10 for size in sizes[:-1])
        for step, size in enumerate(sizes):
            groups = batches.form.groups(step, 1)[0]
            taken = [
                dataset.items[sample]["id"] for group in groups for sample in batches.form.samples(group)
            ]
            assert len(taken) == size
            for video in set(taken):
                assert taken.count(video) % sum(item["id"] == video for item in dataset.items) == 0


def test_taking_videos_apart_needs_padded_batches():
    with pytest.raises(NarratorError, match=r"order=samples takes videos apart.*packed=false"):
        OptimizationSettings(order="samples")
