"""Fixtures: a tiny backbone with a tokenizer trained on the sample texts, and finished training runs."""

import pytest
import torch
from tiny_narrator import (
    PIECES,
    ROOT,
    clip_samples,
    ten_samples,
    tiny_config,
    train_and_keep,
    train_config,
)

from data_process.annotations import read_annotations


@pytest.fixture(scope="session")
def sample_videos():
    """The Chinese sample videos, by id."""
    return read_annotations(ROOT / "data/sample/annotations.json")


@pytest.fixture(scope="session")
def pieces(sample_videos, tmp_path_factory):
    """tokenizer.model: SentencePiece BPE of Baichuan's kind, trained on the sample texts."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("pieces")
    lines = [line for v in sample_videos.values() for line in (v.product.name, *v.product.info.split("\n"))]
    lines += [text for v in sample_videos.values() for clip in v.clips for text in (clip.label, clip.text)]
    lines += [
        "商品信息：",
        "名称：",
        "广告视频：",
        "镜头1/4：",
        "场景：",
        "字数要求：10-16个字",
        "剧本类型：",
    ] * 20
    (folder / "corpus.txt").write_text("\n".join(lines), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        character_coverage=0.99,
        required_chars="▁",  # else a blank has no piece, and comes back from its bytes as ▁
        user_defined_symbols=["\n"],
        num_threads=1,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


@pytest.fixture(scope="session")
def backbone(pieces, tmp_path_factory):
    """Folder of a tiny random language model of Baichuan's architecture, with its tokenizer."""
    from transformers import LlamaTokenizer

    from videonarrator.modeling.backbones import BaichuanForCausalLM

    folder = tmp_path_factory.mktemp("models") / "backbone"
    tokenizer = LlamaTokenizer.from_pretrained(
        pieces.parent, vocab_file=str(pieces), add_prefix_space=False, legacy=False
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(5)
    BaichuanForCausalLM(tiny_config(len(tokenizer))).save_pretrained(folder)
    return folder


@pytest.fixture
def shots(sample_videos, zh):
    return ten_samples(sample_videos, zh)


@pytest.fixture(scope="session")
def lora_run(backbone, sample_videos, zh, tmp_path_factory):
    """Folder of a finished LoRA run over `ten_samples`, and its narrator; not to be changed."""
    output = tmp_path_factory.mktemp("runs") / "lora"
    return output, train_and_keep(train_config(backbone, output), ten_samples(sample_videos, zh))


@pytest.fixture(scope="session")
def full_run(backbone, sample_videos, zh, tmp_path_factory):
    """Folder of a finished run that trained every weight, and its narrator; not to be changed."""
    output = tmp_path_factory.mktemp("runs") / "full"
    samples = clip_samples(next(iter(sample_videos.values())), zh)
    return output, train_and_keep(train_config(backbone, output, adapter="full"), samples)


@pytest.fixture(scope="session")
def published(upstream, upstream_features, tmp_path_factory):
    """The small published system, taken over by the project's own commands; not to be changed."""
    from published_world import take_over

    return take_over(upstream, upstream_features, tmp_path_factory.mktemp("published"))
