"""From an output.json to the scores: which entries each metric takes, and with which settings."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from metrics import fit, ngram
from metrics.base import HIGHER_IS_BETTER, Measured, Score, Signature, Skips, sha256
from metrics.entries import Entry, Output, read_output, require_fields, restrict
from metrics.repetition import join_single_characters, repetition, story_repetition
from metrics.segment import Segmenter, Tokenizer, char_tokenizer, load_segmenter, load_tokenizer
from videonarrator.length import REFERENCE_MARGIN
from videonarrator.schema import GENERATED_KEY, NarratorError

BLEU = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
UNIT = {"zh": "characters", "en": "words"}


@dataclass(frozen=True)
class Evaluation:
    """All scores of one output.json. failed: metric -> what went wrong. inputs: role -> name and sha256."""

    scores: dict[str, Score]
    failed: dict[str, str]
    settings: dict[str, str]
    inputs: dict[str, dict[str, str]]
    notes: list[str]

    @property
    def left_out(self) -> dict[str, str]:
        """Metric -> why it has no value, where no entry could be scored (see its `n_skipped`)."""
        reasons = {}
        for name, score in self.scores.items():
            if score.value is None:
                counts = score.as_json()["n_skipped"]
                reasons[name] = "nothing to score: " + ", ".join(
                    f"{reason} {n}" for reason, n in counts.items()
                )
        return reasons


@dataclass(frozen=True)
class _Run:
    """What the metrics of one evaluation share."""

    output: Output
    language: str
    key: str
    upstream: bool
    clips: str
    tokenizer: Tokenizer
    segmenter: Segmenter | None
    absent: Skips = field(default_factory=list)

    def select(self, *fields: str) -> tuple[list[Entry], Skips]:
        entries, skips = self.output.select(*fields)
        return entries, skips + self.absent

    def sign(self, name: str, **settings: str) -> Signature:
        return Signature(name, {**settings, "clips": self.clips})


def metric_names(chosen: Sequence[str] | None) -> list[str]:
    """The metrics' names for `chosen` (None: all; "bleu": the four), in the report's order.

    Raises `NarratorError` on an unknown name.
    """
    if chosen is None:
        return list(HIGHER_IS_BETTER)
    wanted = {name for given in chosen for name in (BLEU if given == "bleu" else (given,))}
    for name in sorted(wanted - HIGHER_IS_BETTER.keys()):
        near = difflib.get_close_matches(name, HIGHER_IS_BETTER, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise NarratorError(f"unknown metric {name!r}{hint}; there are: {', '.join(HIGHER_IS_BETTER)}")
    if not wanted:
        raise NarratorError(f"no metric named; there are: {', '.join(HIGHER_IS_BETTER)}")
    return [name for name in HIGHER_IS_BETTER if name in wanted]


def evaluate(
    output: str | Path,
    *,
    annotations: str | Path | None = None,
    tokenizer: str | None = None,
    metrics: Sequence[str] | None = None,
    language: str = "zh",
    key: str = GENERATED_KEY,
    segmenter: str = "jieba",
    user_dict: str | Path | None = None,
    upstream: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Score an output.json (`<video id>_<clip index>` -> {"gt", "label", "out_label", <key>: narration}).

    annotations: entries unknown to it are skipped, clips it has and the output lacks are counted. tokenizer:
    "chars", "words", or a SentencePiece file or folder (None: chars for zh, words for en). metrics: names
    (None: all). upstream: the published arithmetic (texts under 4 characters left out, a final 。 added).
    progress is called with one line per step. Raises `NarratorError` on bad input; a metric that fails stands
    in `failed` and costs no other.
    """
    names = metric_names(metrics)
    if language not in UNIT:
        raise NarratorError(f"unknown language {language!r}; there are: {', '.join(UNIT)}")
    output, choice = Path(output), tokenizer or ("words" if language == "en" else "chars")
    inputs = {"output": output}
    read = read_output(output, key)
    references = bool({*names} - {"label_accuracy", "repetition"})
    require_fields(output, read, key, narrations=names != ["label_accuracy"], references=references)
    notes = _notes(output, read)
    clips, absent = "all", []
    if annotations is not None:
        inputs["annotations"] = Path(annotations)
        read, absent = restrict(read, inputs["annotations"], notes)
        clips = f"annotated {sha256(inputs['annotations'])[:12]}"
    ngrams = any(name in (*BLEU, "cider") for name in names)
    settings = {"language": language, "key": key, "upstream": str(upstream).lower()}
    words, tokens = None, char_tokenizer()
    if "repetition" in names or (ngrams and choice == "words"):
        progress("loading the segmenter")
        words = load_segmenter(language, segmenter, user_dict)
        settings["segmenter"] = words.name
        inputs |= {} if user_dict is None else {"user_dict": Path(user_dict)}
    if ngrams:
        tokens = load_tokenizer(choice, words)
        settings["tokenizer"] = tokens.name
        inputs |= {} if tokens.file is None else {"tokenizer": tokens.file}
    run = _Run(read, language, key, upstream, clips, tokens, words, absent)

    scores: dict[str, Score] = {}
    failed: dict[str, str] = {}
    for group, compute in _GROUPS:
        wanted = [name for name in group if name in names]
        if not wanted:
            continue
        progress(f"{', '.join(wanted)}: {len(read.entries)} entries")
        try:
            results = {score.name: score for score in compute(run)}
            scores.update((name, results[name]) for name in wanted)
        except Exception as error:  # noqa: BLE001 - one metric's failure must not cost the others; it is reported
            failed.update((name, f"{type(error).__name__}: {error}") for name in wanted)
    files = {role: {"file": path.name, "sha256": sha256(path)} for role, path in inputs.items()}
    return Evaluation(scores, failed, settings, files, notes)


