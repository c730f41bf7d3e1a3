"""Let a training on a CPU need the memory that its tensors need.

The heap of glibc grows with each size of map that fits in no gap, to almost twice the tensors. A buffer that is mapped
by itself leaves no gap; it costs page faults, which huge pages make few.
"""

from __future__ import annotations

import ctypes
import os
import platform

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
LARGE = 6 << 20  # bytes; smaller ones gain little memory, and cost more time than the kernels of a training save


def map_large_buffers() -> None:
    """Let glibc map each large buffer by itself, from now on; a user's own choice and other systems stay."""
    if platform.libc_ver()[0] == "glibc" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)


def allow_huge_pages() -> None:
    """Let torch ask for huge pages; it looks when it makes its first tensor."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
