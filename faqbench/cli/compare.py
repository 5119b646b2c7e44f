"""Compare two runs: keys that differ, differences with intervals, flipped items, where errors grow."""

from __future__ import annotations

import hashlib
from pathlib import Path

from faqbench.cli.arguments import KeysOfRuns, read_arguments
from faqbench.cli.console import print_table, print_text
from faqbench.cli.show import find_record
from faqbench.config import UserError
from faqbench.report import pair_runs, pair_tables, write_pair

_LONGEST_NAME = 100


class CompareKeys(KeysOfRuns):
    """Where runs are, and where the page goes.

    Attributes:
        reports: the folder of reports; the page is compare/<A>-<B>.html there.
        html: the page's file, or none.
    """

    reports: Path = Path("reports")
    html: str | None = None


def run(arguments: list[str]) -> int:
    """Print how two runs differ and write the same as a page."""
    words, keys = read_arguments("compare", arguments, CompareKeys, n_words=2)
    if len(words) < 2:
        raise UserError("compare needs the names of two runs; `faqbench ls` lists them.")
    runs = keys.runs
    a, b = (find_record(runs, word) for word in words)
    for record in (a, b):
        if record.status != "finished":
            raise UserError(f"{record.run_id} did not finish, so there is nothing to compare.")
    pair = pair_runs(runs, a, b)
    print(f"A: {a.run_id}\nB: {b.run_id}\n")
    print_text(f"{pair.verdict}\n")
    for run_id, reason in pair.damaged:
        print(f"damaged: {run_id}: {reason}")
    for table in pair_tables(pair):
        print_table(table)
    if keys.html != "none":
        default = keys.reports / "compare" / _name(a.run_id, b.run_id)
        target = Path(keys.html) if keys.html is not None else default
        write_pair(pair, runs, target)
        print(f"Page: {target}")
    return 0


def _name(a: str, b: str) -> str:
    name = f"{a}--{b}"
    if len(name) <= 2 * _LONGEST_NAME:
        return f"{name}.html"
    digest = hashlib.sha256(name.encode()).hexdigest()[:10]
    return f"{a[:_LONGEST_NAME]}--{b[: _LONGEST_NAME - 12]}-{digest}.html"
