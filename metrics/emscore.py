"""EMScore and EMScore_ref: narrations against frames, and against references, by Chinese CLIP (section 5.2).

A narration is compared as a whole (coarse: cosine with the clip's mean frame) and word by word (fine: each
word's best frame, each frame's best word). The arithmetic is the metrics fixture's (README, section 2); what
the published code does by mistake is left out or can be asked for: `padding`, `normalize`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metrics.base import Measured, check_pairs
from metrics.encoders import Encode, embed
from metrics.words.segment import Tagged

CONTENT_TAGS = frozenset(("n", "s", "nr", "ns", "nt", "nw", "nz", "v", "vn", "a"))
"""jieba's tags of the words that are compared; no other tag that begins like one of them."""

MOST_FRAMES = 10
REFERENCE_CHARACTERS = 77
PUBLISHED_BATCH = 64


@dataclass(frozen=True)
class Compared:
    """All narrations against their clips' frames, or against their references' words (both: "others").

    words, others: best cosine of each word over the clip's others, and of each other over the clip's words,
    all clips in a row; word_counts, other_counts [clips] say how many each clip has. coarse [clips].
    """

    words: np.ndarray
    word_counts: np.ndarray
    others: np.ndarray
    other_counts: np.ndarray
    coarse: np.ndarray

    def scores(self, padding: bool = False) -> dict[str, np.ndarray]:
        """Each clip's precision, recall, fine, coarse, value, fine_normalized, value_normalized, [clips].

        Precision is the published SUM over words of their best cosines, so it grows with length; normalized
        means made of precision / words. padding: see `emscore`.
        """
        words, others = self.words, self.others
        if padding:
            words = _padded(words, self.word_counts, self.other_counts)
            others = _padded(others, self.other_counts, self.word_counts)
        precision = _sums(words, self.word_counts)
        recall = _sums(others, self.other_counts) / self.other_counts
        fine, normalized = _f(precision, recall), _f(precision / self.word_counts, recall)
        return {
            "precision": precision,
            "recall": recall,
            "fine": fine,
            "coarse": self.coarse,
            "value": (fine + self.coarse) / 2,
            "fine_normalized": normalized,
            "value_normalized": (normalized + self.coarse) / 2,
        }


@dataclass(frozen=True)
class ClipParts:
    """What both metrics are made of, from one encoder call; references is None where none were given."""

    frames: Compared
    references: Compared | None

    def emscore(self, padding: bool = False) -> Measured:
        """As the function `emscore`."""
        return _measured(self.frames.scores(padding))

    def emscore_ref(self, padding: bool = False) -> Measured:
        """As the function `emscore_ref`; raises `ValueError` without references."""
        if self.references is None:
            raise ValueError("EMScore_ref needs references: give them to clip_parts")
        frames, references = self.frames.scores(padding), self.references.scores(padding)
        measured = _measured({name: (frames[name] + references[name]) / 2 for name in frames})
        own = {f"reference_{name}": 100 * float(np.mean(values)) for name, values in references.items()}
        return Measured(measured.value, measured.per_item, {**measured.components, **own})


def emscore(
    narrations: Sequence[str],
    frames: Sequence[np.ndarray],
    tagged: Tagged,
    encode: Encode,
    *,
    padding: bool = False,
    normalize: bool = True,
) -> Measured:
    """EMScore(X,V), times 100: mean over clips of (fine + coarse) / 2.

    frames: each clip's frame features [frames, dim], dim being the text encoder's; of more than 10, those at
    int(linspace(0, n - 1, 10)) are taken. A narration's words are those with a tag of `CONTENT_TAGS`, repeats
    kept, each encoded alone; without one, its first word stands for them. fine = 2PR/(P + R), 0 where
    P + R = 0, with precision P (sum over words) and recall R (mean over frames). Components, times 100: fine,
    coarse, precision, recall, and with the mean over words as P: fine_normalized, value_normalized.

    padding: the published batches of 64 clips padded with zeros that take part in both maxima: the best
    cosine of a word is at least 0 in a clip with fewer frames than the longest of its batch, and that of a
    frame in a clip with fewer words. normalize: L2-normalise the frames (the published code takes them as
    they are). Raises `ValueError` where the lists differ in length or are empty, a narration is blank, or
    frames do not fit.
    """
    return clip_parts(narrations, frames, tagged, encode, normalize=normalize).emscore(padding)


def emscore_ref(
    narrations: Sequence[str],
    references: Sequence[str],
    frames: Sequence[np.ndarray],
    tagged: Tagged,
    encode: Encode,
    *,
    padding: bool = False,
    normalize: bool = True,
) -> Measured:
    """EMScore(X,V,X*), times 100: the mean of `emscore` and of the same against the reference, part by part.

    The reference's words stand for the frames and its sentence for their mean; it is cut to 77 characters,
    narrations are not. F is averaged, not computed from averages. Components as in `emscore`, and those of
    the reference's half, its own value included, with "reference_" before their names. Raises `ValueError` as
    `emscore` does, and on a blank reference.
    """
    parts = clip_parts(narrations, frames, tagged, encode, references, normalize=normalize)
    return parts.emscore_ref(padding)


