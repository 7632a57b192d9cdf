"""Training through the real train(): what changes, what must not, the log, reuse."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_narrator import (
    FEATURES,
    WIDTH,
    as_started,
    clip_tokens,
    log_of,
    started_run,
    train_and_keep,
    train_config,
)

import videonarrator.training.run as training
from videonarrator.clip_inputs import IGNORED, TokenRules, encode, training_inputs
from videonarrator.config import load_config
from videonarrator.dataset import ClipSamples, collate
from videonarrator.prompt import inputs_text, parse_inputs
from videonarrator.schema import NarratorError
from videonarrator.settings import TrainConfig
from videonarrator.training.building import build_narrator
from videonarrator.training.run import train

# -------------------- the data set


def samples_of(narrator_and_tokenizer, shots, template, **rules):
    return ClipSamples(shots, clip_tokens, narrator_and_tokenizer[1], template, WIDTH, **rules)


@pytest.fixture
def fresh(backbone, tmp_path):
    """The narrator as a LoRA run begins with it, and its tokenizer."""
    torch.manual_seed(42)
    return build_narrator(train_config(backbone, tmp_path), WIDTH)


def test_samples_are_their_encoded_inputs(fresh, shots, zh):
    dataset = samples_of(fresh, shots, zh)
    assert len(dataset) == len(shots) == 10
    tokenizer = fresh[1]
    for index, shot in enumerate(shots):
        visual = clip_tokens(shot["id"], shot["shot_loc"] - 1)
        segments = training_inputs(shot, visual, zh, later=False).segments
        ids, labels = encode(segments, tokenizer, len(visual))
        item = dataset[index]
        assert (item["ids"], item["labels"], item["positions"]) == (ids, labels, (shot["shot_pos"],))
        assert item["visual"].equal(visual)
        assert ids.count(tokenizer.convert_tokens_to_ids("<vid_patch>")) == len(visual)
        assert dataset.lengths[index] == len(ids) and ids[0] == tokenizer.bos_token_id
        told = next(c for c in parse_inputs(shot["inputs"], zh).clips if c.number == shot["shot_loc"])
        learnt = tokenizer.decode([label for label in labels if label != IGNORED])
        assert learnt == f"{told.label}\n{told.number}.{told.text}\n"
    without = samples_of(fresh, shots[:1], zh, rules=TokenRules(bos=False))
    assert without[0]["ids"] == dataset[0]["ids"][1:]
    stripped = samples_of(fresh, shots[:1], zh, rules=TokenRules(strip_around_added_tokens=True))
    assert len(stripped[0]["ids"]) == len(dataset[0]["ids"]) - 1  # the line break behind the slot


def test_collated_shapes(fresh, shots, zh):
    dataset = samples_of(fresh, shots, zh)
    items = [dataset[index] for index in (0, 3, 9)]
    batch = collate(items, fresh[1].pad_token_id)
    longest, patches = max(len(i["ids"]) for i in items), sum(len(i["visual"]) for i in items)
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "input_ids": (3, longest),
        "labels": (3, longest),
        "attention_mask": (3, longest),
        "visual": (patches, WIDTH),
        "positions": (patches,),
    }
    for row, item in enumerate(items):
        length = len(item["ids"])
        assert batch["input_ids"][row, :length].tolist() == item["ids"]
        assert set(batch["input_ids"][row, length:].tolist()) <= {fresh[1].pad_token_id}
        assert set(batch["labels"][row, length:].tolist()) <= {IGNORED}
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (longest - length)
    assert batch["visual"].equal(torch.cat([item["visual"] for item in items]))
    assert batch["positions"].tolist() == [i["positions"][0] for i in items for _ in i["visual"]]


def test_later_clips_do_not_matter_to_the_loss(fresh, shots, zh):
    narrator, tokenizer = fresh
    cut, whole = (samples_of(fresh, shots, zh, later_clips=later) for later in (False, True))
    assert sum(whole.lengths) > 1.2 * sum(cut.lengths)
    narrator.eval()
    for index in (0, 2, 9):
        short, long = cut[index], whole[index]
        assert long["ids"][: len(short["ids"])] == short["ids"]
        with torch.no_grad():
            losses = [narrator(**collate([one], tokenizer.pad_token_id))["loss"] for one in (short, long)]
        assert abs(losses[0] - losses[1]) < 1e-5


def broken(tensor, value):
    tensor = tensor.clone()
    tensor[1, 3] = value
    return tensor


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: broken(t, math.nan), "no numbers"),
        (lambda t: broken(t, -math.inf), "no numbers"),
        (lambda t: t[:, :-1], rf"shape \[\d, {WIDTH - 1}\], expected \[tokens, {WIDTH}\]"),
        (lambda t: t[:0], rf"shape \[0, {WIDTH}\]"),
        (lambda t: t[None], rf"shape \[1, \d, {WIDTH}\]"),
    ],
)
def test_faulty_visual_tokens_are_named(fresh, shots, zh, spoil, message):
    def visual_of(video_id, clip):
        tokens = clip_tokens(video_id, clip)
        return spoil(tokens) if clip == 2 else tokens

    with pytest.raises(NarratorError, match=rf"video {shots[2]['id']}, clip 3: .*{message}"):
        ClipSamples(shots, visual_of, fresh[1], zh, WIDTH)


def never(video_id, clip):
    raise AssertionError("no visual tokens are to be asked for")


def test_samples_of_the_wrong_list_are_told_apart(fresh, shots, zh):
    tokenizer = fresh[1]
    whole = {"id": "v", "inputs": inputs_text(parse_inputs(shots[0]["inputs"], zh), zh), "frames": []}
    for samples, message in (
        ([], "list of training samples is empty"),
        ([whole], r"video v: no shot_loc, shot_pos; it has id, inputs, frames.*train_shots\.json"),
        (["v.mp4"], r"a sample is 'v\.mp4'.*train_shots\.json"),
        ([shots[0] | {"shot_loc": None}], "shot_loc is None, expected the clip's number"),
    ):
        with pytest.raises(NarratorError, match=message):
            ClipSamples(samples, never, tokenizer, zh, WIDTH)
    with pytest.raises(NarratorError, match=rf"video {shots[0]['id']}, clip 2: the slot .* is not"):
        ClipSamples([shots[0] | {"shot_loc": 2}], clip_tokens, tokenizer, zh, WIDTH)


def test_a_tokenizer_without_bos_is_an_error_that_names_the_setting(fresh, shots, zh, monkeypatch):
    tokenizer = fresh[1]
    monkeypatch.setattr(tokenizer, "_special_tokens_map", tokenizer._special_tokens_map | {"bos_token": None})
    assert tokenizer.bos_token_id is None
    with pytest.raises(NarratorError, match=r"clip 1: the tokenizer has no BOS token: .*bos=False"):
        samples_of(fresh, shots, zh)


# -------------------- what training changes


def test_lora_changes_what_it_should_and_no_other_bit(backbone, shots, zh, tmp_path):
    config = train_config(backbone, tmp_path / "run", dropout=0.05)
    narrator = train_and_keep(config, shots)
    start = dict(as_started(config, shots, zh)[0].named_parameters())
    base = load_file(backbone / "model.safetensors")
    frozen, changed = set(), set()
    for name, parameter in narrator.named_parameters():
        if parameter.requires_grad:
            assert not parameter.equal(start[name]), name
            changed.add(name)
        else:
            original = name.removeprefix("language_model.base_model.model.").replace(".base_layer", "")
            assert parameter.equal(base[original]), name
            frozen.add(original)
    assert frozen == base.keys() - {"model.embed_tokens.weight", "lm_head.weight"}
    assert any("norm" in name for name in frozen) and any("W_pack" in name for name in frozen)
    assert len(changed) == 2 * 2 * 5 + 2 + 3  # A and B of five layers in two blocks, embeddings, projector
    table, before = narrator.projector.position.weight, start["projector.position.weight"]
    moved = {row for row in range(100) if not table[row].equal(before[row])}
    assert moved == {shot["shot_pos"] for shot in shots}


def test_full_training_may_change_everything(backbone, shots, zh, tmp_path):
    config = train_config(backbone, tmp_path / "run", adapter="full", gradient_checkpointing=True)
    narrator = train_and_keep(config, shots)
    start = dict(as_started(config, shots, zh)[0].named_parameters())
    assert len(start) == 2 * 7 + 3 + 3  # two blocks; embeddings, last norm, head; projector
    for name, parameter in narrator.named_parameters():
        assert not parameter.equal(start[name]), name


def test_projector_may_have_a_rate_of_its_own(backbone, shots, zh, tmp_path):
    config = train_config(
        backbone, tmp_path / "run", learning_rate=1e-12, projector_learning_rate=1e-2, epochs=1
    )
    narrator = train_and_keep(config, shots)
    start = dict(as_started(config, shots, zh)[0].named_parameters())
    for name, parameter in narrator.named_parameters():
        far = (parameter - start[name]).abs().max().item()
        assert far > 1e-3 if name.startswith("projector.") else far < 1e-6, name


def first_gradients(backbone, shots, template, folder, parts=None, **settings):
    """The gradients of the first update, which is made in so many micro-batches."""
    settings |= {"epochs": 1, "samples_per_step": 100, "clip_norm": 1e9}
    config = train_config(backbone, folder, adapter="full", **settings)
    run, _ = started_run(config, shots, template)
    kept = {}

    def keep(optimizer, args, kwargs):
        kept.update({n: p.grad.double().clone() for n, p in run.narrator.named_parameters()})

    run.optimizer.optimizer.register_step_pre_hook(keep)
    run.loop.model.train()
    micro_batches = run.loop.batches[0]
    assert parts in (None, len(micro_batches))
    run.loop.step(0, micro_batches)
    return kept


FORMS = {
    "one padded batch": {"packed": False, "batch_size": 10},
    "padded one by one": {"packed": False, "batch_size": 1},
    "packed into one sequence": {"tokens_per_sequence": 10_000},
    "packed, videos divided": {"tokens_per_sequence": 500},
}


def test_a_step_is_the_same_in_whatever_parts(backbone, shots, zh, tmp_path):
    """Packed or padded, in few or many micro-batches: by the step's own number of learnt tokens."""
    numbers = dict(zip(FORMS, (1, 10, 1, 5), strict=True))
    parts = {
        name: first_gradients(backbone, shots, zh, tmp_path, numbers[name], **settings)
        for name, settings in FORMS.items()
    }
    whole = parts.pop("one padded batch")
    assert len(whole) == 2 * 7 + 3 + 3
    means = first_gradients(
        backbone, shots, zh, tmp_path, packed=False, batch_size=1, loss_weighting="microbatch"
    )
    scale, far = max(gradient.abs().max().item() for gradient in whole.values()), 0.0
    for name, gradient in whole.items():
        for form, others in parts.items():
            difference = (gradient - others[name]).abs()
            assert difference.max() < 1e-5 * scale and difference.mean() < 1e-6 * scale, (form, name)
        far = max(far, (gradient - means[name]).abs().max().item())
    assert far > 1e-2 * scale


