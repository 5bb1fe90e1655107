"""Fetches the Bible in English (World English Bible) and in Spanish (Reina-Valera 1909), verse by verse.

    python experiments/en_es/get_data.py [FOLDER]

FOLDER/verses.jsonl gets a JSON object for each of the 31,077 verses that both have: `ref`, `en`, `es`. They are in the
Debian packages sword-text-web and sword-text-sparv, 7 MB. What is there already is verified, not fetched again.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fetch
import sword

ENGLISH, SPANISH = "sword-text-web", "sword-text-sparv"
TEXTS = "usr/share/sword/modules/texts/ztext/"
NAMES = """
Gen=Genesis Exod=Exodus Lev=Leviticus Num=Numbers Deut=Deuteronomy Josh=Joshua Judg=Judges 1Sam=I_Samuel 2Sam=II_Samuel
1Kgs=I_Kings 2Kgs=II_Kings 1Chr=I_Chronicles 2Chr=II_Chronicles Neh=Nehemiah Esth=Esther Ps=Psalms Prov=Proverbs
Eccl=Ecclesiastes Song=Song_of_Solomon Isa=Isaiah Jer=Jeremiah Lam=Lamentations Ezek=Ezekiel Dan=Daniel Hos=Hosea
Obad=Obadiah Mic=Micah Nah=Nahum Hab=Habakkuk Zeph=Zephaniah Hag=Haggai Zech=Zechariah Mal=Malachi Matt=Matthew
Rom=Romans 1Cor=I_Corinthians 2Cor=II_Corinthians Gal=Galatians Eph=Ephesians Phil=Philippians Col=Colossians
1Thess=I_Thessalonians 2Thess=II_Thessalonians 1Tim=I_Timothy 2Tim=II_Timothy Phlm=Philemon Heb=Hebrews Jas=James
1Pet=I_Peter 2Pet=II_Peter 1John=I_John 2John=II_John 3John=III_John Rev=Revelation_of_John
"""  # of books: from OSIS to English, where they are not the same
BOOKS = dict(pair.replace("_", " ").split("=") for pair in NAMES.split())


def bible(package: str, cache: Path) -> dict[sword.Verse, str]:
    """The verses of both testaments as plain text."""
    files = dict(fetch.deb_files(fetch.debian_package(package, cache), TEXTS))
    found: dict[sword.Verse, str] = {}
    for testament in ("ot", "nt"):
        parts = [next(files[name] for name in files if name.endswith(f"/{testament}.{end}"))
                 for end in ("bzs", "bzv", "bzz")]  # fmt: skip
        found |= {verse: sword.text_of(osis) for verse, osis in sword.verses(sword.entries(*parts)).items()}
    return found


def pairs(cache: Path) -> Iterator[tuple[str, bytes]]:
    """The verses that have text in both languages, in the Spanish Bible's order."""
    english, lines = bible(ENGLISH, cache), []
    for verse, spanish_text in bible(SPANISH, cache).items():
        if spanish_text and (english_text := english.get(verse)):
            ref = f"{BOOKS.get(verse.book, verse.book)} {verse.chapter}:{verse.number}"
            lines.append(json.dumps({"ref": ref, "en": english_text, "es": spanish_text}, ensure_ascii=False) + "\n")
    yield "verses.jsonl", "".join(lines).encode()


STUDY = fetch.Study(
    name="en_es",
    packages=f"{ENGLISH} 426.0-1 and {SPANISH} 2.60-1",
    licence='both texts are in the public domain; "World English Bible" is a trademark of eBible.org: a changed text '
    "must not bear that name; source: the Debian packages sword-text-web, sword-text-sparv",
    results={"verses.jsonl": "f919844f8f8eed40d687186e20780963c0d2a58ff0004ba7ff777692d479459f"},
    build=pairs,
    next_commands=[
        "python -m lmkit.train +experiment=en_es 'data.paths=[{data}/verses.jsonl]'",
        "python experiments/en_es/copy_baseline.py {data}/verses.jsonl",
    ],
)

if __name__ == "__main__":
    fetch.main(STUDY, __doc__)
