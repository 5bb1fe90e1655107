"""`data.clean`: what is taken out of a corpus before it is tokenised."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from lmkit.config.base import ConfigError, Section, key


class Rule(Enum):
    """A published set of rules that tells prose from rubbish."""

    gopher_repetition = 0  # arXiv 2112.11446, table A1: lines, paragraphs and n-grams that repeat
    gopher = 1  # the same paper, section A.1.1: words, symbols, bullets, stop words
    c4 = 2  # jmlr.org/papers/v21/20-074, section 2.2: takes lines out, too
    fineweb = 3  # arXiv 2406.17557, section 3.6: lines that end, short lines, repeated characters


class Pii(Enum):
    """What tells who somebody is."""

    email = 0
    ip = 1  # v4 and v6; public ones
    phone = 2


@dataclass
class CleanConfig(Section):
    """What is taken out of a corpus before it is tokenised. All of it is off by default."""

    section: ClassVar[str] = "data.clean"

    normalise: bool = key(False, "unicode NFC; no control characters; one kind of line end, space and blank line")
    languages: list[str] = key([], "documents in other languages go, by two letters: en, de, ...; [] = all stay")
    language_threshold: float = key(0.65, "how sure the language has to be", at_least=0.0, at_most=1.0)
    quality: list[Rule] = key([], "rules that documents have to keep: gopher_repetition, gopher, c4, fineweb")
    words: str = key("eng", "language whose words and sentences the rules count, by three letters")
    pii: list[Pii] = key([], "email, ip, phone: each is replaced by its name in brackets, such as [EMAIL]")
    decontaminate: list[str] = key([], "paths of evaluation texts: documents that share a run of words with them go")
    decontaminate_ngram: int = key(13, "words of such a run", at_least=3)
    exact: bool = key(False, "of equal documents the first stays, in the order of the parts of a mixture")
    near: float = key(
        0.0, "of documents that share so much of their n-grams (Jaccard) one stays, in the same order; 0 = off",
        at_least=0.0, at_most=1.0,
    )  # fmt: skip
    near_ngram: int = key(5, "words of such an n-gram", at_least=1)
    near_buckets: int = key(0, "buckets of MinHash; 0 = so many that 97 % of the pairs at `near` meet", at_least=0)
    near_rows: int = key(0, "hashes of a bucket; 0 = with the buckets", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.near_buckets) != bool(self.near_rows):
            raise ConfigError(
                f"data.clean.near_buckets={self.near_buckets} with data.clean.near_rows={self.near_rows}: set both, or "
                f"neither, and they follow from data.clean.near"
            )
        if 0 < self.near < 0.3:
            raise ConfigError(f"data.clean.near={self.near}: MinHash finds pairs of 0.3 and more; set 0.8, or 0 = off")

    @property
    def finds_copies(self) -> bool:
        """Whether documents are compared with each other, those of earlier parts of a mixture included."""
        return self.exact or self.near > 0

    @property
    def active(self) -> bool:
        """Whether anything is to be cleaned."""
        return bool(
            self.normalise or self.languages or self.quality or self.pii or self.decontaminate or self.finds_copies
        )
