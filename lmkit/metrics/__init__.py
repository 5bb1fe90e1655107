"""What a model's answers are worth: numpy arrays and strings to named numbers, with the field's usual packages."""

from lmkit.metrics.bootstrap import Difference, Figure, bootstrap, paired_difference
from lmkit.metrics.packages import available, require
from lmkit.metrics.tables import classification, confusion, format_confusion, regression
from lmkit.metrics.text import perplexity, speech, speech_errors, translation, translation_signature

__all__ = [
    "Difference",
    "Figure",
    "available",
    "bootstrap",
    "classification",
    "confusion",
    "format_confusion",
    "paired_difference",
    "perplexity",
    "regression",
    "require",
    "speech",
    "speech_errors",
    "translation",
    "translation_signature",
]
