"""Makes records for telling the era of a passage from the addresses of US presidents.

    python experiments/bert_sotu/make_records.py PATH/TO/sotu PATH/TO/era

Each address YEAR_*.txt becomes passages of whole sentences, of --words words or more. train.jsonl and heldout.jsonl get
a line a passage: `text`, `era`, `address`. One address in --holdout-every is held out, with all its passages.
"""

import argparse
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

FIRST_YEARS = {"before 1830": 0, "1830-1865": 1830, "1866-1912": 1866, "1913-1945": 1913, "1946-1980": 1946,
               "after 1980": 1981}  # fmt: skip


def era_of(year: int) -> str:
    return [era for era, first in FIRST_YEARS.items() if year >= first][-1]


def passages(text: str, words: int) -> Iterator[str]:
    """Whole sentences of at least `words` words in all; what is left at the end of an address is dropped."""
    passage: list[str] = []
    for sentence in re.split(r"(?<=[.?!])\s+", " ".join(text.split())):
        passage.append(sentence)
        if sum(len(one.split()) for one in passage) >= words:
            yield " ".join(passage)
            passage = []


def main(arguments: argparse.Namespace) -> None:
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, str]]] = {"train": [], "heldout": []}
    for path in sorted(arguments.sotu.glob("*.txt")):
        split = "heldout" if zlib.crc32(path.name.encode()) % arguments.holdout_every == 0 else "train"
        text = re.sub(r"\b(1[789]|20)\d\d\b", "YEAR", path.read_text(encoding="utf-8"))  # it would be too easy
        era = era_of(int(path.name[:4]))
        rows[split] += [{"text": one, "era": era, "address": path.stem} for one in passages(text, arguments.words)]
    for split, records in rows.items():
        lines = [json.dumps(record) + "\n" for record in records]
        (arguments.out / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        addresses = len({record["address"] for record in records})
        print(f"{split}: {len(records)} passages of {addresses} addresses", dict(Counter(r["era"] for r in records)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sotu", type=Path, help="folder of the addresses, a text file each")
    parser.add_argument("out", type=Path, help="where the records go; made where it is missing")
    parser.add_argument("--words", type=int, default=60, help="words of a passage, at least (%(default)s)")
    parser.add_argument("--holdout-every", type=int, default=6, help="one address in so many (%(default)s)")
    main(parser.parse_args())
