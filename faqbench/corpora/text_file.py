"""A user's plain text file as a list of texts: its paragraphs, separated by blank lines."""

from __future__ import annotations

import re
from pathlib import Path

from faqbench.config import UserError


def is_text_file(domain: str) -> bool:
    """Whether a domain is written as the path of a .txt file, whether or not the file is there."""
    return Path(domain).suffix.lower() == ".txt"


def read_text_file(name: str) -> list[str]:
    """Return the unique paragraphs of a UTF-8 file, in order.

    Raises:
        UserError: when the file is missing, cannot be read, is empty, or is not UTF-8 text.
    """
    texts = [t for t in re.split(r"\n(?:[ \t]*\n)+", read_text(name)) if t.strip()]
    if not texts:
        raise UserError(f"The text file '{name}' is empty.")
    return list(dict.fromkeys(texts))


def read_text(name: str) -> str:
    r"""Return a UTF-8 file's text, with "\n" as its line ends.

    Raises:
        UserError: when the file is missing, cannot be read, or is not UTF-8 text.
    """
    try:
        content = Path(name).expanduser().read_bytes()
    except OSError as error:
        reason = (error.strerror or "it cannot be read").lower()
        raise UserError(f"Could not read the text file '{name}': {reason}.") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"The file '{name}' is not UTF-8 text (byte {error.start}).") from error
    if "\0" in text:
        raise UserError(f"The file '{name}' is not text: it holds zero bytes.")
    return text.replace("\r\n", "\n").replace("\r", "\n")
