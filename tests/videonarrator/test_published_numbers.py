"""The published code's numbers: losses, logits, gradients, before and after its training; and its texts."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from cli_world import succeed
from published_world import before_training, samples_of
from safetensors.torch import load_file

from videonarrator.checkpoint import load_checkpoint, read_info
from videonarrator.dataset import collate
from videonarrator.generation.engine import Engine
from videonarrator.modeling.lora import projector_tensors
from videonarrator.published.baichuan import adds_bos

SPLITS = ("test", "train")


@pytest.fixture(scope="module")
def untrained(published):
    narrator, dataset, tokenizer = before_training(published)
    return narrator.eval(), dataset, tokenizer


@pytest.fixture(scope="module")
def trained(published):
    """The imported checkpoint, its LoRA not merged, as the published numbers were taken."""
    loaded = load_checkpoint(published.checkpoint, merge=False)
    dataset = samples_of(published, loaded.tokenizer, loaded.template, loaded.info.token_rules)
    return loaded.narrator, dataset, loaded.tokenizer


@pytest.fixture(params=["init", "trained"])
def stage(request, untrained, trained, published):
    narrator, dataset, tokenizer = {"init": untrained, "trained": trained}[request.param]
    facts = published.json(f"train/loss_{request.param}.json")
    logits = load_file(published.upstream / f"train/logits_{request.param}.safetensors")
    return request.param, narrator, dataset, tokenizer, facts, logits


def test_samples_are_the_published_ones(untrained, published):
    """Ids, labels, visual tokens and positions, from annotations and frames to the collator."""
    _, dataset, tokenizer = untrained
    stored = load_file(published.upstream / "train/samples.safetensors")
    facts = published.json("train/samples.json")
    assert len(dataset) == len(facts) == len(published.json("train_shots.json"))
    seen = 0
    for index, fact in enumerate(facts):
        batch = collate([dataset[index]], tokenizer.pad_token_id)
        assert batch["input_ids"][0].tolist() == stored[f"{index}.input_ids"].tolist()
        assert batch["labels"][0].tolist() == stored[f"{index}.labels"].tolist()
        assert len(batch["visual"]) == fact["n_vid_patch"]
        if fact["n_vid_patch"]:
            digest = hashlib.sha256(batch["visual"].numpy().tobytes()).hexdigest()
            assert digest == fact["feature_sha256"]
            assert set(batch["positions"].tolist()) == {fact["frame_pos"]}
            seen += 1
    assert seen > 0


@torch.no_grad()
def test_losses(stage):
    _, narrator, dataset, tokenizer, facts, _ = stage
    for fact in facts["per_sample"]:
        loss = narrator(**collate([dataset[fact["sample"]]], tokenizer.pad_token_id))["loss"].item()
        assert abs(loss - fact["loss"]) < 1e-5, fact["sample"]
    assert len(facts["per_sample"]) == len(dataset)
    for fact in facts["batches"]:
        batch = collate([dataset[index] for index in fact["samples"]], tokenizer.pad_token_id)
        assert list(batch["input_ids"].shape) == fact["input_shape"]
        assert abs(narrator(**batch)["loss"].item() - fact["loss"]) < 1e-5, fact["samples"]


@torch.no_grad()
def test_logits(stage):
    name, narrator, dataset, tokenizer, _, stored = stage
    compared = 0
    for index in range(len(dataset)):
        key = f"{name}.sample{index}.logits_"
        if f"{key}last" not in stored:
            continue
        batch = collate([dataset[index]], tokenizer.pad_token_id)
        embedded = narrator.embed(batch["input_ids"], batch["visual"], batch["positions"])
        logits = narrator.language_model(inputs_embeds=embedded).logits[0]
        first = int((batch["labels"][0] != -100).nonzero()[0])
        assert (logits[first - 1] - stored[f"{key}at_first_supervised"]).abs().max() < 1e-4
        assert (logits[-1] - stored[f"{key}last"]).abs().max() < 1e-4
        compared += 1
    assert 2 * compared == len(stored) > 0


@torch.no_grad()
def test_the_checks_see_each_mistake(trained, published):
    """What the published set-up does differently from what one would expect moves the losses by far more."""
    narrator, dataset, tokenizer = trained
    facts = published.json("train/loss_trained.json")["per_sample"]
    seen = [fact for fact in facts if dataset[fact["sample"]]["counts"]]
    linear = projector_tensors(narrator.projector)

    def moved(samples):
        batches = [collate([samples[fact["sample"]]], tokenizer.pad_token_id) for fact in seen]
        losses = [narrator(**batch)["loss"].item() for batch in batches]
        return max(abs(loss - fact["loss"]) for loss, fact in zip(losses, seen, strict=True))

    assert moved(dataset) < 1e-5
    for name, factor in (("linear.bias", 0.5), ("linear.lora_B.weight", 0.0), ("position.weight", 0.0)):
        kept = linear[name].clone()
        linear[name].mul_(factor)
        assert moved(dataset) > 1e-4, name
        linear[name].copy_(kept)
    template, rules = (
        load_checkpoint(published.checkpoint).template,
        read_info(published.checkpoint).token_rules,
    )
    assert (
        moved(samples_of(published, tokenizer, template, replace(rules, strip_around_added_tokens=False)))
        > 1e-4
    )


def test_gradients_of_the_first_batch(untrained, published):
    """Norm and sum of every trained parameter's gradient; what the published set-up froze has none."""
    narrator, dataset, tokenizer = untrained
    facts = published.json("train/loss_init.json")
    batch = collate([dataset[index] for index in facts["grad_batch"]], tokenizer.pad_token_id)
    narrator.zero_grad()
    narrator(**batch)["loss"].backward()
    ours = {name: p.grad for name, p in narrator.language_model.named_parameters() if p.requires_grad}
    renamed = {
        "linear.lora_A.weight": "mm_projector.lora_A.default.weight",
        "linear.lora_B.weight": "mm_projector.lora_B.default.weight",
        "position.weight": "frame_position_embedding.weight",
    }
    for name, parameter in projector_tensors(narrator.projector).items():
        if parameter.requires_grad:
            ours[f"base_model.model.model.{renamed[name]}"] = parameter.grad
    assert set(ours) == set(facts["grads"])
    for name, wanted in facts["grads"].items():
        gradient = ours[name].double()
        assert gradient.norm().item() == pytest.approx(wanted["norm"], rel=1e-5, abs=1e-9), name
        # a sum cancels: it is held against the size of what is summed
        assert abs(gradient.sum().item() - wanted["sum"]) < 1e-5 * gradient.abs().sum().item() + 1e-9, name
    narrator.zero_grad()


