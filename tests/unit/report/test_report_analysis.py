"""Selection, panels, pairing and marks."""

import dataclasses
import math
import shutil
import statistics

import pytest

from faqbench.cli import main
from faqbench.config import UserError
from faqbench.records import Metric, find_runs, write_sweep
from faqbench.report import ReportRequest, summary_table
from faqbench.report.analysis import BEST, TIED, analyse, best_of, resolve_baseline
from faqbench.report.columns import build_columns, metric_heading
from faqbench.report.comparisons import compare_rows
from faqbench.report.evidence import EvidenceStore
from faqbench.report.facts import as_text, display_method, repeat_command
from faqbench.report.figures.estimates import baseline_value
from faqbench.report.panels import build_panels, without_repeats
from faqbench.report.selection import select_runs
from faqbench.report.verdicts import verdicts
from faqbench.tables import escape_markdown, escape_tex


def finished(runs):
    return [r for r in find_runs(runs)[0] if r.status == "finished"]


def panel_of(runs):
    (panel,) = build_panels(finished(runs))
    return panel


def analysis_of(runs, baseline="awq"):
    return analyse(panel_of(runs), EvidenceStore(runs), baseline)


def chosen(runs, *select, **changes):
    request = ReportRequest(runs=runs, reports=runs, name="all", select=select, **changes)
    return [record.config["quant"]["name"] for record in select_runs(request).finished]


@pytest.fixture(scope="module")
def draws(make_run, tmp_path_factory):
    runs = tmp_path_factory.mktemp("draws")
    make_run(runs, "fp")
    for bits in (3, 4):
        make_run(runs, "rtn", bits)
        for seed in (0, 1, 2):
            make_run(runs, "awq", bits, seed)
            make_run(runs, "faq", bits, seed)
    return runs


def test_patterns_and_filters_narrow_the_runs(quickstart_runs):
    assert chosen(quickstart_runs) == ["awq", "faq", "fp", "rtn"]
    assert chosen(quickstart_runs, "quant=faq,awq", "bits=3") == ["awq", "faq"]
    assert chosen(quickstart_runs, "*-w3-*", "*rtn*", "quant.scale=none") == ["fp", "rtn"]


def test_a_pattern_that_matches_nothing_names_the_nearest_runs(quickstart_runs):
    with pytest.raises(UserError, match="nearest are smollm2-135m-"):
        chosen(quickstart_runs, "smollm-fqa*")


def test_a_filter_that_matches_nothing_names_the_values_there_are(quickstart_runs):
    with pytest.raises(UserError, match=r"awq, faq, fp, rtn.*Did you mean 'faq'"):
        chosen(quickstart_runs, "quant=fqa")


def test_a_sweep_of_the_name_decides_which_runs_are_shown(make_run, tmp_path):
    for method in ("rtn", "awq"):
        make_run(tmp_path, method, run_id=f"run-{method}")
    write_sweep(tmp_path, "all", ["run-awq", "run-gone"])
    selection = select_runs(ReportRequest(runs=tmp_path, reports=tmp_path, name="all"))
    assert [r.run_id for r in selection.finished] == ["run-awq"]
    assert selection.missing == ("run-gone",)


def test_rows_are_full_precision_first_then_methods_in_the_usual_order(quickstart_runs):
    assert [row.method for row in panel_of(quickstart_runs).rows] == ["fp", "rtn", "awq", "faq"]


def test_draws_of_one_method_make_one_row_and_no_key_column(draws):
    panel = panel_of(draws)
    assert len(panel.rows) == 7
    assert panel.shown_keys == ()
    assert {len(row.runs) for row in panel.rows if row.is_calibrated} == {3}


def test_a_key_that_differs_becomes_a_column(make_run, tmp_path):
    make_run(tmp_path, "awq", run_id="a")
    make_run(tmp_path, "awq", run_id="b", quant__group_size=128)
    panel = panel_of(tmp_path)
    assert panel.shown_keys == ("quant.group_size",)
    assert len(analysis_of(tmp_path).contests) == 2


def test_unequal_clip_between_scaling_methods_is_shown(make_run, tmp_path):
    make_run(tmp_path, "rtn")
    make_run(tmp_path, "awq", quant__clip="none")
    make_run(tmp_path, "faq")
    assert panel_of(tmp_path).shown_keys == ("quant.clip",)


def test_equal_names_with_other_tokens_are_other_columns(make_run, tmp_path):
    make_run(tmp_path, "awq")
    make_run(tmp_path, "faq", protocol_print="q" * 64)
    columns = panel_of(tmp_path).of_kind("perplexity")
    assert len({column.label for column in columns}) == 2


