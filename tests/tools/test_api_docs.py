"""The reference of public names says what the source says."""

import ast

import pytest

from helpers import load_tool

tool = load_tool("api_docs")


def test_the_page_is_up_to_date() -> None:
    assert tool.PAGE.read_text() == tool.page(), "docs/api.md is not up to date: run python tools/api_docs.py"


def test_each_public_name_is_there_once_with_its_signature() -> None:
    text = tool.page()
    for section, count in {"### open_model\n": 1, "### GPT\n": 1, "#### GPT.__call__\n": 1, "### compose\n": 1}.items():
        assert text.count(f"\n{section}") == count, section
    assert "def open_model(init_from: str) -> SavedModel\n" in text
    assert "    tie_embeddings: bool = False  # the head is the embedding table\n" in text
    assert "\n- `known`" not in text, "no argument is a list item where the docstring has no Args"
    assert "fmt: skip" not in text


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Sum.\n\nArgs:\n    a, b: one\n        <x>\n\nRaises", "Sum.\n\nArgs:\n\n- `a, b`: one\n  \\<x>\n\nRaises"),
        ("As `a*b`, not a*b.", "As `a*b`, not a\\*b."),
        ("Code.\n\n    x = f(y * z)\n\nText.", "Code.\n\n    x = f(y * z)\n\nText."),
    ],
)
def test_docstrings_become_markdown(docstring: str, expected: str) -> None:
    assert tool.prose(ast.parse(f"{docstring!r}")) == expected
