"""From run folders to `reports/<name>/`, all of it or nothing, and the front page of the folder of reports.

`reports/index.html` lists all reports and decisions there. It is made again whenever one of them is
written, from the heads of their pages alone, so a report that was copied there by hand is listed too. The
file ends with a digest of itself; one without it, or with another, is somebody else's or was edited, and
stays as it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import html
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from faqbench.config import UserError
from faqbench.files import atomic_directory, atomic_write, explain_os_error
from faqbench.processes import uncollected
from faqbench.report.content import ReportContent, build_content
from faqbench.report.layout import GENERATOR, render
from faqbench.report.result_tables import metrics_table, runs_table
from faqbench.report.selection import ReportPaths, ReportRequest, Selection, select_draws
from faqbench.stages.manifest import MANIFEST, hash_file, read_manifest, write_manifest
from faqbench.tables import to_csv, to_latex, to_parquet

_MOST_FIGURE_ROWS = 240
_MOST_SETTINGS = 12
_FOLDERS = {"figures", "tables"}
_KEY = {"made_by": "faqbench report"}
_REMEDY = "free some space, or set paths.reports to a folder that can be written"


def write_report(request: ReportRequest) -> ReportPaths:
    """Rebuild a report from its runs, replacing an earlier report of the name.

    Its manifest says which files are the report's. What somebody else put into its folder, such as a page
    with conclusions, stays.

    Raises:
        UserError: when nothing matches `select`, the baseline is unknown, the name is no folder
            name, the folder holds something that is no report, or it cannot be written.
    """
    target = _target(request)
    with uncollected():
        paths = _write_report(request, target)
    return dataclasses.replace(paths, front=write_front_page(request.reports))


def _write_report(request: ReportRequest, target: Path) -> ReportPaths:
    selection = select_draws(request)
    if selection.is_empty:
        pages = {
            "index.html": render("empty.html.j2", name=request.name, selection=selection),
            "report.md": render("empty.md.j2", name=request.name, selection=selection),
        }
        return _write(target, {k: v.encode() for k, v in pages.items()}, 0, selection)
    content = build_content(request, selection)
    n_runs = len(selection.finished) + len(selection.failed)
    told = dataclasses.replace(selection, damaged=content.damaged)
    paths = _write(target, _files(content, selection), n_runs, told)
    return dataclasses.replace(paths, published=content.reproduced)


def _target(request: ReportRequest) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}", request.name):
        raise UserError(
            f"name '{request.name}' cannot name a folder; use letters, digits and . _ + - only."
        )
    target = request.reports / request.name
    if target.is_symlink():  # a report on another disk is written there
        target = target.resolve()
    _earlier_files(target)  # before the work
    return target


def _files(content: ReportContent, selection: Selection) -> dict[str, bytes]:
    files = _pages(content)
    files["report.md"] = render("report.md.j2", report=content).encode()
    shown = [*(table for panel in content.panels for table in panel.tables), content.published]
    for table in shown:
        files[f"tables/{table.name}.tex"] = to_latex(table).encode()
    for table in (*shown, runs_table(selection.finished), metrics_table(selection.finished)):
        files[f"tables/{table.name}.csv"] = to_csv(table).encode()
        files[f"tables/{table.name}.parquet"] = to_parquet(table)
    for figure in (figure for panel in content.panels for figure in panel.figures):
        files[f"figures/{figure.name}.svg"] = figure.svg.encode()
        files[f"figures/{figure.name}.png"] = figure.png
        files[f"figures/{figure.name}.csv"] = to_csv(figure.data).encode()
    return files


def _pages(content: ReportContent) -> dict[str, bytes]:
    """Return the HTML files: one, or for large reports the further pages too."""
    page = render("page.html.j2", report=content, most_rows=_MOST_FIGURE_ROWS, most_settings=_MOST_SETTINGS)
    files, first = {"index.html": page}, 1
    for file, runs in content.pages.run_pages.items():
        files[file] = render("runs_page.html.j2", report=content, file=file, runs=runs, first=first)
        first += len(runs)
    for panel in content.panels:
        for table in panel.paged:
            for part in table.parts[1:]:
                files[part.file] = render(
                    "table_page.html.j2", report=content, part=part, parts=table.parts
                )
    return {name: text.encode() for name, text in files.items()}


def write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Write a report's files and their manifest, all of it or nothing; what is not of a report stays.

    Raises:
        UserError: when the folder holds something that is no report, or cannot be written.
    """
    ours = _earlier_files(target)
    with explain_os_error("write the report", target, _REMEDY), atomic_directory(target) as folder:
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        write_manifest(folder, _KEY)
        _keep_what_is_not_ours(target, folder, ours)