def test_runs_on_different_tokens_are_never_paired(make_run, tmp_path):
    make_run(tmp_path, "awq")
    make_run(tmp_path, "faq", protocol_print="q" * 64)
    panel = panel_of(tmp_path)
    result = compare_rows(EvidenceStore(tmp_path), *panel.rows, panel.columns[0])
    assert "different texts" in result.refused
    assert math.isnan(result.p_value)


def test_different_seeds_share_no_draw(make_run, tmp_path):
    make_run(tmp_path, "awq", seed=0)
    make_run(tmp_path, "faq", seed=1)
    sentences = [v.lead + v.evidence for v in verdicts(analysis_of(tmp_path))]
    assert any("no calibration draw in common" in s.lower() for s in sentences)


def test_several_draws_are_aggregated_and_their_share_of_the_variance_told(draws):
    analysis = analysis_of(draws)
    found = [c for _, c in analysis.main.comparisons if c.a.method == "faq" and c.is_ratio]
    assert {c.n_draws for c in found} == {3}
    assert all(0 <= c.draw_share <= 1 for c in found)


def test_a_method_without_calibration_is_compared_in_every_draw(draws):
    found = [c for _, c in analysis_of(draws).main.comparisons if c.a.method == "rtn"]
    assert {c.n_draws for c in found} == {3}


def test_holm_correction_never_lowers_a_p_value(draws):
    for _, c in analysis_of(draws).main.comparisons:
        assert c.p_holm >= c.p_value


def test_only_one_row_of_a_contest_can_be_best_and_none_ties_with_it(draws):
    analysis = analysis_of(draws)
    for contest in analysis.contests:
        for c in range(len(analysis.panel.columns)):
            marks = [analysis.main.marks.get((row, c)) for row in contest.rows]
            assert marks.count(BEST) <= 1
            assert not (BEST in marks and TIED in marks)


def test_rows_that_differ_in_a_group_are_named_by_the_group(make_run, tmp_path):
    for name in ("matched", "code-only"):
        make_run(tmp_path, "awq", scenario=name)
    assert {row.name for row in panel_of(tmp_path).rows} == {
        "AWQ scenario=matched",
        "AWQ scenario=code-only",
    }


def test_what_a_scenario_changes_is_shown_only_where_two_of_one_name_differ(make_run, tmp_path):
    settings = [("matched", None), ("code-only", None), ("math-only", 4), ("math-only", 8)]
    for index, (name, n_samples) in enumerate(settings):
        changes = {"scenario__n_samples": n_samples, "scenario__domain": name}
        make_run(tmp_path, "awq", run_id=f"run-{index}", scenario=name, **changes)
    assert {row.name for row in panel_of(tmp_path).rows} == {
        "AWQ n_samples=null scenario=matched",
        "AWQ n_samples=null scenario=code-only",
        "AWQ n_samples=4 scenario=math-only",
        "AWQ n_samples=8 scenario=math-only",
    }


def test_full_precision_competes_with_nobody(quickstart_runs):
    analysis = analysis_of(quickstart_runs)
    assert all(not analysis.panel.rows[row].is_baseline for row, _ in analysis.main.marks)
    assert all(not c.a.is_baseline for _, c in analysis.main.comparisons)


def test_the_baseline_can_be_a_method_a_run_or_chosen(quickstart_runs):
    panels = build_panels(finished(quickstart_runs))
    assert resolve_baseline(panels, None) == "awq"
    assert resolve_baseline(panels, "rtn") == "rtn"
    assert resolve_baseline(panels, panels[0].rows[3].runs[0].run_id) == "faq"
    with pytest.raises(UserError, match="Did you mean 'awq'"):
        resolve_baseline(panels, "awqq")


def test_a_run_that_kept_no_tables_is_shown_but_not_paired(make_run, tmp_path):
    make_run(tmp_path, "awq")
    record = make_run(tmp_path, "faq")
    (tmp_path / record.run_id / "tokens.npz").unlink()
    analysis = analysis_of(tmp_path)
    refused = [c.refused for _, c in analysis.main.comparisons if c.is_ratio]
    assert refused == [f"{record.run_id} kept no token losses of heldout-wiki-512"]
    assert (0, 0) not in analysis.main.marks


