"""Every preset has its published size, and docs/models.md says so."""

import pytest
from interop.docs_table import PUBLISHED, ROUNDED, STANDS_FOR, between, count, presets, presets_table


def test_every_preset_has_a_published_size_and_a_reference() -> None:
    assert set(presets()) == set(PUBLISHED) == {name for names in STANDS_FOR.values() for name in names.split()}


def test_published_sizes_and_the_table_of_the_documents() -> None:
    """Exactly those of released weights; within 3 % of a paper's rounded figures. The models are built once for both.

    The table is written by `python tests/interop/docs_table.py` with tests/ on the path.
    """
    for name, (published, _) in PUBLISHED.items():
        rounded = len(f"{published:.0f}".rstrip("0")) <= 3
        assert count(name) == pytest.approx(published, rel=ROUNDED if rounded else 0, abs=0), name
    assert between("presets") == presets_table()
