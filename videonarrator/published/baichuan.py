"""A Baichuan-7B folder (or one in LLaMA's names) to a backbone folder of ours, shard by shard.

Baichuan-7B is a LLaMA with q, k and v in one matrix (../names). What its folder needs for today's libraries:
names, a configuration without code, the tokenizer in transformers' form with SentencePiece's own ids.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaTokenizer

from videonarrator.fingerprint import SOURCE_KEY, source_fingerprint
from videonarrator.modeling.backbones import BaichuanConfig
from videonarrator.published.names import PARTS, layout_of, names_of, sort_names, to_layout
from videonarrator.schema import NarratorError
from videonarrator.weight_files import listing, open_to_others, read_tensors, weight_shards

PROJECTOR_FILE = "projector.safetensors"
"""In a backbone folder: the visual projector that lay in its source (`linear.weight`, `linear.bias`)."""

NEEDED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
)
OPTIONAL = {
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
PROBES = ("商品信息：\n名称：", "两个  空格", "\t制表", " 前后 ", "1.3折\n", "emoji 😀", "<s></s><unk>", "龘")
"""Texts that tell a wrongly built tokenizer."""


def convert_baichuan(
    source: Path, out: Path, layout: str = "fused", say: Callable[[str], None] = lambda line: None
) -> Path:
    """Write `source` as a backbone folder `out`, in the layout fused or split, and return it.

    Weights keep their dtype; at most one shard is held in memory. A run that was killed goes on with the
    shards that are whole. Raises `NarratorError` where `source` is no such model, or not whole.
    """
    config = read_config(source)
    shards = weight_shards(source)
    identity = source_fingerprint(source)
    if (out / "config.json").is_file():
        there = json.loads((out / "config.json").read_text("utf-8"))
        if there.get(SOURCE_KEY) == identity and there.get("model_type") == _model_type(layout):
            say(f"{out} is already converted from {source}")
            return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise NarratorError(f"{out} holds something else: give another folder, or remove it (rm -r {out})")
    check_tokenizer(source, config["vocab_size"])
    partial = out.with_name(out.name + ".partial")
    _claim(partial, {"source": identity, "layout": layout})
    weights: dict[str, str] = {}
    projector: dict[str, Tensor] = {}
    size = 0
    for number, tensors in enumerate(_converted(shards, config, layout, projector), 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        if not (partial / name).is_file():
            writing = partial / f"{name}.part"
            save_file({n: t.contiguous() for n, t in tensors.items()}, writing, metadata={"format": "pt"})
            writing.replace(partial / name)
        weights |= dict.fromkeys(tensors, name)
        size += sum(tensor.nbytes for tensor in tensors.values())
        say(f"converted {number}/{len(shards)} shards")
        dtype = next(iter(tensors.values())).dtype
    index = {"metadata": {"total_size": size}, "weight_map": weights}
    (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", "utf-8")
    if projector:
        save_file(projector, partial / PROJECTOR_FILE, metadata={"format": "pt"})
    save_tokenizer(source, partial)
    made = our_config(config, layout, dtype).to_dict() | {SOURCE_KEY: identity}
    (partial / "conversion.json").unlink()
    (partial / "config.json").write_text(json.dumps(made, indent=1) + "\n", "utf-8")
    open_to_others(partial)
    if out.exists():
        out.rmdir()
    partial.replace(out)
    return out


def read_config(source: Path) -> dict[str, Any]:
    """The settings of a Baichuan-7B (or LLaMA) folder, checked; no code of it is run."""
    file = source / "config.json"
    if not file.is_file():
        raise NarratorError(f"{source} is no model folder: it has no config.json (found: {listing(source)})")
    try:
        settings = json.loads(file.read_text("utf-8"))
        kind = settings.get("model_type")
    except (ValueError, AttributeError) as error:
        raise NarratorError(f"{file} is not valid JSON: {error}") from None
    if kind not in ("baichuan", "llama", "VideoCap", BaichuanConfig.model_type):
        raise NarratorError(f"{source} holds a model of type {kind!r}, expected Baichuan-7B's (baichuan)")
    if "z_loss_weight" in settings:
        raise NarratorError(
            f"{source} is a Baichuan 2: its output head normalises its rows, which LLaMA's does not. "
            "Expected Baichuan-7B, the published system's base model"
        )
    if "max_position_embeddings" not in settings and "model_max_length" in settings:
        raise NarratorError(
            f"{source} is a Baichuan without rotary positions (13B has ALiBi), which is no LLaMA. "
            "Expected Baichuan-7B, the published system's base model"
        )
    if absent := [key for key in NEEDED if not isinstance(settings.get(key), int | float)]:
        raise NarratorError(f"{file} does not say {', '.join(absent)}")
    heads = settings["num_attention_heads"]
    if settings.get("num_key_value_heads", heads) != heads:
        raise NarratorError(f"{file}: keys and values have fewer heads than queries; Baichuan-7B has {heads}")
    if settings.get("rope_scaling") or settings.get("rope_theta", 10000) != 10000:
        raise NarratorError(f"{file}: rotary positions of another kind than Baichuan-7B's (theta 10000)")
    return settings


def our_config(settings: Mapping[str, Any], layout: str, dtype: torch.dtype) -> LlamaConfig:
    """The configuration of a converted model."""
    values = {key: settings[key] for key in NEEDED}
    values |= {key: settings.get(key, default) for key, default in OPTIONAL.items()}
    kind, architecture = LlamaConfig, "LlamaForCausalLM"
    if layout == "fused":
        kind, architecture = BaichuanConfig, "BaichuanForCausalLM"
    heads = settings["num_attention_heads"]
    return kind(**values, num_key_value_heads=heads, dtype=dtype, architectures=[architecture])


def check_tokenizer(source: Path, vocabulary: int) -> None:
    """Raise `NarratorError` where there is no tokenizer.model, or one of another vocabulary."""
    file = source / "tokenizer.model"
    if not file.is_file():
        raise NarratorError(f"{source} has no tokenizer.model (SentencePiece): get the folder whole")
    pieces = _pieces(file).get_piece_size()
    if pieces != vocabulary:
        raise NarratorError(
            f"{file} has {pieces} pieces, config.json says vocab_size {vocabulary}: the tokenizer of another "
            "model, or a folder that adapters have been merged into"
        )


def save_tokenizer(source: Path, folder: Path) -> LlamaTokenizer:
    """The source's tokenizer in transformers' form, giving SentencePiece's own ids (this is tried)."""
    model = _pieces(source / "tokenizer.model")
    tokenizer = LlamaTokenizer.from_pretrained(
        str(source), vocab_file=str(source / "tokenizer.model"), add_prefix_space=False, legacy=False,
        local_files_only=True,
    )  # fmt: skip
    for text in PROBES:
        ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        if ids != model.encode(text):
            raise NarratorError(
                f"{source / 'tokenizer.model'}: {text!r} becomes {ids} instead of SentencePiece's "
                f"{model.encode(text)}: it is no tokenizer of Baichuan's kind (BPE without a leading blank)"
            )
    tokenizer.save_pretrained(folder)
    shutil.copyfile(source / "tokenizer.model", folder / "tokenizer.model")
    return tokenizer