def test_an_infinite_perplexity_is_shown_and_breaks_nothing(make_run, tmp_path):
    from dataclasses import replace

    record = make_run(tmp_path, "awq")
    broken = replace(
        record,
        metrics=(
            Metric(
                task="p",
                name="perplexity",
                value=None,
                stderr=None,
                n=9,
                unit="perplexity",
                higher_is_better=False,
            ),
        ),
    )
    assert summary_table([broken]).texts()[0]["p"] == "—"


def test_the_terminal_table_has_equal_keys_and_shows_failures_last(make_run, tmp_path):
    for method in ("fp", "awq"):
        make_run(tmp_path, method)
    make_run(tmp_path, "faq", run_id="z", status="failed", error="line one\nout of memory")
    rows = summary_table(find_runs(tmp_path)[0]).texts()
    assert len({tuple(row) for row in rows}) == 1
    assert [row["method"] for row in rows] == ["full precision", "AWQ", "FAQ"]
    assert rows[0]["bits"] == ""
    assert "±" in rows[1]["heldout-wiki-512"]
    assert rows[2]["gates"] == "failed: out of memory"


def test_a_failed_run_of_w4a4_is_no_failed_run_of_four_bit_weights(make_run, tmp_path):
    failure = {"status": "failed", "error": "out of memory", "quant__activations": {"bits": 4}}
    make_run(tmp_path, "awq", 4, **failure)
    assert [row["bits"] for row in summary_table(find_runs(tmp_path)[0]).texts()] == ["W4A4"]


def test_the_command_that_repeats_a_run_is_safe_in_a_shell(make_run, tmp_path):
    record = make_run(tmp_path, "a b; rm -rf /")
    assert "'quant=a b; rm -rf /'" in repeat_command(record)


def test_the_command_that_repeats_another_tools_run_names_its_recipe(make_run, tmp_path):
    record = make_run(tmp_path, "autoround")
    record.config["quant"]["round"] = "external"
    assert " quant=external/autoround " in repeat_command(record)


@pytest.mark.parametrize(
    ("name", "shown"),
    [("fp", "full precision"), ("qep-gptq", "QEP-GPTQ"), ("loaq", "LoaQ"), ("my-method", "my-method")],
)
def test_methods_are_named_as_papers_name_them(name, shown):
    assert display_method(name) == shown


@pytest.mark.parametrize(
    ("value", "text"), [(True, "true"), (None, "null"), (0.85, "0.85"), ("x", "x"), (1.0, "1.0")]
)
def test_config_values_are_spelled_as_hydra_reads_them(value, text):
    assert as_text(value) == text


def test_escapes_leave_no_active_character():
    assert escape_tex("a_b%\n") == r"a\_b\% "
    assert escape_markdown("<b>|x|\n*y*") == r"&lt;b&gt;\|x\| \*y\*"


def test_runs_of_different_dtypes_are_different_rows_that_name_theirs(make_run, tmp_path):
    for dtype in ("float32", "bfloat16"):
        for method in ("fp", "awq"):
            make_run(tmp_path, method, run_id=f"{method}-{dtype}", dtype=dtype)
    panel = panel_of(tmp_path)
    found = {row.runs[0].run_id: row for row in panel.rows}
    assert len(found) == 4 and all(len(row.runs) == 1 for row in panel.rows)
    for run_id, row in found.items():
        assert run_id.split("-")[1] in str(row.shown), run_id


def test_two_batch_sizes_of_the_calibration_are_two_rows(make_run, tmp_path):
    make_run(tmp_path, "awq", run_id="a", calibration__batch_size=4)
    make_run(tmp_path, "awq", run_id="b", calibration__batch_size=8)
    panel = panel_of(tmp_path)
    assert [len(row.runs) for row in panel.rows] == [1, 1]
    assert panel.shown_keys == ("calibration.batch_size",)


def test_two_checkpoints_under_one_name_are_two_panels_and_never_paired(make_run, tmp_path):
    for letter in "uv":
        for method in ("fp", "awq", "faq"):
            make_run(tmp_path, method, run_id=f"{letter}-{method}", weights_print=letter * 64)
    panels = build_panels(finished(tmp_path))
    assert [p.model for p in panels] == ["smollm2-135m [uuuuuu]", "smollm2-135m [vvvvvv]"]
    for panel, letter in zip(panels, "uv", strict=True):
        analysis = analyse(panel, EvidenceStore(tmp_path), "awq")
        pairs = {(c.a.runs[0].run_id, c.b.runs[0].run_id) for _, c in analysis.main.comparisons}
        assert pairs == {(f"{letter}-faq", f"{letter}-awq")}


