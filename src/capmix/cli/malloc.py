"""Keep freed memory in the process instead of returning it to the system.

Each layer allocates and frees large tensors. By default glibc maps new pages for each of them, and
the kernel zeroes these pages: a tenth of the time of a vision tower on a CPU
(benchmarks/caption.py).
"""

import ctypes
import sys

# <malloc.h>
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """Configure glibc's malloc to keep freed memory; do nothing on other systems.

    For processes that capmix owns: the setting affects the whole process.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
