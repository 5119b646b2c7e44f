"""Writing files so that a reader sees all of one or nothing of it, whatever interrupts the writer.

A writer works in a scratch folder beside its target (see `scratch.py`) and moves it by one rename.
"""

from __future__ import annotations

import errno
import os
import re
import stat
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
    errno.ENAMETOOLONG: "the path is too long",
    errno.ELOOP: "links of the path lead back to themselves",
    errno.EIO: "the device does not answer as it should",
    errno.ESTALE: "the file system has gone",
    errno.EMFILE: "too many files are open",
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
        number = _error_number(error)
        reason = _REASONS.get(number or 0)
        if reason is None:
            raise
        if number == errno.ENOSPC and _lacks_inodes(path):
            reason = "the file system has no inodes left for new files, although it has space"
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
        open_to_readers(new)
        take_place(scratch, target)


def atomic_write(target: Path, content: bytes) -> None:
    """Write a file's whole content elsewhere and move it to its place."""
    with scratch_beside(target) as scratch:
        new = scratch / "new"
        new.write_bytes(content)
        new.replace(target)


def open_to_readers(folder: Path) -> None:
    """Give all in a folder the rights that the folder has; safetensors makes files for their owner."""
    rights = stat.S_IMODE(folder.stat().st_mode)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            own = rights if path.is_dir() else rights & 0o666
            path.chmod(stat.S_IMODE(path.stat().st_mode) | own)


def _lacks_inodes(path: Path) -> bool:
    """Say whether a file system is full of files rather than of bytes."""
    place = next((p for p in (path, *path.absolute().parents) if p.exists()), Path("/"))
    free = os.statvfs(place)
    return free.f_files > 0 and free.f_favail == 0 and free.f_bavail > 0


def _error_number(error: Exception) -> int | None:
    """Return the operating system's number of an error, also where a library in Rust wrapped it."""
    if isinstance(error, OSError):
        return error.errno
    wrapped = _RUST_ERROR.search(str(error))
    return int(wrapped[1]) if wrapped else None
