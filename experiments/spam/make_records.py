"""Makes records for filtering spam from e-mails: one of each thread, one of each text.

    python experiments/spam/make_records.py PATH/TO/emails.jsonl.gz PATH/TO/spam

The e-mails have `id`, `label`, `subject`, `text`. Of those whose subjects (without "Re:", list names and digits) or
first 300 letters are the same only the first is kept: a mail must not be recognised by the answer to it. One in
--holdout-every, by its subject, goes to heldout.jsonl, the others to train.jsonl.
"""

import argparse
import gzip
import json
import re
import zlib
from collections import Counter
from pathlib import Path

_LIST_NAME = re.compile(r"\[[^\]]*\]")
_ANSWER = re.compile(r"^\s*((re|fw|fwd|aw|sv)\s*(\[\d+\])?\s*:\s*)+")
_SAME_CHARACTERS = 300


def letters(text: str) -> str:
    return re.sub(r"[^a-z]+", " ", text.lower()).strip()


def thread_of(mail: dict[str, str]) -> str:
    """What all mails of a thread have in common."""
    return letters(_ANSWER.sub("", _LIST_NAME.sub("", mail["subject"].lower()))) or mail["id"]


def main(arguments: argparse.Namespace) -> None:
    with gzip.open(arguments.emails, "rt", encoding="utf-8") as lines:
        mails = [json.loads(line) for line in lines]
    seen: set[str] = set()
    rows: dict[str, list[dict[str, str]]] = {"train": [], "heldout": []}
    for mail in mails:
        marks = {thread_of(mail), letters(mail["text"])[:_SAME_CHARACTERS] or mail["id"]}
        if not marks & seen:
            held_out = zlib.crc32(thread_of(mail).encode()) % arguments.holdout_every == 0
            rows["heldout" if held_out else "train"].append(mail | {"subject": mail["subject"] or "-"})
        seen |= marks
    arguments.out.mkdir(parents=True, exist_ok=True)
    for split, kept in rows.items():
        text = "".join(json.dumps(mail) + "\n" for mail in kept)
        (arguments.out / f"{split}.jsonl").write_text(text, encoding="utf-8")
        print(f"{split}: {len(kept)} of {len(mails)} mails", dict(Counter(mail["label"] for mail in kept)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("emails", type=Path, help="the e-mails, a JSON object a line, gzipped")
    parser.add_argument("out", type=Path, help="where the records go; made where it is missing")
    parser.add_argument("--holdout-every", type=int, default=5, help="one mail in so many (%(default)s)")
    main(parser.parse_args())
