"""LAVIS's files: every name counts, wrong and harmed files are named, nothing in them is run."""

import os
import pickle
import re

import pytest
import torch
from lavis_helpers import VIT, nothing_left, split, write_pair
from safetensors.torch import load_file

from data_process import lavis_checkpoint
from data_process.lavis_checkpoint import LEFT_OUT, convert_lavis
from data_process.qformer import FrameEncoder
from videonarrator.schema import NarratorError

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