def test_runs_of_one_draw_are_named_with_the_bits_of_both_operands(make_run, tmp_path):
    for run_id in ("a", "b"):
        make_run(tmp_path, "awq", 4, run_id=run_id, quant__activations={"bits": 4})
    _, ((_, sentence),) = without_repeats(find_runs(tmp_path)[0])
    assert "(AWQ, W4A4, seed 0)" in sentence


def test_runs_of_one_draw_are_named_and_none_of_them_is_shown(make_run, tmp_path, capsys):
    for run_id, name in (("a", "one"), ("b", "two")):
        make_run(tmp_path / "runs", "awq", run_id=run_id, model__path=f"/models/{name}")
    make_run(tmp_path / "runs", "faq")
    assert main(["report", f"runs={tmp_path / 'runs'}", f"reports={tmp_path}"]) == 1
    said = capsys.readouterr().err
    assert "a and b are one and the same draw of smollm2-135m (AWQ, 3 bits, seed 0)" in said
    page = (tmp_path / "all" / "report.md").read_text()
    assert "**Left out** a and b are one" in page and "| FAQ | 3 |" in page
    assert "| AWQ | 3 |" not in page


def test_a_record_without_the_models_fingerprint_belongs_to_the_only_one_there_is(make_run, tmp_path):
    make_run(tmp_path, "awq", seed=0)
    make_run(tmp_path, "awq", seed=1, more_prints={"model": "m" * 64, "tokenizer": "t" * 64})
    assert [len(row.runs) for row in panel_of(tmp_path).rows] == [2]


def test_equal_seeds_that_drew_other_text_are_no_common_draw(make_run, tmp_path):
    make_run(tmp_path, "awq", more_prints={"calibration": "c" * 64})
    make_run(tmp_path, "faq", more_prints={"calibration": "d" * 64})
    (comparison, *_) = [c for _, c in analysis_of(tmp_path).main.comparisons]
    assert comparison.refused == "seed 0 drew other calibration text in each of them"


@pytest.mark.parametrize(
    ("added_loss", "told"),
    [
        (200.0, "behind on this one calibration set in perplexity on heldout-wiki-512 (ratio"),
        (2000.0, "in mean accuracy over 4 tasks"),  # an infinite perplexity is no number
    ],
)
def test_a_perplexity_beyond_all_numbers_breaks_no_other_row(make_run, tmp_path, capsys, added_loss, told):
    runs = tmp_path / "runs"
    for method in ("fp", "rtn", "awq"):
        make_run(runs, method)
    for seed in (0, 1):
        make_run(runs, "faq", seed=seed, run_id=f"faq-{seed}", added_loss=added_loss)
    folders = [f"runs={runs}", f"reports={tmp_path}"]
    assert main(["report", *folders]) == 0
    assert main(["compare", "faq-0", "smollm2-135m-awq", *folders]) == 0
    assert main(["ls", f"runs={runs}"]) == 0 and main(["show", "faq-0", f"runs={runs}"]) == 0
    assert told in " ".join(capsys.readouterr().out.split())
    page = (tmp_path / "all" / "report.md").read_text()
    assert "| AWQ | 3 | 1 | 5" in page and "| FAQ | 3 | 2 | " in page


def test_cut_requests_stand_below_the_table_and_where_a_run_is_shown(make_run, tmp_path, capsys):
    runs = tmp_path / "runs"
    make_run(runs, "fp")
    make_run(runs, "rtn", run_id="cut", n_truncated=3)
    folders = [f"runs={runs}", f"reports={tmp_path}"]
    note = "arc_easy_validation: 3 of 400 requests (0.8%) are longer than the model's context"
    assert main(["show", "cut", f"runs={runs}"]) == 0
    assert f"note: {note}" in " ".join(capsys.readouterr().out.split())
    assert main(["report", *folders]) == 0
    for file in ("report.md", "index.html", "tables/results.tex"):
        text = (tmp_path / "all" / file).read_text().replace("\\", "").replace("&#39;", "'")
        assert note in text, file