def test_the_mean_of_samples_is_that_of_batches_of_one(backbone, shots, zh, tmp_path):
    alone = {"packed": False, "batch_size": 1, "loss_weighting": "microbatch"}
    expected = first_gradients(backbone, shots, zh, tmp_path, **alone)
    found = first_gradients(backbone, shots, zh, tmp_path, loss_weighting="sample")
    scale = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (gradient - found[name]).abs().max() < 1e-5 * scale, name


# -------------------- the run's folder


def test_log_and_settings_of_a_run(lora_run, backbone):
    lora_run, _ = lora_run
    log = log_of(lora_run)
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    speeds = {"samples_per_second", "tokens_per_second"}
    for line in log:
        assert set(line) == {"step", "loss", "grad_norm", "learning_rate", "epoch", *speeds}
        assert math.isfinite(line["loss"]) and line["grad_norm"] > 0
        assert all(line[speed] > 0 for speed in speeds)
    assert log[3]["loss"] < log[0]["loss"] - 0.3
    rates = [0, *(0.5 * (1 + math.cos(math.pi * done / 3)) * 1e-2 for done in range(3))]
    assert [line["learning_rate"] for line in log] == pytest.approx(rates)  # warm-up of one step, cosine
    assert log[1]["epoch"] == 1 and log[3]["epoch"] == 2
    assert {path.name for path in lora_run.iterdir()} == {
        "checkpoint",
        "config.yaml",
        "env.json",
        "run.json",
        "train_log.jsonl",
        "loss_curve.png",
    }
    assert load_config(TrainConfig, lora_run / "config.yaml") == train_config(backbone, lora_run)
    assert {"torch", "transformers", "peft"} <= set(
        json.loads((lora_run / "env.json").read_text())["versions"]
    )