def _write(target: Path, files: dict[str, bytes], n_runs: int, selection: Selection) -> ReportPaths:
    write_folder(target, files)
    return ReportPaths(
        folder=target,
        html=target / "index.html",
        markdown=target / "report.md",
        tables=tuple(target / name for name in files if name.startswith("tables/")),
        figures=tuple(target / name for name in files if name.startswith("figures/")),
        n_runs=n_runs,
        damaged=selection.damaged,
        left_out=tuple(f"{ids} {sentence}" for ids, sentence in selection.repeated),
    )


def _earlier_files(target: Path) -> frozenset[str]:
    """Return the files of a folder that an earlier report wrote; those, and no others, are replaced.

    Raises:
        UserError: when the folder holds something and no report, or a file of it was edited since.
    """
    if not target.exists() or not any(target.iterdir()):
        return frozenset()
    no_report = f"{target} exists and is no report, so it is left alone; choose another name."
    if os.path.lexists(target / MANIFEST):
        try:
            manifest = read_manifest(target)
        except ValueError as error:
            raise UserError(no_report) from error
        if manifest["key"] != _KEY:
            raise UserError(no_report)
        for name, facts in manifest["files"].items():
            path = target / name
            if path.is_file() and hash_file(path) != facts["sha256"]:
                raise UserError(
                    f"{path} was edited since the report was written; move it away, or choose another name."
                )
        return frozenset({MANIFEST, *manifest["files"]})
    page = target / "index.html"
    if not page.is_file() or GENERATOR not in page.read_bytes():
        raise UserError(no_report)
    # Reports had no manifest once; their files are told by where they lie and what the pages say.
    return frozenset(
        path.relative_to(target).as_posix()
        for path in target.rglob("*")
        if path.name == "report.md"
        or path.parent.name in _FOLDERS
        or (path.suffix == ".html" and path.is_file() and GENERATOR in path.read_bytes())
    )


def _keep_what_is_not_ours(target: Path, folder: Path, ours: frozenset[str]) -> None:
    """Copy what somebody else put into a report's folder; where the report wants its place, refuse."""
    for path in sorted(target.rglob("*")) if target.is_dir() else ():
        name = path.relative_to(target)
        kept = folder / name
        if name.as_posix() in ours or (path.is_dir() and not path.is_symlink()):
            continue
        if os.path.lexists(kept):
            raise UserError(f"{path} is not of a report, and a report wants its place; move it away.")
        if not path.is_symlink() and not path.is_file():
            raise UserError(f"{path} is no regular file, so it cannot be kept; move it away.")
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, kept, follow_symlinks=False)


_HEAD_BYTES = 16_384
_DIGEST = re.compile(rb"<!-- sha256 ([0-9a-f]{64}) -->\n\Z")


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
    return match is not None and hashlib.sha256(data[: match.start()]).hexdigest() == match[1].decode()


def _entries(reports: Path) -> list[Entry]:
    pages = [*sorted(reports.glob("*/index.html")), *sorted(reports.glob("compare/*.html"))]
    entries = (_entry(page, page.relative_to(reports)) for page in pages if page.is_file())
    return [entry for entry in entries if entry is not None]


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
