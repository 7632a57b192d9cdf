"""From an output.json to numbers: `python -m metrics OUTPUT.json`, or `evaluate` and one function per metric.

Knows nothing of models, prompts or videos.
"""

from metrics.base import HIGHER_IS_BETTER, Measured, Score, Signature
from metrics.emscore import emscore, emscore_ref
from metrics.evaluation import Evaluation, evaluate
from metrics.fit import label_accuracy, length_in_range, length_mae
from metrics.knowledge import info_diverse, info_sim
from metrics.meteor import meteor
from metrics.ngram import bleu, cider
from metrics.repetition import repetition
from metrics.report import write

__all__ = [
    "HIGHER_IS_BETTER",
    "Evaluation",
    "Measured",
    "Score",
    "Signature",
    "bleu",
    "cider",
    "emscore",
    "emscore_ref",
    "evaluate",
    "info_diverse",
    "info_sim",
    "label_accuracy",
    "length_in_range",
    "length_mae",
    "meteor",
    "repetition",
    "write",
]
