"""LAVIS's files as it lays them out, and how far features are from LAVIS's own."""

from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[3]
VIT = "visual_encoder."
EXACT, NEAR = 1e-9, 5e-5


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
