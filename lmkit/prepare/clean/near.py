"""Near duplicates: datatrove's MinHash finds who may be alike, and here is decided who goes.

datatrove's own third stage joins whatever shares one bucket, and whatever shares one with that: in a corpus of letters
written to a pattern the ends of such a chain have nothing in common. Here a document goes only if it is like one that
stays. The share of their hashes that agree is an estimate of Jaccard's index (Broder 1997); where it is too close to
the threshold to tell, the texts are compared.
"""

import functools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashConfig, MinhashDedupSignature
from datatrove.utils.text import TextNormConfig
from datatrove.utils.word_tokenizers import WordTokenizer

from lmkit.config.sections.clean import CleanConfig
from lmkit.prepare.clean.steps import Texts

MOST_HASHES, RECALL = 128, 0.97
_UNSURE = 0.1  # three times the standard error of an estimate of 0.8 from 126 hashes
_MOST_SAMPLES, _MOST_SETS = 12, 4096  # clusters shown; texts whose n-grams are kept at hand
_UNSPACED = ("zho", "yue", "jpn", "tha", "khm", "lao", "mya", "bod")  # languages that do not part their words


class Spaces(WordTokenizer):
    """Words are what spaces part. Enough for n-grams of text without punctuation, and twenty times as fast as spaCy."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


def words_of(settings: CleanConfig) -> WordTokenizer | str:
    """What parts the words of n-grams."""
    return settings.words if settings.words.split("_")[0] in _UNSPACED else Spaces()


def minhash_config(settings: CleanConfig) -> MinhashConfig:
    """Buckets and rows as set, or the most rows with which pairs at the threshold still meet.

    A pair of Jaccard index s meets in one of b buckets of r rows with probability 1 - (1 - s^r)^b.
    """
    buckets, rows = settings.near_buckets, settings.near_rows
    if not buckets:
        choices = [(MOST_HASHES // r, r) for r in range(2, 33)]
        buckets, rows = max(
            (c for c in choices if 1 - (1 - settings.near ** c[1]) ** c[0] >= RECALL), key=lambda c: c[1]
        )
    norm = TextNormConfig(norm_numbers=False)  # tables that differ in their figures are two
    return MinhashConfig(settings.near_ngram, num_buckets=buckets, hashes_per_bucket=rows, norm_config=norm)


class Sign(MinhashDedupSignature):
    """datatrove's, with files that are numbered from `first`."""

    def __init__(self, work: Path, settings: CleanConfig, first: int = 0):
        super().__init__(str(work / "signatures"), minhash_config(settings), words_of(settings))  # type: ignore[arg-type]
        self.first = first

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        super().run(data, self.first + rank, world_size)