@pytest.mark.parametrize("form", ["one padded batch", "padded one by one", "packed, videos divided"])
def test_logged_loss_is_the_step_s_own(backbone, shots, zh, tmp_path, form):
    config = train_config(backbone, tmp_path / "run", epochs=1, samples_per_step=10, **FORMS[form])
    train(config, shots, clip_tokens, FEATURES)
    narrator, tokenizer, dataset = as_started(config, shots, zh)
    with torch.no_grad():
        loss = narrator.eval()(**collate([dataset[i] for i in range(10)], tokenizer.pad_token_id))["loss"]
    assert log_of(tmp_path / "run")[0]["loss"] == pytest.approx(loss.item(), abs=1e-4)


def test_a_finished_run_is_reused_and_no_other_takes_its_folder(
    backbone, lora_run, shots, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    shutil.copytree(lora_run[0], run)
    record = json.loads((run / "run.json").read_text())
    record["settings"] = repr(train_config(backbone, run))
    (run / "run.json").write_text(json.dumps(record))

    def unwanted(*words):
        raise AssertionError("nothing is to be loaded")

    monkeypatch.setattr(training, "build_narrator", unwanted)
    config = train_config(backbone, run)
    before = {file: file.read_bytes() for file in sorted(run.rglob("*")) if file.is_file()}
    assert train(config, shots, never, FEATURES) == run / "checkpoint"
    other = tmp_path / "other"
    shutil.copytree(backbone, other)
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 1e-5}))
    same_place = replace(config, model=replace(config.model, backbone=str(other)))
    record["settings"] = repr(same_place)
    for changed, samples, features in (
        (train_config(backbone, run, learning_rate=2e-2), shots, FEATURES),
        (replace(config, model=replace(config.model, template="zh_nolabel")), shots, FEATURES),
        (config, shots[:-1], FEATURES),
        (config, shots, FEATURES | {"threshold": 0.8}),
    ):
        with pytest.raises(NarratorError, match=r"other settings or data: give another output=.*rm -r"):
            train(changed, samples, never, features)
    assert {file: file.read_bytes() for file in sorted(run.rglob("*")) if file.is_file()} == before
    (run / "run.json").write_text(json.dumps(record))  # the same path, but another backbone lies there now
    with pytest.raises(NarratorError, match="other settings or data"):
        train(same_place, shots, never, FEATURES)


