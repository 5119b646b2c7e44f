"""How long reports take and how large they are, and what the page costs in a browser.

    python tests/benchmarks/bench_reports.py                      200, 1,000 and 5,000 toy records
    python tests/benchmarks/bench_reports.py --records 200

Every time stands beside a baseline of the same run: reading the same records with all their tables,
which any report has to do at least. The browser's part needs playwright and a Chromium.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from toy_parts import PROTOCOL, SCENARIOS
from toy_runs import write_toy_run

from faqbench.pipeline.evaluating import Evaluated
from faqbench.pipeline.neighbours import Neighbours
from faqbench.records import find_heads, find_runs, read_run
from faqbench.records.index import remembered
from faqbench.report import ReportRequest, write_report
from faqbench.statistics import mean_difference

Row = tuple[str, str, str, str, str]
METHODS = ("awq", "faq", "gptq", "qep", "qep-awq", "qep-faq")


def cells() -> Iterator[dict[str, object]]:
    """Yield the cells of a large study: seeds vary fastest, then methods, scenarios, sizes."""
    yield {"method": "fp"}
    sizes = (32, 4, 8, 16, 64, 128, 256, 512, 1024, 2048, *range(3000, 14000, 1000))
    for n_samples, bits in itertools.product(sizes, (3, 4)):
        if n_samples == sizes[0]:
            yield {"method": "rtn", "bits": bits}
        for scenario, method, seed in itertools.product(SCENARIOS, METHODS, range(5)):
            yield {
                "method": method,
                "bits": bits,
                "seed": seed,
                "scenario": scenario,
                "calibration__n_samples": n_samples,
                "run_id": f"toy-{method}-w{bits}-s{seed}-{scenario}-{n_samples}",
            }


def write_records(runs: Path, n_records: int) -> None:
    """Write so many toy records."""
    for cell in itertools.islice(cells(), n_records):
        write_toy_run(runs, **cell)


def time_report(runs: Path, reports: Path, n_records: int, wanted: str) -> list[Row]:
    """Time reading the records, then writing the report."""
    start = time.perf_counter()
    for record in find_runs(runs)[0]:
        read_run(runs / record.run_id)
    reading = time.perf_counter() - start
    start = time.perf_counter()
    paths = write_report(ReportRequest(runs=runs, reports=reports, name=f"r{n_records}"))
    seconds = time.perf_counter() - start
    pages = sorted(paths.folder.glob("*.html"), key=lambda p: -p.stat().st_size)
    largest = pages[0].stat().st_size / 1e6
    return [
        (
            f"report over {n_records} records",
            f"{seconds:.1f} s",
            f"reading them {reading:.1f} s",
            f"{seconds / reading:.1f}x",
            wanted,
        ),
        (
            f"largest of {len(pages)} pages, {n_records} records",
            f"{largest:.2f} MB",
            f"{largest * 1e3 / n_records:.1f} kB a record",
            "",
            "≤ 3 MB" if n_records <= 250 else "≤ 6 MB",
        ),
    ]


def time_folder(runs: Path, n_records: int) -> list[Row]:
    """Time what a new cell and `ls` do with a folder of so many records, against reading them all."""
    find_heads(runs)  # writes the index
    start = time.process_time()
    find_runs(runs)
    reading = time.process_time() - start
    start = time.process_time()
    find_heads(runs)
    heads = time.process_time() - start
    ls = [sys.executable, "-m", "faqbench", "ls", "limit=1"]
    start = time.perf_counter()
    subprocess.run([*ls, f"runs={runs}"], check=True, capture_output=True)
    listing = time.perf_counter() - start
    baseline = f"reading them {reading:.2f} s"
    return [
        (
            f"heads of {n_records} records, CPU time",
            f"{heads:.2f} s",
            baseline,
            f"{heads / reading:.2f}x",
            "≤ 0.5 s for 5,000",
        ),
        (
            f"ls beside {n_records} records",
            f"{listing:.2f} s",
            baseline,
            f"{listing / reading:.2f}x",
            "≤ 1.5 s for 5,000",
        ),
    ]


def time_bookkeeping(runs: Path, n_records: int) -> Row:
    """Time what a new cell asks of the other runs, in a process that sees them for the first time."""
    newest = max(find_heads(runs)[0], key=lambda r: (r.config["quant"]["name"] == "awq", r.run_id))
    data = read_run(runs / newest.run_id)
    record = dataclasses.replace(data.record, run_id="new")
    evaluated = Evaluated(tokens=data.tokens, items=data.items)
    for _ in range(2):  # the first imports what both need
        start = time.process_time()
        read_run(runs / newest.run_id)
        mean_difference(*[data.tokens[PROTOCOL]] * 2, rng=np.random.default_rng(0))
        one = time.process_time() - start
    remembered.cache_clear()
    start = time.process_time()
    find_heads(runs)  # as the estimate of what the cell will take does
    neighbours = Neighbours(runs)
    neighbours.same_tokens(record)
    neighbours.not_worse_than_rtn(record, evaluated)
    neighbours.not_worse_than_fewer_bits(record, evaluated)
    seconds = time.process_time() - start
    return (
        f"a new cell beside {n_records} records, CPU time",
        f"{seconds:.2f} s",
        f"reading and comparing one {one * 1e3:.0f} ms",
        f"{seconds / one:.0f}x",
        "≤ 1 s for 5,000",
    )


def time_import() -> Row:
    """Time importing the report, against a Python that imports nothing."""

    def run(code: str) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            times.append(time.perf_counter() - start)
        return sorted(times)[2]

    empty, full = run("pass"), run("import faqbench.report")
    return (
        "import faqbench.report",
        f"{full:.2f} s",
        f"python {empty:.2f} s",
        f"{full / empty:.1f}x",
        "≤ 1 s",
    )


def time_browser(page: Path, empty: Path) -> list[Row]:
    """Time the first paint against an empty page's, and sorting 1,000 rows against sorting 10."""
    from playwright.sync_api import sync_playwright

    sort = """() => {
        const table = document.querySelector('table.tool'), times = [];
        const time = work => { const t = performance.now(); work(); return performance.now() - t; };
        const buttons = table.tHead.querySelectorAll('button');
        for (const i of [0, 2, 3, 2, 4])
            times.push(time(() => { buttons[i].click(); document.body.offsetHeight; }));
        return times.sort((a, b) => a - b)[2];
    }"""
    paint = "() => performance.getEntriesByName('first-contentful-paint')[0].startTime"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        paints = []
        for target in (empty, page):
            tab = browser.new_page()
            tab.goto(target.as_uri())
            tab.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
            paints.append(tab.evaluate(paint))
        times = []
        for n_rows in (10, 1000):
            long = page.with_name(f"rows-{n_rows}.html")
            long.write_text(with_rows(page.read_text(), n_rows))
            tab.goto(long.as_uri())
            times.append(tab.evaluate(sort))
            long.unlink()
        browser.close()
    return [
        (
            f"first paint of {page.parent.name}",
            f"{paints[1]:.0f} ms",
            f"empty page {paints[0]:.0f} ms",
            f"{paints[1] / paints[0]:.1f}x",
            "≤ 1 s",
        ),
        (
            "sorting 1,000 rows, layout included",
            f"{times[1]:.0f} ms",
            f"10 rows {times[0]:.0f} ms",
            f"{times[1] / times[0]:.1f}x",
            "≤ 100 ms",
        ),
    ]


