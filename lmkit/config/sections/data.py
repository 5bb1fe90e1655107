"""`data`: where the data of a run come from, and how they become batches."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from lmkit.config.base import ConfigError, Section, key, unescaped
from lmkit.config.sections.clean import CleanConfig


class Source(Enum):
    """Where data come from."""

    python_stdlib = 0  # text: the running Python's own library: on every machine, nothing is downloaded
    text_files = 1  # text: .txt, .jsonl, .parquet
    records = 2  # labelled records: .jsonl, .csv, .tsv, .parquet with a field for each part
    image_folder = 3  # images: a folder for each class
    idx = 4  # images: MNIST's format, a pair of files of images and labels
    digits = 5  # images: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels
    tree = 6  # text: every file of a folder, whatever it is called, such as /usr/share/doc
    warc = 7  # text: web archives, .warc and .wet
    hf = 8  # text: Hugging Face datasets
    audio_folder = 9  # sound: files with transcripts beside them
    store = 10  # text: a finished store (one path), with its own tokenizer and held-out share


class Packing(Enum):
    """What a row of text is."""

    windows = 0  # so many tokens of the stream, wherever that cuts
    best_fit = 1  # whole documents, as many as fit


class Curriculum(Enum):
    """The order of the first epoch."""

    none = 0  # as of any other
    short_first = 1


TEXTS = (Source.python_stdlib, Source.text_files, Source.tree, Source.warc, Source.hf, Source.store)


class OnCorrupt(Enum):
    """What happens where a file of a store is damaged."""

    fail = 0  # the run ends, naming the file
    skip = 1  # rows that need it weigh nothing, and are counted


@dataclass
class SourceConfig(Section):
    """One part of a mixture."""

    section: ClassVar[str] = "data.mixture"

    source: Source = key(Source.text_files, "kind of source")
    paths: list[str] = key([], "files, folders or globs, local or fsspec URLs")
    weight: float = key(1.0, "share of the rows of a batch, relative to the other parts", at_least=0.0)
    final_weight: float = key(-1.0, "what the weight has become by data.anneal_to_step; -1 = it stays", at_least=-1.0)
    max_epochs: float = key(0.0, "how often it may be seen, then the other parts take its rows; 0 = no cap", at_least=0)


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
    paths: list[str] = key([], "files, folders or globs, local or fsspec URLs; with source=hf names of data sets")
    split: str = key("train", "with source=hf: which split of a data set")
    allow_roots: list[str] = key(
        [], "folders and URL prefixes that records and links may name, besides the folder that holds them"
    )
    heldout_paths: list[str] = key([], "of records and images: what is held out, instead of a share of `paths`")
    mixture: dict[str, SourceConfig] = key(
        {}, "named parts, each with source, paths, weight, final_weight and max_epochs, instead of `source` and `paths`"
    )
    holdout_every: int = key(20, "one document or record in so many is held out, by a hash of its name", at_least=2)
    fold: int = key(0, "of the `holdout_every` equal shares, the one that is held out", at_least=0)
    seq_len: int = key(1024, "tokens a row (of the source, where there is one); longer records are cut", at_least=1)
    target_len: int = key(0, "with a source: tokens of the target; 0 = seq_len", at_least=0)
    max_bad_share: float = key(
        0.01, "of the documents or records, so many may be unusable and left out, named, before preparing fails",
        at_least=0.0, at_most=1.0, changes_results=False,
    )  # fmt: skip
    isolate_documents: bool = key(True, "attention does not cross documents packed into one row")
    packing: Packing = key(
        Packing.windows, "rows of text: windows of the stream, or (causal_lm) whole documents that fit"
    )
    curriculum: Curriculum = key(Curriculum.none, "order of the first epoch: none, or rows from short to long")
    anneal_from_step: int = key(0, "step from which the weights of the mixture move to final_weight", at_least=0)
    anneal_to_step: int = key(0, "step by which they have arrived, in a line of at most 64 levels", at_least=0)
    cache_dir: str = key(
        "", "where stores and tokenizers are kept; '' = $LMKIT_CACHE or the user's cache folder", changes_results=False
    )
    prefetch: int = key(4, "batches read ahead at most", at_least=1, changes_results=False)
    read_threads: int = key(2, "threads that read them", at_least=1, changes_results=False)
    read_processes: int = key(0, "processes that read them instead; 0 = threads", at_least=0, changes_results=False)
    memory_mb: int = key(
        1024,
        "megabytes of a host: half for batches read ahead, half for decoded pieces of stores",
        at_least=1,
        changes_results=False,
    )
    on_corrupt: OnCorrupt = key(
        OnCorrupt.fail, "what happens where a file of a store is damaged", changes_results=False
    )

    text_key: str = key("text", "field with the text; a list of words where each word has a label")
    id_key: str = key("", "of text: field with the name that a document keeps; '' = its file and line")
    weight_key: str = key(
        "", "of text: field with a weight of the loss, or a list of [first char, end char, weight]; '' = none"
    )
    pair_key: str = key("", "field with a second text of the same row")
    target_key: str = key("target", "field with the text to produce, or the number to predict")
    label_key: str = key("label", "field with the class; a list where each word has one")
    image_key: str = key("image", "field with an image: bytes, or a path in the records' folder or data.allow_roots")
    audio_key: str = key("audio", "field with a sound: bytes, or a path in the records' folder or data.allow_roots")
    messages_key: str = key("messages", "field with a conversation: a list of {role, content}")
    message_format: str = key("<|{role}|>\n{content}", "how a message is written; \\n is a line end")
    labels: list[str] = key([], "the classes, in order; [] = those of the training records, sorted")
    class_weights: dict[str, float] = key({}, "weight of the loss of a class in training; 1 where none is given")
    balance_classes: bool = key(False, "weigh each class by the inverse of its share of the training records")
    image_mean: float = key(0.5, "taken from pixels of 0 to 1")
    image_std: float = key(0.5, "and what they are divided by then", at_least=1e-6)
    resize: bool = key(False, "scale images of another size to model.image_size; false = refuse them")
    augment: AugmentConfig = key(AugmentConfig(), "what happens to training images")
    clean: CleanConfig = key(CleanConfig(), "what is taken out of texts")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.message_format = unescaped(self.message_format)
        if self.fold >= self.holdout_every:
            raise ConfigError(
                f"data.fold={self.fold}: with data.holdout_every={self.holdout_every} the shares are 0 to "
                f"{self.holdout_every - 1}"
            )
        self._check_annealing()
        if self.on_corrupt is OnCorrupt.skip and self.read_processes:
            raise ConfigError(
                f"data.on_corrupt=skip with data.read_processes={self.read_processes}: what processes leave out is not "
                f"counted; set data.read_processes=0"
            )
        if self.weight_key and self.clean.active:
            raise ConfigError(
                f"data.weight_key={self.weight_key} with data.clean: weights belong to characters that cleaning moves; "
                f"set data.weight_key='' or clean nothing"
            )
        if "{content}" not in self.message_format:
            raise ConfigError(f"data.message_format={self.message_format!r} lacks {{content}}")

    def _check_annealing(self) -> None:
        ends = {name: part.final_weight for name, part in self.mixture.items()}
        moving = {name: weight for name, weight in ends.items() if weight >= 0}
        start, end = self.anneal_from_step, self.anneal_to_step
        if moving and not end:
            name, weight = next(iter(moving.items()))
            raise ConfigError(
                f"data.mixture.{name}.final_weight={weight} with data.anneal_to_step=0: set data.anneal_to_step to the "
                f"step by which the weights have arrived"
            )
        if (start or end) and not moving:
            raise ConfigError(
                f"data.anneal_from_step={start}, data.anneal_to_step={end}: no part of data.mixture has a "
                f"final_weight; give one, or leave them out"
            )
        if moving and not any(weight if weight >= 0 else self.mixture[name].weight for name, weight in ends.items()):
            raise ConfigError("data.mixture: every final_weight is 0; give one part a positive one")
        if start > end:
            raise ConfigError(
                f"data.anneal_from_step={start} is after data.anneal_to_step={end}: set data.anneal_from_step={end} or "
                f"less"
            )

    def sources(self, name: str) -> dict[str, SourceConfig]:
        """The parts of the mixture; without one `source` and `paths`, by this name."""
        return self.mixture or {name: SourceConfig(source=self.source, paths=self.paths)}

    @property
    def batch_bytes(self) -> int:
        """Of the memory budget, what batches read ahead may take."""
        return self.memory_mb * 500_000

    @property
    def cache_bytes(self) -> int:
        """Of the memory budget, what decoded pieces of stores may take."""
        return self.memory_mb * 500_000

    @property
    def target_size(self) -> int:
        return self.target_len or self.seq_len
