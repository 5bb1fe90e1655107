"""The memory of this process: how it is asked for, before the interpreter has started in earnest, and given back."""

import ctypes
import gc
import os
import sys
from pathlib import Path

_THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def prefer_huge_pages() -> None:
    """Starts this program again with glibc asking for huge pages, where that would change anything.

    On a CPU, XLA allocates a step's temporaries anew at each step and Linux clears them page by page: with 4 KiB pages
    that is a tenth of the step (docs/performance.md). glibc reads the setting only when a process starts. Call it
    first thing; LMKIT_HUGE_PAGES=0 switches it off.
    """
    wanted = os.environ.get("LMKIT_HUGE_PAGES", "1") == "1" and "GLIBC_TUNABLES" not in os.environ
    if not (wanted and sys.platform == "linux" and _THP.is_file() and "[madvise]" in _THP.read_text()):
        return
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def release_memory() -> None:
    """Gives back what was freed: after a compilation glibc holds some 200 MiB for more of the kind."""
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
