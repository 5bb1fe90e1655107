"""Every preset has its published size, and docs/models.md says so."""

import pytest
from interop.docs_table import PUBLISHED, ROUNDED, STANDS_FOR, between, count, presets, presets_table


def test_every_preset_has_a_published_size_and_a_reference() -> None:
    assert set(presets()) == set(PUBLISHED) == {name for names in STANDS_FOR.values() for name in names.split()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_size(name: str) -> None:
    """Exactly that of released weights; within 3 % of a paper's rounded figure."""
    published, _ = PUBLISHED[name]
    rounded = len(f"{published:.0f}".rstrip("0")) <= 3
    assert count(name) == pytest.approx(published, rel=ROUNDED if rounded else 0, abs=0)


def test_the_table_of_the_documents_is_this_one() -> None:
    """Written by `python tests/interop/docs_table.py` with tests/ on the path."""
    assert between("presets") == presets_table()
