"""Published checkpoints: adapters on either layout, written back, and everything that is refused."""

import json
import os
import shutil

import pytest
import torch
from cli_world import fails, run, succeed
from published_world import altered_copy
from safetensors.torch import load_file, save_file

import videonarrator.published.importing as importing
from videonarrator.checkpoint import load_checkpoint, read_info
from videonarrator.modeling.adapters import divided_adapter
from videonarrator.published.baichuan import convert_baichuan
from videonarrator.published.instruction import find_instruction, read_instruction
from videonarrator.schema import NarratorError
from videonarrator.weight_files import read_tensors

# -------------------- adapters


def test_merged_adapter_is_the_published_arithmetic(published):
    """W + alpha / r * B A, for every layer and the projector; merged checkpoints narrate the same."""
    merged = load_checkpoint(published.checkpoint)
    weights = dict(merged.narrator.language_model.state_dict())
    base = {
        n: t for file in published.backbone.glob("model-*.safetensors") for n, t in load_file(file).items()
    }
    adapter = read_tensors(published.upstream / "checkpoint/adapter_model.bin")
    settings = published.json("checkpoint/adapter_config.json")
    scale = settings["lora_alpha"] / settings["r"]
    layers = {name.rpartition(".lora_")[0] for name in adapter}
    for layer in layers:
        grown = (adapter[f"{layer}.lora_B.weight"] @ adapter[f"{layer}.lora_A.weight"]) * scale
        assert grown.abs().max() > 0
        name = layer.removeprefix("base_model.model.")
        if name == "model.mm_projector":
            own = load_file(published.backbone / "projector.safetensors")["linear.weight"]
            ours = merged.narrator.projector.linear.weight
        else:
            own, ours = base[f"{name}.weight"], weights[f"{name}.weight"]
        assert (ours - (own + grown)).abs().max() < 1e-6, layer
    assert len(layers) == sum(1 for name in adapter if "lora_A" in name)


@torch.no_grad()
def test_fused_adapter_on_a_split_backbone(published, tmp_path):
    """Divided, it is the same model; merged weights equal the fused ones' rows to 1e-6."""
    split = convert_baichuan(published.upstream / "base", tmp_path / "split", "split")
    fused, divided = (load_checkpoint(published.checkpoint, backbone=folder) for folder in (None, str(split)))
    one, other = (dict(c.narrator.language_model.state_dict()) for c in (fused, divided))
    compared = 0
    for name, weight in one.items():
        if name.endswith("W_pack.weight"):
            for part, rows in zip("qkv", weight.chunk(3), strict=True):
                theirs = other[name.replace("W_pack", f"{part}_proj")]
                assert (theirs - rows).abs().max() < 1e-6
                compared += 1
    assert compared == 3 * fused.narrator.base.config.num_hidden_layers
    assert type(divided.narrator.base).__name__ == "LlamaForCausalLM"
    ids = torch.randint(3, 200, (1, 30), generator=torch.Generator().manual_seed(2))
    first, second = (c.narrator.language_model(ids).logits for c in (fused, divided))
    assert (first - second).abs().max() < 1e-4
    whole = load_checkpoint(published.checkpoint, backbone=str(split), merge=False)
    assert (whole.narrator.language_model(ids).logits - first).abs().max() < 1e-4


