"""Has the C library keep the memory of chunks that come and go."""

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_BYTES = 32 << 20


def keep_memory() -> None:
    """Have chunks received into memory that was used before.

    Otherwise glibc gives the memory of each back to the kernel, and to fault it in
    again costs a third of receiving.  The thresholds are those that glibc comes to by
    itself in a program that frees large blocks; other C libraries have none.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_BYTES)
    mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_BYTES)