# -------------------- inference


@pytest.fixture
def asked(monkeypatch):
    """Every line that the engine writes, in order."""
    lines, begin = [], Engine._begin
    monkeypatch.setattr(Engine, "_begin", lambda engine, row: (lines.append(row.line), begin(engine, row)))
    return lines


def digest(ids):
    return hashlib.sha256(torch.tensor(ids, dtype=torch.int32).numpy().astype("<i4").tobytes()).hexdigest()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("offered", [False, True])
def test_output_files_and_every_token(split, offered, published, tmp_path, asked):
    """infer gives the published output.json and output_label.json; each prompt and token is the published."""
    name = "output_label" if offered else "output"
    words = [
        "infer", "--annotations", published.upstream / "all_video_data.json",
        "--ids", published.ids_of(split), "--features", published.features,
        "--checkpoint", published.checkpoint, "--out", tmp_path, "--compat", "upstream",
    ]  # fmt: skip
    succeed(*words, *["--offered-label"] * offered)
    expected = published.json(f"infer/{split}_{name}.json")
    made = json.loads((tmp_path / f"{name}.json").read_text("utf-8"))
    assert made == expected and list(made) == list(expected)
    tokens = published.json(f"infer/{split}_{name}_tokens.json")
    lines = {digest(line.prompt.ids): line for line in asked}
    phases = 0
    for fact in tokens:
        for phase in ("label", "narration"):
            if phase not in fact:
                continue
            wanted = fact[phase]
            line = lines[wanted["prompt_sha256_int32le"]]
            assert line.written == [token for token in wanted["new_ids"] if token != wanted["eos"]]
            assert set(line.prompt.positions) == set(wanted["pos"]) and line.penalty == wanted["rep"]
            phases += 1
    assert phases > 0 and any("0.1" in entry for entry in expected.values())


def test_without_compat_left_out_clips_cost_nothing_else(published, tmp_path):
    """The project's own output.json of the same run: annotation numbers, true references, all kept clips."""
    words = [
        "infer", "--annotations", published.upstream / "all_video_data.json", "--ids",
        published.ids_of("test"), "--features", published.features, "--checkpoint", published.checkpoint,
        "--out", tmp_path,
    ]  # fmt: skip
    succeed(*words)
    made = json.loads((tmp_path / "output.json").read_text("utf-8"))
    annotated = published.json("all_video_data.json")
    for key, entry in made.items():
        video_id, _, index = key.rpartition("_")
        assert entry["gt"] == annotated[f"{video_id}.mp4"]["frames"][int(index)]["new_text"]
        assert entry["0.1"] and entry["out_label"]
    kept = sum(len(one["frames"]) for one in published.json("test.json"))
    assert len(made) == kept


def test_what_the_checkpoint_says(published):
    info = read_info(published.checkpoint)
    assert info.compat == "upstream" and info.strip_around_added_tokens
    assert info.bos == adds_bos(published.upstream / "base")
    settings = published.json("checkpoint/adapter_config.json")
    assert info.projector_lora["rank"] == settings["r"] and info.projector_origin == ""
    prompt = load_checkpoint(published.checkpoint).template.instruction
    assert prompt == (published.upstream / "instruction.txt").read_text("utf-8")