def test_split_adapter_on_a_fused_backbone_is_refused(published, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(published.checkpoint, checkpoint)
    file = checkpoint / "adapter/adapter_model.safetensors"
    save_file(divided_adapter(load_file(file)), file)
    settings = json.loads((checkpoint / "adapter/adapter_config.json").read_text())
    settings["target_modules"] = [
        name.replace("W_pack", f"{part}_proj") for name in settings["target_modules"] for part in "qkv"
    ]
    (checkpoint / "adapter/adapter_config.json").write_text(json.dumps(settings))
    rehash(checkpoint)
    with pytest.raises(NarratorError, match="three A matrices do not fit into one"):
        load_checkpoint(checkpoint, backbone=str(published.backbone))
    fails(run("convert", "to-upstream", checkpoint, tmp_path / "back"), "three A matrices do not fit")


def rehash(checkpoint):
    """The record of a checkpoint's files as they are now."""
    import hashlib

    file = checkpoint / "narrator.json"
    record = json.loads(file.read_text("utf-8"))
    record["sha256"] = {
        name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in record["sha256"]
    }
    file.write_text(json.dumps(record), "utf-8")


def test_written_back_it_is_the_published_checkpoint(published, tmp_path):
    """Every tensor bit by bit, and the projector beside; what is written is imported again."""
    succeed("convert", "to-upstream", published.checkpoint, tmp_path / "back")
    projector = load_file(published.backbone / "projector.safetensors")
    for name in ("adapter_model.bin", "non_lora_trainables.bin"):
        ours, theirs = (
            read_tensors(d / name) for d in (tmp_path / "back", published.upstream / "checkpoint")
        )
        assert set(theirs) <= set(ours) and all(ours[key].equal(theirs[key]) for key in theirs)
        beyond = {key.rpartition(".")[2] for key in set(ours) - set(theirs)}
        assert beyond <= ({"weight", "bias"} if name == "non_lora_trainables.bin" else set())
    kept = read_tensors(tmp_path / "back/mm_projector.bin")
    assert kept["model.mm_projector.weight"].equal(projector["linear.weight"])
    settings = json.loads((tmp_path / "back/adapter_config.json").read_text())
    theirs = published.json("checkpoint/adapter_config.json")
    assert set(settings["target_modules"]) == set(theirs["target_modules"])
    assert all(settings[key] == theirs[key] for key in ("r", "lora_alpha", "lora_dropout", "peft_type"))
    succeed(
        "convert", "upstream", "--base", published.backbone, "--adapter", tmp_path / "back",
        "--out", tmp_path / "again", "--instruction", published.upstream / "instruction.txt",
    )  # fmt: skip
    first, second = (load_file(f / "trained.safetensors") for f in (published.checkpoint, tmp_path / "again"))
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


# -------------------- the projector that is nowhere


@pytest.fixture(scope="module")
def without_projector(upstream, tmp_path_factory):
    """The base folder as a real one is: no projector in it."""
    folder = tmp_path_factory.mktemp("real") / "base"
    shutil.copytree(upstream / "base", folder)
    tensors = read_tensors(upstream / "base/pytorch_model.bin")
    kept = {name: tensor.clone() for name, tensor in tensors.items() if "mm_projector" not in name}
    assert len(kept) == len(tensors) - 2
    (folder / "pytorch_model.bin").unlink()
    torch.save(kept, folder / "pytorch_model.bin")
    return folder


def importing_words(upstream, base, out, *more):
    return [
        "convert", "upstream", "--base", base, "--adapter", upstream / "checkpoint", "--out", out,
        "--instruction", upstream / "instruction.txt", *more,
    ]  # fmt: skip


def test_a_missing_projector_is_refused_and_said_loudly(upstream, published, without_projector, tmp_path):
    out = tmp_path / "checkpoint"
    fails(
        run(*importing_words(upstream, without_projector, out)),
        "mm_projector.weight, .bias) are neither in", "saved it nowhere", "--projector FILE",
    )  # fmt: skip
    assert not out.exists()
    done = succeed(*importing_words(upstream, without_projector, out, "--random-projector"))
    assert "WARNING: the visual projector is drawn at random" in done.err
    assert read_info(out).projector_origin == "drawn at random (seed 0)"
    drawn = load_file(out / "trained.safetensors")["projector.linear.weight"]
    given = tmp_path / "mm_projector.bin"
    own = load_file(published.backbone / "projector.safetensors")
    torch.save({f"model.mm_projector.{part}": own[f"linear.{part}"] for part in ("weight", "bias")}, given)
    succeed(*importing_words(upstream, without_projector, tmp_path / "given", "--projector", given))
    stored = load_file(tmp_path / "given/trained.safetensors")["projector.linear.weight"]
    assert stored.equal(own["linear.weight"]) and not drawn.equal(stored)


def test_narrating_with_a_random_projector_says_so_every_time(
    upstream, published, without_projector, tmp_path, caplog
):
    out = tmp_path / "checkpoint"
    succeed(*importing_words(upstream, without_projector, out, "--random-projector"))
    load_checkpoint(out)
    assert "drawn at random" in caplog.text
    caplog.clear()
    load_checkpoint(published.checkpoint)
    assert caplog.text == ""


# -------------------- what is refused


class Payload:
    """What a pickle could do while it is read: here, leave a folder."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"mkdir {self.trace}",)


FILES = ("adapter_model.bin", "non_lora_trainables.bin", "mm_projector.bin", "pytorch_model.bin")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("inside", ["alone", "among tensors", "old format"])
def test_a_payload_is_refused_and_nothing_runs(name, inside, upstream, without_projector, tmp_path):
    trace = tmp_path / "trace"
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(without_projector, base)
    shutil.copytree(upstream / "checkpoint", adapter)
    file = (base if name == "pytorch_model.bin" else adapter) / name
    file.unlink(missing_ok=True)
    content = Payload(trace) if inside == "alone" else {"lm_head.weight": torch.zeros(2), "x": Payload(trace)}
    torch.save(content, file, _use_new_zipfile_serialization=inside != "old format")
    done = run(
        "convert", "upstream", "--base", base, "--adapter", adapter, "--out", tmp_path / "out",
        "--instruction", upstream / "instruction.txt",
    )  # fmt: skip
    fails(done, str(file), "refused; nothing in it was run")
    assert not trace.exists() and not (tmp_path / "out").exists()
    torch.load(file, weights_only=False)
    assert trace.exists()  # else the payload is none


def tensors(name, edit):
    def change(folder):
        held = {key: tensor.clone() for key, tensor in read_tensors(folder / name).items()}
        torch.save(edit(held), folder / name)

    return change


def settings(**values):
    def change(folder):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def narrower(held):
    """The same adapter for a base of another width."""
    return {key: (t[:, :-4] if "lora_A" in key else t[:-4]).clone() for key, t in held.items()}


CASES = {
    "no adapter": (lambda d: (d / "adapter_config.json").unlink(), "is no published checkpoint: no adap"),
    "no LoRA": (settings(peft_type="IA3"), "peft_type is 'IA3', expected 'LORA'"),
    "other rank": (settings(r=7), "adapter_config.json says rank 7"),
    "a file lacks": (lambda d: (d / "non_lora_trainables.bin").unlink(), "no file .*non_lora_trainables.bin"),
    "cut short": (
        lambda d: (d / "adapter_model.bin").write_bytes((d / "adapter_model.bin").read_bytes()[:5000]),
        "adapter_model.bin cannot be read: it is cut short",
    ),
    "another base": (tensors("adapter_model.bin", narrower), "is of another base: on .* it maps"),
    "vocabulary": (
        tensors("non_lora_trainables.bin", lambda h: {k: t if "pos" in k else t[:-9] for k, t in h.items()}),
        "rows, but the tokenizer of .* pieces .*: wrong vocabulary size",
    ),
    "deeper base": (
        tensors("adapter_model.bin", lambda h: {k.replace("layers.0", "layers.77"): t for k, t in h.items()}),
        r"is on model\.layers\.77\.\S+, which the base model .* does not have",
    ),
    "half a pair": (
        tensors("adapter_model.bin", lambda h: {k: h[k] for k in h if "0.mlp.up_proj.lora_B" not in k}),
        r"layers\.0\.mlp\.up_proj has only one of lora_A and lora_B",
    ),
    "unknown tensor": (
        tensors("non_lora_trainables.bin", lambda h: h | {"base_model.model.visual.x": torch.zeros(2)}),
        "holds tensors of another kind of model: base_model.model.visual.x",
    ),
    "no positions": (
        tensors("non_lora_trainables.bin", lambda h: {k: t for k, t in h.items() if "position" not in k}),
        "lacks embeddings or the position table",
    ),
    "no tensors": (lambda d: torch.save([1, 2], d / "adapter_model.bin"), "holds list, expected names and"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_refused(case, upstream, published, tmp_path):
    change, message = CASES[case]
    adapter = altered_copy(upstream / "checkpoint", tmp_path / "adapter", change)
    template = importing.template_with("zh", upstream / "instruction.txt", None)
    with pytest.raises(NarratorError, match=message):
        importing.run(published.backbone, adapter, tmp_path / "out", template, None, False, print)
    assert not (tmp_path / "out").exists()


def test_wrong_folders_and_words(upstream, published, tmp_path):
    words = ["convert", "upstream", "--adapter", upstream / "checkpoint", "--out", tmp_path / "out"]
    fails(run(*words, "--base", upstream / "base"), "--instruction FILE", "--published-repo DIR")
    wording = ["--instruction", upstream / "instruction.txt"]
    fails(run(*words, "--base", tmp_path, *wording), f"--base {tmp_path} is no model folder")
    fails(run(*words, "--base", upstream / "base", "--instruction", tmp_path / "no"), "cannot read the instr")
    swapped = ["convert", "upstream", "--adapter", upstream / "base", "--base", published.backbone]
    fails(run(*swapped, *wording, "--out", tmp_path / "out"), "is no published checkpoint")
    fails(
        run(*words[:-1], published.checkpoint, "--base", published.backbone, *wording),
        "is there already: give another --out",
    )
    wrong = tmp_path / "wrong.bin"
    torch.save({"weight": torch.zeros(3, 4), "bias": torch.zeros(3), "more": torch.zeros(1)}, wrong)
    given = ["--base", published.backbone, *wording, "--projector", wrong]
    fails(run(*words, *given), "wrong.bin: more is no tensor of the visual projector")
    torch.save({"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}, wrong)
    fails(run(*words, *given), "projector and adapter are of two models")


# -------------------- the wording


def test_the_instruction_is_kept_as_it_is(upstream, tmp_path):
    text = (upstream / "instruction.txt").read_text("utf-8")
    assert read_instruction(upstream / "instruction.txt") == text
    for ending in ("", "\n", "\n\n\n"):  # editors add and take line breaks
        (tmp_path / "wording.txt").write_text(text.rstrip("\n") + ending, "utf-8")
        assert read_instruction(tmp_path / "wording.txt") == text
    (tmp_path / "wording.txt").write_text(" \n", "utf-8")
    with pytest.raises(NarratorError, match="is empty"):
        read_instruction(tmp_path / "wording.txt")


WORDING = "这里给出商品资料和视频镜头，请判断剧本类型，并按字数要求写文案。"
FORMS = (
    'PROMPT = "{0}\\n\\n"\n',
    'def build(x):\n    head = "{0}"\n    return head + "\\n\\n" + x["inputs"]\n',
    'def build(x):\n    return f"{0}\\n\\n{{x}}"\n',
    'text = ("{0}"\n        "\\n\\n商品信息：\\n名称：" + name)\n',
    'text = """{0}\n\n"""\n',
)


@pytest.mark.parametrize("form", FORMS)
def test_the_instruction_is_found_in_a_clone_without_running_it(form, tmp_path):
    (tmp_path / "deep").mkdir()
    trap = f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n"
    (tmp_path / "deep/train.py").write_text(trap + form.format(WORDING), "utf-8")
    (tmp_path / "infer.py").write_text(
        form.format(WORDING) + 'HELP = "商品、镜头和剧本的说明，不是指令，没有空行结尾。"\n', "utf-8"
    )
    (tmp_path / "old.py").write_text("print 'Python 2'\n", "utf-8")
    assert find_instruction(tmp_path) == WORDING + "\n\n"
    assert not (tmp_path / "ran").exists()


def test_no_wording_or_two_are_errors_that_name_the_places(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n", "utf-8")
    with pytest.raises(
        NarratorError, match=r"no instruction found in the 1 Python files .* --instruction FILE"
    ):
        find_instruction(tmp_path)
    other = WORDING.replace("写文案", "写出旁白文案")
    (tmp_path / "a.py").write_text(f'A = "{WORDING}\\n\\n"\nB = "{other}\\n\\n"\n', "utf-8")
    with pytest.raises(NarratorError, match=r"holds 2 wordings \(a.py, line 1: .*; a.py, line 2: "):
        find_instruction(tmp_path)
    with pytest.raises(NarratorError, match="no folder"):
        find_instruction(tmp_path / "nowhere")
