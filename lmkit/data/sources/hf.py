"""Text from Hugging Face datasets: folders written by `save_to_disk`, folders of files, or names on the hub."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from lmkit.config.base import ConfigError
from lmkit.data.sources.documents import Document, Keys, document_of
from lmkit.data.sources.files import File, located
from lmkit.data.sources.formats import Bad, missing_columns

_BLOCK_ROWS = 1 << 16  # of a File: what one of many readers takes


def hf_files(paths: list[str], split: str) -> list[File]:
    """Blocks of rows of the data sets, as if they were files. Raises ConfigError for what cannot be opened."""
    files = []
    for path in paths:
        table, rows = _table(path, split), len(_table(path, split))
        size = table.data.nbytes
        for first in range(0, rows, _BLOCK_ROWS):
            end = min(first + _BLOCK_ROWS, rows)
            place = f"{path}#{split}:{first}-{end}"
            name = f"{path.rstrip('/').rpartition('/')[2]}/{split}"
            files.append(File(place, name, size * (end - first) // rows, table._fingerprint))
    return files


def read_hf(file: File, keys: Keys) -> Iterator[Document | Bad]:
    """A document a row; named by the data set, the split and the number of the row, or what `keys.id` names."""
    path, _, where = file.url.rpartition("#")
    split, _, span = where.rpartition(":")
    first, end = map(int, span.split("-"))
    table = _table(path, split)
    if problem := missing_columns(table.column_names, keys.columns):
        yield problem._replace(place=file.url)
        return
    rows = table.select_columns(list(keys.columns)).select(range(first, end)).with_format("arrow")
    number = first
    for batch in rows.iter(1024):
        for record in batch.to_pylist():  # type: ignore[union-attr]
            number += 1
            yield document_of(record, keys, f"{file.name}:{number}", f"{path} split {split} row {number}")


@lru_cache(maxsize=8)
def _table(path: str, split: str) -> Any:
    """One split. A path may end in `:` and the name of a configuration."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"data.source=hf: {path} needs datasets: pip install 'lmkit[hf]'") from error
    try:
        if _was_saved(path):
            found = datasets.load_from_disk(path)
        else:
            scheme, rest = path.split("://", 1) if "://" in path else ("", path)
            name, _, settings = rest.partition(":")
            found = datasets.load_dataset(f"{scheme}://{name}" if scheme else name, settings or None)
    except Exception as error:  # of many kinds
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"data.source=hf: cannot open {path!r}: {type(error).__name__}: {reason}") from error
    if isinstance(found, datasets.Dataset):
        return found
    if split not in found:
        raise ConfigError(f"data.split={split!r}: {path} has: {', '.join(map(str, found))}")
    return found[split]


def _was_saved(path: str) -> bool:
    system, root = located(path)
    return any(system.exists(f"{root}/{name}") for name in ("state.json", "dataset_dict.json"))