class Cluster(PipelineStep):
    """Pairs that share a bucket -> NNNNNN.remove for datatrove's filter, and clusters.json. One task.

    Documents of other corpora, which are earlier parts of the mixture, come first and stay. `owners`: of each of their
    files the name of its part.
    """

    type, name = "near", "cluster"

    def __init__(
        self, work: Path, texts: Texts, signing: MinhashDedupSignature, threshold: float, owners: Sequence[str] = ()
    ):
        super().__init__()
        self.work, self.texts, self.signing, self.config, self.threshold, self.owners = (
            work, texts, signing, signing.config, threshold, owners
        )  # fmt: skip

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        groups, nodes = _groups(self.work / "pairs")
        hashes, ngrams = self._hashes(nodes), self._ngrams(nodes)
        out = self.work / "near"
        removed: dict[int, list[int]] = {}
        sizes, owned, samples = Counter(), Counter(), []
        for group in groups:
            others = nodes[group, 0] >= self.texts.tasks
            group = np.concatenate([group[others], group[~others]])
            for cluster in self._clusters(group, int(others.sum()), hashes, ngrams):
                for file, line in nodes[cluster[1:]].tolist():
                    removed.setdefault(file, []).append(line)
                sizes[len(cluster)] += 1
                if (first := int(nodes[cluster[0], 0])) >= self.texts.tasks:
                    owned[self.owners[first - self.texts.tasks]] += len(cluster) - 1
                samples = sorted([*samples, (-len(cluster), nodes[cluster[:4]].tolist())])[:_MOST_SAMPLES]
        out.mkdir(parents=True, exist_ok=True)
        for file, lines in removed.items():
            np.array(sorted(lines), "<u4").tofile(out / f"{file:06d}.remove")
        found = {"sizes": sorted(sizes.items()), "samples": [[-size, where] for size, where in samples]}
        found |= {"of_earlier": owned}
        (out / "clusters.json").write_text(json.dumps(found))
        self.stat_update("clusters", value=sum(sizes.values()))

    def _hashes(self, nodes: np.ndarray) -> np.ndarray:
        """[documents, hashes]: 16 bits of each, so that a million documents of a group take 256 MB."""
        rows, buckets = self.config.hashes_per_bucket, self.config.num_buckets
        kind = np.dtype([("hashes", "<u8", (rows,)), ("line", "<u4")])
        hashes = np.zeros((len(nodes), buckets * rows), np.uint16)
        for file in np.unique(nodes[:, 0]).tolist():
            low, high = np.searchsorted(nodes[:, 0], [file, file + 1])
            for bucket in range(buckets):
                signs = np.fromfile(self.work / "signatures" / f"bucket_{bucket:03d}" / f"{file:05d}.minhash.sig", kind)
                signs = signs[np.argsort(signs["line"])]
                places = np.searchsorted(signs["line"], nodes[low:high, 1])
                hashes[low:high, bucket * rows : (bucket + 1) * rows] = signs["hashes"][places].astype(np.uint16)
        return hashes

    def _ngrams(self, nodes: np.ndarray) -> Callable[[int], np.ndarray]:
        """Reads the n-grams of one text: their hashes, sorted, each once."""
        starts = np.zeros(len(nodes), np.int64)
        for file in np.unique(nodes[:, 0]).tolist():
            low, high = np.searchsorted(nodes[:, 0], [file, file + 1])
            wanted = dict(zip(nodes[low:high, 1].tolist(), range(low, high), strict=True))
            with self._open(file) as lines:
                start = 0
                for number, line in enumerate(lines):
                    if number in wanted:
                        starts[wanted[number]] = start
                    start += len(line)

        @functools.lru_cache(_MOST_SETS)
        def ngrams(node: int) -> np.ndarray:
            with self._open(int(nodes[node, 0])) as lines:
                lines.seek(int(starts[node]))
                return np.unique(self.signing.get_shingles(json.loads(lines.readline())["text"]))

        return ngrams

    def _open(self, file: int) -> IO[bytes]:
        return self.texts.path(file).open("rb")

    def _clusters(
        self, group: np.ndarray, fixed: int, hashes: np.ndarray, ngrams: Callable[[int], np.ndarray]
    ) -> list[list[int]]:
        """Each document, in order, joins the one that stays and is most like it, or stays itself. Only those of two.

        The first `fixed` stay, whatever they are like.
        """
        stay = [[node] for node in group[:fixed].tolist()]
        for node in group[fixed:].tolist():
            alike = (hashes[[cluster[0] for cluster in stay]] == hashes[node]).mean(axis=1) if stay else np.zeros(0)
            likely = np.flatnonzero(alike >= self.threshold - _UNSURE)
            for best in likely[np.argsort(-alike[likely], kind="stable")].tolist():
                sure = alike[best] >= self.threshold + _UNSURE
                if sure or _jaccard(ngrams(stay[best][0]), ngrams(node)) >= self.threshold:
                    stay[best].append(node)
                    break
            else:
                stay.append([node])
        return [cluster for cluster in stay if len(cluster) > 1]


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Of two sorted sets."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def _groups(pairs: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Documents joined by pairs, as rows of nodes [documents, (file, line)] in the order of the files."""
    files = sorted(pairs.glob("*.dups"))
    found = np.concatenate([np.fromfile(file, "<u4").reshape(-1, 4) for file in files]).astype(np.int64)
    if not len(found):
        return [], np.zeros((0, 2), np.int64)
    nodes, ends = np.unique(found.reshape(-1, 2), axis=0, return_inverse=True)
    parents = np.arange(len(nodes))
    for a, b in ends.reshape(-1, 2).tolist():
        a, b = _root(parents, a), _root(parents, b)
        parents[max(a, b)] = min(a, b)  # the first of a group is its root
    roots = np.array([_root(parents, node) for node in range(len(nodes))])
    order = np.argsort(roots, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(roots[order])) + 1), nodes


def _root(parents: np.ndarray, node: int) -> int:
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = int(parents[node])
    return node
