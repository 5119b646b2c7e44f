"""Every plot: drawn where there is something to show, left out where there is not, data included."""

import csv
import re
import shutil

import pytest

from faqbench.config.method import STAGES
from faqbench.records import find_runs
from faqbench.report import ReportRequest, write_report
from faqbench.report.analysis import analyse
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures import FIGURES, draw_figures, style
from faqbench.report.figures.drawing import (
    Drawing,
    drawing_rules,
    facets,
    representatives,
    to_inline,
    to_png,
    to_svg,
)
from faqbench.report.figures.pareto import _points
from faqbench.report.panels import build_panels


def analysis_of(runs, baseline="awq"):
    (panel,) = build_panels(find_runs(runs)[0])
    return analyse(panel, EvidenceStore(runs), baseline)


def drawn(runs):
    figures = draw_figures(analysis_of(runs), EvidenceStore(runs))
    return {name: drawing for name, _, drawing in figures}


@pytest.fixture(scope="module")
def study(make_run, tmp_path_factory):
    """Two methods, two bit-widths, two scenarios, two draws, and two FAQ windows and gammas."""
    runs = tmp_path_factory.mktemp("study")
    make_run(runs, "fp")
    for bits in (3, 4):
        make_run(runs, "rtn", bits)
        for method in ("awq", "faq"):
            for scenario in ("matched", "code-only"):
                for seed in (0, 1):
                    make_run(runs, method, bits, seed, scenario=scenario)
    for window in (1, 2):
        for gamma in (0.7, 0.9):
            preview = {"window": window, "gamma": gamma, "roles": "residual"}
            run_id = f"surface-{window}-{gamma}"
            make_run(runs, "faq", run_id=run_id, quant__preview=preview)
    return runs


@pytest.fixture(scope="module")
def figures(study):
    return drawn(study)


