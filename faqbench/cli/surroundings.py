"""What a process finds when it starts: its locale, its standard streams and its folder; none may end a run.

Every file that is read or written here is UTF-8, and libraries open theirs without saying so: in a locale
of another encoding they would read other characters, or fail. So the program starts itself once more in
Python's UTF-8 mode there. What a terminal cannot show is shown as a question mark.

Results are files. A terminal that is gone, full or closed is no reason to stop the work: what cannot be
said is dropped, and the exit code says so.

How much is said (`-q`: tables, warnings and errors alone; `-v`: more lines) is set once per command,
reaches cells in other processes through FAQBENCH_VERBOSITY, and changes no result.
"""

from __future__ import annotations

import locale
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TextIO, cast

from faqbench.config import UserError


def restart_in_utf8(arguments: Sequence[str]) -> None:
    """Start the program again in UTF-8 mode, and never return, where the locale has another encoding."""
    encoding = locale.getpreferredencoding(do_setlocale=False)
    if sys.flags.utf8_mode or encoding.lower().replace("-", "") == "utf8":
        return
    os.environ["PYTHONUTF8"] = "1"  # of the processes that this one starts, too
    os.environ.setdefault("PYTHONIOENCODING", f"{encoding}:replace")
    command = [sys.executable, "-X", "utf8", "-m", "faqbench", *arguments]
    os.execv(sys.executable, command)  # noqa: S606 - this very program


def open_closed_streams() -> None:
    """Give closed standard streams a file, so that no file of ours takes their numbers and their output."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def check_folder() -> None:
    """Refuse to work in a folder that was removed, since all paths are relative to it.

    Raises:
        UserError: when the current folder is no more.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise UserError("The current folder does not exist any more; change to one that does.") from error


class Stream:
    """A text stream whose failures to write are noted; only a pipe without a reader is raised."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            with suppress(OSError, ValueError):
                reconfigure(errors="replace")

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's own."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, or note why that is not possible."""
        if self.error is None:
            with self._noted():
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is held back, or note why that is not possible."""
        if self.error is None:
            with self._noted():
                self._stream.flush()

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            self.error = error
            with suppress(OSError, ValueError):  # what is held back would be tried again at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextmanager
def own_streams() -> Iterator[tuple[Stream, Stream]]:
    """Write standard output and error through streams that never end the work, while the block runs."""
    open_closed_streams()
    before = sys.stdout, sys.stderr
    streams = Stream(sys.stdout), Stream(sys.stderr)
    sys.stdout, sys.stderr = (cast("TextIO", stream) for stream in streams)
    try:
        yield streams
    finally:
        if cast("object", sys.stdout) is streams[0]:  # else nothing is left to flush: its reader has gone
            sys.stdout = before[0]
        sys.stderr = before[1]


Verbosity = Literal["quiet", "normal", "verbose"]
_VARIABLE = "FAQBENCH_VERBOSITY"
_FLAGS: dict[str, Verbosity] = {"-q": "quiet", "--quiet": "quiet", "-v": "verbose", "--verbose": "verbose"}


def take_verbosity(arguments: Sequence[str]) -> tuple[list[str], Verbosity]:
    """Split `-q` and `-v`, anywhere among the arguments, from the rest; Hydra knows neither."""
    given = [_FLAGS[a] for a in arguments if a in _FLAGS]
    return [a for a in arguments if a not in _FLAGS], given[-1] if given else current_verbosity()


def current_verbosity() -> Verbosity:
    """Return how much is to be said here."""
    level = os.environ.get(_VARIABLE, "normal")
    return cast("Verbosity", level) if level in ("quiet", "verbose") else "normal"


@contextmanager
def verbosity(level: Verbosity) -> Iterator[None]:
    """Say so much inside this block, in this process and those that it starts."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = level
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = before
