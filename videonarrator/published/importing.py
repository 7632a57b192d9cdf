"""The steps of `videonarrator convert upstream`: wording, base model, projector, checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from videonarrator.config import load_template
from videonarrator.modeling.backbones import BaichuanConfig
from videonarrator.prompt import Template
from videonarrator.published.baichuan import convert_baichuan
from videonarrator.published.checkpoint import (
    PublishedCheckpoint,
    find_projector,
    import_published,
    read_published,
)
from videonarrator.published.instruction import find_instruction, read_instruction
from videonarrator.schema import NarratorError
from videonarrator.weight_files import listing

SEED = 0
"""Of a projector drawn at random: at least every load then sees the same noise."""

WHY = (
    "The published training kept the projector frozen at random values and saved it nowhere (only its LoRA), "
    "so that every load drew another one and the visual input became noise"
)


def template_with(name: str, instruction: Path | None, repository: Path | None) -> Template:
    """The template of that name with the instruction a checkpoint was trained with."""
    if (instruction is None) == (repository is None):
        raise NarratorError(
            "the checkpoint has learnt one wording of the instruction, and it is not in its files: give it "
            "with --instruction FILE, or with --published-repo DIR (your clone of the published repository)"
        )
    wording = read_instruction(instruction) if instruction else find_instruction(repository or Path())
    return replace(load_template(name), instruction=wording)


def run(
    base: Path,
    adapter: Path,
    out: Path,
    template: Template,
    projector: Path | None,
    random_projector: bool,
    say: Callable[[str], None],
) -> Path:
    """Import the published checkpoint `adapter` as `out`; a base model as published is converted first.

    Raises `NarratorError` where the projector's own weights are nowhere and `random_projector` is off.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise NarratorError(f"{out} is there already: give another --out, or remove it (rm -r {out})")
    published = read_published(adapter)
    backbone = base
    if _as_published(base):
        backbone = out.with_name(out.name + "-backbone")
        say(f"converting the base model to {backbone}")
        convert_baichuan(base, backbone, "fused", say)
    found, origin = find_projector(published, backbone, projector), ""
    if not found:
        if not random_projector:
            raise NarratorError(
                f"the weights of the visual projector (mm_projector.weight, .bias) are neither in {adapter} "
                f"nor in {base}. {WHY}. Give them with --projector FILE; or go on with --random-projector, "
                "which writes from the text alone"
            )
        found, origin = _drawn(published), f"drawn at random (seed {SEED})"
        say(f"WARNING: the visual projector is {origin}. {WHY}. Do not measure this checkpoint's sight")
    return import_published(published, backbone, out, template, found, origin=origin)


def _as_published(base: Path) -> bool:
    """Whether a base model has to be converted first."""
    file = base / "config.json"
    if not file.is_file():
        raise NarratorError(f"--base {base} is no model folder: no config.json (found: {listing(base)})")
    try:
        kind = json.loads(file.read_text("utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise NarratorError(f"{file} is not valid JSON: {error}") from None
    return kind == "baichuan" or (kind != BaichuanConfig.model_type and not any(base.glob("*.safetensors")))


def _drawn(published: PublishedCheckpoint) -> dict[str, Tensor]:
    """A projector of the right shape, as torch draws a linear layer."""
    hidden, width = published.embeddings["embed_tokens"].shape[1], published.position.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        linear = nn.Linear(width, hidden)
    return {"weight": linear.weight.detach(), "bias": linear.bias.detach()}
