"""Rows that are extended and cut back hold what reading them anew would give."""

import random

import pytest
import torch
from tiny_narrator import WIDTH

from videonarrator.generation.captured import StaticStep, fill
from videonarrator.generation.memory import (
    Part,
    PlainMemory,
    SlotMemory,
    memory_for,
    slot_bytes,
    slots_hold,
)
from videonarrator.modeling.backbones import BaichuanForCausalLM
from videonarrator.modeling.narrator import Narrator
from videonarrator.modeling.projector import VisualProjector
from videonarrator.modeling.slots import SLOTS

VOCABULARY, PATCH = 60, 59


def llama(**changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, initializer_range=0.3, **sizes | changes))


def baichuan():
    from tiny_narrator import tiny_config

    return BaichuanForCausalLM(tiny_config(VOCABULARY))


def mistral(window):
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(
        vocab_size=VOCABULARY, num_key_value_heads=2, sliding_window=window, initializer_range=0.3, **sizes
    )
    return MistralForCausalLM(config)


MODELS = {
    "baichuan": baichuan,
    "llama": llama,
    "fewer key heads": lambda: llama(num_key_value_heads=2),
    "mistral": lambda: mistral(None),
}


def narrator_of(model, dtype=torch.float64):
    torch.manual_seed(4)
    narrator = Narrator(model(), VisualProjector(WIDTH, 32), PATCH)
    return narrator.to(dtype).eval().requires_grad_(False)


@torch.no_grad()
def read(narrator, part):
    """Logits after all of a part's ids, no cache."""
    narrator.base.set_attn_implementation("sdpa")
    places = torch.tensor(part.positions, dtype=torch.long)
    embeddings = narrator.embed(torch.tensor([part.ids]), part.visual, places)
    return narrator.base(inputs_embeds=embeddings).logits[0, -1]


def histories(rows, steps):
    """Parts of each step, as an engine might ask for them: rows grow by one or many, and are cut back."""
    chance, held = random.Random(2), [[] for _ in range(rows)]
    visual = {row: torch.randn(40, WIDTH, dtype=torch.float64) for row in range(rows)}
    for _ in range(steps):
        parts = []
        for row in chance.sample(range(rows), chance.randint(1, rows)):
            kept = chance.choice([len(held[row]), chance.randint(0, len(held[row]))])
            new = [chance.randrange(VOCABULARY) for _ in range(chance.choice([1, 1, 1, 7, 20]))]
            held[row] = [*held[row][:kept], *new]
            patches = held[row].count(PATCH)
            assert patches <= 40
            places = [(3 * row + patch) % 100 for patch in range(patches)]
            parts.append(Part(row, kept, held[row], visual[row][:patches], places))
        yield parts


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("kind", [SlotMemory, PlainMemory])
def test_rows_hold_what_reading_anew_gives(model, kind):
    narrator = narrator_of(model)
    memory = kind(narrator, 4)
    for parts in histories(4, 40):
        narrator.base.set_attn_implementation(SLOTS if kind is SlotMemory else "sdpa")
        logits = memory.extend(parts)
        for own, part in zip(logits, parts, strict=True):
            assert (own - read(narrator, part)).abs().max() < 1e-10


def test_a_wrong_slot_is_seen(monkeypatch):
    """Negative control: single tokens that look one slot too far."""
    import videonarrator.generation.memory as memory_module

    narrator = narrator_of(baichuan)
    real = memory_module.single_mask
    monkeypatch.setattr(
        memory_module, "single_mask", lambda rows, reach, own, slots: real(rows, reach, own, slots - 1)
    )
    memory = SlotMemory(narrator, 1)
    nothing = torch.zeros(0, WIDTH, dtype=torch.float64)
    memory.extend([Part(0, 0, [1, 2, 3], nothing, [])])
    part = Part(0, 3, [1, 2, 3, 4], nothing, [])
    assert (memory.extend([part])[0] - read(narrator, part)).abs().max() > 1e-3


