"""Cleaning, top to bottom. A stage reads what the one before has written; each of its tasks is done once.

filter      source -> normalise, language, quality, PII, decontamination -> texts, hashes
earlier     what earlier parts of a mixture keep -> hashes, MinHash signatures
copies      hashes -> which documents are copies of earlier ones
signatures  texts without copies -> texts, MinHash signatures
buckets     signatures -> pairs that may be alike
clusters    pairs -> which documents are like ones that stay
documents   texts without those -> docs/
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupFilter
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)

from lmkit.config.base import ConfigError
from lmkit.config.documents import read_document
from lmkit.config.experiment import to_plain
from lmkit.config.sections.clean import CleanConfig, Rule
from lmkit.config.sections.prepare import PrepareConfig
from lmkit.data.sources.corpus import FORMAT, evaluation_texts, in_pieces, num_tasks
from lmkit.data.sources.formats import check_share
from lmkit.data.sources.text import TextSource
from lmkit.files import private_files, write_text
from lmkit.prepare.clean.card import Counts, write_card
from lmkit.prepare.clean.decontaminate import Decontaminate, write_index
from lmkit.prepare.clean.engine import Stage, run_stage
from lmkit.prepare.clean.exact import DropCopies, FindCopies, Hash
from lmkit.prepare.clean.near import Cluster, Sign, minhash_config, words_of
from lmkit.prepare.clean.pii import Scrub
from lmkit.prepare.clean.steps import Drop, Keep, Language, Normalise, NotEmpty, Read, ReadBack, Tally, Texts
from lmkit.prepare.clean.work import claimed, counts_of

Progress = Callable[[str, int, int], None]
Steps = list[tuple[str, PipelineStep]]


def run(
    source: TextSource, settings: CleanConfig, how: PrepareConfig, out: Path, progress: Progress,
    earlier: Mapping[str, Path] | None = None,
) -> None:  # fmt: skip
    """See lmkit.prepare.clean.clean."""
    if (out / "card.json").is_file() and not os.access(out, os.W_OK):  # another's, in a cache that is shared
        return
    source, earlier = in_pieces(source, how), dict(earlier or {}) if settings.finds_copies else {}
    with claimed(out.absolute(), made_from(source, settings, num_tasks(source, how), earlier)) as work:
        if not (out / "card.json").is_file():
            _Cleaning(source, settings, how, work, progress, earlier).run()
    shutil.rmtree(work, ignore_errors=True)  # what is left out of the result: texts between stages, signatures


def made_from(source: TextSource, settings: CleanConfig, tasks: int, earlier: Mapping[str, Path]) -> dict[str, Any]:
    """What decides the result. How many bad records are let pass does not."""
    evaluation = evaluation_texts(settings)
    decisive = {
        "format": FORMAT, "source": source.fingerprint(), "tasks": tasks, "data.clean": to_plain(settings),
        "evaluation": evaluation.fingerprint() if evaluation else "",
    }  # fmt: skip
    cards = {name: read_document(folder / "card.json") for name, folder in earlier.items()}
    theirs = {
        name: [card.get(key) for key in (*decisive, "earlier")] for name, card in cards.items()
    }  # what decided each of them
    digests = {name: hashlib.sha256(json.dumps(one).encode()).hexdigest()[:16] for name, one in theirs.items()}
    return decisive | ({"earlier": digests} if digests else {})


class _Cleaning:
    """One corpus on its way through the stages."""

    def __init__(
        self, source: TextSource, settings: CleanConfig, how: PrepareConfig, work: Path, progress: Progress,
        earlier: Mapping[str, Path],
    ):  # fmt: skip
        self.source, self.settings, self.how, self.work = source, settings, how, work
        self.out, self.progress, self.tasks = work.parent, progress, num_tasks(source, how)
        kept = [(name, file) for name, folder in earlier.items() for file in sorted((folder / "docs").glob("*.jsonl"))]
        self.owners, self.others = [name for name, _ in kept], [file for _, file in kept]
        self.number, near = 0, settings.near > 0
        self.count = 1 + settings.exact + 4 * near + (settings.exact and not near) + bool(kept)

    def run(self) -> None:
        settings, work = self.settings, self.work
        with private_files(0o077):  # its URLs may have credentials
            self.source.save(work / "source.json")
        evaluation = self._index()
        last = not settings.exact and not settings.near
        texts = self.out / "docs" if last else work / "texts"
        counts = self._stage("filter", self.tasks, self._filters(texts, last))
        self._quarantine(counts)
        if self.others:
            self._stage("earlier", len(self.others), self._earlier(texts))
        if settings.exact:
            find = FindCopies(work / "hashes", work / "copies", len(self.others))
            self._stage("copies", self.tasks, [("", find)])
        if settings.near:
            config, unique, signing = minhash_config(settings), texts, Sign(work, settings)
            steps: Steps = [("", ReadBack(self._texts(texts)))]
            if settings.exact:
                unique = work / "unique"
                steps += [("exact", self._copies()), ("", Keep(unique))]
            counts += self._stage("signatures", self.tasks, [*steps, ("", signing)])
            buckets = MinhashDedupBuckets(str(work / "signatures"), str(work / "pairs"), config=config)
            self._stage("buckets", config.num_buckets, [("", buckets)])
            cluster = Cluster(work, self._texts(unique), signing, settings.near, self.owners)
            self._stage("clusters", 1, [("", cluster)])
            like = MinhashDedupFilter(str(work / "near"), exclusion_writer=self._drop("near"))
            counts += self._documents(unique, ("near", like))
        elif settings.exact:
            counts += self._documents(texts, ("exact", self._copies()))
        write_card(self.out, work, settings, self._texts(work / "texts"), counts, evaluation, self.owners)

    def _stage(self, name: str, tasks: int, steps: Steps) -> Counts:
        """Runs a stage and returns what it counted."""
        self.number += 1
        folder, what = self.work / "stages" / name, f"cleaning {self.number}/{self.count}: {name}"
        total = self.source.num_bytes
        sizes = [sum(file.size for file in self.source.files[task::tasks]) for task in range(tasks)]
        if tasks != self.tasks:  # buckets and clusters, not pieces of the source
            sizes = [total // tasks] * tasks

        def tell(done: set[int]) -> None:
            self.progress(what, total if len(done) == tasks else sum(sizes[task] for task in done), total)

        run_stage(Stage(name, tasks, steps), self.how, folder, tell)
        return counts_of(folder, [label for label, _ in steps])

    def _documents(self, texts: Path, last: tuple[str, PipelineStep]) -> Counts:
        return self._stage(
            "documents", self.tasks, [("", ReadBack(self._texts(texts))), last, *self._write(self.out / "docs")]
        )

    def _texts(self, folder: Path) -> Texts:
        return Texts(folder, self.tasks, self.others)

    def _earlier(self, texts: Path) -> Steps:
        """Hashes and signatures of what the parts before this one keep, in files behind this part's."""
        steps: Steps = [("", ReadBack(self._texts(texts), self.tasks))]
        if self.settings.exact:
            steps.append(("", Hash(self.work / "hashes", self.tasks)))
        return [*steps, ("", Sign(self.work, self.settings, self.tasks))] if self.settings.near else steps

    def _scrub(self) -> Scrub | None:
        return Scrub(self.settings.pii) if self.settings.pii else None

    def _drop(self, step: str) -> Drop:
        return Drop(self.out / "dropped" / step, self._scrub())

    def _copies(self) -> DropCopies:
        return DropCopies(self.work / "copies", self._drop("exact"), self.owners)

    def _write(self, folder: Path) -> Steps:
        return [("kept", Tally()), ("", Keep(folder))]

    def _index(self) -> dict[str, int]:
        """Hashes of the evaluation texts; made once, in this process."""
        source = evaluation_texts(self.settings)
        if source is None:
            return {}
        return write_index(source, self.work / "evaluation", self._runs(), words_of(self.settings))

    def _runs(self) -> NGramsDecontConfig:
        return NGramsDecontConfig(n_grams=self.settings.decontaminate_ngram)

    def _filters(self, texts: Path, last: bool) -> Steps:
        settings = self.settings
        read = Read(self.work / "source.json", self.work / "quarantine", self._scrub())
        steps: Steps = [("read", read), ("source", Tally())]
        if settings.normalise:
            steps.append(("", Normalise()))
        steps.append(("empty", NotEmpty(self._drop("empty"))))
        if settings.languages:
            drop = self._drop("language")
            steps.append(("language", Language(settings.languages, settings.language_threshold, drop)))
        steps += [(rule.name, self._rule(rule)) for rule in settings.quality]
        if scrub := self._scrub():
            steps.append(("pii", scrub))
        if settings.decontaminate:
            drop, words = self._drop("contaminated"), words_of(settings)
            steps.append(("contaminated", Decontaminate(str(self.work / "evaluation"), self._runs(), drop, words)))  # type: ignore[arg-type]
        steps += self._write(texts) if last else [("", Keep(texts))]
        return [*steps, ("", Hash(self.work / "hashes"))] if settings.exact else steps

    def _rule(self, rule: Rule) -> PipelineStep:
        """datatrove's filter of a set of rules, at the values of its paper."""
        language, drop = self.settings.words, self._drop(rule.name)
        if rule is Rule.gopher_repetition:
            return GopherRepetitionFilter(exclusion_writer=drop, language=language)
        if rule is Rule.gopher:  # its stop words are English
            least = 2 if language.startswith("eng") else None
            return GopherQualityFilter(exclusion_writer=drop, language=language, min_stop_words=least)
        if rule is Rule.c4:
            return C4QualityFilter(exclusion_writer=drop, language=language)
        return FineWebQualityFilter(exclusion_writer=drop, language=language)

    def _quarantine(self, counts: Counts) -> None:
        """Joins the tasks' lists of what could not be read. Raises ConfigError where there is too much of it."""
        rows = [path.read_text(encoding="utf-8") for path in sorted((self.work / "quarantine").glob("*.jsonl"))]
        write_text(self.out / "quarantine.jsonl", "".join(rows))
        read = dict(counts)["read"]
        bad, records = read.get("bad", 0), read.get("bad", 0) + read.get("total", 0)
        if not read.get("total"):
            raise ConfigError(f"data.clean: of {records} records none can be read; see {self.out / 'quarantine.jsonl'}")
        check_share(bad, records, self.source.max_bad_share, f"{self.out / 'quarantine.jsonl'} names them")
