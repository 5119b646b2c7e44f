"""A user's plain text file as a list of texts: its paragraphs, separated by blank lines.

Only regular files are read: a pipe or a device may never end. Of these no more than a bound is read, so
that a file which is larger than anyone would calibrate on costs neither the memory nor the time of all of
it. What was left out is said (`Texts.is_cut`).
"""

from __future__ import annotations

import codecs
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from faqbench.config import UserError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The texts of a file or a data set.

    Attributes:
        texts: unique, in their order.
        is_cut: whether there was more than the bound on how much is read.
    """

    texts: tuple[str, ...]
    is_cut: bool = False


def is_text_file(domain: str) -> bool:
    """Whether a domain is written as the path of a .txt file, whether or not the file is there."""
    return Path(domain).suffix.lower() == ".txt"


def read_text_file(name: str, most: int) -> Texts:
    """Return the unique paragraphs of a UTF-8 file, in order.

    Args:
        name: the path of the file.
        most: bytes that are read of it, to the end of a line where there is one.

    Raises:
        UserError: when the file is missing, is no regular file, cannot be read, is empty, or is not UTF-8
            text.
    """
    text, is_cut = read_text(name, most)
    texts = [t for t in re.split(r"\n(?:[ \t]*\n)+", text) if t.strip()]
    if is_cut and len(texts) > 1:
        del texts[-1]  # it goes on after the bound
    if not texts:
        raise UserError(f"The text file '{name}' is empty.")
    return Texts(texts=tuple(dict.fromkeys(texts)), is_cut=is_cut)


def read_text(name: str, most: int) -> tuple[str, bool]:
    r"""Return a UTF-8 file's text, with "\n" as its line ends, and whether it goes on after that.

    Raises:
        UserError: when the file is missing, is no regular file, cannot be read, or is not UTF-8 text.
    """
    path = regular_file(name)
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise UserError(_unreadable(name, error)) from error
    is_cut = len(content) > most
    if is_cut:
        content = content[: content.rfind(b"\n") + 1 or most]
    try:
        # Of a text that goes on, the last character may be there in part.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(content, final=not is_cut)
    except UnicodeDecodeError as error:
        raise UserError(f"The file '{name}' is not UTF-8 text (byte {error.start}).") from error
    if "\0" in text:
        raise UserError(f"The file '{name}' is not text: it holds zero bytes.")
    return text.replace("\r\n", "\n").replace("\r", "\n"), is_cut


def regular_file(name: str) -> Path:
    """Return the path of a user's file, which ends when it is read.

    Raises:
        UserError: when it is missing, or a folder, a pipe, a socket or a device.
    """
    path = Path(name).expanduser()
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise UserError(_unreadable(name, error)) from error
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no file")
        raise UserError(f"'{name}' is {kind}, not a regular file; copy its content into one.")
    return path


def _unreadable(name: str, error: OSError | ValueError) -> str:
    reason = getattr(error, "strerror", None) or "it cannot be read"
    return f"Could not read the file '{name}': {reason.lower()}."
