"""The model: fused attention is LLaMA's, visual tokens go where they belong, the loss is the plain one."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_narrator import WIDTH, batched, tiny_config
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from videonarrator.clip_inputs import IGNORED
from videonarrator.modeling.backbones import (
    BaichuanForCausalLM,
    add_tokens,
    load_backbone,
    load_tokenizer,
)
from videonarrator.modeling.lora import add_lora, linear_layers, set_trainable
from videonarrator.modeling.narrator import Narrator
from videonarrator.modeling.projector import VisualProjector
from videonarrator.prompt import ADDED_TOKENS

VOCABULARY, PATCH, PAD = 40, 37, 36


def fused_and_split(attention, dtype=torch.float32, order=(0, 1, 2)):
    """A random fused model, and transformers' own LLaMA with the parts of W_pack as q, k, v."""
    torch.manual_seed(1)
    fused = BaichuanForCausalLM(tiny_config(VOCABULARY)).to(dtype).eval()
    settings = fused.config.to_dict() | {"model_type": "llama"}
    split = LlamaForCausalLM(LlamaConfig(**settings)).to(dtype).eval()
    state = {}
    for name, tensor in fused.state_dict().items():
        if "W_pack" in name:
            parts = tensor.chunk(3)
            for letter, part in zip("qkv", order, strict=True):
                state[name.replace("W_pack", f"{letter}_proj")] = parts[part]
        else:
            state[name] = tensor
    split.load_state_dict(state)
    for model in (fused, split):
        model.set_attn_implementation(attention)
    return fused, split


