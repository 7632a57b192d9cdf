"""LAVIS's BLIP-2 read into transformers' modules: equal to what LAVIS itself computed, in every layout of its
files, and each mistake that could be made on the way is seen.
"""

import copy
import json
import os
import pickle
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers.activations import ACT2FN

from data_process import lavis_checkpoint
from data_process.lavis_checkpoint import LEFT_OUT, convert_lavis
from data_process.qformer import FrameEncoder, load_encoder, preprocess
from videonarrator.cli import main
from videonarrator.schema import NarratorError

ROOT = Path(__file__).resolve().parents[2]
VIT = "visual_encoder."
EXACT, NEAR = 1e-9, 5e-5


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "data" / "lavis_fixture"


@pytest.fixture(scope="module")
def tensors(folder):
    return load_file(folder / "lavis_state_dict.safetensors")


@pytest.fixture(scope="module")
def io(folder):
    return load_file(folder / "io.safetensors")


@pytest.fixture(scope="module")
def sizes(folder):
    return json.loads((folder / "config.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def heads(sizes):
    return {
        "vit_heads": sizes["vit"]["num_heads"],
        "qformer_heads": sizes["qformer"]["num_attention_heads"],
    }


@pytest.fixture(scope="module")
def converted(folder, heads, tmp_path_factory):
    """The folder made of the one-file layout."""
    out = tmp_path_factory.mktemp("lavis") / "blip2"
    convert_lavis(folder / "lavis_state_dict.safetensors", out, **heads)
    return out


@pytest.fixture(scope="module")
def loaded(converted):
    return load_encoder(str(converted)).double()


@pytest.fixture
def encoder(loaded):
    """One in double precision that a test may spoil."""
    return copy.deepcopy(loaded)


@pytest.fixture
def try_tensors(tmp_path, heads):
    """Convert changed tensors from one file."""

    def convert(changed, **options):
        save_file(changed, tmp_path / "dump.safetensors")
        convert_lavis(tmp_path / "dump.safetensors", tmp_path / "out", **heads | options)
        return load_file(tmp_path / "out" / "model.safetensors")

    return convert


def split(tensors):
    """(the BLIP-2 file's tensors, those of eva_vit_g.pth)"""
    vit = {name.removeprefix(VIT): tensor for name, tensor in tensors.items() if name.startswith(VIT)}
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(VIT)}, vit


def write_pair(folder, tensors, vit_name="eva_vit_g.pth"):
    """The two files as LAVIS's runner leaves them."""
    rest, vit = split(tensors)
    folder.mkdir(exist_ok=True)
    more = {"optimizer": {"state": {}}, "config": {"run": {"lr": 1e-4}}, "scaler": None, "epoch": 9}
    torch.save({"model": rest, **more}, folder / "blip2_pretrained.pth")
    torch.save(vit, folder / vit_name)
    return folder


def largest(a, b):
    return (a - b).abs().max().item()


def mistake(encoder, io):
    """By how much the features differ from LAVIS's in float64."""
    with torch.inference_mode():
        return largest(encoder(io["pixel_values"].double()), io["image_embeds_f64"])


def nothing_left(folder):
    """No output, whole or half."""
    return [path.name for path in folder.iterdir() if "out" in path.name] == []


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


# --- names


def is_left_out(name):
    return any(re.fullmatch(pattern, name) for pattern in LEFT_OUT)


def test_every_name_counts(tensors, try_tensors, tmp_path):
    needed = [name for name in tensors if not is_left_out(name)]
    assert len(needed) < len(tensors)
    for name in [*needed[::7], "ln_vision.bias", f"{VIT}blocks.0.attn.v_bias", "query_tokens"]:
        with pytest.raises(NarratorError) as error:
            try_tensors({other: tensor for other, tensor in tensors.items() if other != name})
        assert name.removeprefix(VIT) in str(error.value) and "dump.safetensors" in str(error.value)
        assert nothing_left(tmp_path)


def test_a_whole_cross_attention_lacks(tensors, sizes, try_tensors):
    last = max(range(0, sizes["qformer"]["num_hidden_layers"], sizes["qformer"]["cross_attention_freq"]))
    part = f"layer.{last}.crossattention."
    with pytest.raises(NarratorError, match=r"missing: Qformer\..*crossattention"):
        try_tensors({name: tensor for name, tensor in tensors.items() if part not in name})


def test_what_is_left_out_may_lack(tensors, converted, try_tensors):
    """The files of BLIP-2's second stage have no text parts, but a projection."""
    needed = {name: tensor for name, tensor in tensors.items() if not is_left_out(name)}
    made = try_tensors(needed | {"opt_proj.weight": torch.zeros(3, 2), "opt_proj.bias": torch.zeros(3)})
    expected = load_file(converted / "model.safetensors")
    assert made.keys() == expected.keys() and all(made[name].equal(expected[name]) for name in made)


@pytest.mark.parametrize(
    "name",
    [
        "Qformer.bert.pooler.dense.weight", "Qformer.bert.encoder.layer.0.output_text.dense.weight", "temps",
        f"{VIT}blocks.39.norm1.weight", f"{VIT}norm.weight", f"{VIT}blocks.0.gamma_1", "ln_vision.eps",
    ],
)  # fmt: skip
def test_other_names_are_refused(tensors, try_tensors, tmp_path, name):
    with pytest.raises(NarratorError, match=r"dump\.safetensors") as error:
        try_tensors(tensors | {name: torch.zeros(2)})
    assert "are none of this BLIP-2's" in str(error.value) or "39" in name
    assert nothing_left(tmp_path)


def test_what_the_vits_file_may_hold_behind_the_blocks(tensors, heads, converted, tmp_path):
    width = tensors["ln_vision.weight"].numel()
    behind = ["blocks.39.norm1.weight", "blocks.39.attn.q_bias", "norm.weight", "fc_norm.bias", "head.weight"]
    pair = write_pair(tmp_path / "pair", tensors | {VIT + name: torch.zeros(width) for name in behind})
    said = []
    convert_lavis(pair, tmp_path / "out", **heads, say=said.append)
    made, expected = (load_file(place / "model.safetensors") for place in (tmp_path / "out", converted))
    assert made.keys() == expected.keys() and all(made[name].equal(expected[name]) for name in made)
    assert any(f"{len(behind)} tensors behind the last block" in line for line in said)
    other = write_pair(tmp_path / "other", tensors | {f"{VIT}headless.weight": torch.zeros(2)})
    with pytest.raises(NarratorError, match=r"eva_vit_g\.pth holds 1 tensors .*headless"):
        convert_lavis(other, tmp_path / "no", **heads)


def test_the_checkpoints_own_vit_is_preferred(tensors, heads, converted, tmp_path):
    rest, vit = split(tensors)
    pair = write_pair(tmp_path / "pair", rest | {VIT + name: tensor * 2 for name, tensor in vit.items()})
    torch.save({"model": tensors}, pair / "blip2_pretrained.pth")
    said = []
    convert_lavis(pair, tmp_path / "out", **heads, say=said.append)
    assert any("eva_vit_g.pth is not read" in line for line in said)
    made, expected = (load_file(place / "model.safetensors") for place in (tmp_path / "out", converted))
    assert all(made[name].equal(expected[name]) for name in expected)


# --- wrong files


def test_heads_must_be_given_for_other_widths(folder, sizes, heads, tmp_path):
    dump = folder / "lavis_state_dict.safetensors"
    with pytest.raises(NarratorError, match=r"--vit-heads N and --qformer-heads N") as error:
        convert_lavis(dump, tmp_path / "out")
    assert f"{sizes['vit']['embed_dim']} in" in str(error.value)
    uneven = sizes["qformer"]["hidden_size"] - 1
    with pytest.raises(NarratorError, match=f"--qformer-heads {uneven}: the width"):
        convert_lavis(dump, tmp_path / "out", vit_heads=heads["vit_heads"], qformer_heads=uneven)
    assert nothing_left(tmp_path)


def test_the_published_widths_are_known(tensors, sizes, converted, tmp_path, monkeypatch):
    """Heads, and what else can be checked; the small model plays the published one."""
    vit, qformer = sizes["vit"], sizes["qformer"]
    for name, value in {
        "VIT_G_WIDTH": vit["embed_dim"], "VIT_G_HEADS": vit["num_heads"], "VIT_G_BLOCKS": vit["depth"],
        "VIT_G_SIZE": vit["img_size"], "BERT_WIDTH": qformer["hidden_size"],
        "BERT_HEADS": qformer["num_attention_heads"], "BERT_LAYERS": qformer["num_hidden_layers"],
    }.items():  # fmt: skip
        monkeypatch.setattr(lavis_checkpoint, name, value)
    pair = write_pair(tmp_path / "pair", tensors)
    convert_lavis(pair, tmp_path / "made")
    assert (tmp_path / "made" / "config.json").read_bytes() == (converted / "config.json").read_bytes()
    for name, said in (
        ("VIT_G_BLOCKS", r"eva_vit_g\.pth .* blocks, expected"),
        ("VIT_G_SIZE", r"eva_vit_g\.pth .* pixels a side \(by pos_embed\), expected"),
        ("BERT_LAYERS", r"blip2_pretrained\.pth .* Q-Former layers, expected"),
    ):
        with monkeypatch.context() as patch, pytest.raises(NarratorError, match=said):
            patch.setattr(lavis_checkpoint, name, getattr(lavis_checkpoint, name) + 1)
            convert_lavis(pair, tmp_path / "out")
    assert nothing_left(tmp_path)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["blip2_pretrained.pth", "eva_vit_g.pth"])
