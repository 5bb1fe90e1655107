"""Reads a Bible from a module of the SWORD project in its zText format, with the standard library alone.

A testament is three files. PREFIX.bzs has 12 bytes a block: its place in PREFIX.bzz, its compressed and its plain size.
PREFIX.bzv has 10 bytes an entry: its block, its place in the block, its size. PREFIX.bzz has the blocks, zlib's.

The entries stand in the order of a versification: headings of the module and the testament, then a heading for each
book, a heading for each chapter, its verses. So no table of chapter lengths is needed: a chapter's verses follow the
heading that opens it, up to the next one, or up to the next book's heading, which is the entry before its chapter 1.
"""

import re
import struct
import zlib
from typing import NamedTuple

# A heading has other marks before the chapter's, or is nothing else. The additions to Daniel are a single long entry
# with chapters in it, which is no heading.
_CHAPTER = re.compile(
    r'^\s*<chapter [^>]*sID="(?P<book>\w+)\.(?P<chapter>\d+)"/>'
    r'|<chapter [^>]*sID="(?P<last_book>\w+)\.(?P<last_chapter>\d+)"/>\s*$'
)
_NOT_TEXT = re.compile(r"<note.*?</note>|<title.*?</title>", re.DOTALL)


class Verse(NamedTuple):
    """Where a verse is. `book` is its OSIS name, such as 1Sam."""

    book: str
    chapter: int
    number: int


def entries(starts: bytes, index: bytes, blocks: bytes) -> list[str]:
    """The entries of a testament, in OSIS markup, of the contents of its .bzs, .bzv and .bzz files."""
    plain = [
        zlib.decompress(blocks[start : start + size]) if size else b""
        for start, size, _ in struct.iter_unpack("<III", starts)
    ]
    return [
        plain[block][start : start + size].decode("utf-8") if size else ""
        for block, start, size in struct.iter_unpack("<IIH", index)
    ]


def verses(entries: list[str]) -> dict[Verse, str]:
    """The verses of a testament's entries, in their order. Some may be empty."""
    headings = []
    for at, entry in enumerate(entries):
        if found := _CHAPTER.search(entry):
            book, chapter = found["book"] or found["last_book"], found["chapter"] or found["last_chapter"]
            headings.append((at, book, int(chapter)))
    found_verses = {}
    for (at, book, chapter), (end, next_book, _) in zip(headings, [*headings[1:], (len(entries), "", 0)], strict=True):
        end -= bool(next_book) and next_book != book  # the heading of the next book
        for verse in range(at + 1, end):
            found_verses[Verse(book, chapter, verse - at)] = entries[verse]
    return found_verses


def text_of(osis: str) -> str:
    """The text of a verse, without notes, titles and marks, with single spaces and none before punctuation."""
    text = " ".join(re.sub(r"<[^>]*>", " ", _NOT_TEXT.sub(" ", osis)).split())
    return re.sub(r" ([,.;:?!’”])", r"\1", text)
