"""BLIP-2 folders as the hub has them: in shards, as torch files, with text modules, with their own
preprocessing; and what is said of those that cannot be used.
"""

import json
import logging
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    OPTConfig,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from data_process.extract import feature_settings
from data_process.qformer import (
    Preprocessing,
    encoder_fingerprint,
    load_encoder,
    preprocess,
    read_preprocessing,
)
from videonarrator.schema import NarratorError

SIZE, WIDTH, QUERIES = 28, 16, 5


def make_model(kind, *, eps=1e-6, text=False):
    torch.manual_seed(0)
    config = Blip2Config(
        vision_config={
            "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3,
            "image_size": SIZE, "patch_size": 14, "layer_norm_eps": eps,
        },
        qformer_config={
            "hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 20,
            "encoder_hidden_size": 24, "vocab_size": 11, "max_position_embeddings": 12,
            "use_qformer_text_input": text,
        },
        text_config=OPTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, vocab_size=30,
            max_position_embeddings=20, word_embed_proj_dim=16,
        ),
        num_query_tokens=QUERIES,
        image_text_hidden_size=8,
    )  # fmt: skip
    model = kind(config).eval()
    for parameter in model.parameters():  # transformers' initial values are all but 0
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def expected_features(model, pixels):
    """By transformers' own modules."""
    with torch.inference_mode():
        states = model.vision_model(pixel_values=pixels).last_hidden_state
        queries = model.query_tokens.expand(len(pixels), -1, -1)
        return model.qformer(query_embeds=queries, encoder_hidden_states=states).last_hidden_state


def check_same(folder, model):
    pixels = torch.randn(3, 3, SIZE, SIZE)
    encoder = load_encoder(str(folder))
    with torch.inference_mode():
        assert (encoder(pixels) - expected_features(model, pixels)).abs().max() < 1e-6
    return encoder


def write_bin_shards(folder, tensors, number=3):
    names = sorted(tensors)
    weight_map = {}
    for shard in range(number):
        file = f"pytorch_model-{shard + 1:05d}-of-{number:05d}.bin"
        part = names[shard::number]
        torch.save({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), "utf-8")


@pytest.fixture
def captioner(tmp_path):
    """A folder of the kind of Salesforce/blip2-opt-2.7b, in safetensors shards; and its model."""
    model = make_model(Blip2ForConditionalGeneration)
    model.save_pretrained(tmp_path / "blip2", max_shard_size="20KB")
    return tmp_path / "blip2", model


@pytest.fixture
def with_bin(captioner):
    """The same as an old repository: torch files only."""
    folder, model = captioner
    tensors = {}
    for file in folder.glob("*.safetensors*"):
        if file.suffix == ".safetensors":
            tensors |= load_file(file)
        file.unlink()
    write_bin_shards(folder, tensors)
    return folder, model


# --- weights


def test_safetensors_in_shards(captioner):
    folder, model = captioner
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    encoder = check_same(folder, model)
    assert (encoder.width, encoder.image_size) == (WIDTH, SIZE)
    (lost,) = sorted(folder.glob("model-00002-of-*.safetensors"))
    lost.unlink()
    with pytest.raises(NarratorError, match=lost.name):
        load_encoder(str(folder))


