"""CLIPs of random weights, saved as each package reads them."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

WIDTH, LAYERS, DIM, SIDE, PATCH = 128, 2, 32, 32, 16
VISION = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": WIDTH // 64,
    "intermediate_size": 4 * WIDTH,
    "image_size": SIDE,
    "patch_size": PATCH,
}
"""Settings of the vision tower."""


def randomize(network: nn.Module) -> None:
    """Weights, biases and norms all different, large enough to make every part felt."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.15)
                if "norm" in name.lower() and name.endswith("weight"):
                    weight += 1


def vision_tower(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The vision tower under OpenAI's names, which cn_clip and open_clip share."""
    prefix = "vision_model."
    named = {
        "visual.class_embedding": weights[f"{prefix}embeddings.class_embedding"],
        "visual.conv1.weight": weights[f"{prefix}embeddings.patch_embedding.weight"],
        "visual.positional_embedding": weights[f"{prefix}embeddings.position_embedding.weight"],
        "visual.proj": weights["visual_projection.weight"].T,
        **layers(weights, f"{prefix}encoder.layers.", "visual.transformer.resblocks."),
    }
    for ours, theirs in (("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post")):
        for kind in ("weight", "bias"):
            named[f"visual.{theirs}.{kind}"] = weights[f"{prefix}{ours}.{kind}"]
    return named


def layers(weights: dict[str, Tensor], prefix: str, new_prefix: str) -> dict[str, Tensor]:
    """A transformer's layers under OpenAI's names: q, k and v in one."""
    parts = {"self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    parts |= {"layer_norm1": "ln_1", "layer_norm2": "ln_2"}
    named = {}
    for layer in range(LAYERS):
        for kind in ("weight", "bias"):
            packed = [weights[f"{prefix}{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            named[f"{new_prefix}{layer}.attn.in_proj_{kind}"] = torch.cat(packed)
            for ours, theirs in parts.items():
                named[f"{new_prefix}{layer}.{theirs}.{kind}"] = weights[f"{prefix}{layer}.{ours}.{kind}"]
    return named


def save_chinese(folder: Path) -> dict[str, Tensor]:
    """A Chinese CLIP in transformers' layout, with cn_clip's vocabulary; returns its weights for cn_clip."""
    import cn_clip.clip
    from transformers import ChineseCLIPConfig, ChineseCLIPModel

    text = {
        "vocab_size": len(cn_clip.clip._tokenizer.vocab),
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": WIDTH // 64,
        "intermediate_size": 2 * WIDTH,
    }
    config = ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=DIM)
    model = ChineseCLIPModel(config)
    randomize(model)
    model.save_pretrained(folder)
    shutil.copy(Path(cn_clip.clip.__file__).with_name("vocab.txt"), folder)
    write_preprocessor(folder, {"height": SIDE, "width": SIDE}, crop=False)

    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    named = vision_tower(weights) | {
        "logit_scale": weights["logit_scale"],
        "text_projection": weights["text_projection.weight"].T,
    }
    for name, tensor in weights.items():
        if name.startswith("text_model.") and not name.endswith("_ids"):
            named[f"bert.{name.removeprefix('text_model.')}"] = tensor
    return {name: tensor.contiguous() for name, tensor in named.items()}


def save_english(folder: Path, other: Path) -> None:
    """A CLIP in transformers' layout, and the same in open_clip's (`other`), with CLIP's own vocabulary."""
    import open_clip
    from transformers import CLIPConfig, CLIPModel

    tokenizer = open_clip.SimpleTokenizer()
    text = {
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 4 * WIDTH,
        "bos_token_id": tokenizer.sot_token_id,
        "eos_token_id": tokenizer.eot_token_id,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=DIM))
    randomize(model)
    model.save_pretrained(folder)
    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {renamed.get(token, token): number for token, number in tokenizer.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    merges = "\n".join(" ".join(pair) for pair in tokenizer.bpe_ranks)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", "utf-8")
    write_preprocessor(folder, {"shortest_edge": SIDE}, crop=True)

    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    named = vision_tower(weights) | {
        "logit_scale": weights["logit_scale"],
        "token_embedding.weight": weights["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": weights["text_model.embeddings.position_embedding.weight"],
        "ln_final.weight": weights["text_model.final_layer_norm.weight"],
        "ln_final.bias": weights["text_model.final_layer_norm.bias"],
        "text_projection": weights["text_projection.weight"].T,
        **layers(weights, "text_model.encoder.layers.", "transformer.resblocks."),
    }
    other.mkdir()
    save_file({k: v.contiguous() for k, v in named.items()}, other / "open_clip_model.safetensors")
    model_config = {
        "embed_dim": DIM,
        "quick_gelu": True,
        "vision_cfg": {"image_size": SIDE, "layers": LAYERS, "width": WIDTH, "patch_size": PATCH},
        "text_cfg": {
            "context_length": 77,
            "vocab_size": tokenizer.vocab_size,
            "width": WIDTH,
            "heads": 4,
            "layers": LAYERS,
        },
    }
    (other / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_config}))


def write_preprocessor(folder: Path, size: dict[str, int], *, crop: bool) -> None:
    settings = {
        "size": size,
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_center_crop": crop,
        "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
