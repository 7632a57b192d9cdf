"""From an output.json to numbers: `python -m metrics OUTPUT.json`, or `evaluate` and one function per metric.

Knows nothing of models, prompts or videos.
"""

from metrics.base import HIGHER_IS_BETTER, Measured, Score, Signature
from metrics.evaluation import Evaluation, evaluate
from metrics.fit import label_accuracy, length_in_range, length_mae
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
    "evaluate",
    "label_accuracy",
    "length_in_range",
    "length_mae",
    "repetition",
    "write",
]
