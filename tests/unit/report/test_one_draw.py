"""One calibration draw supports no claim about methods, in whatever form the result is shown."""

import csv
import re

import pytest

from faqbench.cli import main
from faqbench.report import ReportRequest, answer, run_evidence
from faqbench.report.evidence import EarlierDraws
from faqbench.report.panels import build_panels

SET = "on this one calibration set"
FAQ, AWQ = "smollm2-135m-faq-w3-g64-s0-0a1b2c", "smollm2-135m-awq-w3-g64-s0-0a1b2c"


@pytest.fixture(scope="module")
def quickstart(make_run, tmp_path_factory):
    """The quickstart's four runs and their report."""
    root = tmp_path_factory.mktemp("quickstart")
    for method in ("fp", "rtn", "awq", "faq"):
        make_run(root / "runs", method)
    assert main(["report", f"runs={root / 'runs'}", f"reports={root}"]) == 0
    return root


def claims(text):
    """Return what is said of one method against another, as a claim about the methods."""
    return re.findall(r"\b(?:is|has the) (?:significantly )?(?:better|worse|best)\b", text)


def test_the_answer_speaks_of_one_calibration_set_and_of_what_a_second_draw_would_show(quickstart):
    head = (quickstart / "all" / "report.md").read_text().split("### Results")[0]
    assert "On this one calibration set FAQ is ahead of AWQ in perplexity" in head
    assert "a second draw (seed=0,1) would have to give a ratio from" in head
    assert "**" not in head and not claims(head)


def test_nothing_is_bold_in_any_form_of_the_tables(quickstart):
    folder = quickstart / "all"
    results = (folder / "report.md").read_text().split("### Results")[1].split("### Fidelity")[0]
    assert "**" not in results and "•" not in results
    assert "textbf" not in "".join(p.read_text() for p in (folder / "tables").glob("*.tex"))
    page = (folder / "index.html").read_text()
    assert "significantly best" not in page and 'class="decided"' not in page


def test_every_verdict_of_the_table_names_the_set(quickstart):
    with (quickstart / "all" / "tables" / "differences.csv").open() as file:
        verdicts = {row["verdict"] for row in csv.DictReader(file)}
    assert f"ahead {SET}" in verdicts and f"behind {SET}" in verdicts
    assert verdicts <= {f"ahead {SET}", f"behind {SET}", "not decidable"}
    latex = (quickstart / "all" / "tables" / "differences.tex").read_text()
    assert "about it, not about the methods." in latex


def test_compare_names_the_set(quickstart, capsys):
    folders = [f"runs={quickstart / 'runs'}", f"reports={quickstart}"]
    assert main(["compare", FAQ, AWQ, *folders]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"FAQ, 3 bits, against AWQ, 3 bits: ahead {SET} in perplexity" in said
    assert " better in" not in said and " worse in" not in said


def test_what_trackers_show_is_no_claim_about_methods(quickstart, make_run):
    runs = quickstart / "runs"
    (panel,) = build_panels([make_run(runs, method) for method in ("fp", "faq")])
    full, faq = (row.runs[0] for row in panel.rows)
    row = run_evidence(runs, faq, full).comparison[0]
    assert (row["is_significant"], row["verdict"]) == (False, f"behind {SET}")
    text = answer(ReportRequest(runs=runs, reports=quickstart, name="all")).text
    assert SET in text.lower() and "**" not in text and not claims(text)


def test_methods_that_read_no_calibration_text_are_compared_as_methods(make_run, tmp_path):
    for bits in (3, 4):
        make_run(tmp_path / "runs", "rtn", bits)
    make_run(tmp_path / "runs", "fp")
    folders = [f"runs={tmp_path / 'runs'}", f"reports={tmp_path}"]
    assert main(["report", "baseline=fp", *folders]) == 0
    page = (tmp_path / "all" / "report.md").read_text()
    assert "**RTN is worse than full precision in perplexity" in page and SET not in page


def test_the_spread_of_an_earlier_studys_draws_widens_the_interval(quickstart, make_run, tmp_path, capsys):
    runs = tmp_path / "runs"
    for method in ("awq", "faq"):
        make_run(runs, method)
        for seed in range(5):
            make_run(runs / "study", method, seed=seed, run_id=f"{method}-{seed}")
    folders = [f"runs={runs}", f"reports={tmp_path}"]
    intervals = []
    for root in (quickstart, tmp_path):
        assert main(["compare", FAQ, AWQ, f"runs={root / 'runs'}", f"reports={tmp_path}"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        low, high = re.search(r"interval ([\d.]+) to ([\d.]+)", said).groups()
        intervals.append(float(high) - float(low))
    assert intervals[1] > 1.1 * intervals[0]
    assert "one draw, with the spread of 5 earlier draws (study)" in said
    assert main(["report", *folders]) == 0
    assert "(from study)" in (tmp_path / "all" / "tables" / "differences.tex").read_text()


def test_only_draws_of_the_same_model_bits_and_family_count(make_run, tmp_path):
    runs = tmp_path / "runs"
    (panel,) = build_panels([make_run(runs, method) for method in ("awq", "faq")])
    awq, faq = panel.rows
    for seed in range(4):
        for method in ("awq", "faq"):
            make_run(runs / "bits", method, 4, seed)
            make_run(runs / "model", method, 3, seed, weights_print="v" * 64)
            make_run(runs / "scenario", method, 3, seed, scenario="code-only")
            make_run(runs / "few", method, 3, seed % 2)
    assert EarlierDraws(runs).spread(faq, awq, panel.columns[0]) is None