def test_moved_rows_and_numbers_that_are_none():
    narrator = narrator_of(baichuan)
    memory = SlotMemory(narrator, 3)
    nothing = torch.zeros(0, WIDTH, dtype=torch.float64)
    ids = [[1, 2, 3, 4], [9, 8, 7], [5, 6, 7, 8, 9]]
    memory.extend([Part(row, 0, own, nothing, []) for row, own in enumerate(ids)])
    memory.move(2, 0, 5)
    part = Part(0, 5, [*ids[2], 11], nothing, [])
    assert (memory.extend([part])[0] - read(narrator, part)).abs().max() < 1e-10
    narrator.base.set_attn_implementation(SLOTS)
    with torch.inference_mode():
        for keys, values in memory.cache.layers.values():
            keys[2], values[2] = torch.nan, torch.nan
    memory.clear(2)
    parts = [Part(2, 0, [4], nothing, []), Part(0, 6, [*part.ids, 12], nothing, [])]
    assert memory.extend(parts).isfinite().all()


@pytest.mark.parametrize("kind", [SlotMemory, PlainMemory])
def test_a_row_that_was_not_read_yet_may_move(kind):
    narrator = narrator_of(baichuan)
    memory, nothing = kind(narrator, 2), torch.zeros(0, WIDTH, dtype=torch.float64)
    memory.extend([Part(0, 0, [1, 2, 3], nothing, [])])
    memory.move(1, 0, 0)
    part = Part(0, 0, [4, 5], nothing, [])
    assert (memory.extend([part])[0] - read(narrator, part)).abs().max() < 1e-10


def test_the_captured_step_is_the_same_step():
    """What a GPU captures, run as it is: fixed shapes, idle rows and slots change nothing."""
    narrator = narrator_of(baichuan)
    memory = SlotMemory(narrator, 4)
    nothing = torch.zeros(0, WIDTH, dtype=torch.float64)
    held = [[1, 2, 3, 4], [9, 8, 7], [5, 6, 7, 8, 9], [3, 3]]
    memory.extend([Part(row, 0, own, nothing, []) for row, own in enumerate(held)])
    tokens = [(2, 11, 5), (0, 12, 4)]  # rows 1 and 3 have nothing to add
    step = StaticStep(narrator, memory.cache, 4, memory.cache.capacity)
    fill(step, tokens, memory.lengths)
    with torch.inference_mode():
        logits = step.run()
    for row, token, _ in tokens:
        part = Part(row, 0, [*held[row], token], nothing, [])
        assert (logits[row] - read(narrator, part)).abs().max() < 1e-10
    narrator.base.set_attn_implementation(SLOTS)
    part = Part(1, 3, [*held[1], 13], nothing, [])  # the idle rows are as they were
    assert (memory.extend([part])[0] - read(narrator, part)).abs().max() < 1e-10


def test_which_memory_suits_a_model():
    for model in MODELS.values():
        assert slots_hold(narrator_of(model, torch.float32))
        assert isinstance(memory_for(narrator_of(model), 2, 512), SlotMemory)
    assert isinstance(memory_for(narrator_of(lambda: mistral(1024)), 2, 512), SlotMemory)
    assert isinstance(memory_for(narrator_of(lambda: mistral(256)), 2, 512), PlainMemory)

    class Deaf(type(llama().model)):
        """A model of someone's own, which does not hand on what it does not know."""

        def forward(self, slots=None, **words):
            return super().forward(**words)

    deaf = narrator_of(llama)
    deaf.base.model.__class__ = Deaf
    assert not slots_hold(deaf) and isinstance(memory_for(deaf, 2, 512), PlainMemory)


def test_bytes_of_a_slot():
    for model in MODELS.values():
        narrator = narrator_of(model, torch.float32)
        memory = SlotMemory(narrator, 2)
        memory.extend([Part(0, 0, [1, 2], torch.zeros(0, WIDTH), [])])
        stored = sum(one.nbytes for pair in memory.cache.layers.values() for one in pair)
        assert stored == slot_bytes(narrator) * 2 * memory.cache.capacity