def test_more_draws_of_its_own_do_not_make_a_row_the_best(make_run, tmp_path):
    """AWQ's two further draws are lucky; on the draws that all have, FAQ is ahead of it."""
    for seed in range(5):
        make_run(tmp_path, "awq", seed=seed, added_loss=-0.5 if seed > 2 else 0.0)
    for seed in range(3):
        make_run(tmp_path, "faq", seed=seed, added_loss=-0.1)
        make_run(tmp_path, "gptq", seed=seed)
    analysis = analysis_of(tmp_path)
    panel, (contest,) = analysis.panel, analysis.contests
    awq, faq = ([r.method for r in panel.rows].index(m) for m in ("awq", "faq"))
    column = panel.columns[0]
    assert column.estimate(panel.rows[awq]).value < column.estimate(panel.rows[faq]).value
    assert best_of(panel, contest, column) == faq
    assert analysis.main.marks[faq, 0] in (BEST, TIED) and analysis.main.marks.get((awq, 0)) != BEST


def test_rows_are_measured_against_full_precision_in_their_own_dtype(make_run, tmp_path):
    losses = {"bfloat16": 0.0, "float32": 0.3}
    for dtype, loss in losses.items():
        for method in ("fp", "rtn"):
            make_run(tmp_path, method, run_id=f"{method}-{dtype}", dtype=dtype, added_loss=loss)
    analysis = analysis_of(tmp_path, "fp")
    panel = analysis.panel
    for row in panel.rows:
        assert panel.full_precision(row).keys["dtype"] == row.keys["dtype"]
    found = [c for _, c in analysis.main.comparisons if c.is_ratio]
    assert len(found) == 2 and {c.a.keys["dtype"] for c in found} == set(losses)
    assert all(c.a.keys["dtype"] == c.b.keys["dtype"] for c in found)
    values = {
        dtype: baseline_value(panel, [r for r in panel.rows if r.keys["dtype"] == dtype], panel.columns[0])
        for dtype in losses
    }
    assert values["float32"] > values["bfloat16"]
    assert baseline_value(panel, panel.rows, panel.columns[0]) is None


def test_the_mean_over_tasks_has_the_draws_error_whole(draws):
    panel = panel_of(draws)
    (mean,) = panel.of_kind("mean_acc")
    row = next(r for r in panel.rows if r.method == "awq")
    of_draw = [statistics.fmean(p.metric_of(run).value for p in mean.parts) for run in row.runs]
    items = [
        math.hypot(*(p.metric_of(run).stderr for p in mean.parts)) / len(mean.parts) for run in row.runs
    ]
    wanted = statistics.variance(of_draw) / 3 + statistics.fmean(e**2 for e in items)
    estimate = mean.estimate(row)
    assert estimate.value == pytest.approx(statistics.fmean(of_draw))
    assert estimate.stderr == pytest.approx(math.sqrt(wanted))


def test_perplexities_of_words_and_of_bytes_are_told_apart(make_run, tmp_path):
    run = make_run(tmp_path, "rtn")
    metrics = [
        Metric(
            task="wikitext",
            name=f"{unit}_perplexity,none".partition(",")[0],
            value=value,
            stderr=None,
            n=9,
            unit="perplexity",
            higher_is_better=False,
        )
        for unit, value in (("word", 25.1), ("byte", 1.82))
    ]
    columns = build_columns([dataclasses.replace(run, metrics=tuple(metrics))]).main
    assert [c.label for c in columns] == ["wikitext byte_perplexity", "wikitext word_perplexity"]
    assert [metric_heading(c).text for c in columns] == [c.label for c in columns]


def test_a_differences_effect_is_that_of_the_numbers_shown_whatever_the_blocks(make_run, tmp_path):
    """Five windows make blocks of three and two."""
    for seed in range(3):
        for method in ("awq", "faq"):
            make_run(tmp_path, method, seed=seed, n_windows=5)
    analysis = analysis_of(tmp_path)
    (found,) = (c for _, c in analysis.main.comparisons if c.is_ratio)
    per_draw = [
        math.log(a.metrics[0].value / b.metrics[0].value)
        for a, b in zip(found.a.runs, found.b.runs, strict=True)
    ]
    assert found.effect == pytest.approx(statistics.fmean(per_draw), abs=1e-6)


def test_a_run_with_the_tokens_of_another_is_not_paired(make_run, tmp_path):
    a, b, other = (make_run(tmp_path, method) for method in ("awq", "faq", "rtn"))
    shutil.copy(tmp_path / other.run_id / "tokens.npz", tmp_path / a.run_id / "tokens.npz")
    panel = panel_of(tmp_path)
    rows = {row.method: row for row in panel.rows}
    found = compare_rows(EvidenceStore(tmp_path), rows["awq"], rows["faq"], panel.columns[0])
    assert f"the token losses of {a.run_id} are not those of its record's" in found.refused
    assert b.run_id not in found.refused
