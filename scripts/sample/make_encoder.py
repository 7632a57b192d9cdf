"""Makes data/sample/models/blip2: a small BLIP-2 (vision model and Q-Former) that can see the sample world.

Its features are useful because every query is given one thing to look for: queries are dealt out over the
attributes of a scene. It first learns to see: a linear reading of an attribute's queries has to name its
value. Then these queries learn to give the value's code, a fixed vector orthogonal to all others. Product x
colour pairs of the held-out videos are never shown.

    python scripts/sample/make_encoder.py [--steps N] [--start FOLDER] [--out data/sample/models/blip2]
"""

from __future__ import annotations

import argparse
import io
import math
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from transformers import Blip2Config

from data_process.qformer import CLIP_MEAN, CLIP_STD, FrameEncoder, load_encoder
from data_process.sample_world import scenes
from data_process.sample_world.drawing import draw_scene
from data_process.sample_world.phrases import KINDS
from data_process.sample_world.stories import HELD_OUT

IMAGE_SIZE, WIDTH, QUERIES = 112, 128, 32
QUESTIONS = {
    "kind": tuple(scenes.SCENE_KINDS),
    "colour": ("", *scenes.COLOURS),
    "count": ("", *scenes.COUNTS),
    "motion": ("", *scenes.MOTIONS),
    "price": ("", *scenes.PRICES),
    "place": ("", *scenes.PLACES),
    "gift": ("", *scenes.GIFTS),
    "sparkles": (False, True),
    "product": ("", *KINDS),
}


def random_scene(rng: random.Random) -> scenes.Scene:
    kind = rng.choice([*scenes.SCENE_KINDS, *scenes.PLACE_SCENES])
    while True:
        product, colour = rng.choice(list(KINDS)), rng.choice(list(scenes.COLOURS))
        if (product, colour) not in HELD_OUT:
            break
    return scenes.Scene(
        kind=kind,
        product=product,
        colour=colour,
        place=rng.choice(scenes.PLACES),
        count=rng.choice(["", *scenes.COUNTS]) if kind == "display" else "",
        motion=rng.choice(["", *scenes.MOTIONS]) if kind == "use" else "",
        price=rng.choice(scenes.PRICES) if kind == "price" else "",
        gift=rng.choice(scenes.GIFTS) if rng.random() < 0.4 else "",
        sparkles=kind in ("closeup", "use") and rng.random() < 0.4,
    )


def answers(scene: scenes.Scene) -> list[int]:
    shown = scene.shown()
    facts = {"kind": scene.kind, "sparkles": scene.sparkles}
    hidden = scene.kind in ("problem", "badge", "stars", "closeup")
    facts["product"] = "" if hidden else scene.product
    return [values.index(facts.get(name, shown.get(name, ""))) for name, values in QUESTIONS.items()]


def make_stills(number: int, seed: int) -> tuple[np.ndarray, torch.Tensor]:
    rng = random.Random(seed)
    stills, labels = np.empty((number, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8), []
    for index in range(number):
        scene = random_scene(rng)
        picture = draw_scene(scene, rng.random(), rng.randrange(10**6))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=rng.randint(50, 95))  # what a video codec does to edges
        picture = Image.open(buffer).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        stills[index] = np.asarray(picture)
        labels.append(answers(scene))
    return stills, torch.tensor(labels)


def small_blip2() -> FrameEncoder:
    config = Blip2Config(
        vision_config={
            "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4,
            "image_size": IMAGE_SIZE, "patch_size": 14, "initializer_range": 0.02,
        },
        qformer_config={
            "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 384,
            "encoder_hidden_size": 192, "cross_attention_frequency": 1, "vocab_size": 2,
        },
        num_query_tokens=QUERIES,
    )  # fmt: skip
    encoder = FrameEncoder(config)
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=0.04)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    embeddings = encoder.vision_model.embeddings
    for parameter in (embeddings.class_embedding, embeddings.position_embedding, encoder.query_tokens):
        nn.init.normal_(parameter, std=0.2)
    return encoder