def clip_parts(
    narrations: Sequence[str],
    frames: Sequence[np.ndarray],
    tagged: Tagged,
    encode: Encode,
    references: Sequence[str] | None = None,
    *,
    normalize: bool = True,
    longest: int | None = REFERENCE_CHARACTERS,
) -> ClipParts:
    """What `emscore` and `emscore_ref` are made of, padded or not; `encode` is called once.

    Arguments and errors as there; longest: characters of a reference that are compared (None: all).
    """
    check_pairs(narrations, narrations if references is None else references)
    if len(frames) != len(narrations):
        raise ValueError(
            f"{len(narrations)} narrations and frames of {len(frames)} clips: need as many of both"
        )
    if not all(text.strip() for text in (*narrations, *(references or []))):
        raise ValueError("EMScore: a narration or reference is blank; leave such clips out")
    cut = [text[:longest] for text in references or []]
    words: dict[str, list[str]] = {}
    for text in (*narrations, *cut):
        if text not in words:
            found = tagged(text)
            chosen = [word for word, tag in found if tag in CONTENT_TAGS]
            words[text] = chosen or [found[0][0] if found else text]
    vectors = embed([text for key, chosen in words.items() for text in (key, *chosen)], encode)
    sentences = vectors(narrations)
    narrated = [vectors(words[text]) for text in narrations]
    pictures = [
        _frames(clip, sentences.shape[1], f"frames of clip {i}", normalize) for i, clip in enumerate(frames)
    ]
    against_frames = _compare(
        narrated, pictures, sentences, _unit(np.stack([clip.mean(axis=0) for clip in pictures]))
    )
    if references is None:
        return ClipParts(against_frames, None)
    against_references = _compare(narrated, [vectors(words[text]) for text in cut], sentences, vectors(cut))
    return ClipParts(against_frames, against_references)


def _frames(clip: np.ndarray, dim: int, what: str, normalize: bool) -> np.ndarray:
    """At most ten of a clip's frames, [frames, dim], float32."""
    clip = np.asarray(clip)
    if clip.ndim != 2 or not len(clip) or clip.shape[1] != dim:
        raise ValueError(
            f"{what}: shape {clip.shape}; expected [frames, {dim}], as the text encoder's vectors have {dim} "
            "numbers (frames and texts must come from the same CLIP model)"
        )
    if len(clip) > MOST_FRAMES:
        clip = clip[np.linspace(0, len(clip) - 1, MOST_FRAMES).astype(int)]
    clip = clip.astype(np.float32)
    if not np.isfinite(clip).all():
        raise ValueError(f"{what}: a feature is not a finite number")
    return _unit(clip) if normalize else clip


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays one (cosine 0 with everything)."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)


def _compare(
    words: Sequence[np.ndarray], others: Sequence[np.ndarray], sentences: np.ndarray, wholes: np.ndarray
) -> Compared:
    """words, others: of each clip [words, dim] and [others, dim]. sentences, wholes: [clips, dim]."""
    cosines = [ours @ theirs.T for ours, theirs in zip(words, others, strict=True)]
    best = [(clip.max(axis=1), clip.max(axis=0)) for clip in cosines]
    return Compared(
        np.concatenate([word for word, _ in best], dtype=np.float64),
        np.array([len(word) for word, _ in best]),
        np.concatenate([other for _, other in best], dtype=np.float64),
        np.array([len(other) for _, other in best]),
        (sentences.astype(np.float64) * wholes).sum(axis=1),
    )


def _sums(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sum of each clip's values; every clip has at least one."""
    return np.add.reduceat(values, np.cumsum(counts) - counts)


def _padded(best: np.ndarray, counts: np.ndarray, compared: np.ndarray) -> np.ndarray:
    """Best cosines with the published padding: at least 0 where `compared` is below its batch's most."""
    most = np.maximum.reduceat(compared, np.arange(0, len(compared), PUBLISHED_BATCH))
    short = compared < np.repeat(most, PUBLISHED_BATCH)[: len(compared)]
    return np.where(np.repeat(short, counts), np.maximum(best, 0), best)


def _f(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    total = precision + recall
    return np.where(total == 0, 0, 2 * precision * recall / np.where(total == 0, 1, total))


def _measured(scores: dict[str, np.ndarray]) -> Measured:
    """Scores of all clips, as `Compared.scores` has them, as percentages."""
    per_item = 100 * scores["value"]
    components = {name: 100 * float(np.mean(values)) for name, values in scores.items() if name != "value"}
    return Measured(float(np.mean(per_item)), per_item.tolist(), components)
