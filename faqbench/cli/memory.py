"""A limit on what a process may allocate, so that a cell that needs too much fails alone.

The limit is on private writable memory (RLIMIT_DATA), not on the address space, in which libraries and
mapped weights take many gigabytes that cost nothing. Beyond it an allocation fails inside the process,
which can then say so.
"""

from __future__ import annotations

import resource


def limit_memory(n_bytes: int) -> None:
    """Let this process allocate no more than so many bytes."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        n_bytes = min(n_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (n_bytes, hard))


def lift_memory_limit() -> None:
    """Take the limit off again, so that what went wrong can be recorded."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
