"""Web archives: the text of WET files, and of the pages in WARC files."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from lmkit.config.base import ConfigError
from lmkit.data.sources.documents import Document, Keys
from lmkit.data.sources.files import DamagedError, File, damage, opened
from lmkit.data.sources.formats import Bad, decoded, sample_of, with_packed

WARC_SUFFIXES = with_packed(".warc", ".wet")
_PAGES = ("text/html", "application/xhtml+xml")


def read_warc(file: File, keys: Keys) -> Iterator[Document | Bad]:
    """A document for each record that holds text: converted (WET), plain, or a page of status 200.

    Other records (requests, metadata, images, ...) are no documents and nothing is said of them. The name is the file
    and the number of the record, or what stands in the header that `keys.id` names, such as WARC-Record-ID.
    Raises ConfigError where a package is missing.
    """
    try:
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError as error:
        raise ConfigError(f"data: reading {file.url} needs warcio: pip install 'lmkit[warc]'") from error
    number = 0
    try:
        with opened(file.url) as handle:  # unpacked here: warcio takes half an archive for a whole one
            for number, record in enumerate(ArchiveIterator(_Whole(handle)), 1):
                place = f"{file.url} record {number}"
                name = record.rec_headers.get_header(keys.id) if keys.id else f"{file.name}:{number}"
                text = _text_of(record, place)
                if isinstance(text, Bad):
                    yield text._replace(place=place)
                elif text is not None and not name:
                    yield Bad(place, f"has no header {keys.id!r} (data.id_key)", sample_of(text))
                elif text is not None:
                    yield Document(name, text)
    except ArchiveLoadFailed as error:
        yield Bad(f"{file.url} after record {number}", f"is damaged or cut short: {error}", "")
    except Exception as error:
        yield Bad(f"{file.url} after record {number}", damage(error), "")


class _Whole:
    """What warcio reads of a file. To warcio an EOFError is how an archive ends."""

    def __init__(self, handle: BinaryIO):
        self.handle, self.tell, self.close = handle, handle.tell, handle.close

    def read(self, size: int) -> bytes:
        try:
            return self.handle.read(size)
        except EOFError as error:
            raise DamagedError(error) from error


def _text_of(record: Any, place: str) -> str | Bad | None:
    """The text of a record; None where it is of another kind."""
    if not record.rec_headers.get_header("Content-Length"):
        raise DamagedError("the header of a record is not complete")
    kind = (record.content_type or "").partition(";")[0].strip().lower()
    if record.rec_type == "conversion":
        return decoded(_content(record)) if kind == "text/plain" else None
    if record.rec_type != "response" or record.http_headers is None:
        return None
    status, declared = record.http_headers.get_statuscode(), record.http_headers.get_header("Content-Type") or ""
    kind, _, settings = declared.partition(";")
    kind = kind.strip().lower()
    if status != "200" or (kind not in _PAGES and kind != "text/plain"):
        return None
    body = _content(record)
    if kind == "text/plain":
        charset = settings.partition("charset=")[2].strip(" \"'") or "utf-8"
        try:
            return body.decode(charset)
        except (UnicodeDecodeError, LookupError) as error:
            return Bad("", f"is not {charset}: {error}", sample_of(body))
    text = page_text(body, place)
    return text if text.strip() else Bad("", "is a page without text of its own", sample_of(body))


def _content(record: Any) -> bytes:
    """All of a record. Raises DamagedError where there is less than its header says."""
    body = record.content_stream().read()
    record.raw_stream.read()  # what a chunked body leaves
    if left := getattr(record.raw_stream, "limit", 0):
        raise DamagedError(f"{left} bytes of a record are missing")
    return body


def page_text(html: bytes, place: str) -> str:
    """What a page says, without menus and the like (Bevendorff et al. 2018, Resiliparse)."""
    try:
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse.encoding import detect_encoding
        from resiliparse.parse.html import HTMLTree
    except ImportError as error:
        raise ConfigError(f"data: {place} is HTML, which needs resiliparse: pip install 'lmkit[warc]'") from error
    encoding = detect_encoding(html, html5_compatible=True) or "utf-8"  # where nothing tells
    tree = HTMLTree.parse_from_bytes(html, encoding)
    return extract_plain_text(tree, main_content=True, alt_texts=False)
