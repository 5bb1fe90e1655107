"""Where a cleaned corpus lies: another place for another result, the same one for the same."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lmkit.config import ConfigError
from lmkit.config.sections.clean import CleanConfig, Pii, Rule
from lmkit.config.sections.data import DataConfig, SourceConfig
from lmkit.config.sections.prepare import Executor, PrepareConfig
from lmkit.data.sources.corpus import corpora, in_pieces, num_tasks
from lmkit.data.sources.files import File
from lmkit.data.sources.text import TextSource, build_sources


def data_of(corpus: Path, tmp_path: Path, **clean: Any) -> DataConfig:
    return DataConfig(paths=[str(corpus)], cache_dir=str(tmp_path / "cache"), clean=CleanConfig(**clean))


def test_its_place_follows_from_what_decides_the_result(corpus: Path, tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = [
        {"exact": True}, {"near": 0.8}, {"near": 0.9}, {"normalise": True}, {"pii": [Pii.email]},
        {"quality": [Rule.gopher]}, {"decontaminate": [str(corpus / "00.txt")]},
    ]  # fmt: skip
    places = [corpora(data_of(corpus, tmp_path, **s), PrepareConfig())["text"] for s in settings]
    places += [corpora(data_of(corpus, tmp_path, exact=True), PrepareConfig(tasks=7))["text"]]
    (corpus / "00.txt").write_text("changed")
    places += [corpora(data_of(corpus, tmp_path, **s), PrepareConfig())["text"] for s in settings]
    assert len(set(places)) == len(places)
    assert all(place.is_relative_to(tmp_path / "cache" / "corpora") for place in places)


@pytest.mark.parametrize("how", [{"workers": 3}, {"executor": Executor.ray}, {"memory_gb": 9}])
def test_who_does_the_work_does_not_matter(how: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    data = data_of(corpus, tmp_path, exact=True)
    assert corpora(data, PrepareConfig()) == corpora(data, PrepareConfig(**how))
    patient = dataclasses.replace(data, max_bad_share=0.5)
    assert corpora(data, PrepareConfig()) == corpora(patient, PrepareConfig())


def test_each_part_of_a_mixture_has_its_own(corpus: Path, tmp_path: Path) -> None:
    parts = {"a": SourceConfig(paths=[str(corpus / "0*.txt")]), "b": SourceConfig(paths=[str(corpus / "1*.txt")])}
    data = DataConfig(mixture=parts, cache_dir=str(tmp_path), clean=CleanConfig(exact=True))
    assert len(set(corpora(data, PrepareConfig()).values())) == 2
    swapped = dataclasses.replace(data, mixture=dict(reversed(parts.items())))
    here, there = corpora(data, PrepareConfig()), corpora(swapped, PrepareConfig())
    assert all(here[name] != there[name] for name in parts), "a part depends on those before it"
    apart = [dataclasses.replace(one, clean=CleanConfig(normalise=True)) for one in (data, swapped)]
    assert corpora(apart[0], PrepareConfig()) == corpora(apart[1], PrepareConfig())
    assert corpora(data, PrepareConfig(out="here")) == {"a": Path("here/a"), "b": Path("here/b")}


@pytest.mark.parametrize(
    ("megabytes", "files", "tasks", "expected"),
    [(1, 5, 0, 1), (40, 5, 0, 5), (40, 100, 0, 10), (100_000, 5000, 0, 1000), (1, 5, 3, 3), (1, 5, 9, 5)],
)
def test_pieces(megabytes: int, files: int, tasks: int, expected: int) -> None:
    source = TextSource([File("u", "n", (megabytes << 20) // files, "")] * files, "text", 20)
    how = PrepareConfig(tasks=tasks)
    assert num_tasks(in_pieces(source, how), how) == expected


def test_one_file_of_lines_is_divided_where_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n' * 90)
    (tmp_path / "b.txt").write_text("words " * 10)
    (source,) = build_sources(data_of(tmp_path, tmp_path)).values()
    names = [[one.name for one in in_pieces(source, PrepareConfig(tasks=tasks)).files] for tasks in (0, 2, 8)]
    assert [len(one) for one in names] == [2, 2, 9]
    assert names[2].count("b.txt") == 1
    how = PrepareConfig(tasks=8)
    assert num_tasks(in_pieces(source, how), how) == 8


def test_evaluation_texts_that_are_not_there_are_named(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.clean.decontaminate: 'nowhere' matches no file"):
        corpora(data_of(corpus, tmp_path, decontaminate=["nowhere"]), PrepareConfig())