OWNED = [list(range(start, QUERIES, len(QUESTIONS))) for start in range(len(QUESTIONS))]
"""Question -> the queries it owns."""


class Readings(nn.Module):
    """One linear reading per question, from the mean of the queries that the question owns."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(WIDTH, len(values)) for values in QUESTIONS.values())

    def forward(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        return [head(tokens[:, owned].mean(1)) for head, owned in zip(self.heads, OWNED, strict=True)]

    def loss(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses = [functional.cross_entropy(o, labels[:, q]) for q, o in enumerate(self(tokens))]
        return torch.stack(losses).sum()


class Codes:
    """A fixed code vector for every answer, all orthogonal, which the queries of a question have to give.

    A query then says nothing but its answer, so that a linear map learnt on few videos holds for others.
    """

    def __init__(self) -> None:
        sizes = [len(values) for values in QUESTIONS.values()]
        drawn = torch.randn(WIDTH, sum(sizes), generator=torch.Generator().manual_seed(5))
        orthogonal = torch.linalg.qr(torch.cat([torch.ones(WIDTH, 1), drawn], 1))[0][:, 1:]  # each of mean 0
        self.codes = [part.T.contiguous() for part in (orthogonal * WIDTH**0.5).split(sizes, 1)]

    def __call__(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        return [tokens[:, own].mean(1) @ code.T for own, code in zip(OWNED, self.codes, strict=True)]

    def loss(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses = [
            functional.mse_loss(tokens[:, own], code[labels[:, q]][:, None].expand(-1, len(own), -1))
            for q, (own, code) in enumerate(zip(OWNED, self.codes, strict=True))
        ]
        return torch.stack(losses).sum()


def pixels(stills: np.ndarray) -> torch.Tensor:
    """`preprocess` of stills that already have the encoder's size."""
    scaled = torch.from_numpy(stills).float().div_(255)
    return ((scaled - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)).permute(0, 3, 1, 2)


@torch.no_grad()
def accuracy(
    encoder: FrameEncoder, readings: Readings | Codes, stills: np.ndarray, labels: torch.Tensor
) -> dict[str, float]:
    encoder.eval()
    logits = [readings(encoder(pixels(stills[i : i + 64])).float()) for i in range(0, len(stills), 64)]
    encoder.train()
    return {
        name: round(
            float((torch.cat([batch[q] for batch in logits]).argmax(1) == labels[:, q]).float().mean()), 4
        )
        for q, name in enumerate(QUESTIONS)
    }


def train(
    encoder: FrameEncoder,
    readings: Readings | Codes,
    steps: int,
    data: tuple[np.ndarray, torch.Tensor],
    check: tuple[np.ndarray, torch.Tensor],
) -> None:
    stills, labels = data
    parameters = [*encoder.parameters(), *(readings.parameters() if isinstance(readings, Readings) else [])]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.02)
    encoder.train()
    for step in range(steps):
        rate = 8e-4 * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 1e-6
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = torch.randint(len(stills), (64,))
        with torch.autocast("cpu", torch.bfloat16):
            tokens = encoder(pixels(stills[chosen.numpy()])).float()
        loss = readings.loss(tokens, labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            found = accuracy(encoder, readings, *check)
            print(f"{type(readings).__name__} {step + 1}/{steps} loss {loss.item():.3f} {found}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1000, help="of learning to see")
    parser.add_argument("--code-steps", type=int, default=900, help="of learning to say it in codes")
    parser.add_argument("--start", help="an encoder that can see already: only the codes are learnt")
    parser.add_argument("--stills", type=int, default=14000)
    parser.add_argument("--out", type=Path, default=Path("data/sample/models/blip2"))
    options = parser.parse_args()
    torch.manual_seed(20)
    data, check = make_stills(options.stills, 1), make_stills(300, 2)
    if options.start:
        encoder = load_encoder(options.start).requires_grad_(True)
    else:
        encoder = small_blip2()
        train(encoder, Readings(), options.steps, data, check)
    train(encoder, Codes(), options.code_steps, data, check)
    encoder.eval().save(options.out)


if __name__ == "__main__":
    main()
