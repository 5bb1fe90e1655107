"""The sections that say where a run's data come from and what they are turned into."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from lmkit.config.base import ConfigError, Section, key


class Source(Enum):
    """Where data come from."""

    python_stdlib = 0  # text: the running Python's own library: on every machine, nothing is downloaded
    text_files = 1  # text: .txt, .jsonl, .parquet
    records = 2  # labelled records: .jsonl, .csv, .tsv, .parquet with a field for each part
    image_folder = 3  # images: a folder for each class
    idx = 4  # images: MNIST's format, a pair of files of images and labels
    digits = 5  # images: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels


TEXTS = (Source.python_stdlib, Source.text_files)


@dataclass
class SourceConfig(Section):
    """One part of a mixture."""

    section: ClassVar[str] = "data.mixture"

    source: Source = key(Source.text_files, "kind of source")
    paths: list[str] = key([], "files, folders or globs, local or fsspec URLs")
    weight: float = key(1.0, "share of the rows of a batch, relative to the other parts", at_least=0.0)


@dataclass
class AugmentConfig(Section):
    """What happens to training images on their way in, anew at each visit."""

    section: ClassVar[str] = "data.augment"

    flip: bool = key(False, "mirror every other one")
    crop_pixels: int = key(0, "shift by up to so many pixels each way, edges filled with black", at_least=0)
    rotate_degrees: float = key(0.0, "turn by up to so many degrees each way", at_least=0.0, at_most=180.0)
    scale: float = key(0.0, "grow or shrink by up to this share", at_least=0.0, at_most=0.9)
    mixup: float = key(
        0.0, "blend pairs of images and their labels, by a share drawn from Beta(a, a); 0 = off", at_least=0.0
    )


@dataclass
class DataConfig(Section):
    """From files to batches."""

    section: ClassVar[str] = "data"

    source: Source = key(Source.text_files, "kind of source")
    paths: list[str] = key([], "files, folders or globs; local or fsspec URLs")
    heldout_paths: list[str] = key([], "of records and images: what is held out, instead of a share of `paths`")
    mixture: dict[str, SourceConfig] = key({}, "named parts with paths and weights, instead of `source` and `paths`")
    holdout_every: int = key(20, "one document or record in so many is held out, by a hash of its name", at_least=2)
    fold: int = key(0, "of the `holdout_every` equal shares, the one that is held out", at_least=0)
    seq_len: int = key(1024, "tokens a row (of the source, where there is one); longer records are cut", at_least=1)
    target_len: int = key(0, "with a source: tokens of the target; 0 = seq_len", at_least=0)
    isolate_documents: bool = key(True, "attention does not cross documents packed into one row")
    cache_dir: str = key("", "where stores and tokenizers are kept; '' = $LMKIT_CACHE or the user's cache folder")
    prefetch: int = key(4, "batches read ahead", at_least=1)
    read_threads: int = key(2, "threads that read them", at_least=1)

    text_key: str = key("text", "field with the text; a list of words where each word has a label")
    pair_key: str = key("", "field with a second text of the same row")
    target_key: str = key("target", "field with the text to produce, or the number to predict")
    label_key: str = key("label", "field with the class; a list where each word has one")
    image_key: str = key("image", "field with the path of an image, from the records' folder")
    audio_key: str = key("audio", "field with the path of a sound file, from the records' folder")
    messages_key: str = key("messages", "field with a conversation: a list of {role, content}")
    message_format: str = key("<|{role}|>\n{content}", "how a message is written before it is tokenised")
    labels: list[str] = key([], "the classes, in order; [] = those of the training records, sorted")
    class_weights: dict[str, float] = key({}, "weight of the loss of a class in training; 1 where none is given")
    balance_classes: bool = key(False, "weigh each class by the inverse of its share of the training records")
    image_mean: float = key(0.5, "taken from pixels of 0 to 1")
    image_std: float = key(0.5, "and what they are divided by then", at_least=1e-6)
    resize: bool = key(False, "scale images of another size to model.image_size; false = refuse them")
    augment: AugmentConfig = key(AugmentConfig(), "what happens to training images")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fold >= self.holdout_every:
            raise ConfigError(
                f"data.fold={self.fold}: with data.holdout_every={self.holdout_every} the shares are 0 to "
                f"{self.holdout_every - 1}"
            )
        if "{content}" not in self.message_format:
            raise ConfigError(f"data.message_format={self.message_format!r} lacks {{content}}")

    @property
    def target_size(self) -> int:
        return self.target_len or self.seq_len


class TokenizerKind(Enum):
    """Where the vocabulary comes from."""

    bytes = 0  # 256 bytes and the end of a document
    bpe = 1  # byte-level BPE trained on the training text
    file = 2  # a tokenizer.json
    init = 3  # that of init_from


@dataclass
class TokenizerConfig(Section):
    """Text to ids."""

    section: ClassVar[str] = "tokenizer"

    kind: TokenizerKind = key(TokenizerKind.bpe, "bytes, a trained byte-level BPE, a file, or that of init_from")
    vocab_size: int = key(8192, "size of a trained vocabulary, with its special tokens", at_least=257)
    train_mb: int = key(64, "megabytes of training text that a BPE is trained on", at_least=1)
    path: str = key("", "a tokenizer.json, with kind=file")
    end_token: str = key("<|endoftext|>", "token that ends a document; with kind=file it must exist in the file")
    start_token: str = key("", "token that begins a row of an encoder ([CLS]); '' = end_token")
    mask_token: str = key("", "token in the place of a masked one; '' = <|mask|>, [MASK] or <mask> where one is needed")
    sentinels: int = key(0, "tokens <extra_id_0> ... for the spans cut out; 0 = as many as are needed", at_least=0)
