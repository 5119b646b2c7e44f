"""Writing files so that a reader sees all of one or nothing of it, whatever interrupts the writer.

A writer works in a scratch folder beside its target and moves it by one rename. Such a folder is known as
ours by more than its name:

    .faqbench-scratch-<random>/    beside the target
        owner.json                 which process of which machine made it, and for which target
        new                        what is being written: a file or a folder
        old                        what was in the target's place, until the new is

The owner holds a lock on `owner.json`. What a killed process left is a folder of this name, of this user,
with such a file inside that nobody holds and whose process is gone; nothing else is ever removed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path

from faqbench.config import UserError
from faqbench.foreign import read_json

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would grow past the limit on its size",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission was denied",
    errno.EPERM: "permission was denied",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a part of the path is a file, not a folder",  # what mkdir says of it
    errno.ENOENT: "there cannot be one",  # though its parents were to be made: so it is below /proc
    errno.EISDIR: "a folder has the place of a file",
    errno.ENOTEMPTY: "a folder that holds something has its place",
    errno.ENAMETOOLONG: "the path is too long",
    errno.ELOOP: "links of the path lead back to themselves",
    errno.EINVAL: "the file system does not take such a name or such a file",
    errno.EILSEQ: "the file system does not take such a name",
    errno.ENOTSUP: "the file system cannot do that",
    errno.ENOSYS: "the file system cannot do that",
    errno.EXDEV: "parts of the path lie on different file systems",
    errno.EMLINK: "the file system holds no more links or folders there",
    errno.EBUSY: "the file system has it in use",
    errno.ETXTBSY: "a program that runs has it in use",
    errno.ENXIO: "there is no device behind it",
    errno.ENODEV: "there is no device behind it",
    errno.EIO: "the device does not answer as it should",
    errno.ENOTCONN: "the file system has gone",
    errno.ESTALE: "the file system has gone",
    errno.EHOSTDOWN: "the file system's host does not answer",
    errno.EMFILE: "too many files are open",
    errno.ENFILE: "too many files are open",
}
# What a file that has nothing to do with the path can give as well, as one that a build reads.
_OF_ANY_FILE = {
    errno.ENOENT, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL, errno.ENXIO, errno.ENODEV, errno.ENOTCONN,
    errno.EHOSTDOWN,
}  # fmt: skip
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
        if reason is None or (number in _OF_ANY_FILE and not _is_about(error, path)):
            raise
        if number == errno.ENOSPC and _lacks_inodes(path):
            reason = "the file system has no inodes left for new files, although it has space"
        if number in (errno.ENOENT, errno.EEXIST):
            reason = _fault_of_links(path) or reason
        raise UserError(f"Could not {what} at {path}: {reason}; {remedy}.") from error


def sentence_of(error: OSError) -> str | None:
    """Return the sentence for a path that cannot be used; None for what may be a fault of ours."""
    reason = None if error.errno in _OF_ANY_FILE else _REASONS.get(error.errno or 0)
    if reason is None or error.filename is None:
        return None
    return f"Could not use {error.filename}: {reason}; name another place, or ask for rights to this one."


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
            allowed = rights if path.is_dir() else rights & 0o666
            path.chmod(stat.S_IMODE(path.stat().st_mode) | allowed)


def _lacks_inodes(path: Path) -> bool:
    """Say whether a file system is full of files rather than of bytes."""
    place = next((p for p in (path, *path.absolute().parents) if p.exists()), Path("/"))
    free = os.statvfs(place)
    return free.f_files > 0 and free.f_favail == 0 and free.f_bavail > 0


def _is_about(error: Exception, path: Path) -> bool:
    """Say whether an error names a path, what is above or below it, or a scratch folder beside it."""
    named = getattr(error, "filename", None)
    if not isinstance(named, str | os.PathLike):
        return False
    beside, found = Path(path).absolute().parent, Path(named).absolute()
    return found.is_relative_to(beside) or beside.is_relative_to(found)


def _fault_of_links(path: Path) -> str | None:
    """Say what is wrong with the links of a path; None when they lead somewhere."""
    for place in (path, *path.absolute().parents):
        try:
            if place.is_symlink():
                place.stat()
        except OSError as error:
            if error.errno == errno.ELOOP:
                return _REASONS[errno.ELOOP]
            return f"the link {place.name} leads to nothing that is there"
    return None


def _error_number(error: Exception) -> int | None:
    """Return the operating system's number of an error, also where a library in Rust wrapped it."""
    if isinstance(error, OSError):
        return error.errno
    wrapped = _RUST_ERROR.search(str(error))
    return int(wrapped[1]) if wrapped else None


