"""The records that experiments make of their texts: nothing is on both sides, no answer is in the text."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

from helpers import ROOT


def make(study: str, *arguments: Path | str) -> None:
    script = ROOT / "experiments" / study / "make_records.py"
    done = subprocess.run([sys.executable, str(script), *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def read(folder: Path) -> dict[str, list[dict[str, str]]]:
    return {
        split: [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "heldout")
    }


def test_passages_of_an_address_stay_together(tmp_path: Path) -> None:
    words = [f"One {number} two three four. Five six in 1999?" for number in range(20)]
    for year in range(1900, 1950):
        (tmp_path / f"{year}_someone_x.txt").write_text(" ".join(words))
    make("bert_sotu", tmp_path, tmp_path / "out", "--words", "12")
    rows = read(tmp_path / "out")
    addresses = {split: {row["address"] for row in some} for split, some in rows.items()}
    assert not addresses["train"] & addresses["heldout"]
    assert len(addresses["train"] | addresses["heldout"]) == 50
    assert 0 < len(addresses["heldout"]) < 20
    both = rows["train"] + rows["heldout"]
    assert {(row["address"][:4] >= "1913", row["era"]) for row in both} == {(False, "1866-1912"), (True, "1913-1945"),
                                                                         (True, "1946-1980")}  # fmt: skip
    first = [row["text"] for row in both if row["address"] == both[0]["address"]]
    assert first[0] == "One 0 two three four. Five six in YEAR? One 1 two three four."
    assert all(len(text.split()) >= 12 and text[-1] in ".?" for text in first)
    assert " ".join(words).replace("1999", "YEAR").startswith(" ".join(first))


def test_a_thread_gives_one_mail(tmp_path: Path) -> None:
    def mail(number: int, subject: str, text: str) -> dict[str, str]:
        return {"id": f"m{number}", "label": "ham", "subject": subject, "text": text}

    mails = [mail(n, f"about {chr(97 + n % 26)}{chr(97 + n // 26)}", f"text of {chr(97 + n % 26) * (n + 1)}")
             for n in range(100)]  # fmt: skip
    answers = [mail(200 + n, f"Re: [list] {one['subject'].upper()} {n}", f"no {n}") for n, one in enumerate(mails)]
    copies = [mail(400, "another", mails[0]["text"]), mail(401, "", "!!!"), mail(402, "", "???")]
    with gzip.open(tmp_path / "mails.gz", "wt") as out:
        out.write("".join(json.dumps(one) + "\n" for one in mails + answers + copies))
    make("spam", tmp_path / "mails.gz", tmp_path / "out")
    rows = read(tmp_path / "out")
    assert {row["id"] for row in rows["train"] + rows["heldout"]} == {one["id"] for one in mails} | {"m401", "m402"}
    assert 5 < len(rows["heldout"]) < 40
    assert all(row["subject"] for row in rows["train"] + rows["heldout"]), "an empty field would be refused"
