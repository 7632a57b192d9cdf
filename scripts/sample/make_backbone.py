"""Makes data/sample/models/backbone: a tokenizer and a small base language model with Baichuan's
architecture.

It learns from text alone: stories of the sample world, told by the same clauses, in which the scene line
holds words in place of visual tokens. It is to the sample data what a pretrained language model is to real
videos: it can read and write, and has never seen a picture. No story has a product x colour pair of the
held-out videos.

    python scripts/sample/make_backbone.py [--steps N] [--out data/sample/models/backbone]
"""

from __future__ import annotations

import argparse
import math
import random
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaTokenizer

from data_process.sample_world.phrases import KINDS
from data_process.sample_world.scenes import COLOURS, Scene
from data_process.sample_world.stories import HELD_OUT, SampleVideo, make_story
from videonarrator.clip_inputs import encode_text
from videonarrator.config import load_template
from videonarrator.length import range_for_reference
from videonarrator.modeling.backbones import BaichuanConfig, BaichuanForCausalLM
from videonarrator.prompt import Template, sample_segments, story_of

VOCABULARY = 1400
CAPTION_WORDS = {
    "hero": "主角", "problem": "烦恼", "price": "价签", "display": "陈列", "closeup": "特写", "use": "动手",
    "effect": "效果", "quality": "盾牌", "lab": "放大镜", "badge": "证书", "factory": "流水线",
    "stars": "评分",
}  # fmt: skip
HISTORY_WEIGHT, SEEN_WEIGHT = 0.2, 4.0
SHORT_SHARE, CLIP_PARTS = 0.5, 6
"""The first half of the steps shows one clip without product and earlier clips: in a short text it is soon
found that the slot's words are worth reading. A clip's parts: header, slot, question, label, number, text."""


def make_stories(number: int, seed: int) -> list[SampleVideo]:
    rng = random.Random(seed)
    pairs = [(kind, colour) for kind in KINDS for colour in COLOURS if (kind, colour) not in HELD_OUT]
    return [
        make_story(rng, rng.choice(pairs), f"text{index}", (1.0, 8.0) if rng.random() < 0.5 else (2.0, 6.0))
        for index in range(number)
    ]


def scene_words(scene: Scene) -> list[str]:
    return [CAPTION_WORDS[scene.kind], *scene.shown().values()] + (["闪光"] if scene.sparkles else [])


def caption(scenes: tuple[Scene, ...], index: int, rng: random.Random) -> str:
    """Words for a clip's slot: some of what came before (its memory), then the clip's own, repeated and
    mixed.
    """
    earlier = [word for scene in scenes[:index] for word in scene_words(scene)]
    memory = rng.choices(earlier, k=rng.randint(6, 14)) if earlier else []
    gift = [scene.gift for scene in scenes[:index] if scene.gift]
    memory += gift * rng.randint(1, 3)
    rng.shuffle(memory)
    own = [word for word in scene_words(scenes[index]) for _ in range(rng.randint(1, 5))]
    rng.shuffle(own)
    divider = ["先前"] if memory and rng.random() < 0.5 else []
    return "、".join([*memory, *divider, *own])


Part = tuple[str, float, str, float]
"""A text, the weight of its tokens in the loss, words in it that must be seen, and the weight of these."""


def samples(sample: SampleVideo, index: int, template: Template, rng: random.Random) -> list[Part]:
    """A text sample. What must be seen weighs most where the slot shows it, and nothing in earlier clips."""
    video = sample.video
    ranges = [range_for_reference(clip.text or "") for clip in video.clips]
    story = story_of(video, range(len(video.clips)), ranges)
    parts: list[Part] = []
    texts = {f"{clip.text}\n": "|".join(sample.named[i].values()) for i, clip in enumerate(video.clips)}
    for segment in sample_segments(story, index + 1, template, later=False):
        words = texts.get(segment.text, "")
        if segment.visual:
            parts.append((caption(sample.scenes, index, rng), 0.0, "", 0.0))
        elif segment.target:
            parts.append((segment.text, 1.0, words, SEEN_WEIGHT))
        else:  # earlier labels and narrations end in a line break and do not begin a clip
            answer = segment.text.endswith("\n") and not segment.text.startswith(
                ("镜头", template.instruction)
            )
            parts.append((segment.text, HISTORY_WEIGHT if answer else 0.0, words, 0.0))
    return parts


