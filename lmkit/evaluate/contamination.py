"""Items that a model may have learned from: runs of words of an item that its training store has, too.

The store's runs of words are hashed once, to 64 bits, and kept sorted in the cache, in buckets by their first bits:
what is in memory is one bucket, or one block of documents. Two runs of a store with 10^9 of them collide with an item's
once in 10^10.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmkit import hosts
from lmkit.config.experiment import Experiment
from lmkit.config.sections.data import DataConfig, Source
from lmkit.config.sections.tokenizer import TokenizerConfig
from lmkit.console import Progress
from lmkit.data.cache import make_once, open_cache, place_of
from lmkit.data.prepare import prepare
from lmkit.data.store.tokens import TRAIN, TokenStore
from lmkit.data.tokens.tokenizer import Tokenizer
from lmkit.harness.items import text_of

_FORMAT = 1
_BUCKETS = 256
_BLOCK_TOKENS = 1 << 20  # of documents that are decoded at a time
_MOST_WORDS = 1 << 20  # whose hashes are remembered
_WORD = re.compile(r"\w+")
_BASE = np.uint64(0x9E3779B97F4A7C15)


class Found(NamedTuple):
    """Items of a task in a store: their numbers, how many were looked up, how many had too few words."""

    found: frozenset[int]
    total: int
    short: int


class Words:
    """Text to the hashes of its runs of `size` words, lower-cased, without marks: uint64, one a run."""

    def __init__(self, size: int):
        self.size, self._known = size, {}

    def runs(self, text: str) -> np.ndarray:
        words = _WORD.findall(text.lower())
        if len(words) < self.size:
            return np.empty(0, np.uint64)
        if len(self._known) > _MOST_WORDS:
            self._known.clear()
        known = self._known
        ids = np.empty(len(words), np.uint64)
        for place, word in enumerate(words):
            number = known.get(word)
            if number is None:
                number = known[word] = _hash_word(word)
            ids[place] = number
        count = len(words) - self.size + 1
        total = np.zeros(count, np.uint64)
        for place in range(self.size):
            total = total * _BASE + ids[place : place + count]
        return _mixed(total)


def _hash_word(word: str) -> int:
    """FNV-1a of 64 bits: the same in every process."""
    value = 0xCBF29CE484222325
    for byte in word.encode():
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def _mixed(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014): every bit of the sum moves the first ones."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _bucket(hashes: np.ndarray) -> np.ndarray:
    return (hashes >> np.uint64(56)).astype(np.int64)


def build_index(folder: Path, texts: Iterable[str], size: int) -> None:
    """Writes NNN.npy for each bucket: its hashes, sorted, each once."""
    words = Words(size)
    files = [(folder / f"{number:03}.raw").open("wb") for number in range(_BUCKETS)]
    try:
        for text in texts:
            hashes = words.runs(text)
            hashes = hashes[np.argsort(_bucket(hashes), kind="stable")]
            places = _bucket(hashes)
            edges = np.flatnonzero(np.diff(places)) + 1
            for part in np.split(hashes, edges):
                if len(part):
                    files[int(part[0] >> np.uint64(56))].write(part.tobytes())
    finally:
        for file in files:
            file.close()
    for number in range(_BUCKETS):
        raw = folder / f"{number:03}.raw"
        np.save(folder / f"{number:03}.npy", np.unique(np.fromfile(raw, np.uint64)))
        raw.unlink()


def contains(folder: Path, hashes: np.ndarray) -> np.ndarray:
    """bool: which of these an index has. A bucket is mapped, not read."""
    found, places = np.zeros(len(hashes), bool), _bucket(hashes)
    for number in np.unique(places):
        here = places == number
        known = np.load(folder / f"{number:03}.npy", mmap_mode="r")
        if len(known):
            at = np.minimum(np.searchsorted(known, hashes[here]), len(known) - 1)
            found[here] = known[at] == hashes[here]
    return found


def find_items(experiment: Experiment, tasks: Mapping[str, Iterable[Any]]) -> dict[str, Found]:
    """Which items of each task share a run of words with the training split of the store evaluate.against."""
    config = experiment.evaluate
    data = DataConfig(source=Source.store, paths=[config.against], cache_dir=experiment.data.cache_dir)
    text = prepare(data, TokenizerConfig())
    (store,) = text.stores.values()
    index = hosts.first_where_shared(
        open_cache(data.cache_dir), lambda: index_of(store, text.tokenizer, data.cache_dir, config.against_ngram)
    )  # fmt: skip
    words, found = Words(config.against_ngram), {}
    for name, docs in tasks.items():
        runs = [words.runs(text_of(doc)) for doc in docs]
        owner = np.repeat(np.arange(len(runs)), [len(one) for one in runs])
        hit = contains(index, np.concatenate([*runs, np.empty(0, np.uint64)]))
        found[name] = Found(frozenset(owner[hit].tolist()), len(runs), sum(not len(one) for one in runs))
    return found


def index_of(store: TokenStore, tokenizer: Tokenizer, cache_dir: str, size: int) -> Path:
    """The index of a store's training split, built where the cache has none."""
    what = [_FORMAT, store.meta["text_sha256"], store.meta["tokenizer_sha256"], store.meta["holdout_every"], size]
    path = place_of(open_cache(cache_dir), "ngrams", what)
    make_once(path, lambda folder: build_index(folder, _texts(store, tokenizer), size))
    return path


def _texts(store: TokenStore, tokenizer: Tokenizer) -> Iterator[str]:
    """The documents of the training split, a block at a time."""
    ends = store.document_ends(TRAIN)
    starts = np.concatenate([[1], ends[:-1] + 1])[: len(ends)]
    tell, number = Progress("reading evaluate.against"), 0
    while number < len(ends):
        last = max(int(np.searchsorted(ends, starts[number] + _BLOCK_TOKENS)), number + 1)
        for tokens in store.read(TRAIN, starts[number:last], ends[number:last]):
            yield tokenizer.decode(tokens.tolist())
        number = last
        tell(number, len(ends))
