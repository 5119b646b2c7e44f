"""What a result supports: one draw no claim about methods; equal within a margin is not undecided."""

import csv
import math
import re
import statistics

import pytest

from faqbench.cli import main
from faqbench.records import find_runs, read_items
from faqbench.report import ReportRequest, answer, run_evidence, write_report
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


def test_two_variants_of_a_method_have_the_spread_of_their_own_pairs(make_run, tmp_path):
    for seed in range(5):
        for window in (2, 3):
            make_run(
                tmp_path / "runs",
                "faq",
                3,
                seed,
                run_id=f"{window}-{seed}",
                added_loss=0.1 * window * (seed % 2),
                quant__preview={"window": window, "gamma": 0.85, "roles": "residual"},
            )
    (panel,) = build_panels(find_runs(tmp_path / "runs")[0])
    a, b = panel.rows
    differences = [
        math.log(x.metrics[0].value / y.metrics[0].value) for x, y in zip(a.runs, b.runs, strict=True)
    ]
    spread = EarlierDraws(tmp_path / "runs").spread(a, b, panel.columns[0])
    assert spread.degrees == 4
    assert spread.variance == pytest.approx(statistics.variance(differences))


@pytest.fixture(scope="module")
def runs(make_run, tmp_path_factory):
    """Full precision, RTN, and three draws of AWQ and FAQ; none of them states a margin."""
    folder = tmp_path_factory.mktemp("margins") / "runs"
    for method in ("fp", "rtn"):
        make_run(folder, method)
    for seed in range(3):
        for method in ("awq", "faq"):
            make_run(folder, method, seed=seed)
    return folder


@pytest.fixture
def differences(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("faqbench.report.figures.FIGURES", ())  # no matter here

    def read(table="differences", folder=runs, **changes):
        request = ReportRequest(runs=folder, reports=tmp_path, name="margins", **changes)
        with (write_report(request).folder / "tables" / f"{table}.csv").open() as file:
            return list(csv.DictReader(file))

    return read


def test_no_margin_calls_nothing_equal_and_the_report_says_that_none_was_stated(differences, tmp_path):
    rows = differences()
    assert not any("equal" in row["verdict"] for row in rows) and "p equal after Holm" not in rows[0]
    assert "No margin was stated" in (tmp_path / "margins" / "report.md").read_text()


def test_a_wide_margin_makes_equal_what_a_narrow_one_leaves_undecided(differences, tmp_path):
    narrow = {(r["method"], r["measured on"]): r for r in differences(margin="0.001% 0.001pt")}
    wide = {(r["method"], r["measured on"]): r for r in differences(margin="600% 60pt")}
    undecided = [key for key, row in narrow.items() if row["verdict"] == "not decidable"]
    assert undecided and all(wide[key]["verdict"] == "equal within the margin" for key in undecided)
    better = [key for key, row in narrow.items() if row["verdict"] in ("better", "worse")]
    assert "worse, within the margin" in {wide[key]["verdict"] for key in better}
    assert "equals AWQ within the margin" in (tmp_path / "margins" / "report.md").read_text()


def test_a_margin_judges_the_measures_that_it_names_and_no_other(differences):
    rows = differences(margin="60%")
    judged = {row["measured on"] for row in rows if row["p equal after Holm"]}
    assert judged == {"heldout-wiki-512"}
    assert all(row["p equal after Holm"] for row in differences("fidelity-differences", margin="9pt 9nats"))


def test_the_margin_that_all_runs_state_is_taken(make_run, differences, tmp_path):
    folder = tmp_path / "stated"
    for method in ("awq", "rtn"):
        make_run(folder, method, report__margin="60%")
    assert "p equal after Holm" in differences(folder=folder)[0]
    make_run(folder, "faq")  # and states none
    assert "p equal after Holm" not in differences(folder=folder)[0]


def test_one_calibration_set_shows_equality_on_itself_alone(make_run, differences, tmp_path):
    folder = tmp_path / "single"
    for method in ("awq", "faq"):
        make_run(folder, method)
    verdicts = {row["verdict"] for row in differences(folder=folder, margin="90% 90pt")}
    assert "equal within the margin on this one calibration set" in verdicts
    assert "equal within the margin" not in verdicts


def test_flips_are_the_items_that_changed_in_each_direction(differences, runs):
    def right(method, seed, task):
        items = read_items(runs / f"smollm2-135m-{method}-w3-g64-s{seed}-0a1b2c")
        return items[(items.task == task) & (items.metric == "acc")].sort_values("item").value.to_numpy()

    rows = {(r["method"], r["measured on"]): r for r in differences()}
    task = next(name for _, name in rows if name.startswith("arc_easy"))
    lost = gained = n = 0
    for seed in range(3):
        a, b = right("faq", seed, task), right("awq", seed, task)
        lost, gained, n = lost + (a < b).sum(), gained + (a > b).sum(), n + len(a)
    row = rows["FAQ", task]
    assert float(row["right to wrong"]) == pytest.approx(lost / n)
    assert float(row["wrong to right"]) == pytest.approx(gained / n)
    assert lost and gained
    assert rows["FAQ", "heldout-wiki-512"]["right to wrong"] == ""


def test_fidelity_has_flips_against_full_precision(differences):
    rows = {row["method"]: row for row in differences("fidelity")}
    assert 0 < float(rows["AWQ"]["right to wrong"]) < 1 and float(rows["RTN"]["wrong to right"]) > 0


def test_the_difference_that_would_show_follows_the_standard_error(differences):
    (row,) = (r for r in differences() if (r["method"], r["measured on"]) == ("FAQ", "heldout-wiki-512"))
    half = (math.log1p(float(row["high"]) / 100) - math.log1p(float(row["low"]) / 100)) / 2
    detectable = math.log1p(float(row["detectable"]) / 100)
    assert 2.8016 / 12.71 < detectable / half < 2.8016 / 1.9599  # z .975 + z .8, over t of 1 to infinity


@pytest.mark.parametrize("margin", ["1", "one%", "0%"])
def test_a_margin_that_cannot_be_read_is_refused_before_the_work(margin, runs, tmp_path, capsys):
    assert main(["report", f"runs={runs}", f"reports={tmp_path}", f"margin={margin}"]) == 2
    assert f"'{margin}'" in capsys.readouterr().err and not list(tmp_path.glob("all*"))