def test_a_mistaken_start_does_not_claim_the_folder(backbone, shots, tmp_path):
    """The mistake mended, the same output folder can be used."""
    run = tmp_path / "run"
    empty = tmp_path / "empty"
    empty.mkdir()
    short = tmp_path / "short"
    shutil.copytree(backbone, short)
    settings = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 50}))
    lacking = tmp_path / "lacking"
    shutil.copytree(backbone, lacking)
    (lacking / "model.safetensors").unlink()
    cut = tmp_path / "cut"
    shutil.copytree(backbone, cut)
    (cut / "model.safetensors").write_bytes((backbone / "model.safetensors").read_bytes()[:-1000])
    for folder, message in (
        (tmp_path / "nothing", "no backbone can be loaded from .*nothing"),
        (empty, "empty is no language model: it has no config.json"),
        (short, rf"video {shots[0]['id']}, clip 1, has \d+ tokens; the backbone takes 50"),
        (lacking, "no backbone can be loaded from .*lacking"),
        (cut, "no backbone can be loaded from .*cut"),
    ):
        with pytest.raises(NarratorError, match=message):
            train(train_config(folder, run), shots, clip_tokens, FEATURES)
        assert not (run / "run.json").exists()
    with pytest.raises(NarratorError, match="clip 1: its visual tokens have shape"):
        train(train_config(backbone, run), shots, clip_tokens, FEATURES | {"width": 768})
    with pytest.raises(NarratorError, match="list of training samples is empty"):
        train(train_config(backbone, run), [], clip_tokens, FEATURES)
    train(train_config(backbone, run, epochs=1), shots[:4], clip_tokens, FEATURES)
    assert (run / "checkpoint/narrator.json").is_file()


def test_a_folder_that_cannot_be_made_is_an_error(backbone, shots, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NarratorError, match=r"cannot write to .*file"):
        train(train_config(backbone, tmp_path / "file" / "run"), shots, clip_tokens, FEATURES)
