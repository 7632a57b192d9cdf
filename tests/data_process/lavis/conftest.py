"""LAVIS's small BLIP-2 of the reference data, and what our conversion makes of it."""

import copy
import json

import pytest
from safetensors.torch import load_file, save_file

from data_process.lavis_checkpoint import convert_lavis
from data_process.qformer import load_encoder


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
