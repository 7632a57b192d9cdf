"""Sizes without weights: those of a real narrator, counted or measured."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_narrator import WIDTH, train_config
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache

from videonarrator.config import load_config
from videonarrator.modeling.backbones import load_tokenizer
from videonarrator.prompt import ADDED_TOKENS
from videonarrator.schema import NarratorError
from videonarrator.settings import TrainConfig
from videonarrator.sizing import (
    PARTS,
    LiveBytes,
    _train_step,
    cache_bytes,
    empty_narrator,
    narration_memory,
    parameter_counts,
    shape_file,
    training_memory,
    without_lora,
)
from videonarrator.training.building import build_narrator


def config_of(backbone, *, adapter="lora", compat="none", **changes):
    config = train_config(backbone, "unused", adapter=adapter, dropout=0.1, **changes)
    return replace(config, model=replace(config.model, compat=compat))


def empty(backbone, config):
    return empty_narrator(config, WIDTH, tokenizer=load_tokenizer(str(backbone)))


def described(narrator):
    buffers = {name: (tensor.shape, tensor.dtype) for name, tensor in narrator.named_buffers()}
    return buffers | {n: (p.shape, p.dtype, p.requires_grad) for n, p in narrator.named_parameters()}


def started(config):
    """A real narrator as training begins with it, with gradients."""
    torch.manual_seed(0)
    narrator, _ = build_narrator(config, WIDTH)
    for parameter in narrator.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    return narrator.train()


# -------------------- shapes


@pytest.mark.parametrize(
    ("adapter", "compat"), [("lora", "none"), ("lora", "upstream"), ("full", "none"), ("projector", "none")]
)
def test_the_empty_narrator_is_the_one_that_is_trained(backbone, adapter, compat):
    config = config_of(backbone, adapter=adapter, compat=compat)
    narrator, _ = build_narrator(config, WIDTH)
    hollow = empty(backbone, config)
    assert described(hollow) == described(narrator)
    assert {tensor.device.type for tensor in (*hollow.parameters(), *hollow.buffers())} == {"meta"}
    counts = parameter_counts(hollow)
    assert counts["total"]["all"] == sum(p.numel() for p in narrator.parameters())
    assert counts["total"]["trained"] == sum(p.numel() for p in narrator.parameters() if p.requires_grad)
    for kind in ("all", "trained"):
        assert sum(counts[part][kind] for part in PARTS) == counts["total"][kind]
    assert counts["position_table"] == dict.fromkeys(
        ("all", "trained"), narrator.projector.position.weight.numel()
    )


def test_without_a_tokenizer_the_added_tokens_are_counted(backbone):
    config = config_of(backbone)
    tokenizer = load_tokenizer(str(backbone))
    assert tokenizer.pad_token is None
    vocabulary = json.loads((backbone / "config.json").read_text())["vocab_size"]
    rows = empty_narrator(config, WIDTH).base.get_input_embeddings().num_embeddings
    assert rows == vocabulary + 1 + len(ADDED_TOKENS)
    assert described(empty_narrator(config, WIDTH)) == described(empty(backbone, config))


def test_baichuan_7b_in_the_published_setting():
    """By hand: 32 layers of hidden 4096 and MLP 11008, q, k, v in one; LoRA of rank 64."""
    config = load_config(TrainConfig, "train_zh")
    counts = parameter_counts(empty_narrator(config, 768, source=str(shape_file("baichuan-7b"))))
    hidden, mlp, layers, rank, rows = 4096, 11008, 32, 64, 64000 + 4
    layer = 3 * hidden * hidden + hidden * hidden + 3 * hidden * mlp + 2 * hidden
    sides = (hidden + 3 * hidden) + (hidden + hidden) + 3 * (hidden + mlp)
    assert counts["language_model"] == {"all": layers * layer + hidden, "trained": 0}
    assert counts["embeddings"] == dict.fromkeys(("all", "trained"), 2 * rows * hidden)
    assert counts["lora"] == dict.fromkeys(("all", "trained"), layers * rank * sides)
    assert counts["projector"] == dict.fromkeys(("all", "trained"), 768 * hidden + hidden)
    assert counts["position_table"] == dict.fromkeys(("all", "trained"), 100 * 768)


def test_shapes_by_name_and_by_file(tmp_path):
    shape = shape_file("baichuan-7b")
    assert shape_file("baichuan-7b.json") == shape and shape_file(str(shape)) == shape
    assert shape_file(str(tmp_path)) == tmp_path
    with pytest.raises(NarratorError, match=r"no shape baichuan-8b: there is .*baichuan-7b"):
        shape_file("baichuan-8b")


# -------------------- what is exact


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_weights_gradients_and_optimizer_states_of_a_real_step(backbone, adapter):
    config = config_of(backbone, adapter=adapter)
    narrator, _ = build_narrator(config, WIDTH)
    trained = [p for p in narrator.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    found = training_memory(empty(backbone, config), 8, 1, "fp32")
    assert found["weights"] == sum(t.nbytes for t in (*narrator.parameters(), *narrator.buffers()))
    assert found["gradients"] == sum(p.grad.nbytes for p in trained if p.grad is not None)
    assert found["optimizer"] == sum(s.nbytes for state in optimizer.state.values() for s in state.values())
    assert found["total"] == sum(size for name, size in found.items() if name != "total")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("key_value_heads", [4, 2])
def test_the_cache_of_a_real_narration(tmp_path, backbone, dtype, key_value_heads):
    """Of a plain LLaMA, whose keys and values may have fewer heads than its queries."""
    settings = json.loads((backbone / "config.json").read_text())
    settings |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(settings | {"num_key_value_heads": key_value_heads}))
    hollow = empty_narrator(config_of(tmp_path), WIDTH)
    ready = without_lora(hollow, dtype)
    found = narration_memory(ready, 12, 3)
    real = ready.to_empty(device="cpu")
    cache = DynamicCache(config=real.base.config)
    with torch.no_grad():
        for length in (8, 1, 1, 1, 1):
            real.step(torch.zeros(3, length, settings["hidden_size"], dtype=dtype), cache)
    assert cache.get_seq_length() == 12
    assert found["kv_cache"] == cache_bytes(cache) > 0
    assert found["weights"] == sum(t.nbytes for t in (*real.parameters(), *real.buffers()))
    head = settings["hidden_size"] // settings["num_attention_heads"]
    numbers = 2 * settings["num_hidden_layers"] * key_value_heads * head * 12 * 3
    assert found["kv_cache"] == numbers * dtype.itemsize


def test_lora_is_folded_in_for_narration(backbone):
    full = without_lora(empty(backbone, config_of(backbone, adapter="full")), torch.float16)
    for compat in ("none", "upstream"):
        merged = without_lora(empty(backbone, config_of(backbone, compat=compat)), torch.float16)
        assert described(merged) == described(full)


# -------------------- what is estimated


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("samples", "packed"), [(2, False), (1, True)])
def test_activations_are_those_of_a_real_step(backbone, precision, checkpointing, samples, packed):
    """The same bytes as of real tensors, and within 3% of what the allocator handed out at most."""
    config = config_of(backbone, gradient_checkpointing=checkpointing, precision=precision)
    hollow, real = empty(backbone, config), started(config)
    step = (200, samples, precision)
    estimate = training_memory(hollow, *step, packed=packed)["activations"]
    with LiveBytes() as live:
        _train_step(real, *step, packed)
    assert estimate == live.peak
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        _train_step(real, *step, packed)
    assert seen.profiler is not None and seen.profiler.kineto_results is not None
    events: list[Any] = seen.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
    highest = max(sum(sizes[:end]) for end in range(len(sizes) + 1))
    # a kernel may keep a second mask [tokens, tokens], which is large beside so small a model
    assert estimate == pytest.approx(highest, rel=0.05 if packed else 0.03)


def test_activations_grow_with_tokens_and_batch_and_shrink_with_checkpointing(backbone):
    def needed(tokens, batch, **changes):
        return training_memory(empty(backbone, config_of(backbone, **changes)), tokens, batch, "fp32")

    usual = needed(200, 2)
    assert needed(200, 4)["activations"] == pytest.approx(2 * usual["activations"], rel=0.1)
    assert needed(400, 2)["activations"] > 1.9 * usual["activations"]  # in so small a model the mask weighs
    saved = needed(200, 2, gradient_checkpointing=True)
    assert saved["activations"] < 0.8 * usual["activations"]
    assert {**saved, "activations": 0, "total": 0} == {**usual, "activations": 0, "total": 0}


def test_live_bytes():
    """Views, results in place and what was there before do not count; what is let go no longer does."""
    before = torch.ones(1000)
    with LiveBytes() as live:
        before.add_(1)
        _ = before.view(10, 100)
        assert live.peak == 0
        first = before + 1
        second = first.double()
        assert live.now == live.peak == 4000 + 8000
        del first
        assert live.now == 8000
        second = second[:10].clone()
        assert (live.now, live.peak) == (80, 12000)
    _ = second + 1
    assert live.peak == 12000