def weighted_ids(part: Part, tokenizer: Any) -> list[tuple[int, float]]:
    """The part's ids, each with its weight."""
    text, weight, words, word_weight = part
    ids, at, weighted = encode_text(text, tokenizer), 0, []
    spans = [match.span() for match in re.finditer(words, text)] if words else []
    for token in ids:
        end = at + len(tokenizer.convert_ids_to_tokens(token))
        inside = any(at < stop and end > start for start, stop in spans)
        weighted.append((token, word_weight if inside else weight))
        at = end
    return weighted


def train_tokenizer(stories: list[SampleVideo], template: Template, folder: Path) -> LlamaTokenizer:
    rng = random.Random(3)
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / "corpus.txt"
        texts = []
        for sample in stories:
            index = rng.randrange(len(sample.scenes))
            texts += "".join(part[0] for part in samples(sample, index, template, rng)).split("\n")
        corpus.write_text("\n".join(texts), "utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus), model_prefix=str(Path(scratch) / "tokenizer"), model_type="bpe",
            vocab_size=VOCABULARY, byte_fallback=True, split_digits=True, add_dummy_prefix=False,
            remove_extra_whitespaces=False, normalization_rule_name="identity", character_coverage=1.0,
            user_defined_symbols=["\n"], required_chars="▁", max_sentencepiece_length=2, num_threads=1,
            minloglevel=2,
        )  # fmt: skip
        tokenizer = LlamaTokenizer.from_pretrained(
            scratch, vocab_file=str(Path(scratch) / "tokenizer.model"), add_prefix_space=False, legacy=False
        )
        tokenizer.save_pretrained(folder)
        (folder / "tokenizer.model").write_bytes((Path(scratch) / "tokenizer.model").read_bytes())
    return tokenizer


def new_model(vocabulary: int) -> BaichuanForCausalLM:
    return BaichuanForCausalLM(
        BaichuanConfig(
            vocab_size=vocabulary, hidden_size=192, intermediate_size=512, num_hidden_layers=4,
            num_attention_heads=3, num_key_value_heads=3, max_position_embeddings=4096, rms_norm_eps=1e-6,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
        )
    )  # fmt: skip


def batch_of(encoded: list[list[tuple[int, float]]]) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(map(len, encoded))
    rows = [row + [(0, 0.0)] * (length - len(row)) for row in encoded]
    ids = torch.tensor([[token for token, _ in row] for row in rows])
    return ids, torch.tensor([[weight for _, weight in row] for row in rows])


def loss_of(model: BaichuanForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    counted = weights[:, 1:] > 0
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][counted]
    losses = functional.cross_entropy(model.lm_head(hidden).float(), ids[:, 1:][counted], reduction="none")
    weight = weights[:, 1:][counted]
    return (losses * weight).sum() / weight.sum()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--stories", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--out", type=Path, default=Path("data/sample/models/backbone"))
    options = parser.parse_args()
    torch.manual_seed(20)
    template = load_template("zh")
    stories, check = make_stories(options.stories, 1), make_stories(200, 2)
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer: Any = train_tokenizer(stories[:1500], template, options.out)
    model = new_model(len(tokenizer))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} pieces", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, betas=(0.9, 0.98))
    rng = random.Random(4)

    def encoded(sample: SampleVideo, short: bool = False) -> list[tuple[int, float]]:
        parts = samples(sample, rng.randrange(len(sample.scenes)), template, rng)
        parts = parts[-CLIP_PARTS:] if short else parts
        return [(tokenizer.bos_token_id, 0.0)] + [
            pair for part in parts for pair in weighted_ids(part, tokenizer)
        ]

    pool = sorted((encoded(sample) for sample in check), key=len)
    checks = [batch_of(pool[start : start + 20]) for start in range(0, len(pool), 20)]
    step, shown, waiting = 0, 0.0, []
    while step < options.steps:
        share = step / options.steps
        if not waiting:  # batches of like length, in random order
            short = share < SHORT_SHARE
            size = options.batch * (3 if short else 1)
            pool = sorted((encoded(sample, short) for sample in rng.sample(stories, 20 * size)), key=len)
            waiting = [batch_of(pool[start : start + size]) for start in range(0, len(pool), size)]
            rng.shuffle(waiting)
        for group in optimizer.param_groups:
            group["lr"] = (
                options.rate * min(1, (step + 1) / 150) * (0.5 + 0.5 * math.cos(math.pi * share)) + 1e-6
            )
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, *waiting.pop())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if time.monotonic() - shown > 60:
            shown = time.monotonic()
            with torch.no_grad():
                found = sum(loss_of(model, *batch).item() for batch in checks) / len(checks)
            print(
                f"{share:4.0%} step {step} loss {loss.item():.3f}, on other stories {found:.4f}", flush=True
            )
    model.eval().save_pretrained(options.out)


if __name__ == "__main__":
    main()