def with_rows(page: str, n_rows: int) -> str:
    """Return a page whose first table has so many rows, its own over and over."""
    head, body, rest = re.split(r"(?<=<tbody>)|(?=</tbody>)", page, maxsplit=2)
    rows = body.split("<tr")[1:]
    many = "".join("<tr" + rows[i % len(rows)] for i in range(n_rows))
    return head + many + rest


def run(sizes: Sequence[int], folder: Path, *, browser: bool) -> list[Row]:
    """Measure, print the table, and return its rows."""
    rows = [time_import()]
    empty = write_report(ReportRequest(runs=folder / "none", reports=folder, name="empty"))
    for n_records in sizes:
        runs = folder / f"runs{n_records}"
        write_records(runs, n_records)
        wanted = "≤ 20 s" if n_records <= 1000 else "≤ 60 s" if n_records <= 2000 else "≤ 90 s"
        rows += time_folder(runs, n_records)
        rows.append(time_bookkeeping(runs, n_records))
        rows += time_report(runs, folder, n_records, wanted)
        if browser:
            rows += time_browser(folder / f"r{n_records}" / "index.html", empty.html)
    table = Table(title="Reports")
    for header in ("what", "measured", "baseline of this run", "ratio", "wanted"):
        table.add_column(header, justify="left" if header == "what" else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)
    return rows


@pytest.mark.benchmark
def test_a_small_report_is_measured(tmp_path):
    rows = run([12], tmp_path, browser=False)
    assert "report over 12 records" in [row[0] for row in rows]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--records", type=int, nargs="+", default=[200, 1000, 5000])
    parser.add_argument("--no-browser", action="store_true")
    parser.add_argument("--keep", type=Path, help="where to leave records and reports")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run(given.records, given.keep or Path(scratch), browser=not given.no_browser)
