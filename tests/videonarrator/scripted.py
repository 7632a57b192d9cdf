"""Lines with prepared texts in a model's place: what is asked for can be looked at."""

from videonarrator.generation.jobs import VideoTask
from videonarrator.generation.story import Writing
from videonarrator.settings import DecodingSettings, as_published

ASKED = as_published(DecodingSettings())
"""Length and labels are only asked for; nothing is written again."""


def encode_all(text, tokenizer):
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def play(checkpoint, product, tasks, total, texts, settings=ASKED):
    """Results and lines of a video whose lines are `texts`, one after the other."""
    texts, asked = iter(texts), []
    lines = Writing(checkpoint, settings).lines(VideoTask("v", product, tasks, total))
    while True:
        try:
            line = next(lines)
        except StopIteration as done:
            return done.value, asked
        asked.append(line)
        for token in encode_all(next(texts), checkpoint.tokenizer):
            line.judged.append([-1.0] * len(line.guide.judged))
            line.own.append(-1.0)
            if line.take(token):
                break
        line.judged.append([-1.0] * len(line.guide.judged))
        line.own.append(-1.0)
        line.ended = True
