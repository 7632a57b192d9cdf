"""From an output.json to the scores: which metrics the inputs allow, and their values under chosen rules."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from metrics.annotated import keep_ids, read_annotated, read_ids, restrict
from metrics.base import HIGHER_IS_BETTER, Score, Skips, sha256
from metrics.entries import Output, read_output, require_fields
from metrics.meteor import java_missing
from metrics.scoring.context import TOKENIZER, Context, Resources, Settings
from metrics.scoring.corrections import PUBLISHED, variants
from metrics.scoring.encoded_scores import EMSCORES, INFOS
from metrics.scoring.groups import SEED, Progress, compare_scores, meteor_beside, score_all, with_interval
from metrics.scoring.text_scores import BLEU
from videonarrator.schema import GENERATED_KEY, NarratorError

NO_REFERENCE = ("label_accuracy", "repetition", "emscore", *INFOS)
RESAMPLES = 1000
"""Bootstrap resamples of a comparison where no number is given."""


@dataclass(frozen=True)
class Evaluation:
    """All scores of one output.json. failed: metric -> what went wrong. inputs: role -> name and sha256.

    lacking: metric -> what it would need. comparison: metric -> the paired test against another output.
    """

    scores: dict[str, Score]
    failed: dict[str, str]
    lacking: dict[str, str]
    settings: dict[str, str]
    inputs: dict[str, dict[str, str]]
    notes: list[str]
    comparison: dict[str, dict[str, Any]]

    @property
    def left_out(self) -> dict[str, str]:
        """Metric -> why it has no value: what it lacks, or why no entry could be scored."""
        reasons = dict(self.lacking)
        for name, score in self.scores.items():
            if score.value is None:
                counts = score.as_json()["n_skipped"].items()
                reasons[name] = "nothing to score: " + ", ".join(f"{reason} {n}" for reason, n in counts)
        return {name: reasons[name] for name in HIGHER_IS_BETTER if name in reasons}


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
    ids: str | Path | None = None,
    metrics: Sequence[str] | None = None,
    language: str = "zh",
    key: str = GENERATED_KEY,
    upstream: bool = False,
    tokenizer: str | None = None,
    segmenter: str = "jieba",
    user_dict: str | Path | None = None,
    clip_model: str | None = None,
    clip_backend: str = "transformers",
    frame_features: str | Path | None = None,
    frames: str | Path | None = None,
    frame_cache: str | Path | None = None,
    text_model: str | None = None,
    idf: str | Path | None = None,
    device: str = "cpu",
    confidence: int = 0,
    compare: str | Path | None = None,
    progress: Progress = lambda line: None,
) -> Evaluation:
    """Score an output.json (`<video id>_<clip index>` -> {"gt", "label", "out_label", <key>: narration}).

    annotations: entries unknown to it are skipped, clips it has and the output lacks are counted; it has the
    products and clip times that InfoSim and InfoDiverse need. ids: file of the video ids that count. metrics:
    names (None: all that the inputs allow). upstream: the published arithmetic, see `scoring.corrections`.
    tokenizer: "chars", "words", or a SentencePiece file or folder (None: chars for zh, words for en).
    clip_model with frame_features (safetensors, key -> [frames, dim]) or frames (a folder of stills, whose
    features are kept in the file frame_cache): EMScore. text_model, with idf or the annotations' products:
    InfoSim, InfoDiverse. Models are local folders or hub names. confidence: bootstrap resamples over videos
    for 95% intervals (0: none). compare: another output.json, for a paired bootstrap test of each metric.
    progress is called with one line per step.

    Raises `NarratorError` on bad input; a metric that fails stands in `failed` and costs no other.
    """
    output_file, annotations_file, ids_file = Path(output), _path(annotations), _path(ids)
    other_file = _path(compare)
    settings = Settings(
        language=language,
        key=key,
        upstream=upstream,
        tokenizer=tokenizer,
        segmenter=segmenter,
        user_dict=_path(user_dict),
        clip_model=clip_model,
        clip_backend=clip_backend,
        frame_features=_path(frame_features),
        frames=_path(frames),
        text_model=text_model,
        idf=_path(idf),
        device=device,
    )
    if language not in TOKENIZER:
        raise NarratorError(f"unknown language {language!r}; there are: {', '.join(TOKENIZER)}")
    names = metric_names(metrics)
    needs = {name: lack for name in names if (lack := _lacking(name, settings, annotations_file is not None))}
    for name, lack in needs.items():
        if metrics is not None and name != "meteor":  # a missing Java is not a mistake in the command
            raise NarratorError(f"{name} {lack}")
    names = [name for name in names if name not in needs]
    notes: list[str] = []
    annotated = {} if annotations_file is None else read_annotated(annotations_file)
    resources = Resources(settings, annotated, _path(frame_cache), progress)
    context = _context(output_file, resources, annotations_file, ids_file, names, notes)
    other = None
    if other_file is not None:
        other = _context(other_file, resources, annotations_file, ids_file, names, [])
    with meteor_beside(names, progress) as meteor:
        used = _load(resources, names, progress)
        rule_sets = [PUBLISHED] if upstream else variants(names)
        scores, failed = score_all(context, names, rule_sets, meteor, progress)
        others: dict[str, Score] = {}
        if other is not None and other_file is not None:
            progress(f"the same for {other_file.name}")
            others, other_failed = score_all(other, names, rule_sets[:1], meteor, progress)
            failed |= {f"{name} of {compare}": reason for name, reason in other_failed.items()}
    if confidence:
        scores = {name: with_interval(score, confidence) for name, score in scores.items()}
    comparison = {
        name: compare_scores(scores[name], theirs, confidence or RESAMPLES)
        for name, theirs in others.items()
        if name in scores and scores[name].value is not None and theirs.value is not None
    }
    notes += _remarks(names, settings, resources)
    files = {
        "output": output_file,
        "annotations": annotations_file,
        "ids": ids_file,
        "compare": other_file,
        "frame_features": settings.frame_features,
        "idf": settings.idf,
    } | used
    inputs = {
        role: {"file": path.name, "sha256": sha256(path)} for role, path in files.items() if path is not None
    }
    described = _described(settings, resources) | {
        "resamples": str(confidence or (RESAMPLES if other_file else 0)),
        "seed": str(SEED),
    }
    return Evaluation(scores, failed, needs, described, inputs, notes, comparison)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _lacking(name: str, settings: Settings, annotated: bool) -> str | None:
    """What a metric lacks among inputs and programs, None where it has all."""
    if name == "meteor":
        return java_missing()
    if name in EMSCORES:
        if settings.clip_model is None:
            return "needs a CLIP model: type --clip-model DIR_OR_NAME"
        if settings.frame_features is None and settings.frames is None:
            return "needs the clips' frames: type --frame-features FILE.safetensors, or --frames DIR"
        if settings.frame_features is None and not annotated:
            return "needs the clips' times to find their stills: type --annotations FILE"
    if name in INFOS:
        if settings.text_model is None:
            return "needs a text encoder: type --text-model DIR_OR_NAME"
        if not annotated:
            return "needs each video's product and clip times: type --annotations FILE"
    return None


def _context(
    path: Path,
    resources: Resources,
    annotations: Path | None,
    ids: Path | None,
    names: list[str],
    notes: list[str],
) -> Context:
    settings = resources.settings
    output = read_output(path, settings.key)
    require_fields(
        path,
        output,
        settings.key,
        narrations=names != ["label_accuracy"],
        references=bool({*names} - {*NO_REFERENCE}),
    )
    notes += _notes(path, output)
    absent: Skips = []
    clips, listed_ids = [], None
    if annotations is not None:
        output, absent = restrict(output, resources.annotated, annotations, notes)
        clips.append(f"annotated {sha256(annotations)[:12]}")
    whole = listed = output, absent
    if ids is not None:
        known = {entry.video for entry in output.entries} | set(resources.annotated)
        listed_ids = read_ids(ids, known, notes)
        listed = keep_ids(output, absent, listed_ids.listed)
        clips.append(f"ids {sha256(ids)[:12]}")
    return Context(resources, whole, listed, listed_ids, ", ".join(clips) or "all")


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


def _load(resources: Resources, names: list[str], progress: Progress) -> dict[str, Path]:
    """Load what can be wrong in the command, before anything is scored; the files that were used, by role."""
    used: dict[str, Path] = {}
    settings, wanted = resources.settings, {*names}
    ngrams = wanted & {*BLEU, "meteor", "cider"}
    known_words = wanted & {"repetition", *INFOS} or (ngrams and resources.tokenizer_choice == "words")
    if known_words or wanted & {*EMSCORES}:
        progress("loading the segmenter")
    if known_words and resources.knowledge_words and settings.user_dict is not None:
        used["user_dict"] = settings.user_dict
    if ngrams and (file := resources.tokenizer.file) is not None:
        used["tokenizer"] = file
    if wanted & {*INFOS}:
        _ = resources.points
    if wanted & {*EMSCORES} and settings.frame_features is not None:
        _ = resources.frame_features
    return used


def _remarks(names: list[str], settings: Settings, resources: Resources) -> list[str]:
    """What a reader of the numbers should know, as far as it applies to this run."""
    notes = []
    if "meteor" in names:
        notes.append("METEOR is given tokens as if they were English words, as published.")
    if {*INFOS} & {*names}:
        notes.append(
            "The idf weights have no effect: with one nearest point a weight multiplies and divides the same "
            "value."
        )
    if settings.user_dict is not None and settings.segmenter != "jieba":
        notes.append("The user dictionary has no effect in jieba's neural mode.")
    for encoder in ("clip_encoder", "text_encoder"):
        if encoder in vars(resources) and (cut := getattr(resources, encoder).truncated):
            notes.append(f"{cut} texts are longer than the {encoder.replace('_', ' ')} takes and were cut.")
    return notes


_NAMED = ("tokenizer", "words", "knowledge_words", "clip_encoder", "text_encoder")


def _described(settings: Settings, resources: Resources) -> dict[str, str]:
    """The settings as results.json has them: what was chosen, with the names of what was loaded."""
    chosen = {item.name: getattr(settings, item.name) for item in fields(settings)}
    described = {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in chosen.items()
        if value is not None and not isinstance(value, Path) and name not in _NAMED
    }
    loaded = vars(resources)  # the names of what was loaded in place of what was typed
    return described | {name: loaded[name].name for name in _NAMED if name in loaded}
