"""LAVIS's BLIP-2 read into transformers' modules: equal to what LAVIS itself computed, in every layout of its
files, and each mistake that could be made on the way is seen.
"""

import json

import numpy as np
import pytest
import torch
from lavis_helpers import EXACT, NEAR, VIT, largest, mistake, split, write_pair
from safetensors.torch import load_file, save_file
from transformers.activations import ACT2FN

from data_process.lavis_checkpoint import convert_lavis
from data_process.qformer import load_encoder, preprocess
from videonarrator.cli import main
from videonarrator.schema import NarratorError

# --- the same numbers


def test_features_are_those_of_lavis(encoder, io):
    assert mistake(encoder, io) < EXACT


def test_features_in_single_precision_and_on_the_way(converted, io):
    encoder = load_encoder(str(converted))
    seen = {}

    def look(module, given, made):
        seen.setdefault("before", given[0])  # it is called again for the pooled output
        seen.setdefault("after", made)

    encoder.vision_model.post_layernorm.register_forward_hook(look)
    with torch.inference_mode():
        assert largest(encoder(io["pixel_values"]), io["image_embeds"]) < NEAR
    assert largest(seen["before"], io["vit_out"]) < NEAR
    assert largest(seen["after"], io["ln_vision_out"]) < NEAR


def test_from_the_picture_on(converted, io):
    encoder = load_encoder(str(converted))
    stills = [io[f"raw_image_{number}"].numpy() for number in range(len(io["pixel_values"]))]
    assert largest(preprocess(stills, *encoder.preprocessing), io["pixel_values"]) < 1e-6
    assert largest(encoder.encode(stills, batch_size=2), io["image_embeds"]) < NEAR
    assert encoder.preprocessing.size == io["pixel_values"].shape[-1]


def test_every_layout_of_the_files_is_the_same_model(tensors, heads, converted, tmp_path):
    expected = load_file(converted / "model.safetensors")
    rest, vit = split(tensors)
    pair = write_pair(tmp_path / "pair", tensors)
    apart = write_pair(tmp_path / "apart", tensors, "vit.pth")
    torch.save({"model": tensors, "epoch": 1}, tmp_path / "model.pth")
    torch.save(tensors, tmp_path / "bare.pth")
    save_file(rest, tmp_path / "rest.safetensors")
    save_file(vit, tmp_path / "vit.safetensors")
    layouts = {
        "folder": (pair, None),
        "file, ViT beside it": (pair / "blip2_pretrained.pth", None),
        "file, ViT named": (apart / "blip2_pretrained.pth", apart / "vit.pth"),
        "folder, ViT named": (apart, apart / "vit.pth"),
        "state dict under model": (tmp_path / "model.pth", None),
        "bare state dict": (tmp_path / "bare.pth", None),
        "safetensors": (tmp_path / "rest.safetensors", tmp_path / "vit.safetensors"),
    }
    for number, (layout, (checkpoint, vit_file)) in enumerate(layouts.items()):
        out = tmp_path / f"out{number}"
        convert_lavis(checkpoint, out, vit=vit_file, **heads)
        found = load_file(out / "model.safetensors")
        assert found.keys() == expected.keys(), layout
        assert all(found[name].equal(expected[name]) for name in expected), layout
        assert (out / "config.json").read_bytes() == (converted / "config.json").read_bytes(), layout


def test_the_folder_says_all_that_the_weights_do_not(converted, sizes):
    config = json.loads((converted / "config.json").read_text("utf-8"))
    vision, qformer = config["vision_config"], config["qformer_config"]
    assert (vision["layer_norm_eps"], vision["post_layernorm_eps"]) == (1e-6, 1e-5)
    assert qformer["layer_norm_eps"] == 1e-12 and config["num_query_tokens"] == sizes["num_query_token"]
    assert vision["image_size"] == sizes["vit"]["img_size"]
    assert vision["num_hidden_layers"] == sizes["vit"]["depth"]
    assert vision["intermediate_size"] == sizes["vit"]["hidden_mlp"]
    assert qformer["cross_attention_frequency"] == sizes["qformer"]["cross_attention_freq"]
    assert json.loads((converted / "preprocessor_config.json").read_text("utf-8"))["resample"] == 3