_PREFIX = ".faqbench-scratch-"
_SCRATCH = re.compile(re.escape(_PREFIX) + "[a-z0-9_]{8}")
_OWNER = "owner.json"


@contextmanager
def scratch_beside(target: Path) -> Iterator[Path]:
    """Yield a scratch folder beside a target; it is removed at the end, and what was set aside put back."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=target.parent))
    try:
        marker = _mark(scratch, target)
    except BaseException:  # a full disk: without its marker nobody would know the folder as ours
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    with marker:
        try:
            yield scratch
        finally:
            _put_back(scratch, target)
            shutil.rmtree(scratch, ignore_errors=True)


def take_place(scratch: Path, target: Path) -> None:
    """Move a scratch folder's `new` to the target, whose former folder is set aside first."""
    if os.path.lexists(target):
        target.rename(scratch / "old")
    (scratch / "new").rename(target)


def discard(path: Path) -> None:
    """Remove a folder: out of sight at once, so that nobody finds half of it, then for good."""
    with scratch_beside(path) as scratch:
        path.rename(scratch / "gone")


def remove_leftovers(folder: Path, target: str | None = None) -> int:
    """Remove the scratch folders that killed processes left, and return how many there were.

    A target that a process had set aside when it was killed is put back.

    Args:
        folder: where the targets lie.
        target: the name of one target; None is all of them.
    """
    removed = 0
    paths: list[Path] = []
    with suppress(OSError):  # of what cannot be listed nothing could be removed either
        paths = sorted(folder.iterdir())
    for path in paths:
        if _SCRATCH.fullmatch(path.name) is None or not _is_own_folder(path):
            continue
        with suppress(OSError, ValueError):
            owner = _owner_of(path)
            if target not in (None, owner["target"]) or _is_alive(owner):
                continue
            with (path / _OWNER).open("r+") as file:
                if not _try_lock(file.fileno()):
                    continue
                _put_back(path, folder / str(owner["target"]))
                shutil.rmtree(path)
            removed += 1
    return removed


def _mark(scratch: Path, target: Path) -> FileIO:
    """Write who owns a scratch folder, and return the file with its lock."""
    owner = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": _start_of(os.getpid()),
        "target": target.name,
    }
    with ExitStack() as stack:
        file = stack.enter_context(FileIO(scratch / _OWNER, "w"))
        _try_lock(file.fileno())
        file.write(json.dumps(owner).encode())
        stack.pop_all()
    return file


def _is_own_folder(path: Path) -> bool:
    with suppress(OSError):
        about = path.lstat()
        return stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid()
    return False


def _owner_of(scratch: Path) -> Mapping[str, object]:
    """Return what a scratch folder's marker says.

    Raises:
        ValueError: when it is none of ours.
    """
    owner = read_json(scratch / _OWNER, 1)
    kinds = {"pid": int, "host": str, "started": float, "target": str}
    if not isinstance(owner, dict) or {k: type(v) for k, v in owner.items()} != kinds:
        raise ValueError("it is no marker of ours")
    if Path(owner["target"]).name != owner["target"]:
        raise ValueError("its target lies elsewhere")
    return owner


def _is_alive(owner: Mapping[str, object]) -> bool:
    """Say whether the owner runs on this machine; of others, only the lock tells."""
    pid = owner["pid"]
    assert isinstance(pid, int)
    return owner["host"] == socket.gethostname() and owner["started"] == _start_of(pid)


def _start_of(pid: int) -> float:
    """Return when a process began, which tells it from a later one of its number; 0 when it is gone."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except (psutil.Error, ValueError, OverflowError):
        return 0.0


def _put_back(scratch: Path, target: Path) -> None:
    """Undo a move aside whose second half never came."""
    old = scratch / "old"
    if os.path.lexists(old) and not os.path.lexists(target):
        old.rename(target)


def _try_lock(handle: int) -> bool:
    """Lock an open file; False when another holds it, or the file system has no such locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
