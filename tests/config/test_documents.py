"""Damaged JSON and YAML files: one line that names the file."""

from pathlib import Path

import pytest

from lmkit.config.base import ConfigError
from lmkit.config.documents import read_document


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.json", b'{"a": 1', "a.json is no JSON"),
    ("a.json", b"", "a.json is no JSON"),
    ("a.json", b'{"by": "Jos\xe9"}', "a.json is damaged: byte 11 is not UTF-8; fetch it again"),
    ("a.json", b"[" * 100_000, "a.json is no JSON"),
    ("a.json", b"[1]", "a.json holds a list: it must be an object"),
    ("a.json", b"null", "a.json holds nothing"),
    ("a.yaml", b"a: [1", "a.yaml is no YAML"),
    ("a.yaml", b"a: 2001-99-99", "a.yaml is no YAML"),
    ("a.yaml", b"", "a.yaml holds nothing: it must be an object"),
    ("b.json", None, "b.json cannot be read: no such file"),
])  # fmt: skip
def test_a_damaged_file(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_document(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_document(tmp_path / "a.json") == {"a": 1}
    (tmp_path / "b.json").write_text("[1]")
    assert read_document(tmp_path / "b.json", list) == [1]