def test_files_that_were_cut_off(tensors, heads, tmp_path, name):
    pair = write_pair(tmp_path / "pair", tensors)
    cut(pair / name)
    with pytest.raises(NarratorError, match=f"{name} cannot be read: it is cut short"):
        convert_lavis(pair, tmp_path / "out", **heads)
    assert nothing_left(tmp_path)


def test_position_embeddings_of_wrong_sizes(tensors, heads, tmp_path):
    places = tensors[f"{VIT}pos_embed"]
    for wrong, said in (
        (places[:, :-1], f"pos_embed has {places.shape[1] - 1} places, expected 1 and a square number"),
        (places[..., :-1], r"pos_embed is \[1, \d+, \d+\], by the sizes of the other tensors it is \[1, "),
        (places[0], "expected 3 dimensions"),
    ):
        pair = write_pair(tmp_path / "pair", tensors | {f"{VIT}pos_embed": wrong.clone()})
        with pytest.raises(NarratorError, match=rf"eva_vit_g\.pth: .*{said}"):
            convert_lavis(pair, tmp_path / "out", **heads)
    assert nothing_left(tmp_path)


def test_two_files_of_different_models(tensors, heads, tmp_path):
    pair = write_pair(tmp_path / "pair", tensors | {"ln_vision.weight": torch.ones(7)})
    with pytest.raises(NarratorError, match=r"blip2_pretrained\.pth: ln_vision\.weight is \[7\]"):
        convert_lavis(pair, tmp_path / "out", **heads)


