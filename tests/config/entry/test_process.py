"""The restart with huge pages: once, with the same words, and only where it matters."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
CODE = """
import os, sys
from lmkit.config.entry.process import prefer_huge_pages
prefer_huge_pages()
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv)
"""


def run(**changes: str) -> list[str]:
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"} | changes
    command = [sys.executable, "-c", CODE, "a b", "c"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.split()[0] == str(process.pid), "exec keeps the process"
    return out.split(maxsplit=2)[1:]


@pytest.mark.skipif(
    not THP.is_file() or "[madvise]" not in THP.read_text(), reason="huge pages are not by request here"
)
def test_restarts_once_with_the_same_words() -> None:
    assert run() == ["glibc.malloc.hugetlb=1", "['-c', 'a b', 'c']\n"]


def test_is_off_when_told_so() -> None:
    assert run(LMKIT_HUGE_PAGES="0")[0] == "None"
    assert run(GLIBC_TUNABLES="glibc.malloc.check=0")[0] == "glibc.malloc.check=0"