def test_the_command_line_does_the_same(folder, heads, converted, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    words = ["--vit-heads", str(heads["vit_heads"]), "--qformer-heads", str(heads["qformer_heads"])]
    with pytest.raises(SystemExit) as ended:
        main(["convert", "lavis", str(folder / "lavis_state_dict.safetensors"), str(out), *words])
    assert not ended.value.code
    assert capsys.readouterr().out == f"{out}\n"
    picture = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    ours, theirs = load_encoder(str(out)).encode([picture]), load_encoder(str(converted)).encode([picture])
    assert ours.equal(theirs)
    with pytest.raises(SystemExit) as ended:
        main(["convert", "lavis", str(folder), str(out), "--vit-precision", "half"])
    assert ended.value.code == 2 and "fp16 or fp32" in capsys.readouterr().err


# --- mistakes that are seen


def layers(encoder):
    return encoder.vision_model.encoder.layers


def qkv(encoder):
    return [layer.self_attn.qkv for layer in layers(encoder)]


def crossing(encoder):
    return [layer for layer in encoder.qformer.encoder.layer if layer.has_cross_attention]


def swap_q_and_v(encoder, tensors):
    for linear in qkv(encoder):
        for parameter in (linear.weight, linear.bias):
            q, k, v = parameter.data.chunk(3)
            parameter.data = torch.cat([v, k, q])


def no_qkv_bias(encoder, tensors):
    for linear in qkv(encoder):
        linear.bias.data.zero_()


def ln_vision_eps_of_the_blocks(encoder, tensors):
    encoder.vision_model.post_layernorm.eps = layers(encoder)[0].layer_norm1.eps


def block_eps_of_ln_vision(encoder, tensors):
    for layer in layers(encoder):
        layer.layer_norm1.eps = layer.layer_norm2.eps = encoder.vision_model.post_layernorm.eps


def qformer_eps_of_the_vit(encoder, tensors):
    for module in encoder.qformer.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6


def cross_attention_output_of_self_attention(encoder, tensors):
    for layer in crossing(encoder):
        layer.crossattention.output.load_state_dict(layer.attention.output.state_dict())


def cross_attention_of_another_layer(encoder, tensors):
    first, *others = crossing(encoder)
    assert others, "a fixture with one cross-attention cannot show this"
    for layer in others:
        layer.crossattention.load_state_dict(first.crossattention.state_dict())


def ln_vision_not_loaded(encoder, tensors):
    encoder.vision_model.post_layernorm.weight.data.fill_(1)
    encoder.vision_model.post_layernorm.bias.data.zero_()


def qformer_layernorm_not_loaded(encoder, tensors):
    encoder.qformer.layernorm.weight.data.fill_(1)
    encoder.qformer.layernorm.bias.data.zero_()


def last_block_dropped(encoder, tensors):
    encoder.vision_model.encoder.layers = layers(encoder)[:-1]


def no_position_embedding(encoder, tensors):
    encoder.vision_model.embeddings.position_embedding.data.zero_()


def cls_zero(encoder, tensors):
    encoder.vision_model.embeddings.class_embedding.data.zero_()


def cls_cut_off(encoder, tensors):
    encoder.vision_model.post_layernorm.register_forward_hook(lambda _, given, made: made[:, 1:])


def activation(name):
    def change(encoder, tensors):
        for layer in layers(encoder):
            layer.mlp.activation_fn = ACT2FN[name]
        for layer in encoder.qformer.encoder.layer:
            layer.intermediate_query.intermediate_act_fn = ACT2FN[name]

    change.__name__ = name
    return change


def text_feed_forward(encoder, tensors):
    for number, layer in enumerate(encoder.qformer.encoder.layer):
        for part in ("intermediate", "output"):
            for name, parameter in getattr(layer, f"{part}_query").named_parameters():
                parameter.data = tensors[f"Qformer.bert.encoder.layer.{number}.{part}.{name}"].double()


@pytest.mark.parametrize(
    "change",
    [
        swap_q_and_v, no_qkv_bias, ln_vision_eps_of_the_blocks, block_eps_of_ln_vision,
        qformer_eps_of_the_vit, cross_attention_output_of_self_attention, cross_attention_of_another_layer,
        ln_vision_not_loaded, qformer_layernorm_not_loaded, last_block_dropped, no_position_embedding,
        cls_zero, cls_cut_off, activation("gelu_pytorch_tanh"), activation("quick_gelu"), text_feed_forward,
    ],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_each_mistake_is_seen(encoder, tensors, io, change):
    assert mistake(encoder, io) < EXACT
    change(encoder, tensors)
    assert mistake(encoder, io) > 10 * EXACT


def test_keys_have_no_bias(converted, encoder, tensors, io):
    """Softmax cancels a bias of the keys: it is seen in the tensors alone."""
    made = load_file(converted / "model.safetensors")
    for number, linear in enumerate(qkv(encoder)):
        q, k, v = made[f"vision_model.encoder.layers.{number}.self_attn.qkv.bias"].chunk(3)
        assert q.equal(tensors[f"{VIT}blocks.{number}.attn.q_bias"])
        assert v.equal(tensors[f"{VIT}blocks.{number}.attn.v_bias"])
        assert v.abs().max() > 0 and k.eq(0).all()
        linear.bias.data[len(q) : 2 * len(q)] = v
    assert mistake(encoder, io) < EXACT


def test_the_vits_matrices_are_rounded_as_lavis_does(tensors, try_tensors, tmp_path):
    rng = torch.Generator().manual_seed(0)
    fine = dict(tensors)
    for name in tensors:
        if name.startswith(VIT):
            fine[name] = tensors[name].float() + 1e-5 * torch.rand(tensors[name].shape, generator=rng)
    block, layer = f"{VIT}blocks.0.", "vision_model.encoder.layers.0."
    pairs = {  # LAVIS's convert_weights_to_fp16: linear and convolution layers, nothing else
        f"{VIT}patch_embed.proj.bias": ("vision_model.embeddings.patch_embedding.bias", True),
        f"{block}attn.qkv.weight": (f"{layer}self_attn.qkv.weight", True),
        f"{block}mlp.fc2.weight": (f"{layer}mlp.fc2.weight", True),
        f"{block}norm1.weight": (f"{layer}layer_norm1.weight", False),
        f"{VIT}pos_embed": ("vision_model.embeddings.position_embedding", False),
    }
    half = try_tensors(fine)
    (tmp_path / "out").rename(tmp_path / "half")
    whole = try_tensors(fine, vit_precision="fp32")
    for lavis, (ours, rounded) in pairs.items():
        assert whole[ours].equal(fine[lavis])
        assert half[ours].float().equal(fine[lavis].half().float() if rounded else fine[lavis])
        assert half[ours].float().equal(fine[lavis]) is not rounded
    fine[f"{block}mlp.fc1.weight"][0, 0] = 1e5
    (tmp_path / "out").rename(tmp_path / "whole")
    with pytest.raises(NarratorError, match=r"blocks\.0\.mlp\.fc1\.weight .* too large for fp16"):
        try_tensors(fine)