def test_a_shard_that_was_cut_off(captioner):
    folder, _ = captioner
    file = max(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(NarratorError, match=rf"{file.name} cannot be read: it is cut short"):
        load_encoder(str(folder))


def test_torch_files_in_shards(with_bin):
    folder, model = with_bin
    check_same(folder, model)
    before = encoder_fingerprint(str(folder))
    shard = folder / "pytorch_model-00003-of-00003.bin"
    content = torch.load(shard, weights_only=True)
    torch.save({name: tensor + 1 for name, tensor in content.items()}, shard)
    assert encoder_fingerprint(str(folder)) != before
    shard.unlink()
    with pytest.raises(NarratorError, match=shard.name):
        load_encoder(str(folder))


def test_a_hub_name_with_torch_files_only(with_bin, monkeypatch):
    folder, model = with_bin
    asked = []

    def give(name, allow_patterns):
        asked.append((name, *allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", give)
    encoder = load_encoder("Nobody/old-blip2")
    assert [patterns[-1] for patterns in asked] == ["*.safetensors", "pytorch_model*.bin"]
    assert encoder.query_tokens.equal(model.query_tokens)


def test_nothing_in_a_torch_file_is_run(with_bin, tmp_path):
    folder, _ = with_bin
    marker = tmp_path / "run"

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    torch.save({"qformer.other": Payload()}, folder / "pytorch_model-00001-of-00003.bin")
    with pytest.raises(NarratorError, match=r"pytorch_model-00001-of-00003\.bin holds more than tensors"):
        load_encoder(str(folder))
    assert not marker.exists()


def test_half_precision_weights_are_widened(captioner):
    folder, model = captioner
    model.half().save_pretrained(folder, max_shard_size="20KB")
    check_same(folder, model.float())


def test_a_retrieval_models_text_modules_are_left_out(tmp_path):
    model = make_model(Blip2ForImageTextRetrieval, text=True)
    model.save_pretrained(tmp_path / "itm")
    names = set(load_file(tmp_path / "itm" / "model.safetensors"))
    text = {"embeddings.word_embeddings.weight", "qformer.encoder.layer.0.intermediate.dense.weight"}
    assert text <= names
    encoder = check_same(tmp_path / "itm", model)
    assert not text & set(encoder.state_dict())


def test_text_weights_where_the_config_tells_of_none(tmp_path):
    model = make_model(Blip2ForImageTextRetrieval, text=True)
    model.save_pretrained(tmp_path / "itm")
    config = json.loads((tmp_path / "itm" / "config.json").read_text("utf-8"))
    config["qformer_config"]["use_qformer_text_input"] = False
    (tmp_path / "itm" / "config.json").write_text(json.dumps(config), "utf-8")
    check_same(tmp_path / "itm", model)


@pytest.mark.parametrize(
    "name",
    [
        "query_tokens", "vision_model.post_layernorm.bias", "qformer.layernorm.weight",
        "qformer.encoder.layer.2.intermediate_query.dense.bias",
        "vision_model.encoder.layers.1.self_attn.qkv.bias",
    ],
)  # fmt: skip
def test_everything_needed_must_be_there(with_bin, name):
    folder, _ = with_bin
    for file in folder.glob("*.bin"):
        content = torch.load(file, weights_only=True)
        if content.pop(name, None) is not None:
            torch.save(content, file)
    with pytest.raises(NarratorError, match=rf"missing \['{name}'\] \(1\)"):
        load_encoder(str(folder))


def test_names_and_sizes_that_do_not_belong(with_bin):
    folder, _ = with_bin
    shard = folder / "pytorch_model-00001-of-00003.bin"
    content = torch.load(shard, weights_only=True)
    torch.save(content | {"qformer.encoder.layer.0.other.weight": torch.zeros(1)}, shard)
    with pytest.raises(
        NarratorError, match=r"not understood \['qformer\.encoder\.layer\.0\.other\.weight'\]"
    ):
        load_encoder(str(folder))
    torch.save(content, shard)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["vision_config"]["image_size"] = 2 * SIZE
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(NarratorError, match=r"\.bin: .*position_embedding is \[1, 5, 24\], by config\.json"):
        load_encoder(str(folder))


# --- config


def change(folder, name, **values):
    file = folder / name
    content = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(content.get(key), dict):
            content[key] |= value
        else:
            content[key] = value
    file.write_text(json.dumps(content), "utf-8")


def test_the_folders_eps_is_followed_and_the_old_one_told(tmp_path, caplog):
    """Old hub configs say 1e-5: transformers' features, with a warning that the weights want 1e-6."""
    for eps, warned in ((1e-5, 1), (1e-6, 0)):
        model = make_model(Blip2ForConditionalGeneration, eps=eps)
        folder = tmp_path / str(eps)
        model.save_pretrained(folder)
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            encoder = check_same(folder, model)
        assert encoder.vision_model.post_layernorm.eps == eps
        assert len(caplog.messages) == warned and all("1e-06" in message for message in caplog.messages)


def test_the_eps_behind_the_blocks_may_be_another(captioner):
    folder, model = captioner
    change(folder, "config.json", vision_config={"post_layernorm_eps": 0.5})
    encoder = load_encoder(str(folder))
    assert encoder.vision_model.post_layernorm.eps == 0.5
    assert encoder.vision_model.encoder.layers[0].layer_norm1.eps == 1e-6
    encoder.save(folder / "again")
    assert load_encoder(str(folder / "again")).vision_model.post_layernorm.eps == 0.5
    model.vision_model.post_layernorm.eps = 0.5
    check_same(folder, model)


def test_the_picture_size_may_be_a_pair(captioner):
    folder, model = captioner
    change(folder, "config.json", vision_config={"image_size": [SIZE, SIZE]})
    check_same(folder, model)
    change(folder, "config.json", vision_config={"image_size": [SIZE, 2 * SIZE]})
    with pytest.raises(NarratorError, match=r"image_size is \[28, 56\].*a square"):
        load_encoder(str(folder))


def test_a_config_with_wrong_types(captioner):
    folder, _ = captioner
    change(folder, "config.json", vision_config={"layer_norm_eps": "1e-6"})
    with pytest.raises(NarratorError, match=r"config\.json is no config of a BLIP-2: .*layer_norm_eps"):
        load_encoder(str(folder))
    (folder / "config.json").write_text("{", "utf-8")
    with pytest.raises(NarratorError, match=r"config\.json is not JSON"):
        load_encoder(str(folder))


# --- preprocessing

HUB = {  # preprocessor_config.json of Salesforce/blip2-opt-2.7b, at another size
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "BlipImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "processor_class": "Blip2Processor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": SIZE, "width": SIZE},
}
SHAPES = [(48, 64), (64, 48), (28, 28), (20, 30), (13, 100), (90, 160), (28, 40)]


@pytest.mark.parametrize(
    "settings",
    [
        HUB,
        HUB | {"resample": 2},
        HUB | {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.5], "resample": 1},
    ],
    ids=["as on the hub", "bilinear", "other colours"],
)
def test_pixels_are_those_of_transformers(captioner, settings):
    folder, _ = captioner
    change(folder, "preprocessor_config.json", **settings)
    theirs = BlipImageProcessorPil.from_pretrained(folder)
    rng = np.random.default_rng(1)
    stills = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES]
    pixels = torch.stack([theirs(still, return_tensors="pt")["pixel_values"][0] for still in stills])
    encoder = load_encoder(str(folder))
    ours = preprocess(stills, *encoder.preprocessing)
    assert ours.dtype == pixels.dtype and (ours - pixels).abs().max() < 1e-6
    with torch.inference_mode():
        assert (encoder.encode(stills) - encoder(pixels)).abs().max() < 1e-5


def test_where_a_folder_says_nothing_it_is_lavis_transform(captioner):
    folder, _ = captioner
    assert read_preprocessing(folder, SIZE) == Preprocessing(SIZE)
    change(folder, "preprocessor_config.json", **HUB)
    assert read_preprocessing(folder, SIZE) == Preprocessing(SIZE)


def test_a_newer_processors_file_is_read(captioner):
    folder, _ = captioner
    change(folder, "processor_config.json", image_processor=HUB | {"resample": 2}, num_query_tokens=QUERIES)
    assert read_preprocessing(folder, SIZE) == Preprocessing(SIZE, resample=2)
    change(folder, "preprocessor_config.json", **HUB)
    assert read_preprocessing(folder, SIZE) == Preprocessing(SIZE)


def test_the_store_records_what_moves_features(captioner):
    folder, _ = captioner
    told = []
    for settings in (HUB, HUB | {"resample": 2}, HUB | {"image_mean": [0.5, 0.5, 0.5]}):
        change(folder, "preprocessor_config.json", **settings)
        encoder = load_encoder(str(folder))
        told.append(feature_settings(str(folder), encoder, torch.float32)["preprocessing"])
    assert told[0] == f"bicubic {SIZE}x{SIZE}, CLIP mean and deviation"
    assert told[1] == f"bilinear {SIZE}x{SIZE}, CLIP mean and deviation"
    assert told[2].startswith(f"bicubic {SIZE}x{SIZE}, mean [0.5, 0.5, 0.5] and deviation [")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("do_center_crop", True), ("do_pad", True), ("do_resize", False), ("do_rescale", False),
        ("do_normalize", False), ("rescale_factor", 1 / 127.5), ("size", {"shortest_edge": SIZE}),
        ("size", {"height": SIZE, "width": 2 * SIZE}), ("size", 2 * SIZE), ("resample", 17),
        ("image_mean", [0.5]), ("image_mean", ["a", "b", "c"]), ("image_std", [0.2, 0.0, 0.2]),
("image_processor_type", "ViTImageProcessor"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_followed_are_refused(captioner, name, value):
    folder, _ = captioner
    (folder / "preprocessor_config.json").write_text(json.dumps(HUB | {name: value}), "utf-8")
    with pytest.raises(NarratorError, match=rf"preprocessor_config\.json: {name} is .* not supported: "):
        load_encoder(str(folder))
