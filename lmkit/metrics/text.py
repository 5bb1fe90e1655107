"""Text against reference text: BLEU and chrF, word and character error rates, perplexity."""

import math
import unicodedata
from collections.abc import Sequence

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.metrics.packages import check_texts, require


def translation(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float]:
    """Corpus `bleu` (Post 2018) and `chrf` (chrF2, Popović 2015), 0 to 100, with sacrebleu's defaults."""
    package = require("translation")
    check_texts("translation", references, hypotheses)
    return {
        "bleu": package.BLEU().corpus_score(list(hypotheses), [list(references)]).score,
        "chrf": package.CHRF().corpus_score(list(hypotheses), [list(references)]).score,
    }


def translation_signature() -> str:
    """How `translation` scores, in sacrebleu's own words: to be cited beside the numbers."""
    package = require("translation")
    metrics = {"bleu": package.BLEU(), "chrf": package.CHRF()}
    for metric in metrics.values():
        metric.corpus_score(["a"], [["a"]])  # the signature is known once something was scored
    return " ".join(f"{name}|{metric.get_signature()}" for name, metric in metrics.items())


def speech(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float]:
    """`wer` and `cer`: word and character edits over the references' length, so 0 is perfect and 1 can be exceeded.

    Both sides are lower-cased and lose their punctuation first: an apostrophe vanishes, other marks part words.
    """
    return {
        name: float(wrong.sum() / length.sum())
        for name, (wrong, length) in speech_errors(references, hypotheses).items()
    }


def speech_errors(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each text the edits, and the words or characters of its reference: what `speech` is made of, float [N]."""
    package = require("speech")
    check_texts("speech", references, hypotheses)
    truth, answers = [_spoken(text) for text in references], [_spoken(text) for text in hypotheses]
    if not any(truth):
        raise ConfigError(f"speech: the {len(truth)} references hold no words; check the transcripts")
    found = {}
    for name, process in (("wer", package.process_words), ("cer", package.process_characters)):
        each = [process([a], [b]) for a, b in zip(truth, answers, strict=True)]
        wrong = [one.substitutions + one.deletions + one.insertions for one in each]
        length = [one.hits + one.substitutions + one.deletions for one in each]
        found[name] = (np.array(wrong, float), np.array(length, float))
    return found


def perplexity(nll: float) -> float:
    """exp of the mean negative log-likelihood in nats a token; infinite beyond what a float holds."""
    if np.ndim(nll) or not np.issubdtype(np.asarray(nll).dtype, np.number):
        raise ConfigError(f"perplexity: nll={nll!r:.40}; give one number, the mean over all tokens")
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


def _spoken(text: str) -> str:
    text = unicodedata.normalize("NFC", text).lower().replace("'", "").replace("’", "")
    return " ".join("".join(" " if unicodedata.category(c)[0] == "P" else c for c in text).split())
