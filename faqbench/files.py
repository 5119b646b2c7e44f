"""Writing files so that a reader sees all of one or nothing of it, whatever interrupts the writer.

A writer works in a scratch folder beside its target (see `scratch.py`) and moves it by one rename.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faqbench.config import UserError
from faqbench.scratch import scratch_beside, take_place

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would grow past the limit on its size",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission was denied",
    errno.EPERM: "permission was denied",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a part of the path is a file, not a folder",  # what mkdir says of it
}
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def explain_os_error(what: str, path: Path, remedy: str) -> Iterator[None]:
    """Turn a full disk, a read-only folder and their like into a UserError of one sentence.

    Args:
        what: the action that failed, as in "write the record".
        path: where it happened.
        remedy: what the user can do, as in "free some space, or set paths.runs".

    Raises:
        UserError: for the operating system's errors that a user can mend; others pass unchanged.
    """
    try:
        yield
    except Exception as error:
        reason = _REASONS.get(_error_number(error) or 0)
        if reason is None:
            raise
        raise UserError(f"Could not {what} at {path}: {reason}; {remedy}.") from error


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield an empty folder, which takes target's place when the block ends well.

    An existing target is replaced. When the block raises, nothing of the new one remains.
    """
    with scratch_beside(target) as scratch:
        new = scratch / "new"
        new.mkdir()
        yield new
        take_place(scratch, target)


def atomic_write(target: Path, content: bytes) -> None:
    """Write a file's whole content elsewhere and move it to its place."""
    with scratch_beside(target) as scratch:
        new = scratch / "new"
        new.write_bytes(content)
        new.replace(target)


def _error_number(error: Exception) -> int | None:
    """Return the operating system's number of an error, also where a library in Rust wrapped it."""
    if isinstance(error, OSError):
        return error.errno
    wrapped = _RUST_ERROR.search(str(error))
    return int(wrapped[1]) if wrapped else None