def _notes(path: Path, output: Output) -> list[str]:
    notes = []
    repeated = sum(reason == "duplicate_entry" for _, reason in output.rejected)
    if repeated:
        notes.append(f"{repeated} entries stand more than once in {path.name}: each clip is counted once.")
    if path.name == "output_label.json":
        notes.append(
            "The storyline was given (output_label.json): label_accuracy says nothing about the model."
        )
    return notes


def _score(signature: Signature, keys: Sequence[str], measured: Measured | None, skips: Skips) -> Score:
    if measured is None:
        return Score(signature.name, None, signature, {}, skips)
    samples = {key: value for key, value in zip(keys, measured.per_item, strict=True) if value is not None}
    return Score(signature.name, measured.value, signature, samples, skips, components=measured.components)


def _captions(run: _Run) -> tuple[list[str], list[str], list[str], Skips]:
    """Keys, narrations and references that the n-gram metrics take."""
    entries, skips = run.select("narration", "reference")
    rows = []
    for entry in entries:
        narration, reference = str(entry.narration), str(entry.reference)
        if run.upstream:
            short = f"_under_{ngram.SHORTEST_UPSTREAM}_characters"
            prepared = ngram.upstream_text(narration), ngram.upstream_text(reference)
            if prepared[0] is None or prepared[1] is None:
                skips.append((entry.key, ("narration" if prepared[0] is None else "reference") + short))
                continue
            narration, reference = prepared[0], prepared[1]
        if run.tokenizer.encode(reference):
            rows.append((entry.key, narration, reference))
        else:
            skips.append((entry.key, "reference_without_tokens"))
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows], skips


def _ngram_settings(run: _Run) -> dict[str, str]:
    text = f"final 。, at least {ngram.SHORTEST_UPSTREAM} characters" if run.upstream else "as written"
    library = f"pycocoevalcap-{version('pycocoevalcap')}"
    return {"key": run.key, "tokenizer": run.tokenizer.name, "text": text, "library": library}


def _bleu(run: _Run) -> list[Score]:
    keys, narrations, references, skips = _captions(run)
    results = ngram.bleu(narrations, references, run.tokenizer.encode) if keys else {}
    settings = _ngram_settings(run)
    return [_score(run.sign(name, **settings), keys, results.get(name), skips) for name in BLEU]


def _cider(run: _Run) -> list[Score]:
    keys, narrations, references, skips = _captions(run)
    if len(keys) == 1:  # with one reference every n-gram has weight 0
        skips, keys = [*skips, (keys[0], "cider_needs_two_clips")], []
    measured = ngram.cider(narrations, references, run.tokenizer.encode) if keys else None
    return [_score(run.sign("cider", **_ngram_settings(run), sigma="6"), keys, measured, skips)]


def _repetition(run: _Run) -> list[Score]:
    fields = ("narration", "reference") if run.upstream else ("narration",)
    entries, skips = run.select(*fields)
    stories: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda e: e.clip):
        stories.setdefault(entry.video, []).append(entry)
    segmenter = run.segmenter
    assert segmenter is not None, "evaluate loads one wherever repetition is asked for"
    join = list if run.language == "en" else join_single_characters
    videos = list(dict.fromkeys(entry.video for entry in entries))  # file order
    texts = [[str(entry.narration) for entry in stories[video]] for video in videos]
    units = [[join(segmenter.words(text)) for text in story] for story in texts]
    scored = [
        video for video, story in zip(videos, units, strict=True) if story_repetition(story) is not None
    ]
    skips += [(video, "story_without_two_narrations") for video in videos if video not in set(scored)]
    name = "words" if run.language == "en" else "words, single characters joined"
    signature = run.sign(
        "repetition", key=run.key, segmenter=segmenter.name, units=name, entries=" and ".join(fields)
    )
    measured = repetition(texts, segmenter.words, join) if scored else None
    score = _score(signature, videos, measured, skips)
    return [Score(score.name, score.value, signature, score.samples, skips, "story", score.components)]


def _lengths(run: _Run) -> list[Score]:
    entries, skips = run.select("narration", "reference")
    keys, narrations, references = (
        [entry.key for entry in entries],
        [str(entry.narration) for entry in entries],
        [str(entry.reference) for entry in entries],
    )
    unit = UNIT[run.language]
    margin = f"reference -/+{REFERENCE_MARGIN[run.language]} {unit}"
    inside = run.sign("length_in_range", key=run.key, range=margin)
    error = run.sign("length_mae", key=run.key, unit=unit)
    if not keys:
        return [_score(inside, [], None, skips), _score(error, [], None, skips)]
    return [
        _score(inside, keys, fit.length_in_range(narrations, references, run.language), skips),
        _score(error, keys, fit.length_mae(narrations, references, run.language), skips),
    ]


def _labels(run: _Run) -> list[Score]:
    entries, skips = run.select("label", "generated_label")
    signature = run.sign("label_accuracy", match="sets of labels, variants resolved")
    if not entries:
        return [_score(signature, [], None, skips)]
    measured = fit.label_accuracy([str(e.generated_label) for e in entries], [str(e.label) for e in entries])
    return [_score(signature, [entry.key for entry in entries], measured, skips)]


_GROUPS: tuple[tuple[tuple[str, ...], Callable[[_Run], list[Score]]], ...] = (
    (BLEU, _bleu),
    (("cider",), _cider),
    (("repetition",), _repetition),
    (("length_in_range", "length_mae"), _lengths),
    (("label_accuracy",), _labels),
)
