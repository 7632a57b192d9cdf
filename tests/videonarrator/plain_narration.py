"""The plain procedure that the engine is held against: one line after the other, every prompt read whole.

Nothing is kept from one line to the next; a prompt is put together and tokenised from its beginning.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import DynamicCache, RepetitionPenaltyLogitsProcessor

from videonarrator.clip_inputs import encode, generation_inputs
from videonarrator.generation.flaws import flaws_of
from videonarrator.generation.guides import WithinLength
from videonarrator.generation.jobs import ClipResult
from videonarrator.generation.line import Line
from videonarrator.generation.prompts import Prompt
from videonarrator.generation.story import Writing, mix, overrun
from videonarrator.length import count_units, length_gap
from videonarrator.prompt import Segment, StoryClip, with_answer
from videonarrator.visual_memory import fit_tokens


@torch.inference_mode()
def write_plainly(narrator: Any, line: Line, *, cached: bool = True) -> Line:
    """Write a line: the prompt through the model, then token by token (not cached: all of it each time)."""
    narrator.base.set_attn_implementation("sdpa")
    prompt, model = line.prompt, narrator.base
    processor = RepetitionPenaltyLogitsProcessor(line.penalty)
    ids = torch.tensor([prompt.ids])
    prompted = narrator.embed(ids, prompt.visual, torch.tensor(prompt.positions, dtype=torch.long))
    embeddings = prompted
    cache = DynamicCache(config=model.config) if cached else None
    while True:
        made = model(inputs_embeds=embeddings, past_key_values=cache, use_cache=cached)
        logits = made.logits[:, -1]
        scores = processor(ids, logits.clone())[0]
        only, never = line.guide.only(line.written), line.guide.never(line.written)
        if only is not None:
            never = torch.tensor([token not in set(only) for token in range(len(scores))])
        if never is not None:
            scores[never] = -torch.inf
        if line.temperature:
            chances = torch.softmax(scores.double() / line.temperature, 0)
            place = torch.rand(1, dtype=torch.float64, generator=line.generator) * chances.cumsum(0)[-1]
            token = int((chances.cumsum(0) <= place).sum())
        else:
            token = int(scores.argmax())
        if line.guide.judged:
            likelihoods = logits[0].log_softmax(0)
            line.judged.append([float(likelihoods[list(group)].logsumexp(0)) for group in line.guide.judged])
            line.own.append(float(likelihoods[token]))
        if line.take(token):
            return line
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
        known = len(prompt.ids) + len(line.written) - 1  # less than before where a token was taken back
        written = model.get_input_embeddings()(torch.tensor([line.written], dtype=torch.long))
        embeddings = torch.cat([prompted, written], 1)
        if cache is not None:
            if surplus := cache.get_seq_length() - known:
                cache.crop(-surplus)
            embeddings = embeddings[:, known:]


def narrate_plainly(checkpoint, product, tasks, total, settings, seed=None, lines=None):
    """What `narrate_video` gives, by the plain procedure. lines: gets every line that was written."""
    writing = Writing(checkpoint, settings)
    seed = settings.seed if seed is None else seed
    template, info, tokenizer = checkpoint.template, checkpoint.info, checkpoint.tokenizer
    history, shown, results = [], [], []

    def write(task, clip, label, guide, penalty, attempt, draw):
        visual = torch.cat(shown) if shown else task.visual
        inputs = generation_inputs(
            product, history, clip, total, visual, task.position, template, all_slots=bool(shown)
        )
        segments = list(inputs.segments)
        if label is not None:
            segments += [Segment(label + "\n")] if template.label else []
            segments.append(Segment(template.narration.format(i=clip.number)))
        ids, _ = encode(segments, tokenizer, inputs.counts, info.token_rules)
        places = zip(inputs.positions, inputs.counts, strict=True)
        prompt = Prompt(ids, [], inputs.visual, [place for place, count in places for _ in range(count)])
        temperature = 0.0 if settings.greedy else settings.temperature
        line = Line(
            prompt, guide, writing.stops, settings.retry_temperature if attempt else temperature, penalty,
            torch.Generator().manual_seed(mix((seed, *draw))),
        )  # fmt: skip
        if lines is not None:
            lines.append(line)
        return write_plainly(checkpoint.narrator, line)

    for task in tasks[: settings.max_clips]:
        clip = StoryClip(task.index + 1, "", "", task.low, task.high)
        if info.whole_video_tokens:
            shown.append(fit_tokens(task.visual, info.whole_video_tokens))
        label = task.label
        if label is None and template.label:
            line = write(task, clip, None, writing.label_guide(), settings.label_penalty, 0, (task.index, 0))
            label = tokenizer.decode(line.written, skip_special_tokens=True).split("\n")[0].strip()
        tried, good = [], 0
        wanted = settings.candidates if settings.length == "best_of" else 1
        for attempt in range(max(settings.attempts, wanted)):
            line = write(
                task, clip, label or "", writing.narration_guide(task), settings.narration_penalty, attempt,
                (task.index, 1 + attempt),
            )  # fmt: skip
            raw = tokenizer.decode(line.written, skip_special_tokens=True)
            text, score = raw.split("\n")[0].strip(), None
            if isinstance(line.guide, WithinLength):
                text, score = line.guide.outcome(line)
            flaws = flaws_of(text, template.language, [result.text for result in results])
            gap = length_gap(count_units(text, template.language), task.low, task.high)
            flaws += ("length",) * bool(gap and score is not None)
            result = ClipResult(task.index, label or "", text, raw, attempt, seed, flaws, score)
            cost = -(score or 0.0)
            if task.seconds and settings.length == "best_of":
                cost += overrun(text, task.seconds, writing.rate)
            rank = ("empty" in flaws, len(flaws), gap, cost)
            tried.append((rank, attempt, result))
            good += not flaws and not getattr(line.guide, "strained", False)
            if good >= wanted:
                break
        results.append(min(tried)[2])
        history.append(with_answer(replace(clip), results[-1].label, results[-1].text))
    return results
