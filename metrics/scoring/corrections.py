"""Where the published arithmetic has oddities: each one a rule that can be switched on alone.

All rules off is this project's default, all on is `--upstream`. By default a report states for each rule how
far leaving it out moved the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Rules:
    """Which oddities of the published code hold."""

    short_texts_left_out: bool = False
    final_stop: bool = False
    first_token_cut: bool = False
    padded_maximum: bool = False
    frames_as_given: bool = False
    last_entry_left_out: bool = False
    references_needed: bool = False
    ids_for_stories_only: bool = False

    def holding(self, metric: str) -> list[str]:
        """Names of the rules that hold and concern `metric`."""
        return [name for name in concerning(metric) if getattr(self, name)]


_CAPTIONS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "cider")
_EMSCORES = ("emscore", "emscore_ref")

CORRECTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "short_texts_left_out": (
        (*_CAPTIONS, *_EMSCORES),
        "texts under 4 characters count (published: left out, so that a model gains by writing nothing)",
    ),
    "final_stop": (_CAPTIONS, "texts are scored as written (published: a 。 is added at the end)"),
    "first_token_cut": (
        _CAPTIONS,
        "all tokens count (published: the first is dropped, taken for a beginning of sentence, also where "
        "tokenizer_config.json says that none is added)",
    ),
    "padded_maximum": (
        _EMSCORES,
        "a clip's score depends on that clip alone (published: zeros pad each batch of 64 and take part in "
        "the maxima, which shows where cosines are negative)",
    ),
    "frames_as_given": (
        _EMSCORES,
        "frame features are brought to length 1 (published: taken as they are)",
    ),
    "last_entry_left_out": (
        ("info_sim",),
        "the file's end counts (published: its last entry is never scored, and where that one is without "
        "narration, neither is the last video)",
    ),
    "references_needed": (
        ("emscore", "info_sim", "info_diverse", "repetition"),
        "clips without a reference count (published: left out)",
    ),
    "ids_for_stories_only": (
        (*_CAPTIONS, *_EMSCORES, "info_sim", "info_diverse", "repetition"),
        "--ids holds for every metric, and each id once (published: for info_diverse and repetition only, an "
        "id that stands twice counts twice, and a last line without line break is lost)",
    ),
}
"""Rule -> (the metrics it concerns, what is done instead of it)."""

CORRECTED = Rules()
PUBLISHED = Rules(**{rule.name: True for rule in fields(Rules)})


def concerning(metric: str) -> list[str]:
    """Names of the rules that concern a metric."""
    return [name for name, (metrics, _) in CORRECTIONS.items() if metric in metrics]


def variants(metrics: list[str]) -> list[Rules]:
    """The rules that a default run of `metrics` is made with: none, all, and each alone that concerns one."""
    names = [name for name, (concerned, _) in CORRECTIONS.items() if set(concerned) & set(metrics)]
    return [CORRECTED, PUBLISHED, *(Rules(**{name: True}) for name in names)]
