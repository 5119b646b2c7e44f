"""A fault of a program in words: where it happened and what it said, and nothing of the machine.

A record is committed and shown in reports. Folders of whoever ran it are nobody's business there: modules
and lines say as much.
"""

from __future__ import annotations

import re
import traceback
from pathlib import PurePosixPath

_MOST_FRAMES = 6
_LONGEST = 2000
# An absolute path of two parts or more, in quotes or between spaces, as messages hold them.
_PATH = re.compile(r"(?<![\w./:~-])/(?:[^\s/'\":;,]+/)+[^\s'\":;,]*")


def told(error: BaseException) -> str:
    """Return the last frames of an error as module and line, then its kind and message."""
    frames = list(traceback.walk_tb(error.__traceback__))[-_MOST_FRAMES:]
    lines = ["Traceback (most recent call last):"]
    for frame, line in frames:
        module = frame.f_globals.get("__name__", "?")
        lines.append(f"  {module}, line {line}, in {frame.f_code.co_name}")
    message = "".join(traceback.format_exception_only(error)).strip()
    return "\n".join([*lines, without_paths(message)[:_LONGEST]])


def without_paths(text: str) -> str:
    """Return a text in which absolute paths are their last part."""
    return _PATH.sub(lambda found: f"…/{PurePosixPath(found[0]).name}", text)