def test_values_that_are_no_numbers(tensors, try_tensors):
    broken = tensors["query_tokens"].clone()
    broken[0, 0, 0] = float("nan")
    with pytest.raises(NarratorError, match=r"query_tokens .* no finite numbers"):
        try_tensors(tensors | {"query_tokens": broken})


def test_other_files_in_their_place(tensors, heads, tmp_path):
    pair = write_pair(tmp_path / "pair", tensors)
    clip = {"visual.conv1.weight": torch.zeros(2), "text_projection": torch.zeros(2, 2)}
    torch.save(clip, tmp_path / "clip.pth")
    blip2, eva, out = pair / "blip2_pretrained.pth", pair / "eva_vit_g.pth", tmp_path / "out"
    for checkpoint, vit, said in (
        (tmp_path / "clip.pth", None, r"clip\.pth is no BLIP-2 of LAVIS's.*visual\.conv1\.weight"),
        (blip2, tmp_path / "clip.pth", r"clip\.pth is no ViT of LAVIS's.*visual\.conv1\.weight"),
        (eva, blip2, r"eva_vit_g\.pth holds the vision transformer alone.*swapped"),
        (blip2, blip2, r"blip2_pretrained\.pth holds a Q-Former"),
        (tmp_path / "none.pth", None, r"no file .*none\.pth"),
        (blip2, tmp_path / "none.pth", r"no file .*none\.pth"),
        (tmp_path, None, r"holds no file blip2_pretrained\*\.pth"),
    ):
        with pytest.raises(NarratorError, match=said):
            convert_lavis(checkpoint, out, vit=vit, **heads)
    blip2.rename(tmp_path / "moved")
    eva.rename(blip2)
    (tmp_path / "moved").rename(eva)
    with pytest.raises(NarratorError, match=r"blip2_pretrained\.pth .* are the two swapped\?"):
        convert_lavis(pair, out, **heads)
    assert nothing_left(tmp_path)


def test_folders_that_do_not_say_which_file(tensors, heads, tmp_path):
    pair = write_pair(tmp_path / "pair", tensors)
    (pair / "eva_vit_g.pth").unlink()
    with pytest.raises(NarratorError, match=r"lacks the vision transformer .*--vit FILE"):
        convert_lavis(pair, tmp_path / "out", **heads)
    (pair / "blip2_pretrained_opt2.7b.pth").write_bytes(b"")
    with pytest.raises(NarratorError, match=r"holds 2 files .*opt2\.7b.*give the file itself"):
        convert_lavis(pair, tmp_path / "out", **heads)


def test_nothing_is_written_over(folder, heads, converted):
    before = (converted / "model.safetensors").read_bytes()
    with pytest.raises(NarratorError, match="exists: name another folder"):
        convert_lavis(folder / "lavis_state_dict.safetensors", converted, **heads)
    assert (converted / "model.safetensors").read_bytes() == before


