"""The published small model's weights in our model give the published losses."""

import hashlib
import json

import torch
from safetensors.torch import load_file
from tiny_narrator import batched, tiny_config

from videonarrator.modeling.backbones import BaichuanForCausalLM
from videonarrator.modeling.narrator import Narrator
from videonarrator.modeling.projector import VisualProjector
from videonarrator.timeline import frame_numbers
from videonarrator.visual_memory import video_clip_tokens


def published_narrator(upstream):
    """The published small model before training: its base folder and the rows it drew at random."""
    settings = json.loads((upstream / "base/config.json").read_text())
    state = torch.load(upstream / "base/pytorch_model.bin", weights_only=True)
    drawn = load_file(upstream / "train/init_state.safetensors")
    names = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
    names += ["max_position_embeddings", "rms_norm_eps", "initializer_range"]
    heads = settings["num_attention_heads"]
    config = tiny_config(1, **{name: settings[name] for name in names}, num_key_value_heads=heads)
    model = BaichuanForCausalLM(config)
    projector = VisualProjector(768, config.hidden_size)
    projector.linear.load_state_dict(
        {name: state.pop(f"model.mm_projector.{name}") for name in ("weight", "bias")}
    )
    model.load_state_dict({name: t for name, t in state.items() if not name.endswith("inv_freq")})
    rows = {name: tensor for name, tensor in drawn.items() if tensor.shape[0] == 4}
    model.resize_token_embeddings(config.vocab_size + 4, mean_resizing=False)
    with torch.no_grad():
        for part, module in (("embed_tokens", model.model.embed_tokens), ("lm_head", model.lm_head)):
            (new,) = (tensor for name, tensor in rows.items() if part in name)
            module.weight[-4:] = new
        (table,) = (tensor for name, tensor in drawn.items() if "frame_position_embedding" in name)
        projector.position.weight.copy_(table)
    return Narrator(model, projector, settings["vocab_size"] + 1).eval()


def test_losses_of_the_published_model(upstream, upstream_features):
    """Its weights and samples in our model give its losses: attention, visual tokens, positions, labels."""
    narrator = published_narrator(upstream)
    annotations = json.loads((upstream / "all_video_data.json").read_text())
    clips = {}
    for video_id, frames in upstream_features.items():
        spans = annotations[f"{video_id}.mp4"]["frames"]
        by_clip = []
        for clip in spans:
            own = [frames[k] for k in frame_numbers(*clip["time"]) if k in frames]
            by_clip.append(torch.stack(own) if own and "new_text" in clip else None)
        for index, tokens in enumerate(video_clip_tokens(by_clip)):
            clips[f"{video_id}_{index}.pkl"] = tokens
    facts = json.loads((upstream / "train/samples.json").read_text())
    stored = load_file(upstream / "train/samples.safetensors")
    expected = json.loads((upstream / "train/loss_init.json").read_text())["per_sample"]
    batches, losses = [], []
    for fact, wanted in zip(facts, expected, strict=True):
        if fact["n_vid_patch"] == 0:
            continue  # the published code's mistake: a sample without a picture
        visual = clips[fact["frames"][0]]
        assert hashlib.sha256(visual.numpy().tobytes()).hexdigest() == fact["feature_sha256"]
        ids, labels = (stored[f"{wanted['sample']}.{kind}"].long() for kind in ("input_ids", "labels"))
        one = {"ids": ids, "labels": labels, "visual": visual, "position": fact["frame_pos"]}
        batches.append(batched([one], pad=narrator.patch_id - 1))
        losses.append(wanted["loss"])
    with torch.no_grad():
        ours = [narrator(**batch)["loss"].item() for batch in batches]
        assert len(ours) == 12
        assert max(abs(a - b) for a, b in zip(ours, losses, strict=True)) < 1e-5
        narrator.projector.linear.bias.mul_(0.5)  # once only: the losses are no longer the published ones
        once = [narrator(**batch)["loss"].item() for batch in batches]
    assert max(abs(a - b) for a, b in zip(once, losses, strict=True)) > 1e-3
