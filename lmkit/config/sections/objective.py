"""`objective`: the loss."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from lmkit.config.base import Section, key


class ObjectiveKind(Enum):
    """What the loss is."""

    causal_lm = 0  # gpt, text: the next token
    masked_lm = 1  # bert, text: the hidden tokens
    seq2seq = 2  # encdec, records: a text for a text or a sound
    classify = 3  # vit, bert, records: a class for an image or a text
    contrastive = 4  # clip, records: which text belongs to which image
    span_corruption = 5  # encdec, text: the spans cut out of it
    chat = 6  # gpt, records: the answers of a conversation
    classify_tokens = 7  # bert, records: a class for each word
    regress = 8  # vit, bert, records: a number for an image or a text


# They learn from text files; the others from labelled records.
ON_TEXT = (ObjectiveKind.causal_lm, ObjectiveKind.masked_lm, ObjectiveKind.span_corruption)
WITH_CLASSES = (ObjectiveKind.classify, ObjectiveKind.classify_tokens)


@dataclass
class ObjectiveConfig(Section):
    """The loss."""

    section: ClassVar[str] = "objective"

    kind: ObjectiveKind = key(ObjectiveKind.causal_lm, "what is predicted")
    chunk_tokens: int = key(
        2048, "tokens per device whose logits exist at once; 0 = all", at_least=0, changes_results=False
    )
    z_loss: float = key(0.0, "weight of log(Z)^2, keeps logits from drifting (PaLM, section 5: 1e-4)", at_least=0.0)
    label_smoothing: float = key(0.0, "share of the target spread over all classes", at_least=0.0, at_most=0.99)
    mask_share: float = key(0.15, "share of the tokens that is masked or cut out", at_least=0.01, at_most=0.9)
    mask_words: bool = key(False, "with masked_lm: mask whole words")
    next_sentence: bool = key(False, "with masked_lm: rows are two parts; predict whether they belong together")
    span_tokens: float = key(3.0, "with span_corruption: mean length of a span", at_least=1.0)
