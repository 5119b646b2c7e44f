"""What Python and the C library do with memory that is no longer used, where it matters here.

Python looks for unreachable cycles whenever enough new objects exist, and each look at the oldest walks
over all there are: reading thousands of records spends two fifths of its time so, and finds nothing.

The C library keeps freed pieces between others that are in use. A model's weights, read and dropped a few
times, leave half a gigabyte so, which the system counts as the process's own.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def give_back() -> None:
    """Give what is free back to the system, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@contextmanager
def uncollected() -> Iterator[None]:
    """Let no garbage collection start inside this block, whose objects are kept or free themselves."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
