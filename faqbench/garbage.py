"""Building many objects that are all kept, without looking for garbage among them in between.

Python looks for unreachable cycles whenever enough new objects exist, and each look at the oldest walks
over all there are: reading thousands of records spends two fifths of its time so, and finds nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
