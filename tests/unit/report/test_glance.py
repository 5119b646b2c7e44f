"""The first screen, many settings, all reports; and published values, which get an honest verdict."""

import csv
import dataclasses
import itertools
import re

import pytest
import yaml

from faqbench.config.identity import deciding_config
from faqbench.config.section import conf_dir, parse_margin
from faqbench.formatting import MINUS, NONE
from faqbench.records import Gate, find_runs
from faqbench.report import ReportRequest, answer, facts, reproductions, write_report
from faqbench.report.analysis import analyse
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures.glance import _limit
from faqbench.report.glance import best_table, headline, telling_column, telling_pairs
from faqbench.report.panels import build_panels
from faqbench.report.published import _entries, _sources, _verdict, measured_beside, published_table
from faqbench.report.verdicts import question


@pytest.fixture(scope="module")
def study(make_run, tmp_path_factory):
    """AWQ and FAQ at 4 and 3 bits with three draws, RTN and full precision."""
    runs = tmp_path_factory.mktemp("glance") / "runs"
    make_run(runs, "fp")
    for bits in (4, 3):
        make_run(runs, "rtn", bits)
        for seed in range(3):
            for method in ("awq", "qep-awq"):
                make_run(runs, method, bits, seed)
    return runs


@pytest.fixture(scope="module")
def written(study, tmp_path_factory):
    reports = tmp_path_factory.mktemp("reports")
    return write_report(ReportRequest(runs=study, reports=reports, name="study"))


def analysed(runs):
    (panel,) = build_panels(find_runs(runs)[0])
    store = EvidenceStore(runs)
    return analyse(panel, store, "awq"), store


def test_the_headline_names_the_best_method_of_each_width_as_far_as_it_is_shown(study):
    analysis, _ = analysed(study)
    found = {c.a.short_name: c for k, c in analysis.main.comparisons
             if k.widths == "3" and c.column == telling_column(analysis)}  # fmt: skip
    sentence = headline(analysis)
    assert sentence.startswith("At 3 bits") and "; at 4 bits" in sentence
    assert found["QEP-AWQ"].is_significant == ("At 3 bits QEP-AWQ is better" in sentence)
    assert sentence.endswith("(perplexity on heldout-wiki-512, against AWQ).")


@pytest.mark.parametrize(
    ("judged", "clause"),
    [
        ({"qep": (-0.05, 0.001)}, "QEP is better, -4.9 %"),
        ({"qep": (-0.05, 0.001), "gptq": (-0.1, 0.01)}, "GPTQ is better, -9.5 % (so is QEP)"),
        (
            {"qep": (-0.05, 0.001), "gptq": (-0.1, 0.01), "loaq": (-0.02, 0.01)},
            "GPTQ is better, -9.5 % (so are QEP and LoaQ)",
        ),
        (
            {"qep": (-0.05, 0.001), "gptq": (-0.2, 0.3)},  # a larger difference that is not shown
            "QEP is better, -4.9 % (GPTQ, -18.1 %, is not shown to be)",
        ),
        ({"qep": (-0.05, 0.2), "gptq": (0.2, 0.001)}, "no method is shown to be better"),
    ],
)
def test_the_headline_names_who_is_shown_to_be_better(study, judged, clause):
    analysis, _ = analysed(study)
    contest, c = next(pair for pair in telling_pairs(analysis) if pair[0].widths == "3")
    pairs = [
        (
            contest,
            dataclasses.replace(c, a=dataclasses.replace(c.a, method=m), effect=e, p_holm=p, n_draws=3),
        )
        for m, (e, p) in judged.items()
    ]
    main = dataclasses.replace(analysis.main, comparisons=tuple(pairs))
    sentence = headline(dataclasses.replace(analysis, main=main))
    sentence = sentence.replace("\N{NO-BREAK SPACE}", " ").replace(MINUS, "-")
    assert sentence == f"At 3 bits {clause} (perplexity on heldout-wiki-512, against AWQ)."


def test_one_calibration_set_makes_no_claim_in_the_headline(quickstart_runs):
    sentence = headline(analysed(quickstart_runs)[0])
    assert "which decides nothing" in sentence or "no method is shown to be better" in sentence
    assert "is better" not in sentence


@pytest.mark.parametrize("others", [[], [(-80.0, -81.0, -79.0)]])
def test_an_interval_that_is_drawn_is_drawn_whole(others):
    """One beyond the first limit, and on the axis since another reaches there, was once cut."""
    near, further = (-25.0, -27.0, -23.0), (-28.0, -31.0, -26.0)
    assert 31.0 < _limit([near, further, *others]) < 40.0


def test_full_precision_alone_has_nothing_to_compare(make_run, tmp_path):
    make_run(tmp_path, "fp")
    analysis, store = analysed(tmp_path)
    assert "Nothing of smollm2-135m can be compared" in headline(analysis)
    assert best_table(analysis, store, "best") is None


def test_the_best_recipe_of_a_width_has_the_best_value_of_all_its_rows(written):
    folder = written.folder / "tables"
    with (folder / "best.csv").open() as best, (folder / "results.csv").open() as results:
        best, results = list(csv.DictReader(best)), list(csv.DictReader(results))
    value = "heldout-wiki-512 perplexity"
    for row in best[1:]:
        rivals = [float(r[value]) for r in results if r["bits"] == row["bits"]]
        assert float(row[value]) == min(rivals)
    assert [row["bits"] for row in best] == ["—", "4", "3"] and 0 < float(best[1]["right to wrong"]) < 1


