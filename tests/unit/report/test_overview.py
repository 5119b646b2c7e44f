"""Many settings: a table above them, what is decided in words, failures of one gate as one alarm."""

import csv
import itertools
import re

import pytest

from faqbench.records import Gate
from faqbench.report import ReportRequest, answer, write_report


@pytest.fixture(scope="module")
def wide(make_run, tmp_path_factory):
    root = tmp_path_factory.mktemp("wide")
    make_run(root / "runs", "fp")
    for bits in (3, 4):
        make_run(root / "runs", "rtn", bits)
        for method, scenario, seed in itertools.product(("awq", "faq"), ("matched", "code-only"), (0, 1)):
            gate = Gate(name="above_chance", passed=method == "awq", detail=f"seed {seed}")
            make_run(root / "runs", method, bits, seed, scenario=scenario, gates=(gate,))
    request = ReportRequest(runs=root / "runs", reports=root / "reports", name="wide")
    return request, write_report(request)


def test_the_overview_counts_every_setting_once_and_lists_the_pairs(wide):
    with (wide[1].folder / "tables" / "overview.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    assert [row[:2] for row in rows] == [["RTN", "AWQ"], ["FAQ", "AWQ"]]
    for cell in itertools.chain.from_iterable(row[2:] for row in rows):
        counts = re.findall(r"(\d+) (?:better|worse|not decidable)", cell)
        assert sum(map(int, counts)) == 4, cell


def test_only_what_is_decided_stands_open_on_the_page(wide):
    page = wide[1].html.read_text()
    start = page[: page.index('id="results-')]
    shown = re.sub(r"<details>.*?</details>", "", start, flags=re.S)
    assert "is not decidable" in start and "is not decidable" not in shown
    markdown = (wide[1].folder / "report.md").read_text()
    assert "is not decidable" not in markdown.split("### Results")[0]


def test_an_answer_for_others_has_the_table_and_what_is_decided(wide):
    text = answer(wide[0]).text
    assert "not decidable; " in text and "is not decidable" not in text


def test_a_methods_failures_of_a_gate_are_one_alarm_with_all_their_runs(wide):
    page = wide[1].html.read_text()
    (alarm,) = re.findall(r'<span class="bad">Gate failed</span>(.*?)</li>', page, re.S)
    assert "FAQ: above chance. In 8 runs, in the first: seed 0" in alarm
    assert alarm.count("<a ") == 6 and "and 2 more" in alarm
