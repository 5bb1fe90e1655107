"""Where a cleaned corpus lies, and in how many pieces. Cleaning itself is `lmkit.prepare.clean`."""

from collections import Counter
from pathlib import Path

from lmkit.config.base import ConfigError
from lmkit.config.documents import read_document
from lmkit.config.experiment import differing, to_plain
from lmkit.config.sections.clean import CleanConfig
from lmkit.config.sections.data import DataConfig
from lmkit.config.sections.prepare import PrepareConfig
from lmkit.data.cache import open_cache, place_of
from lmkit.data.sources.listing import expand, matching
from lmkit.data.sources.text import TEXT_SUFFIXES, TextSource, build_sources
from lmkit.redact import redact

FORMAT = 1
_TASK_BYTES, _MOST_TASKS = 4 << 20, 1000  # of 4 MB the slowest filters take half a minute


def in_pieces(source: TextSource, how: PrepareConfig) -> TextSource:
    """The source with .jsonl files divided, where more pieces are asked for than it has files."""
    return source.divided(how.tasks) if how.tasks > len(source.files) else source


def num_tasks(source: TextSource, how: PrepareConfig) -> int:
    """Pieces of the work: as set, or by size; at most a file (or range of a file) each."""
    derived = min(-(-source.num_bytes // _TASK_BYTES), _MOST_TASKS)
    return max(1, min(how.tasks or derived, len(source.files)))


def corpora(data: DataConfig, how: PrepareConfig) -> dict[str, Path]:
    """The folder of each part of the mixture once it is cleaned; its card.json says that it is whole.

    Where copies are taken out, a part depends on the ones before it. Raises ConfigError as build_sources does.
    """
    sources = build_sources(data)
    if how.out and len(sources) > 1:
        return {name: Path(how.out).expanduser() / name for name in sources}
    if how.out:
        return dict.fromkeys(sources, Path(how.out).expanduser())
    cache, plain = open_cache(data.cache_dir), to_plain(data.clean)
    evaluation = evaluation_texts(data.clean)
    made_from = [FORMAT, plain, evaluation.fingerprint() if evaluation else ""]
    found: dict[str, Path] = {}
    for name, source in ((name, in_pieces(one, how)) for name, one in sources.items()):
        earlier = [[part, folder.name] for part, folder in found.items()] if data.clean.finds_copies else []
        own = [source.fingerprint(), num_tasks(source, how), *made_from, *([earlier] if earlier else [])]
        found[name] = place_of(cache, "corpora", own)
    return found


def clean_sources(data: DataConfig, how: PrepareConfig) -> dict[str, TextSource]:
    """The texts of the mixture as they are tokenised: the cleaned ones, where they are to be cleaned.

    Raises ConfigError where that has not been done yet, was done otherwise, or nothing of a part is left.
    """
    sources = build_sources(data)
    if not data.clean.active:
        return sources
    found = {}
    for name, folder in corpora(data, how).items():
        if not (folder / "card.json").is_file():
            raise ConfigError(
                f"data.clean: the text of {name!r} has not been cleaned yet: run python -m lmkit.prepare with the same "
                f"words"
            )
        card = read_document(folder / "card.json")
        if rows := differing(card.get("data.clean"), redact(to_plain(data.clean)), "data.clean."):
            key, old, new = rows[0]
            raise ConfigError(
                f"prepare.out={folder} was made with {key}={old}, now it is {new}: run python -m lmkit.prepare with "
                f"another prepare.out="
            )
        if not card["documents"]["kept"]:
            raise ConfigError(
                f"data.clean: nothing of the text of {name!r} is left (see {folder / 'report.html'}): leave it out, or "
                f"clean less"
            )
        files = expand(str(folder / "docs"), (".jsonl",))
        left_out = sources[name].left_out
        found[name] = TextSource(files, "text", data.holdout_every, data.fold, id_key="id", left_out=left_out)
    return found


def cleaned_facts(data: DataConfig, how: PrepareConfig) -> dict[str, dict[str, int]]:
    """Of each cleaned part: documents read, documents kept, those left out because NAME, an earlier part, has them."""
    found = {}
    for name, folder in corpora(data, how).items() if data.clean.active else ():
        card = read_document(folder / "card.json")
        found[name] = card["documents"] | {f"copies_of_{part}": n for part, n in card.get("copies", {}).items()}
    return found


def evaluation_texts(settings: CleanConfig) -> TextSource | None:
    """The texts that must not be in the corpus. Raises ConfigError for a path that matches nothing."""
    if not settings.decontaminate:
        return None
    files = []
    for path in settings.decontaminate:
        # any link may be followed: of these texts hashes of words are kept, no more
        files += matching(path, TEXT_SUFFIXES, Counter(), allow_roots=("/",), key="data.clean.decontaminate")
    return TextSource(sorted(files, key=lambda file: file.url), "text", 2)