def test_widths_of_weights_and_activations_are_rows_of_their_own(make_run, tmp_path):
    make_run(tmp_path, "rtn", 4)
    make_run(tmp_path, "rtn", 4, run_id="rtn-w4a4", quant__activations={"bits": 4})
    analysis, store = analysed(tmp_path)
    table = best_table(analysis, store, "best")
    assert {row[0].text for row in table.rows} == {"4", "W4A4"}
    assert {contest.label for contest in analysis.contests} == {"4 bits, activations=full", "W4A4"}
    assert question(analysis).endswith("at 4 bits and W4A4?")
    assert "Flips" not in "".join(table.notes)  # nothing was answered, so nothing could flip


def test_the_sentence_the_figure_and_the_table_stand_before_all_else(written):
    page, words = written.html.read_text(), written.markdown.read_text()
    order = ('class="headline"', 'id="cap-glance"', "Best recipe per", 'id="cap-what_to_use"')
    order += ('id="statements-', 'id="results-', 'id="runs"')
    assert (places := [page.index(part) for part in order]) == sorted(places)
    order = ("figures/glance.png", "best recipe", "figures/what_to_use.png", "### The answer")
    assert (places := [words.index(part) for part in order]) == sorted(places)


def test_sections_are_folded_and_the_first_screen_is_not(written):
    page = written.html.read_text()
    before, _, after = page.partition('id="statements-')
    assert "<details" not in re.sub(r"<figcaption>.*?</details>", "", before, flags=re.DOTALL)
    sections = re.findall(
        r'<section id="(?:results|fidelity|measured|published|runs)[^"]*">\s*(<\w+)', page
    )
    assert set(sections) == {"<details"} and len(sections) == 5 and after


def test_the_front_page_lists_reports_with_their_verdicts(written, study, tmp_path):
    for name in ("first", "second"):
        paths = write_report(ReportRequest(runs=tmp_path / "none", reports=tmp_path, name=name))
    assert paths.front == tmp_path / "index.html"
    text = paths.front.read_text()
    assert 'href="first/index.html"' in text and 'href="second/index.html"' in text
    listed = written.front.read_text()
    assert 'href="study/index.html"' in listed and "At 3 bits" in listed


@pytest.mark.parametrize("text", ["<h1>mine</h1>", None])
def test_a_front_page_that_is_not_ours_or_was_edited_stays(text, tmp_path):
    request = ReportRequest(runs=tmp_path / "none", reports=tmp_path, name="first")
    front = tmp_path / "index.html"
    if text is None:
        text = write_report(request).front.read_text().replace("Reports and decisions", "My reports")
    front.write_text(text)
    assert write_report(request).front is None and front.read_text() == text


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


def axes_of(name):
    raw = yaml.safe_load((conf_dir() / "experiment" / f"{name}.yaml").read_text())
    return {k: str(v).split(",") for k, v in raw["hydra"]["sweeper"]["params"].items()}


@pytest.mark.parametrize("name", list(reproductions()))
def test_every_published_cell_is_one_of_its_experiment(name, compose):
    axes, groups = axes_of(name), _sources()[name].groups
    first = [f"{key}={values[0]}" for key, values in axes.items()]
    experiment = compose(f"experiment={name}", "hydra.sweeper.params=null", *first)
    config = experiment.model_dump(mode="json")
    measured = {*experiment.evaluation.protocols, *experiment.evaluation.tasks}
    assert deciding_config(config)["model"]["source"] == "hub"
    for group in groups:
        assert not group["tasks"] or measured & set(group["tasks"])
        assert group["slug"] in axes.get("model", [experiment.model.name])
        for key, value in group["protocol"].items():
            assert facts.config_value(config, key) == (value if value is None else facts.as_text(value))
        for cell in (group | cell for cell in group["cells"]):
            assert cell["method"] in axes["quant"]
            for key in ("bits", "group_size"):
                known = axes.get(key, [str(config[key])])
                assert cell.get(key) is None or str(cell[key]) in known


def test_a_number_passes_or_fails_only_where_its_protocol_is_stated_and_kept(make_run, tmp_path):
    make_run(tmp_path, "rtn", model="llama-2-7b")
    records, _ = find_runs(tmp_path)
    (panel,) = build_panels(records)
    row, column = panel.rows[0], panel.of_kind("perplexity")[0]
    value = column.estimate(row).value
    entry = next(e for e in _entries() if e.method == "rtn" and e.tolerance == 0.5)
    kept = {"quant.symmetric": False}
    near = dataclasses.replace(entry, value=f"{value * 1.004:.4f}", protocol=kept)
    assert _verdict(near, row, column).startswith(f"pass ({MINUS}0.4")
    far = dataclasses.replace(near, value=f"{value / 1.02:.4f}")
    assert _verdict(far, row, column).startswith("fail (+2.0")
    unstated = dataclasses.replace(far, tolerance=None)
    assert _verdict(unstated, row, column) == "protocol not stated"
    other = dataclasses.replace(far, protocol={"quant.symmetric": True, "evaluation.n_windows": None})
    assert _verdict(other, row, column) == "another protocol (symmetric=false, n_windows=40)"


def test_nothing_stands_beside_the_published_values_of_other_models(make_run, tmp_path):
    make_run(tmp_path, "rtn")
    panels = build_panels(find_runs(tmp_path)[0])
    assert measured_beside(panels) is None
    assert {row[7].text for row in published_table(panels).rows} == {NONE}


def test_the_headline_calls_nothing_equal_that_one_calibration_set_alone_shows(make_run, tmp_path):
    for method in ("awq", "faq"):
        make_run(tmp_path, method)
    (panel,) = build_panels(find_runs(tmp_path)[0])
    analysis = analyse(panel, EvidenceStore(tmp_path), "awq", parse_margin("900%"))
    pairs = telling_pairs(analysis)
    assert pairs[0][1].is_equal and pairs[0][1].is_of_one_draw
    sentence = headline(analysis)
    assert "equals" not in sentence or "on one calibration set alone" in sentence
