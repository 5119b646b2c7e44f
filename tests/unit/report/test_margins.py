"""Equal within a margin stated beforehand is told apart from not decidable; churn stands beside."""

import csv
import math

import pytest

from faqbench.cli import main
from faqbench.records import read_items
from faqbench.report import ReportRequest, write_report


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
    wide = {(r["method"], r["measured on"]): r for r in differences(margin="60% 60pt")}
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
