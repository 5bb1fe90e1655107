"""Puts copies, near copies, broken records, addresses and passages of an evaluation set into texts, each counted."""

import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

from prepare_judge import alike, shingles

BROKEN = (
    b'{"id": "half", "text": "it ends in the mid', b"not JSON at all", b'{"id": "other", "body": "no text"}',
    b'{"text": 17}', b'["a list"]', b'{"text": "bytes \xff\xfe that are no UTF-8"}',
)  # fmt: skip


def edited(text: str, rng: random.Random, share: float) -> str:
    """A share of the words replaced, dropped or doubled; at least one."""
    words = re.split(r"(\s+)", text)
    for _ in range(max(1, round(share * len(words) / 2))):
        at = rng.randrange(0, len(words), 2)
        words[at] = rng.choice([rng.choice(("quartz", "lantern", "meadow", "gravel")), "", words[at] + " " + words[at]])
    return "".join(words)


def address(kind: str, rng: random.Random) -> str:
    """An e-mail address, a public IP address or a phone number, in one of its usual forms."""
    digits = lambda n: "".join(rng.choices("0123456789", k=n))  # noqa: E731
    area, exchange = (rng.choice("23456789") + digits(2) for _ in range(2))
    name = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=9))
    forms = {
        "email": [f"{name}@example.com", f"{name}.o'neil+x{digits(4)}@mail.{name}.co.uk",
                  f"{name}_{digits(3)}@{name}.org"],
        "ip": [f"{rng.choice((8, 81, 130))}.{rng.randrange(4, 250)}.{rng.randrange(4, 250)}.{rng.randrange(1, 255)}",
               f"2a01:{rng.randrange(16, 9999)}:{rng.randrange(16, 9999)}::{rng.randrange(16, 9999)}"],
        "phone": [f"({area}) {exchange}-{digits(4)}", f"{area}-{exchange}-{digits(4)}",
                  f"+1 {area} {exchange} {digits(4)}", f"{area}.{exchange}.{digits(4)}", f"+34{digits(9)}",
                  f"+44 20 {digits(4)} {digits(4)}", f"+49 (0)89 {digits(4)}{digits(4)}",
                  f"1-800-{exchange}-{digits(4)}"],
    }  # fmt: skip
    return rng.choice(forms[kind])


def plant(
    texts: list[tuple[str, str]], folder: Path, number: int, threshold: float, seed: int = 0, chunk: int = 400
) -> dict[str, Any]:
    """Writes corpus/*.jsonl and eval.jsonl under a folder; returns what was planted: `number` of each kind.

    texts: (id, text). `chunk` records are a file. `name_of` in the answer: file:line, as the reader names it -> id.
    """
    rng = random.Random(seed)
    rows, broken = dict(texts), []
    long = [name for name, text in texts if 120 <= len(text.split()) < 20_000]
    names = rng.sample(long, min(len(long), 4 * number))
    truth: dict[str, Any] = {"exact": {}, "near": {}, "pii": {}, "contaminated": {}}
    for name in names[:number]:
        rows[f"exact-{name}"] = rows[name] if rng.random() < 0.7 else rows[name].replace("\n", " \r\n") + "\n\n\n"
        truth["exact"][f"exact-{name}"] = name
    for name in names[number : 2 * number]:
        share, copy = 0.02, rows[name]
        while copy == rows[name] or alike(shingles(copy), shingles(rows[name])) < threshold + 0.05:
            copy, share = edited(rows[name], rng, share), share * 0.8
        rows[f"near-{name}"], truth["near"][f"near-{name}"] = copy, name
    for name, kind in zip(names[2 * number :], itertools.cycle(("email", "ip", "phone")), strict=False):
        words = rows[name].split(" ")
        for _ in range(3):
            found = address(kind, rng)
            words.insert(
                rng.randrange(1, len(words)), rng.choice((f"(write to {found})", f"call {found},", f"{found}."))
            )
            truth["pii"][found] = kind
        rows[name] = " ".join(words)
    (folder / "corpus").mkdir(parents=True)
    passages = []
    for name in rng.sample([n for n in long if n not in names] or long, max(number // 4, 1)):
        words = rows[name].split()
        start = rng.randrange(len(words) - 40)
        passages.append({"text": " ".join(words[start : start + 40])})
        truth["contaminated"][name] = passages[-1]["text"]
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in passages))
    lines = [json.dumps({"text": text, "name": name}).encode() for name, text in rows.items()]
    lines += [rng.choice(BROKEN) for _ in range(number)]
    rng.shuffle(lines)
    truth["name_of"] = {}
    for part, first in enumerate(range(0, len(lines), chunk)):
        records = lines[first : first + chunk]
        file = folder / "corpus" / f"{part:03}.jsonl"
        file.write_bytes(b"".join(line + b"\n" for line in records))
        for number_, line in enumerate(records, 1):
            if line in BROKEN:
                broken.append(f"{file.name} line {number_}")
            else:
                truth["name_of"][f"{file.name}:{number_}"] = json.loads(line)["name"]
    return truth | {"broken": broken}
