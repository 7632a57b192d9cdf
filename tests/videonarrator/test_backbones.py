"""Other causal language models as backbone: Qwen 3, LLaMA 2 and 3, Mistral kinds, tokenizers of their own."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_narrator import WIDTH, clip_samples, clip_tokens, train_and_keep, train_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from videonarrator.checkpoint import load_checkpoint, read_info
from videonarrator.clip_inputs import TokenRules, encode, encode_text, training_inputs
from videonarrator.generation.engine import narrate_video
from videonarrator.generation.jobs import ClipTask
from videonarrator.generation.prompts import stop_ids
from videonarrator.modeling.backbones import begins_with_bos, extend_tokenizer, load_tokenizer
from videonarrator.modeling.lora import linear_layers
from videonarrator.prompt import ADDED_TOKENS, parse_inputs
from videonarrator.settings import DecodingSettings

SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "initializer_range": 0.2,
}  # fmt: skip


def byte_level(folder, texts, *, begin=None, end="<|im_end|>", pad=None):
    """A tokenizer of Qwen's (no BOS) or LLaMA 3's kind (BOS): byte-level BPE, in which 。and \\n may join."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token in (begin, end, pad) if token]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([f"{text}\n" for text in texts], trainer)
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin, eos_token=end, pad_token=pad)
    fast.save_pretrained(folder)
    return len(fast)


def with_leading_blank(folder, texts):
    """A tokenizer of LLaMA 2's and Mistral's kind: SentencePiece with a blank before every text."""
    import sentencepiece

    folder.mkdir(exist_ok=True)
    (folder / "corpus.txt").write_text("\n".join(texts), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "tokenizer"), model_type="bpe",
        vocab_size=900, byte_fallback=True, character_coverage=0.99, hard_vocab_limit=False, num_threads=1,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    tokenizer = LlamaTokenizer.from_pretrained(folder, vocab_file=str(folder / "tokenizer.model"))
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def qwen3(folder, texts):
    size = byte_level(folder, texts, pad="<|endoftext|>")
    config = Qwen3Config(**SHAPE, head_dim=8, vocab_size=size + 40, tie_word_embeddings=True)
    return Qwen3ForCausalLM(config)  # spare rows and tied embeddings, as Qwen's


def llama2(folder, texts):
    return LlamaForCausalLM(LlamaConfig(**SHAPE, vocab_size=with_leading_blank(folder, texts)))


def llama3(folder, texts):
    size = byte_level(folder, texts, begin="<|begin_of_text|>", end="<|eot_id|>")
    return LlamaForCausalLM(LlamaConfig(**SHAPE, vocab_size=size, rope_theta=5e5))


def mistral(folder, texts):
    config = MistralConfig(**SHAPE, vocab_size=with_leading_blank(folder, texts), sliding_window=4096)
    return MistralForCausalLM(config)


KINDS = {
    "qwen3": (qwen3, False),
    "llama2": (llama2, True),
    "llama3": (llama3, True),
    "mistral": (mistral, True),
}


@pytest.fixture(scope="module", params=KINDS)
def other(request, sample_videos, tmp_path_factory):
    """A folder with a tiny random model of that kind, and whether its prompts begin with BOS."""
    make, bos = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param) / "backbone"
    texts = [
        text for v in sample_videos.values() for c in v.clips for text in (c.text, c.label, v.product.info)
    ]
    torch.manual_seed(3)
    folder.mkdir()
    model = make(folder, texts[:400])
    model.save_pretrained(folder)
    return folder, bos


def test_train_save_and_narrate(other, sample_videos, zh, tmp_path):
    """The loaded checkpoint writes what the trained narrator does; what was found out is in it."""
    folder, bos = other
    video = sample_videos["sample01"]
    shots = clip_samples(video, zh)
    narrator = train_and_keep(train_config(folder, tmp_path / "run"), shots)
    checkpoint = tmp_path / "run/checkpoint"
    assert read_info(checkpoint).bos is bos
    loaded = load_checkpoint(checkpoint, merge=False)
    targets = json.loads((checkpoint / "adapter/adapter_config.json").read_text())["target_modules"]
    assert set(targets) == {n.replace(".base_layer", "") for n in layers(loaded.narrator)}
    own = dict(narrator.language_model.named_parameters())
    for name, tensor in loaded.narrator.language_model.named_parameters():
        assert tensor.equal(own[name]), name
    tasks = [ClipTask(i, 3, 9, clip_tokens(video.id, i), shots[i]["shot_pos"]) for i in range(2)]
    settings = DecodingSettings(max_new_tokens=12)
    written = narrate_video(loaded, video.product, tasks, len(video.clips), settings)
    again = narrate_video(load_checkpoint(checkpoint), video.product, tasks, len(video.clips), settings)
    assert len(written) == 2 and all("\n" not in one.label + one.text for one in [*written, *again])
    stored = load_file(checkpoint / "trained.safetensors")
    assert stored["embed_tokens.weight"].shape[1] == 32


def layers(narrator):
    return [n for n in linear_layers(narrator.base) if "lora_" not in n]


def test_a_line_learnt_is_a_line_written(other, sample_videos, zh, tmp_path):
    """A few steps on one clip: the model writes its label and narration back, and stops at the line break."""
    folder, _ = other
    video = sample_videos["sample01"]
    shots = clip_samples(video, zh)[:1]
    config = train_config(folder, tmp_path / "run", adapter="full", epochs=40)
    config = replace(
        config, optimization=replace(config.optimization, learning_rate=3e-3, samples_per_step=1)
    )
    train_and_keep(config, shots)
    loaded = load_checkpoint(tmp_path / "run/checkpoint")
    task = ClipTask(0, 3, 9, clip_tokens(video.id, 0), shots[0]["shot_pos"])
    (clip, *_) = parse_inputs(shots[0]["inputs"], zh).clips
    task = replace(task, low=clip.low, high=clip.high)
    settings = DecodingSettings(narration_penalty=1.0)
    (written,) = narrate_video(loaded, video.product, [task], len(video.clips), settings)
    assert (written.label, written.text) == (video.clips[0].label, video.clips[0].text)


def test_line_breaks_stand_alone_and_texts_have_no_blank_in_front(other, sample_videos, zh):
    folder, bos = other
    tokenizer = load_tokenizer(str(folder))
    extend_tokenizer(tokenizer, ADDED_TOKENS)
    assert begins_with_bos(tokenizer) is bos
    newline = stop_ids(tokenizer)[0]
    video = sample_videos["sample01"]
    shot = clip_samples(video, zh)[0]
    inputs = training_inputs(shot, torch.zeros(2, WIDTH), zh)
    ids, labels = encode(inputs.segments, tokenizer, inputs.counts, TokenRules(bos=bos))
    learnt = [label for label in labels if label >= 0]
    assert learnt.count(newline) == 2 and learnt[-1] == newline
    text = f"{video.clips[0].label}\n1.{video.clips[0].text}\n"
    assert tokenizer.decode(learnt) == text
    for look_alike in ("<vid_patch>", "<|im_end|>", "</s>", "<|eot_id|>", tokenizer.eos_token):
        ids = encode_text(look_alike, tokenizer)
        assert not {tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(list(ADDED_TOKENS))} & set(ids)
        assert tokenizer.decode(ids) == look_alike
