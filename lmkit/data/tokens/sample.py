"""The texts that a tokenizer is trained on: of each source its share by weight, documents by a hash of their names."""

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

Texts = Callable[[], Iterable[tuple[str, str]]]  # (name of a document, its training text), the same at each call


class Part(NamedTuple):
    """A source of training text."""

    weight: float  # any positive scale; nothing is taken of a source of weight 0
    texts: Texts


class Sample:
    """Up to `limit` bytes of text from several sources. It is read twice: once to choose, once a time it is iterated.

    A source gives the share of its weight, or all that it has, and then leaves the rest to the others. Its documents
    come in the order of a hash of their names, so a part of a source is like the whole; the last one is cut.

    Attributes:
        used: by source, the `documents` and `bytes` that were chosen, and `of_documents` and `of_bytes`, all there are.
    """

    def __init__(self, parts: Mapping[str, Part], limit: int, seen: Callable[[int], None] = lambda _: None):
        """`seen` is told the bytes of each document, as it is read to choose."""
        self.parts = {name: part for name, part in parts.items() if part.weight > 0}
        found = {name: _candidates(part.texts, limit, seen) for name, part in self.parts.items()}
        budgets = share_out(
            limit, {name: one.bytes for name, one in found.items()}, {n: p.weight for n, p in self.parts.items()}
        )
        self._take = {name: _chosen(one.best, budgets[name]) for name, one in found.items()}
        self.used = {
            name: {"documents": len(take), "bytes": sum(take.values()), "of_documents": found[name].documents,
                   "of_bytes": found[name].bytes}
            for name, take in self._take.items()
        }  # fmt: skip

    def __iter__(self) -> Iterator[str]:
        for name, part in self.parts.items():
            take, left = self._take[name], len(self._take[name])
            for number, (_, text) in enumerate(part.texts() if left else ()):
                if (size := take.get(number)) is None:
                    continue
                encoded = text.encode()
                yield text if size == len(encoded) else encoded[:size].decode(errors="ignore")
                left -= 1
                if not left:
                    break


def share_out(limit: int, have: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, int]:
    """What each may take of `limit`: by weight, and what one does not have goes to the others, by weight again."""
    budgets, left, open_ = {}, limit, dict(have)
    while open_:
        total = sum(weights[name] for name in open_)
        small = [name for name, size in open_.items() if size * total <= left * weights[name]]
        if not small:
            return budgets | {name: int(left * weights[name] / total) for name in open_}
        for name in small:
            budgets[name] = open_.pop(name)
            left -= budgets[name]
    return budgets


class _Found(NamedTuple):
    documents: int
    bytes: int
    best: list[tuple[int, int, int]]  # (rank, number of the document, bytes), sorted: the first ones, `limit` bytes


def _candidates(texts: Texts, limit: int, seen: Callable[[int], None]) -> _Found:
    """What a source has, and the documents that it would give if it were alone: no more are kept in memory."""
    heap: list[tuple[int, int, int]] = []  # negative: the last in order comes first
    documents = total = kept = 0
    for number, (name, text) in enumerate(texts()):
        if not (size := len(text.encode())):
            continue
        seen(size)
        documents, total, kept = documents + 1, total + size, kept + size
        heapq.heappush(heap, (-_rank(name), -number, size))
        while kept - heap[0][2] >= limit:
            kept -= heapq.heappop(heap)[2]
    return _Found(documents, total, sorted((-rank, -number, size) for rank, number, size in heap))


def _rank(name: str) -> int:
    """Where a document comes: a hash with a key of its own, so that it is independent of what is held out."""
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8, key=b"lmkit tokenizer").digest()
    return int.from_bytes(digest)


def _chosen(best: list[tuple[int, int, int]], budget: int) -> dict[int, int]:
    """Document number -> bytes of it, of the first documents that make up the budget."""
    take = {}
    for _, number, size in best:
        if budget <= 0:
            break
        take[number] = min(size, budget)
        budget -= size
    return take