def test_a_study_of_everything_has_every_plot(figures):
    assert list(figures) == list(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_a_plot_has_words_and_its_numbers_as_a_table(figures, name):
    drawing = figures[name]
    assert drawing.caption.endswith(".") and drawing.alt.endswith(".")
    assert drawing.rows and {len(row) for row in drawing.rows} == {len(drawing.header)}
    assert all(isinstance(text, str) and text for row in drawing.rows for text in row[:1])


def test_plots_are_the_same_bytes_twice(figures, study):
    names = ("pareto", "bias", "draws", "surface")  # the page's own test has the others
    for name, _, drawing in draw_figures(analysis_of(study), EvidenceStore(study), names):
        assert to_svg(drawing) == to_svg(figures[name])


def test_full_precision_alone_has_its_cost_and_nothing_else(make_run, tmp_path):
    make_run(tmp_path, "fp")
    assert list(drawn(tmp_path)) == ["cost"]


def test_plots_whose_data_is_absent_are_left_out(quickstart_runs):
    assert not {"bias", "draws", "surface", "pareto"} & set(drawn(quickstart_runs))


def test_a_table_of_errors_that_measured_nothing_draws_no_map(make_run, tmp_path):
    import pandas as pd

    record = make_run(tmp_path, "rtn")
    path = tmp_path / record.run_id / "layers.parquet"
    layers = pd.read_parquet(path)
    layers[["relative_error", "alpha"]] = None
    layers.to_parquet(path)
    assert not {"linears", "exponents"} & set(drawn(tmp_path))


def test_the_bias_plot_has_a_point_per_run_with_both_distances(figures):
    rows = figures["bias"].rows
    assert len(rows) == 20
    assert {row[2] for row in rows} == {"matched", "code-only"}
    far = [float(row[4]) for row in rows if row[2] == "code-only"]
    near = [float(row[4]) for row in rows if row[2] == "matched"]
    assert min(far) > max(near)


def test_the_bias_plot_does_not_put_w4a4_among_four_bit_weights(make_run, tmp_path):
    for scenario in ("matched", "code-only"):
        make_run(tmp_path, "awq", 4, scenario=scenario)
        run_id = f"awq-w4a4-{scenario}"
        make_run(tmp_path, "awq", 4, run_id=run_id, scenario=scenario, quant__activations={"bits": 4})
    drawing = drawn(tmp_path)["bias"]
    assert [row[1] for row in drawing.rows].count("W4A4") == 2
    assert [axes.get_ylabel().rpartition(", ")[2] for axes in drawing.figure.axes if axes.get_ylabel()] == [
        "4 bits",
        "W4A4",
    ]


def test_draws_of_one_scenario_are_no_biases(make_run, tmp_path):
    for seed in (0, 1, 2):
        make_run(tmp_path, "awq", 4, seed)
    assert "bias" not in drawn(tmp_path)


def test_a_legend_of_many_names_leaves_the_axes_their_room(make_run, tmp_path):
    for scenario in ("matched", "code-only"):
        for i, gamma in enumerate((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)):
            run_id = f"faq-{scenario}-{i}"
            preview = {"window": 3, "gamma": gamma, "roles": "residual"}
            search = {"n_grid": 20 + i, "loss": "a-loss-of-a-long-name"}
            options = {"quant__preview": preview, "quant__search": search}
            make_run(tmp_path, "faq", 4, run_id=run_id, scenario=scenario, **options)
    figure = drawn(tmp_path)["bias"].figure
    with drawing_rules():
        figure.draw_without_rendering()
    assert min(axes.get_position().height * figure.get_figheight() for axes in figure.axes[:2]) > 0.9


@pytest.mark.parametrize(("height", "n_columns"), [(0.3, 1), (1.0, 9)])
def test_a_figure_that_is_too_small_for_its_names_grows(height, n_columns):
    figure, all_axes = style.new_figure(2.0, height, 1, n_columns)
    for axes in all_axes:
        style.name_rows(axes, ["a name of many words, 4 bits", "another"])
        axes.set_title("a title")
        axes.set_xlabel("what is\nmeasured")
    to_svg(Drawing(figure=figure, caption="", alt="", header=(), rows=()))  # no warning, which is an error
    room = [axes.get_position() for axes in all_axes]
    assert figure.get_figheight() > height
    assert all(place.height > 0.01 and place.width > 0.001 for place in room)


def test_names_say_what_is_unlike_most_rows_of_a_method(make_run, tmp_path):
    """Three previews beside the usual one were once all called 'norm=none weights=uni…'."""
    usual = {"window": 3, "gamma": 0.85, "roles": "all", "norm": "none", "weights": "uniform"}
    for i, more in enumerate(({}, {"norm": "mean"}, {"weights": "error"}, {"roles": "residual"})):
        make_run(tmp_path, "faq", 4, run_id=f"faq-{i}", quant__preview=usual | more)
    make_run(tmp_path, "awq", 4)
    names = {row.heading for row in analysis_of(tmp_path).panel.rows}
    faq = {"FAQ", "FAQ norm=mean", "FAQ weights=error", "FAQ roles=residual"}
    assert names == {"AWQ, 4 bits", *(f"{name}, 4 bits" for name in faq)}
    for i in (1, 2, 3):
        shutil.rmtree(tmp_path / f"faq-{i}")
    make_run(tmp_path, "faq", 4, run_id="faq-4", quant__preview=usual | {"gamma": 0.5})
    names = {row.heading for row in analysis_of(tmp_path).panel.rows}
    assert {"FAQ gamma=0.5, 4 bits", "FAQ gamma=0.85, 4 bits"} <= names  # neither is usual


@pytest.mark.parametrize("name", ["depth", "linears", "cost"])
def test_plots_of_w4a4_alone_name_it(make_run, tmp_path, name):
    for method in ("rtn", "awq"):
        make_run(tmp_path, method, 4, quant__activations={"bits": 4})
    drawing = drawn(tmp_path)[name]
    words = drawing.caption + "".join(row[0] for row in drawing.rows)
    assert "W4A4" in words and "4 bits" not in words


def test_activations_are_named_once(make_run, tmp_path):
    for method in ("rtn", "awq"):
        make_run(tmp_path, method, 4)
        make_run(tmp_path, method, 4, run_id=f"{method}-w4a4", quant__activations={"bits": 4})
    figures = drawn(tmp_path)
    names = {row[0] for row in figures["cost"].rows}
    assert {"AWQ, W4A4", "AWQ activations=full, 4 bits"} <= names
    assert figures["depth"].caption.startswith("At W4A4, means")


def test_the_surface_has_a_number_for_every_window_and_gamma(figures):
    places = {row[1:3] for row in figures["surface"].rows}
    assert places >= {("1", "0.7"), ("1", "0.9"), ("2", "0.7"), ("2", "0.9")}


def test_the_front_holds_no_point_that_a_smaller_one_beats(figures):
    header = figures["pareto"].header
    rows = [dict(zip(header, row, strict=True)) for row in figures["pareto"].rows]
    for place in {(r["setting"], r["measured on"]) for r in rows}:
        here = [r for r in rows if (r["setting"], r["measured on"]) == place]
        sign = 1 if place[1] == "heldout-wiki-512" else -1
        front = [r for r in here if r["on the front"]]
        assert front
        for point in front:
            others = [
                sign * float(r["value"])
                for r in here
                if r is not point and float(r["bits per weight"]) <= float(point["bits per weight"])
            ]
            assert all(sign * float(point["value"]) <= other for other in others)


def test_a_recipe_that_skips_linears_has_no_size_to_be_drawn_by(make_run, tmp_path):
    for bits in (3, 4):
        make_run(tmp_path, "awq", bits)
        make_run(tmp_path, "faq", bits, quant__skip=["*.down_proj"])
    (panel,) = build_panels(find_runs(tmp_path)[0])
    points = _points(panel.rows, panel.of_kind("perplexity")[0])
    assert {row.method for *_, row, _ in points} == {"awq"}


def test_spread_over_draws_names_every_draw(figures):
    row = next(r for r in figures["draws"].rows if r[0] == "AWQ scenario=matched, 3 bits")
    assert row[2] == "2" and "(0)" in row[5] and "(1)" in row[5]


def test_a_method_that_reads_no_calibration_stands_in_every_setting(study):
    found = facets(analysis_of(study).panel)
    assert [f.title for f in found] == ["code-only", "matched"]
    assert all(any(row.method == "rtn" for row in f.rows) for f in found)


def test_few_variants_of_each_method_stand_for_all(study):
    rows = analysis_of(study).panel.rows
    kept = representatives(rows, most=50, per_method=2)
    assert max(sum(r.method == m for r in kept) for m in {r.method for r in rows}) == 2


def test_a_method_has_one_colour_everywhere_and_compositions_are_hollow():
    assert style.look("faq")["color"] == style.look("qep-faq")["color"] == style.color("faq")
    assert style.look("faq")["markerfacecolor"] != style.look("qep-faq")["markerfacecolor"]
    assert style.look("faq")["linestyle"] != style.look("qep-faq")["linestyle"]


def test_every_method_of_the_table_has_a_look_of_its_own():
    words = ["fp", "rtn"]
    for stage in STAGES.values():
        words += [v.name for v in stage.values.values() if v.label not in (None, "RTN")]
    looks = [(style.color(word), style.marker(word)) for word in words]
    assert len(set(looks)) == len(words)


def test_an_inlined_drawing_has_ids_of_its_own_and_the_pages_colours(figures):
    inline = to_inline(to_svg(figures["cost"]), "fig-cost")
    assert all(i.startswith("fig-cost-") for i in re.findall(r'\bid="([^"]+)"', inline))
    assert "var(--ink)" in inline and style.INK not in inline


def test_hostile_names_are_text_in_a_drawing(make_run, tmp_path):
    make_run(tmp_path, "awq")
    make_run(tmp_path, "<script>alert(1)</script>$x_{", run_id="hostile")
    names = ("perplexity", "differences", "depth", "linears")
    analysis = analysis_of(tmp_path)
    for _, _, drawing in draw_figures(analysis, EvidenceStore(tmp_path), names):
        assert "<script" not in to_svg(drawing)
        assert to_png(drawing).startswith(b"\x89PNG")


def test_a_figures_data_are_numbers_in_its_file(make_run, tmp_path):
    for method in ("awq", "rtn"):
        make_run(tmp_path / "runs", method)
    request = ReportRequest(runs=tmp_path / "runs", reports=tmp_path, name="all", baseline="rtn")
    with (write_report(request).folder / "figures" / "glance.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["low"]) < float(row["difference"]) < float(row["high"]) < 0
