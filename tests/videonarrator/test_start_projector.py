"""The projector may start from a BLIP-2's language_projection."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from videonarrator.modeling.projector import VisualProjector
from videonarrator.schema import NarratorError
from videonarrator.training.building import start_projector

BLIP2 = Path(__file__).resolve().parents[2] / "data/sample/models/blip2"


def test_a_projected_token_is_what_blip2_gives_it(tmp_path):
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 5)
    names = {f"language_projection.{name}": t.detach().clone() for name, t in layer.named_parameters()}
    save_file({**names, "qformer.other": torch.zeros(2)}, tmp_path / "model.safetensors")
    projector = VisualProjector(6, 5)
    start_projector(projector, tmp_path)
    torch.nn.init.zeros_(projector.position.weight)
    tokens = torch.randn(4, 6)
    given = projector(tokens, torch.zeros(4, dtype=torch.long))  # the bias enters twice, and is halved for it
    assert torch.allclose(given, layer(tokens), atol=1e-6)


def test_the_sample_encoder_has_one_for_the_sample_backbone():
    projector = VisualProjector(128, 192)
    before = projector.linear.weight.clone()
    start_projector(projector, BLIP2)
    stored = load_file(BLIP2 / "model.safetensors")["language_projection.weight"]
    assert projector.linear.weight.equal(stored) and not projector.linear.weight.equal(before)


def test_another_size_and_another_folder_are_refused(tmp_path):
    with pytest.raises(NarratorError, match=r"language_projection of \[64, 128\], found .*192, 128"):
        start_projector(VisualProjector(128, 64), BLIP2)
    with pytest.raises(NarratorError, match="found none"):
        start_projector(VisualProjector(128, 192), tmp_path)