def test_a_failed_write_leaves_nothing(folder, heads, tmp_path, monkeypatch):
    def full(self, place):
        place.mkdir()
        (place / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FrameEncoder, "save", full)
    with pytest.raises(NarratorError, match="No space left"):
        convert_lavis(folder / "lavis_state_dict.safetensors", tmp_path / "out", **heads)
    assert nothing_left(tmp_path)


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old pickle"])
@pytest.mark.parametrize("place", ["blip2_pretrained.pth", "eva_vit_g.pth", "dump.pth"])
def test_nothing_in_a_file_is_run(tensors, heads, tmp_path, place, zipped):
    marker = tmp_path / "run"
    pair = write_pair(tmp_path / "pair", tensors)
    rest, vit = split(tensors)
    content = {
        "blip2_pretrained.pth": {"model": rest, "config": Payload(marker)},
        "eva_vit_g.pth": vit | {"head.weight": Payload(marker)},
        "dump.pth": tensors | {"temp": Payload(marker)},
    }[place]
    torch.save(content, pair / place, _use_new_zipfile_serialization=zipped)
    checkpoint = pair / place if place == "dump.pth" else pair
    with pytest.raises(NarratorError, match=rf"{place} holds more than tensors and is refused"):
        convert_lavis(checkpoint, tmp_path / "out", **heads)
    (pair / place).write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(NarratorError, match=place):
        convert_lavis(checkpoint, tmp_path / "out", **heads)
    assert not marker.exists() and nothing_left(tmp_path)
    pickle.loads(pickle.dumps(Payload(marker)))  # noqa: S301 - it would have run
    assert marker.exists()


# --- LAVIS's own code


def test_the_environments_script_says_what_it_lacks(tmp_path):
    """Another Python than LAVIS can have: 1. Packages that cannot be fetched: 75. Pythons are played here."""

    def run(python):
        (tmp_path / "python").write_text(f"#!/bin/sh\n{python}\n")
        (tmp_path / "python").chmod(0o755)
        return subprocess.run(
            ["bash", str(ROOT / "scripts" / "setup_lavis_env.sh"), str(tmp_path / "python")],
            env=os.environ | {"VIDEONARRATOR_LAVIS_ENV": str(tmp_path / "env")},
            capture_output=True,
            text=True,
        )

    refused = run("exit 1")
    assert refused.returncode == 1 and "Python 3.11" in refused.stderr and not (tmp_path / "env").exists()
    pip = r"for file; do :; done; cat $file >&2; exit 1"  # it only says what it was asked for
    venv = rf"mkdir -p $3/bin; printf '#!/bin/sh\n{pip}\n' > $3/bin/python; chmod +x $3/bin/python"
    lacking = run(f'if [ "$2" = venv ]; then {venv}; fi')
    assert lacking.returncode == 75 and lacking.stdout == ""
    listed = yaml.safe_load((ROOT / "environment-lavis.yml").read_text("utf-8"))["dependencies"][-1]["pip"]
    assert [line for line in lacking.stderr.splitlines() if not line.startswith("setup:")] == listed


@pytest.mark.slow
def test_lavis_own_code_gives_the_same_features(tensors, converted, tmp_path):
    """In LAVIS's environment, on a video, with the same frames and store (scripts/setup_lavis_env.sh)."""
    from video_helpers import write_video

    from data_process.extract import extract
    from data_process.feature_store import FeatureStore

    python = Path(os.environ.get("VIDEONARRATOR_LAVIS_ENV") or ROOT / ".venv-lavis") / "bin" / "python"
    if not python.is_file():
        pytest.skip("no environment of LAVIS's: scripts/setup_lavis_env.sh makes it (some 7 GB)")
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (96, 128, 3), dtype=np.uint8) for _ in range(12)]
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "v.mp4", pictures, fps=5)
    words = tensors["Qformer.bert.embeddings.word_embeddings.weight"].shape[0] - 1  # LAVIS adds [DEC]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{n}" for n in range(words))][:words]
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    pair = write_pair(tmp_path / "pair", tensors)
    command = [
        str(python), "-W", "ignore", "-m", "data_process.lavis_features", str(tmp_path / "videos"),
        "--out", str(tmp_path / "theirs"), "--checkpoint", str(pair), "--bert", str(tmp_path / "bert"),
        "--sizes", str(converted / "config.json"),
    ]  # fmt: skip
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert json.loads(ended.stdout.splitlines()[-1])["failed"] == {}
    assert extract([tmp_path / "videos" / "v.mp4"], str(converted), tmp_path / "ours") == {}
    ours, theirs = FeatureStore.open(tmp_path / "ours"), FeatureStore.open(tmp_path / "theirs")
    moves = ("encoder", "encoder_sha256")
    assert {k: v for k, v in ours.settings.items() if k not in moves} == {
        k: v for k, v in theirs.settings.items() if k not in moves
    }
    (numbers, features), (their_numbers, their_features) = ours.read("v")[:2], theirs.read("v")[:2]
    assert numbers.equal(their_numbers) and features.shape == their_features.shape
    assert largest(features, their_features) < NEAR