def adds_bos(source: Path) -> bool:
    """Whether a model folder's tokenizer_config.json has every prompt begin with BOS (where silent: yes)."""
    file = source / "tokenizer_config.json"
    return bool(json.loads(file.read_text("utf-8")).get("add_bos_token", True)) if file.is_file() else True


def _converted(
    shards: list[Path], config: Mapping[str, Any], layout: str, projector: dict[str, Tensor]
) -> Iterator[dict[str, Tensor]]:
    """The language model's tensors, a shard at a time, converted and checked; the projector's put aside."""
    waiting: dict[str, Tensor] = {}  # q, k or v whose partners are in a later shard
    seen: set[str] = set()
    for shard in shards:
        tensors = read_tensors(shard)
        names, visual = sort_names(tensors, str(shard))
        projector |= {name.replace("model.mm_projector", "linear"): tensors[name].clone() for name in visual}
        _check_shapes({name: tensors[name] for name in names}, config, shard)
        tensors = waiting | {name: tensors[name] for name in names}
        waiting = {}
        if layout == "fused" and layout_of(tensors) == "split":
            for name in [name for name in tensors if name.endswith(PARTS)]:
                layer = name[: name.index("self_attn.")]
                if not all(layer + part in tensors for part in PARTS):
                    waiting[name] = tensors.pop(name)
        converted = to_layout(tensors, layout)
        seen |= set(converted)
        yield converted
    wanted = names_of(int(config["num_hidden_layers"]), layout)
    if missing := sorted(wanted - seen):
        raise NarratorError(
            f"{shards[0].parent} lacks {len(missing)} tensors of a model of {config['num_hidden_layers']} "
            f"layers, first {', '.join(missing[:3])}: is a shard missing?"
        )
    if extra := sorted(seen - wanted):
        raise NarratorError(
            f"{shards[0].parent} has tensors beyond the {config['num_hidden_layers']} layers of config.json, "
            f"first {', '.join(extra[:3])}"
        )


def _check_shapes(tensors: Mapping[str, Tensor], config: Mapping[str, Any], shard: Path) -> None:
    hidden, middle, words = (config[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    shapes = {
        "embed_tokens": (words, hidden), "lm_head": (words, hidden), "W_pack": (3 * hidden, hidden),
        "gate_proj": (middle, hidden), "up_proj": (middle, hidden), "down_proj": (hidden, middle),
    }  # fmt: skip
    for name, tensor in tensors.items():
        kind = name.split(".")[-2]
        wanted = shapes.get(kind, (hidden,) if "norm" in kind else (hidden, hidden))
        if tuple(tensor.shape) != wanted:
            raise NarratorError(
                f"{shard}: {name} is {list(tensor.shape)}, config.json wants {list(wanted)}: the weights and "
                "the configuration are of two models"
            )


def _claim(partial: Path, record: dict[str, str]) -> None:
    """Make the unfinished folder ours; one of another conversion is started anew."""
    note = partial / "conversion.json"
    try:
        same = json.loads(note.read_text("utf-8")) == record
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        note.write_text(json.dumps(record), "utf-8")


def _pieces(file: Path) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError) as error:
        raise NarratorError(f"{file} is no SentencePiece model: {error}") from None


def _model_type(layout: str) -> str:
    return BaichuanConfig.model_type if layout == "fused" else LlamaConfig.model_type
