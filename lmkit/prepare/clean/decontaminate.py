"""The runs of words of evaluation texts, in the form that datatrove's filter reads.

Its own indexer knows only the tasks of lighteval, and downloads them.
"""

from pathlib import Path

import numpy as np
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
from datatrove.utils.hashing import create_hash_func
from datatrove.utils.text import ngrams, simplify_text
from datatrove.utils.word_tokenizers import WordTokenizer, load_word_tokenizer

from lmkit.config.base import ConfigError
from lmkit.data.sources.text import TextSource


class Decontaminate(NGramsDecontFilter):
    """datatrove's filter under a name of ours."""

    name = "contaminated"


def write_index(
    evaluation: TextSource, folder: Path, config: NGramsDecontConfig, words: WordTokenizer | str
) -> dict[str, int]:
    """Hashes of all runs of words, one file a set. Returns how many texts there were and how many were too short."""
    part, number = load_word_tokenizer(words), create_hash_func(config.hash_config)
    hashes: dict[str, set[int]] = {}
    counts = {"texts": 0, "too_short": 0}
    for document in evaluation.documents():
        name = document.name.split(":")[0].replace("/", "_")
        runs = ngrams(part.word_tokenize(simplify_text(document.text, config.norm_config)), config.n_grams)
        found = {number(" ".join(run)) for run in runs}  # type: ignore[arg-type]
        hashes.setdefault(name, set()).update(found)
        counts["texts"] += 1
        counts["too_short"] += not found
    if not any(hashes.values()):
        raise ConfigError(
            f"data.clean.decontaminate: none of {counts['texts']} texts has {config.n_grams} words; set "
            f"data.clean.decontaminate_ngram lower"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in hashes.items():
        np.array(sorted(values), config.hash_config.np_descr).tofile(folder / f"{name}.index.hashes")
    return counts
