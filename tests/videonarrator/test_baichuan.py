"""A Baichuan folder as published becomes a backbone: weights, layouts, tokenizer, memory, what is refused."""

import json
import random
import shutil
import subprocess
import sys

import pytest
import sentencepiece
import torch
from cli_world import fails, run, succeed
from published_world import altered_copy
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from videonarrator.clip_inputs import encode_text
from videonarrator.fingerprint import fingerprint, source_fingerprint
from videonarrator.modeling.backbones import add_tokens, load_backbone, load_tokenizer
from videonarrator.prompt import ADDED_TOKENS
from videonarrator.published.baichuan import convert_baichuan
from videonarrator.published.names import names_of, sort_names, to_layout
from videonarrator.schema import NarratorError
from videonarrator.weight_files import read_tensors, weight_shards


@pytest.fixture(scope="module")
def weights(upstream):
    """The published base model's tensors."""
    return read_tensors(upstream / "base/pytorch_model.bin")


@pytest.fixture(scope="module")
def both(upstream, tmp_path_factory):
    """The base model converted to each layout."""
    folder = tmp_path_factory.mktemp("layouts")
    return {name: convert_baichuan(upstream / "base", folder / name, name) for name in ("fused", "split")}


def sharded(source, folder, weights, number, *, safe=False, seed=0):
    """The base folder with its tensors dealt out to shards at random, with an index."""
    folder.mkdir()
    for name in ("config.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)
    names = sorted(weights)
    random.Random(seed).shuffle(names)
    ending, base = ("safetensors", "model") if safe else ("bin", "pytorch_model")
    index = {}
    for shard in range(number):
        file = f"{base}-{shard + 1:05d}-of-{number:05d}.{ending}"
        part = {name: weights[name].contiguous() for name in names[shard::number]}
        index |= dict.fromkeys(part, file)
        if safe:
            save_file(part, folder / file)
        else:
            torch.save(part, folder / file)
    (folder / f"{base}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


@torch.no_grad()
def plain_logits(ids, weights, config):
    """Baichuan-7B's forward pass, written from its description: RMSNorm, rotary positions, W_pack, SwiGLU."""
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    states = weights["model.embed_tokens.weight"][ids].double()
    length, hidden = states.shape
    size = hidden // heads
    turn = torch.arange(length)[:, None] / 10000 ** (torch.arange(0, size, 2) / size)
    cos, sin = (f(torch.cat([turn, turn], -1)).double() for f in (torch.cos, torch.sin))

    def weight(name):
        return weights[name].double()

    def norm(values, name):
        scale = (values.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]).rsqrt()
        return values * scale * weight(name)

    def rotated(values):
        first, second = values.chunk(2, -1)
        return values * cos + torch.cat([-second, first], -1) * sin

    later = torch.ones(length, length).triu(1).bool()
    for layer in range(layers):
        at = f"model.layers.{layer}."
        packed = norm(states, f"{at}input_layernorm.weight") @ weight(f"{at}self_attn.W_pack.weight").T
        query, key, value = (
            part.view(length, heads, size).transpose(0, 1) for part in packed.split(hidden, dim=-1)
        )
        scores = rotated(query) @ rotated(key).transpose(1, 2) / size**0.5
        mixed = scores.masked_fill(later, -torch.inf).softmax(-1) @ value
        mixed = mixed.transpose(0, 1).reshape(length, hidden)
        states = states + mixed @ weight(f"{at}self_attn.o_proj.weight").T
        inner = norm(states, f"{at}post_attention_layernorm.weight")
        gate = functional.silu(inner @ weight(f"{at}mlp.gate_proj.weight").T)
        states = (
            states
            + (gate * (inner @ weight(f"{at}mlp.up_proj.weight").T)) @ weight(f"{at}mlp.down_proj.weight").T
        )
    return norm(states, "model.norm.weight") @ weight("lm_head.weight").T


def test_both_layouts_are_the_published_model(both, weights, upstream):
    config = json.loads((upstream / "base/config.json").read_text())
    ids = torch.randint(0, config["vocab_size"], (40,), generator=torch.Generator().manual_seed(1))
    wanted = plain_logits(ids, weights, config)
    for layout, folder in both.items():
        model = load_backbone(str(folder)).eval()
        with torch.no_grad():
            assert (model(ids[None]).logits[0] - wanted).abs().max() < 1e-4 * wanted.abs().max(), layout
    plain = AutoModelForCausalLM.from_pretrained(both["split"])  # no class of ours is needed for this one
    assert type(plain).__name__ == "LlamaForCausalLM"


def test_names_both_ways(weights, upstream):
    layers = json.loads((upstream / "base/config.json").read_text())["num_hidden_layers"]
    names, projector = sort_names(weights, "base")
    fused = {name: weights[name] for name in names}
    split = to_layout(fused, "split")
    assert set(fused) == names_of(layers, "fused") and set(split) == names_of(layers, "split")
    back = to_layout(split, "fused")
    assert set(back) == set(fused) and all(back[name].equal(fused[name]) for name in fused)
    assert set(weights) - set(names) - set(projector) == {n for n in weights if n.endswith("inv_freq")}
    with pytest.raises(
        NarratorError, match=r"base holds 1 tensors .* first model.layers.0.attn.c_attn.weight"
    ):
        sort_names([*names, "model.layers.0.attn.c_attn.weight"], "base")


@pytest.mark.parametrize("safe", [False, True])
def test_shards_in_any_order_and_back(safe, both, weights, upstream, tmp_path):
    """Shards in which q, k and v lie apart; split to fused and fused to split give the same tensors."""
    source = sharded(upstream / "base", tmp_path / "source", weights, 3, safe=safe)
    whole = {layout: model_tensors(folder) for layout, folder in both.items()}
    for layout in ("fused", "split"):
        made = convert_baichuan(source, tmp_path / layout, layout)
        assert len(list(made.glob("model-*.safetensors"))) == 3
        assert same(model_tensors(made), whole[layout])
    apart = sharded(both["split"], tmp_path / "apart", whole["split"], 4, safe=safe)
    assert same(model_tensors(convert_baichuan(apart, tmp_path / "again", "fused")), whole["fused"])


def model_tensors(folder):
    return {n: t for file in folder.glob("model-*.safetensors") for n, t in load_file(file).items()}


def same(first, second):
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def test_the_projector_is_put_beside_and_layouts_know_each_other(both, weights, upstream):
    aside = load_file(both["fused"] / "projector.safetensors")
    for part in ("weight", "bias"):
        assert aside[f"linear.{part}"].equal(weights[f"model.mm_projector.{part}"])
    assert source_fingerprint(both["fused"]) == source_fingerprint(both["split"])
    assert source_fingerprint(both["fused"]) == source_fingerprint(upstream / "base")
    assert fingerprint(both["fused"]) != fingerprint(both["split"])


def test_a_killed_conversion_goes_on(both, weights, upstream, tmp_path):
    source = sharded(upstream / "base", tmp_path / "source", weights, 3)
    partial = tmp_path / "made.partial"

    class Killed(BaseException):
        pass

    def killed_after_one(line):
        raise Killed(line)

    with pytest.raises(Killed):
        convert_baichuan(source, tmp_path / "made", "fused", killed_after_one)
    assert not (tmp_path / "made").exists()
    (done,) = partial.glob("model-*.safetensors")
    stamp = done.stat().st_mtime_ns
    convert_baichuan(source, tmp_path / "made", "fused")
    assert (tmp_path / "made" / done.name).stat().st_mtime_ns == stamp and not partial.exists()
    assert same(model_tensors(tmp_path / "made"), model_tensors(both["fused"]))
    said = []
    convert_baichuan(source, tmp_path / "made", "fused", said.append)
    assert said == [f"{tmp_path / 'made'} is already converted from {source}"]


def test_memory_is_a_shard_not_the_model(both, upstream, tmp_path):
    """Of a model of six shards, about one shard is held at a time."""
    config = json.loads((upstream / "base/config.json").read_text()) | {
        "hidden_size": 256, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 4,
    }  # fmt: skip
    hidden, middle, words = 256, 4096, config["vocab_size"]
    shapes = {"W_pack": (3 * hidden, hidden), "o_proj": (hidden, hidden), "gate_proj": (middle, hidden)}
    shapes |= {"up_proj": (middle, hidden), "down_proj": (hidden, middle)}
    tensors = {
        name: torch.zeros(
            shapes.get(name.split(".")[-2], (words, hidden) if "norm" not in name else (hidden,))
        )
        for name in names_of(24, "fused")
    }
    source = sharded(upstream / "base", tmp_path / "big", tensors, 6)
    (source / "config.json").write_text(json.dumps(config))
    total = sum(tensor.nbytes for tensor in tensors.values())
    largest = max(file.stat().st_size for file in source.glob("*.bin"))
    assert total > 300e6 and largest < total / 4
    del tensors
    program = """
import sys
from pathlib import Path
from videonarrator.published.baichuan import convert_baichuan

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

before = peak()
convert_baichuan(Path(sys.argv[1]), Path(sys.argv[2]), "split")
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, source, tmp_path / "made"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 3 * largest < total  # mapped pages of the shard, and the copies written


# -------------------- tokenizer


PIECES_OF_TEXT = (
    " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\u3000", "😀", "👩\u200d👩\u200d👧", "🇨🇳", "<s>",
    "</s>", "<unk>", "<pad>", "[PAD]", "<vid_patch>", "<vid_start>", "<vid_end>", "<0x0A>", "<|im_end|>",
    "Ａ", "é", "e\u0301", "\u200b", "\ufeff", "龘", "𠮷", "3.4", "99%", "¥", "ABC", "http://a.b/c?d=1",
    "——", "……", "“", "”", "：", "▂", "\x00", "\x7f",
)  # fmt: skip


def ten_thousand(real_samples):
    """Real sentences, and the same cut up and mixed with what tokenizers stumble over."""
    lines = sorted({line for one in real_samples for line in one["inputs"].split("\n") if line})
    draw = random.Random(7)
    texts = ["", *PIECES_OF_TEXT, *lines[:4000]]
    while len(texts) < 10_000:
        parts = []
        for _ in range(draw.randint(1, 5)):
            line = draw.choice(lines)
            start = draw.randrange(len(line))
            parts += [line[start : start + draw.randint(0, 12)], draw.choice(PIECES_OF_TEXT)]
        draw.shuffle(parts)
        texts.append("".join(parts))
    return texts


def test_ten_thousand_strings_have_sentencepiece_s_ids(both, upstream, real_samples, tmp_path):
    model = sentencepiece.SentencePieceProcessor(model_file=str(upstream / "base/tokenizer.model"))
    texts = ten_thousand(real_samples)
    assert len(texts) == len(texts[:10_000]) >= 10_000
    tokenizer = load_tokenizer(str(both["fused"]))
    language_model = load_backbone(str(both["fused"]))
    add_tokens(language_model, tokenizer, ADDED_TOKENS)
    tokenizer.save_pretrained(tmp_path)
    reloaded = load_tokenizer(str(tmp_path))
    added = set(tokenizer.convert_tokens_to_ids(["[PAD]", *ADDED_TOKENS]))
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, *added}
    expected = model.encode(texts)
    for loaded in (tokenizer, reloaded):
        wrong = [t for t, ids in zip(texts, expected, strict=True) if encode_text(t, loaded) != ids]
        assert wrong == []
    assert not any(special & set(ids) for ids in expected)  # look-alikes stay plain text
    assert reloaded.convert_tokens_to_ids(list(ADDED_TOKENS)) == [
        len(reloaded) - 3 + place for place in range(3)
    ]


# -------------------- what is refused


def config_with(**values):
    def change(folder):
        file = folder / "config.json"
        settings = json.loads(file.read_text()) | values
        file.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))

    return change


def tensors_with(edit):
    def change(folder):
        tensors = read_tensors(folder / "pytorch_model.bin")
        torch.save(
            edit({name: tensor.clone() for name, tensor in tensors.items()}), folder / "pytorch_model.bin"
        )

    return change


def cut_short(folder):
    file = folder / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def index_of_missing(folder):
    index = {"weight_map": {"lm_head.weight": "pytorch_model-00002-of-00002.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


CASES = {
    "another model": (config_with(model_type="gpt2"), "holds a model of type 'gpt2', expected Baichuan-7B"),
    "Baichuan 2": (config_with(z_loss_weight=0), "is a Baichuan 2"),
    "13B": (config_with(max_position_embeddings=None, model_max_length=4096), "13B has ALiBi"),
    "a setting lacks": (config_with(hidden_size=None), "config.json does not say hidden_size"),
    "other rotary": (config_with(rope_theta=5e5), "rotary positions of another kind"),
    "more layers said": (config_with(num_hidden_layers=99), "lacks .* tensors of a model of 99 layers"),
    "fewer layers said": (config_with(num_hidden_layers=1), "beyond the 1 layers of config.json"),
    "width": (config_with(hidden_size=60), r"pytorch_model.bin: model\.\S+ is \[.*, config.json wants"),
    "vocabulary": (config_with(vocab_size=64000), "pieces, config.json says vocab_size 64000"),
    "cut short": (cut_short, "pytorch_model.bin cannot be read: it is cut short"),
    "shard missing": (index_of_missing, "are not there: pytorch_model-00002-of-00002.bin"),
    "adapters inside": (
        tensors_with(lambda t: t | {"model.layers.0.self_attn.W_pack.lora_A.weight": torch.zeros(2, 2)}),
        "first model.layers.0.self_attn.W_pack.lora_A.weight: it is another model",
    ),
    "a tensor lacks": (
        tensors_with(lambda t: {name: tensor for name, tensor in t.items() if name != "model.norm.weight"}),
        "lacks 1 tensors .* first model.norm.weight",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.model").unlink(), "has no tokenizer.model"),
    "broken tokenizer": (
        lambda folder: (folder / "tokenizer.model").write_bytes(b"nothing"),
        "is no SentencePiece model",
    ),
    "no weights": (lambda folder: (folder / "pytorch_model.bin").unlink(), "has no weights: expected"),
    "pointer": (
        lambda folder: (folder / "pytorch_model.bin").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
        ),
        "Git LFS pointer",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_refused(case, upstream, tmp_path):
    change, message = CASES[case]
    source = altered_copy(upstream / "base", tmp_path / "source", change)
    with pytest.raises(NarratorError, match=message):
        convert_baichuan(source, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_the_command_s_words(upstream, both, tmp_path):
    fails(run("convert", "baichuan", tmp_path, tmp_path / "made"), "no model folder", str(tmp_path))
    fails(run("convert", "baichuan", upstream / "base", tmp_path / "x", "--qkv", "both"), "fused or split")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("mine")
    fails(run("convert", "baichuan", upstream / "base", tmp_path / "taken"), "holds something else")
    done = succeed("convert", "baichuan", upstream / "base", tmp_path / "made", "--qkv", "split")
    assert done.out.strip() == str(tmp_path / "made")
    assert same(model_tensors(tmp_path / "made"), model_tensors(both["split"]))
    with pytest.raises(ValueError, match="make a backbone of it with `videonarrator convert baichuan"):
        load_backbone(str(upstream / "base"))
    assert weight_shards(upstream / "base") == [upstream / "base/pytorch_model.bin"]
