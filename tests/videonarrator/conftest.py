"""A narrator small enough to train in seconds: tiny backbone and tokenizer, sample stories, random clip tensors."""

import hashlib
from pathlib import Path

import pytest
import torch

from data_process.annotations import clip_file, read_annotations
from data_process.prepare import video_story
from videonarrator.prompt import inputs_text
from videonarrator.settings import DataSettings, ModelSettings, OptimizationSettings, TrainConfig
from videonarrator.timeline import clip_positions

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 16
PIECES = 1000


def clip_tokens(video_id, clip):
    """Random visual tokens [2 to 5, WIDTH], the same for the same clip at every call."""
    seed = int.from_bytes(hashlib.sha256(f"{video_id} {clip}".encode()).digest()[:4], "big")
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2 + seed % 4, WIDTH, generator=generator)


def clip_samples(video, template):
    """A video's entries of train_shots.json."""
    story = video_story(video, range(len(video.clips)), template)
    positions = clip_positions([clip.duration for clip in video.clips], range(len(video.clips)))
    return [
        {
            "shot_pos": position,
            "shot_loc": index + 1,
            "inputs": inputs_text(story, template, index + 1),
            "id": video.id,
            "frames": [clip_file(video.id, index)],
        }
        for index, position in enumerate(positions)
    ]


def tiny_config(vocabulary, **changes):
    from videonarrator.modeling.backbones import BaichuanConfig

    values = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,  # large enough for logits that differ clearly
        "rms_norm_eps": 1e-6,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    return BaichuanConfig(**values | changes)


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
    lines += ["商品信息：", "名称：", "广告视频：", "镜头1/4：", "场景：", "字数要求：10-16个字", "剧本类型："] * 20
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
    """Per-clip samples of the first two sample videos."""
    return [sample for video in list(sample_videos.values())[:2] for sample in clip_samples(video, zh)]


def train_config(backbone, output, *, adapter="lora", dropout=0.0, bos=True, template="zh", **changes):
    values = {"epochs": 2, "batch_size": 2, "accumulation": 2, "learning_rate": 1e-2, "log_steps": 1}
    return TrainConfig(
        output=str(output),
        data=DataSettings(samples="", clips=""),
        model=ModelSettings(
            backbone=str(backbone),
            template=template,
            adapter=adapter,
            rank=4,
            alpha=8,
            dropout=dropout,
            bos=bos,
        ),
        optimization=OptimizationSettings(**values | changes),
    )


FEATURES = {"encoder": "tiny", "width": WIDTH, "threshold": 0.9}


@pytest.fixture(scope="session")
def lora_run(backbone, sample_videos, zh, tmp_path_factory):
    """Folder of a finished LoRA run over the first two sample videos; not to be changed."""
    from videonarrator.training import train

    output = tmp_path_factory.mktemp("runs") / "lora"
    samples = [sample for video in list(sample_videos.values())[:2] for sample in clip_samples(video, zh)]
    train(train_config(backbone, output), samples, clip_tokens, FEATURES)
    return output


@pytest.fixture(scope="session")
def full_run(backbone, sample_videos, zh, tmp_path_factory):
    """Folder of a finished run that trained every weight; not to be changed."""
    from videonarrator.training import train

    output = tmp_path_factory.mktemp("runs") / "full"
    samples = clip_samples(next(iter(sample_videos.values())), zh)
    config = train_config(backbone, output, adapter="full", epochs=1)
    train(config, samples, clip_tokens, FEATURES)
    return output
