"""Keep freed memory in the process instead of handing it back to the system.

Large tensors come and go with every layer. By default glibc maps each one anew and the kernel
zeroes its pages again: a tenth of the time of a vision tower on a CPU (benchmarks/caption.py).
"""

import ctypes
import sys

# <malloc.h>
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """Tell glibc's malloc to keep what is freed; elsewhere nothing. For processes of our own."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