def some_ids(rows=2, length=11, seed=2):
    ids = torch.randint(0, PAD, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    return ids, mask


@pytest.mark.parametrize(("attention", "allowed"), [("eager", 0.0), ("sdpa", 1e-5)])
def test_fused_attention_is_llama_with_its_rows_split(attention, allowed):
    fused, split = fused_and_split(attention)
    ids, mask = some_ids()
    with torch.no_grad():
        ours, theirs = (m(ids, attention_mask=mask).logits for m in (fused, split))
        assert (ours - theirs).abs().max() <= allowed and theirs.std() > 0.1
        cached = []
        for model in (fused, split):
            first = model(ids[:, :6], use_cache=True)
            cached.append(model(ids[:, 6:], past_key_values=first.past_key_values).logits)
        assert (cached[0] - cached[1]).abs().max() <= allowed
        assert (cached[0][1] - ours[1, 6:]).abs().max() < 1e-4  # row 0 has padding
        _, swapped = fused_and_split(attention, order=(0, 2, 1))
        assert (ours - swapped(ids, attention_mask=mask).logits).abs().max() > 0.1


def test_gradients_are_llama_s_in_float64():
    fused, split = fused_and_split("sdpa", torch.float64)
    ids, _ = some_ids()
    for model in (fused, split):
        model(ids, labels=ids).loss.backward()
    own = dict(split.named_parameters())
    for name, parameter in fused.named_parameters():
        theirs = (
            torch.cat([own[name.replace("W_pack", f"{letter}_proj")].grad for letter in "qkv"])
            if "W_pack" in name
            else own[name].grad
        )
        assert parameter.grad.abs().max() > 1e-4
        assert (parameter.grad - theirs).abs().max() < 1e-13, name


def test_backbone_survives_saving(backbone, tmp_path):
    model = load_backbone(str(backbone))
    assert isinstance(model, BaichuanForCausalLM)
    assert json.loads((backbone / "config.json").read_text())["model_type"] == "baichuan-fused"
    model.save_pretrained(tmp_path / "again")
    again = load_backbone(str(tmp_path / "again"))
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(tensor.equal(again.state_dict()[name]) for name, tensor in model.state_dict().items())
    ids, _ = some_ids()
    with torch.no_grad():
        assert model.eval()(ids).logits.equal(again.eval()(ids).logits)
    assert load_backbone(str(backbone), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_other_causal_language_models_load_too(tmp_path):
    _, split = fused_and_split("sdpa")
    split.save_pretrained(tmp_path)
    assert type(load_backbone(str(tmp_path))) is LlamaForCausalLM


def test_backbone_with_a_pickle_or_without_some_weights_is_refused(backbone, tmp_path):
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((backbone / name).read_bytes())
    tensors = load_file(backbone / "model.safetensors")
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_backbone(str(tmp_path))
    del tensors["model.layers.1.self_attn.W_pack.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 of the weights, first model\.layers\.1\.self_attn\.W_pack"):
        load_backbone(str(tmp_path))


def test_lora_is_on_every_linear_layer_but_the_head(backbone):
    model = load_backbone(str(backbone))
    kinds = ["self_attn.W_pack", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    wanted = {f"model.layers.{layer}.{kind}" for layer in (0, 1) for kind in kinds}
    assert set(linear_layers(model)) == wanted
    ids, _ = some_ids()
    with torch.no_grad():
        before = model.eval()(ids).logits
        adapted = add_lora(model, rank=4, alpha=8, dropout=0.5).eval()
        assert adapted(ids).logits.equal(before)  # B is zero
    narrator = Narrator(adapted, VisualProjector(WIDTH, 32), 0)
    set_trainable(narrator, "lora")
    trained = {name for name, parameter in narrator.named_parameters() if parameter.requires_grad}
    inside = "language_model.base_model.model."
    lora = {f"{inside}{name}.lora_{letter}.default.weight" for name in wanted for letter in "AB"}
    assert trained == lora | {
        f"{inside}model.embed_tokens.weight",
        f"{inside}lm_head.weight",
        "projector.linear.weight",
        "projector.linear.bias",
        "projector.position.weight",
    }
    set_trainable(narrator, "full")
    assert all(parameter.requires_grad for parameter in narrator.parameters())


def test_added_tokens_come_in_order_and_start_at_the_mean(backbone):
    model, tokenizer = load_backbone(str(backbone)), load_tokenizer(str(backbone))
    assert tokenizer.padding_side == "right" and tokenizer.pad_token is None
    old_ids = len(tokenizer)
    old = [m.weight.detach().clone() for m in (model.get_input_embeddings(), model.get_output_embeddings())]
    add_tokens(model, tokenizer, ADDED_TOKENS)
    assert ADDED_TOKENS == ("<vid_patch>", "<vid_start>", "<vid_end>")
    added = tokenizer.convert_tokens_to_ids(["[PAD]", *ADDED_TOKENS])
    assert added == list(range(old_ids, old_ids + 4)) and tokenizer.pad_token_id == old_ids
    assert model.config.vocab_size == old_ids + 4
    for _ in range(2):
        for before, module in zip(
            old, (model.get_input_embeddings(), model.get_output_embeddings()), strict=True
        ):
            assert module.weight.shape == (old_ids + 4, 32)
            assert module.weight[:old_ids].equal(before)
            mean = before.double().mean(0).float()
            assert (module.weight[old_ids:] - mean).abs().max() < 1e-6
        add_tokens(model, tokenizer, ADDED_TOKENS)  # a second time adds nothing


def test_rows_that_a_backbone_has_to_spare_are_used(backbone):
    tokenizer = load_tokenizer(str(backbone))
    model = BaichuanForCausalLM(tiny_config(len(tokenizer) + 64))
    before, known = model.lm_head.weight.detach().clone(), len(tokenizer)
    add_tokens(model, tokenizer, ADDED_TOKENS)
    after = model.lm_head.weight.detach()
    assert after.shape == before.shape and known < len(tokenizer) < len(before)
    assert after[:known].equal(before[:known]) and after[len(tokenizer) :].equal(before[len(tokenizer) :])
    for row in after[known : len(tokenizer)]:
        assert row.equal(before[:known].mean(0))


# -------------------- visual tokens


@pytest.fixture
def narrator():
    torch.manual_seed(4)
    model = BaichuanForCausalLM(tiny_config(VOCABULARY))
    narrator = Narrator(model, VisualProjector(WIDTH, 32), PATCH).eval()
    torch.nn.init.normal_(narrator.projector.linear.bias)
    torch.nn.init.normal_(narrator.projector.position.weight)
    return narrator


def sample(length, slots, labelled, seed, position):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, PAD, (length,), generator=generator)
    labels = torch.full((length,), IGNORED)
    labels[labelled] = ids[labelled]
    ids[slots] = PATCH
    visual = torch.randn(int((ids == PATCH).sum()), WIDTH, generator=generator)
    return {"ids": ids, "labels": labels, "visual": visual, "positions": (position,)}


SAMPLES = [
    sample(14, slice(3, 6), slice(8, 12), 1, 0),
    sample(9, slice(1, 5), slice(6, 7), 2, 40),
    sample(20, slice(10, 11), slice(12, 20), 3, 99),
    sample(12, slice(2, 4), slice(9, 12), 4, 40),
]


def plain_loss(narrator, one):
    """Sum of the labelled tokens' cross entropies, by the language model's own forward over everything."""
    embeddings = narrator.base.get_input_embeddings()(one["ids"][None]).clone()
    projector = narrator.projector
    weight, bias = projector.linear.weight, projector.linear.bias
    place = projector.position.weight[one["positions"][0]]
    patch = 0
    for slot, index in enumerate(one["ids"].tolist()):
        if index == PATCH:
            vector = one["visual"][patch].to(weight.dtype)
            embeddings[0, slot] = (weight @ vector + bias) + (weight @ place + bias)
            patch += 1
    logits = narrator.language_model(inputs_embeds=embeddings).logits[0]
    return functional.cross_entropy(
        logits[:-1].float(), one["labels"][1:], ignore_index=IGNORED, reduction="sum"
    )


def test_each_patch_gets_its_own_visual_token_in_order(narrator):
    batch = batched(SAMPLES[:3])
    with torch.no_grad():
        embedded = narrator.embed(batch["input_ids"], batch["visual"], batch["positions"])
        words = narrator.base.get_input_embeddings().weight
        linear, table = narrator.projector.linear, narrator.projector.position.weight
        given = iter(batch["visual"])
        for row, one in enumerate(SAMPLES[:3]):
            for slot, index in enumerate(batch["input_ids"][row].tolist()):
                if index == PATCH:  # the bias enters twice: with the token and with the position
                    wanted = linear.weight @ (next(given) + table[one["positions"][0]]) + 2 * linear.bias
                    assert (embedded[row, slot] - wanted).abs().max() < 1e-5
                else:
                    assert embedded[row, slot].equal(words[index])
        assert next(given, None) is None
        elsewhere = narrator.embed(batch["input_ids"], batch["visual"], batch["positions"].flip(0))
        changed = (elsewhere != embedded).any(-1)
        assert changed[0].any() and not changed[batch["input_ids"] != PATCH].any()


def test_a_wrong_number_of_visual_tokens_is_an_error(narrator):
    batch = batched(SAMPLES[:2])
    for visual in (batch["visual"][:-1], batch["visual"][:0], torch.cat([batch["visual"]] * 2)):
        with pytest.raises(ValueError, match=rf"7 visual slots in the text, {len(visual)} visual tokens"):
            narrator.embed(batch["input_ids"], visual, batch["positions"][: len(visual)])
    text = torch.tensor([[1, 2, 3]])
    none = torch.zeros(0, WIDTH)
    assert narrator.embed(text, none, torch.zeros(0).long()).equal(narrator.base.get_input_embeddings()(text))


def test_features_in_half_precision_are_taken(narrator):
    batch = batched(SAMPLES[:2])
    whole = narrator(**batch)["loss"]
    half = narrator(**batch | {"visual": batch["visual"].half()})["loss"]
    assert half.dtype == torch.float32 and abs(half - whole) < 1e-2


def test_projected_tokens_start_as_large_as_the_embeddings(narrator):
    words = narrator.base.get_input_embeddings().weight
    narrator.projector.match_scale(words, SAMPLES[0]["visual"] * 50)
    projected = narrator.projector.linear(SAMPLES[0]["visual"] * 50)
    assert projected.std().item() == pytest.approx(words.std().item(), rel=1e-4)
    assert not narrator.projector.linear.bias.any()


# -------------------- the loss


def test_loss_is_the_plain_one_on_labelled_tokens_only(narrator):
    for one in SAMPLES:
        number = int((one["labels"] != IGNORED).sum())
        ours = narrator(**batched([one]))["loss"]
        assert ours.item() == pytest.approx(plain_loss(narrator, one).item() / number, abs=1e-5)
        everything = one | {"labels": one["ids"]}
        assert abs(plain_loss(narrator, everything) / (len(one["ids"]) - 1) - ours) > 1e-2


def test_a_padded_batch_is_its_samples(narrator):
    number = sum(int((one["labels"] != IGNORED).sum()) for one in SAMPLES)
    singles = sum(plain_loss(narrator, one).item() for one in SAMPLES)
    for samples in (SAMPLES, SAMPLES[::-1]):
        assert narrator(**batched(samples))["loss"].item() == pytest.approx(singles / number, abs=1e-5)
    # whatever stands in the padding: it is behind the mask
    assert narrator(**batched(SAMPLES, pad=7))["loss"].item() == pytest.approx(singles / number, abs=1e-5)


def gradients(narrator, batches, number=None):
    """number: of tokens that each token's loss is divided by; None: those of its batch."""
    narrator.zero_grad()
    for batch in batches:
        weights = None if number is None else torch.full(batch["labels"].shape, 1 / number).double()
        narrator(**batch, weights=weights)["loss"].backward()
    return {name: parameter.grad.clone() for name, parameter in narrator.named_parameters()}


def test_four_batches_of_one_are_one_batch_of_four(narrator):
    """With the step's own number of tokens; the mean of the batches' means is something else."""
    narrator.double()
    number = sum(int((one["labels"] != IGNORED).sum()) for one in SAMPLES)
    whole = gradients(narrator, [batched(SAMPLES)])
    parts = gradients(narrator, [batched([one]) for one in SAMPLES], number)
    means = gradients(narrator, [batched([one]) for one in SAMPLES])
    far = 0.0
    for name, gradient in whole.items():
        difference = (gradient - parts[name]).abs()
        assert difference.max() < 1e-6 and difference.mean() < 1e-7, name  # the loss itself is float32
        far = max(far, (gradient - means[name] / 4).abs().max().item())
    assert far > 1e-3


def test_gradient_checkpointing_changes_nothing(narrator):
    narrator.train()
    batch = batched(SAMPLES)
    plain = gradients(narrator, [batch], None)
    narrator.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = []
    layer = narrator.base.model.layers[0].mlp
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    saved = gradients(narrator, [batch], None)
    assert len(calls) == 2  # once more on the way back
    assert all((saved[name] - gradient).abs().max() < 1e-6 for name, gradient in plain.items())
