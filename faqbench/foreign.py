"""Reading what others may have written or damaged: as data, within bounds, and never as a command.

A folder of runs is shared, copied, mounted and edited. A file there may be a pipe that never ends, a link
out of the folder, gigabytes long, nested a thousand deep, or hold escape sequences for whoever prints it.
What is read through this module is none of these: it is read whole or refused with the reason.
"""

from __future__ import annotations

import os
import re
import stat
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

T = TypeVar("T")
_MEGABYTE = 1_000_000
# Control characters but tab and newline, line separators, what turns the direction of writing, and halves
# of surrogate pairs, as undecodable file names have them.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# The same as JSON spells them, and as UTF-8: a search of bytes is much faster than a walk over values.
_UNSEEN_JSON = re.compile(
    rb"\\(?:[bfr]|u(?:00[0189]|007f|202|206|d[89a-f]))|\x7f"
    rb"|\xc2[\x80-\x9f]|\xe2\x80[\xa8-\xae]|\xe2\x81[\xa6-\xa9]",
    re.IGNORECASE,
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,254}")


def is_name(text: str) -> bool:
    """Say whether a text can name a run, a sweep or a report: one part of a path, and safe anywhere."""
    return _NAME.fullmatch(text) is not None


def visible(text: str) -> str:
    r"""Return a text in which what would act on a terminal or a page is spelled out, as in `\x1b`."""
    if text.isprintable():
        return text
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def read_file(path: Path, most_megabytes: int) -> bytes:
    """Read a regular file; pipes, devices and links are refused, and none of them is waited for.

    Raises:
        ValueError: with the reason, without the path.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        about = os.fstat(handle)
        if stat.S_ISDIR(about.st_mode):  # which Python would not open
            os.close(handle)
            raise ValueError(f"{path.name} is a folder")
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(about.st_mode):
                raise ValueError(f"{path.name} is no regular file")
            if about.st_size > most_megabytes * _MEGABYTE:
                raise ValueError(f"{path.name} is larger than {most_megabytes} MB")
            return file.read(most_megabytes * _MEGABYTE)
    except OSError as error:
        what = "is a link" if path.is_symlink() else f"cannot be read: {error.strerror}"
        raise ValueError(f"{path.name} {what}") from error


def read_json(path: Path, most_megabytes: int) -> Any:
    """Read a regular file of JSON whose texts are all visible; NaN, infinity and deep nesting are refused.

    Raises:
        ValueError: with the reason, without the path.
    """
    return parse_json(read_file(path, most_megabytes), path.name)


def read_as(path: Path, kind: type[T], most_megabytes: int = 256) -> T:
    """Read a regular file of JSON that holds one value of a type, a dataclass of plain values above all.

    Raises:
        ValueError: with the first part that is not what the type says.
    """
    data = read_file(path, most_megabytes)
    try:
        value: T = _adapter(kind).validate_json(data, strict=True)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join([path.name, *map(str, first["loc"])])
        raise ValueError(f"{where}: {first['msg']}") from error
    return value


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def parse_json(data: bytes, name: str) -> Any:
    """Parse JSON as `read_json` does; `name` says what it is.

    Raises:
        ValueError: with the reason.
    """
    try:
        value = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"{name} cannot be read: {error}") from error
    return _visible_value(value) if _UNSEEN_JSON.search(data) else value


def _visible_value(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(k): _visible_value(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_visible_value(v) for v in value]
    return value
