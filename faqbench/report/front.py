"""The front page of a folder of reports: `reports/index.html` lists all reports and decisions there.

It is made again whenever one of them is written, from the heads of their pages alone, so a report that
was copied there by hand is listed too. The file ends with a digest of itself; one without it, or with
another, is somebody else's or was edited, and stays as it is.
"""

from __future__ import annotations

import hashlib
import html
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from faqbench.files import atomic_write, explain_os_error
from faqbench.report.layout import GENERATOR, render

_HEAD_BYTES = 16_384
_DIGEST = re.compile(rb"<!-- sha256 ([0-9a-f]{64}) -->\n\Z")
_REMEDY = "free some space, or set paths.reports to a folder that can be written"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A page that the front page links to.

    Attributes:
        kind: "report", "decision" or "comparison".
        title: of the page.
        said: its verdict in a sentence or two.
        href: its address, relative to the front page.
    """

    kind: str
    title: str
    said: str
    href: str


def write_front_page(reports: Path) -> Path | None:
    """Write the front page of a folder of reports; None where something else has its place."""
    target = reports / "index.html"
    if os.path.lexists(target) and not _is_ours(target):
        return None
    page = render("front.html.j2", entries=_entries(reports)).encode()
    digest = hashlib.sha256(page).hexdigest()
    with explain_os_error("write the list of reports", target, _REMEDY):
        atomic_write(target, page + f"<!-- sha256 {digest} -->\n".encode())
    return target


def _is_ours(target: Path) -> bool:
    if target.is_symlink() or not target.is_file():
        return False
    data = target.read_bytes()
    match = _DIGEST.search(data)
    return (
        match is not None and hashlib.sha256(data[: match.start()]).hexdigest() == match[1].decode()
    )


def _entries(reports: Path) -> list[Entry]:
    pages = [*sorted(reports.glob("*/index.html")), *sorted(reports.glob("compare/*.html"))]
    found = (_entry(page, page.relative_to(reports)) for page in pages if page.is_file())
    return [entry for entry in found if entry is not None]


def _entry(page: Path, place: Path) -> Entry | None:
    """Return what the head of a page says of itself; None for a page that is not ours."""
    with page.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if GENERATOR not in head:
        return None
    text = head.decode("utf-8", errors="replace")

    def meta(pattern: str) -> str:
        match = re.search(pattern, text, re.DOTALL)
        return "" if match is None else html.unescape(match[1]).strip()

    kind = meta(r'<meta name="application-name" content="faqbench (\w+)">')
    return Entry(
        kind=kind or "report",
        title=meta(r"<title>(.*?)</title>") or place.parts[0],
        said=meta(r'<meta name="description" content="([^"]*)">'),
        href=quote(place.as_posix()),
    )
