"""The written report: what it says, that it says it safely, and that it says it twice alike."""

import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from faqbench.config import UserError
from faqbench.records import Gate, find_runs, write_sweep
from faqbench.report import ReportRequest, write_report
from faqbench.report.panels import build_panels
from faqbench.report.published import is_published, published_table
from faqbench.tables import to_parquet

HOSTILE = "<script>alert(1)</script> & 50% _x_ #1 $y$ {z} \\end `|` *b* [l](javascript:1)"


def request(runs, reports, name="study", **changes):
    return ReportRequest(runs=runs, reports=reports, name=name, **changes)


@pytest.fixture(scope="module")
def quickstart(quickstart_runs, tmp_path_factory):
    return write_report(request(quickstart_runs, tmp_path_factory.mktemp("reports"), "quickstart"))


@pytest.fixture(scope="module")
def page(quickstart):
    return quickstart.html.read_text()


@pytest.fixture(scope="module")
def difficult(make_run, tmp_path_factory):
    """Hostile names, a failed gate, a failed, a missing and a damaged cell, a damaged table."""
    root = tmp_path_factory.mktemp("difficult")
    runs = root / "runs"
    make_run(runs, "fp")
    make_run(runs, "awq", gates=(Gate(name="finite", passed=False, detail=HOSTILE),))
    make_run(runs, HOSTILE, run_id="hostile-1", warnings=(HOSTILE,), model__notes=HOSTILE)
    make_run(runs, "faq", run_id="failed-1", status="failed", error=HOSTILE)
    make_run(runs, "rtn", run_id="torn-1")
    (runs / "torn-1" / "tokens.npz").write_bytes(b"not a zip file")
    (runs / "damaged-1").mkdir()
    (runs / "damaged-1" / "record.json").write_text("{")
    ids = [path.name for path in runs.iterdir() if path.is_dir()]
    write_sweep(runs, "study", [*sorted(ids), "gone-1"])
    return write_report(request(runs, root / "reports", title=HOSTILE))


class _Outline(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.tags.append((tag, named))
        self.ids += [named["id"]] if "id" in named else []
        self.links += [named[k] for k in ("href", "src", "xlink:href") if named.get(k)]


def test_the_page_loads_nothing_from_elsewhere(page):
    outline = _Outline(page)
    assert all(link.startswith(("#", "data:,", "data:image/png;base64,")) for link in outline.links)
    assert "@import" not in page
    assert "url(http" not in page


def test_a_small_report_is_one_file(quickstart):
    assert [p.name for p in quickstart.folder.glob("*.html")] == ["index.html"]


def test_every_id_is_unique_and_every_link_leads_somewhere(page):
    outline = _Outline(page)
    assert len(outline.ids) == len(set(outline.ids))
    assert {link[1:] for link in outline.links if link.startswith("#")} <= set(outline.ids)


def test_every_figure_has_words_and_its_data_as_a_table(page):
    figures = re.findall(r"<figure.*?</figure>", page, flags=re.DOTALL)
    assert len(figures) == 9
    assert all("<figcaption>" in f and "<table" in f and 'role="img"' in f for f in figures)


def test_every_table_head_has_a_scope(page):
    assert all("scope" in attrs for tag, attrs in _Outline(page).tags if tag == "th")


def test_the_answer_names_who_is_ahead_with_ratio_interval_and_corrected_p(page):
    assert "FAQ is ahead of AWQ in perplexity on heldout-wiki-512" in page
    answer = re.search(r"Ratio 0\.9\d\d, 95\xa0% interval 0\.\d+ to 0\.\d+, p\xa0", page)
    assert answer


def test_an_insignificant_difference_is_called_not_decidable_and_is_not_bold(page):
    sentence = "FAQ against AWQ in mean accuracy over 4 tasks is not decidable"
    assert sentence in page
    assert f"<strong>{sentence}" not in page
    assert "not decidable</strong>" not in page


def test_a_single_calibration_draw_is_said_aloud(page):
    assert "calibrated on a single draw" in page


def test_published_values_are_called_published_and_not_ours(page):
    assert "Published values, not ours" in page
    assert "25.9575" in page
    assert "arXiv 2602.02538" in page


def test_published_values_stand_beside_ours_where_we_measured_the_like(make_run, tmp_path):
    for method in ("faq", "awq"):
        make_run(tmp_path / "runs", method, model="qwen3-8b")
    panels = build_panels(find_runs(tmp_path / "runs")[0])
    rows = pd.read_parquet(io.BytesIO(to_parquet(published_table(panels))))
    mine = rows[(rows.model == "Qwen3-8B") & (rows.metric == "ARC-challenge accuracy")]
    assert mine.published.tolist() == ["0.5043", "0.4778"]
    assert all("% (" in ours and "arc_challenge_validation" in ours for ours in mine.ours)
    assert rows[rows.model == "Llama-2-7B"].ours.isna().all()
    assert rows.model.tolist()[0] == "Qwen3-8B"
    assert is_published(panels)


def test_notes_of_the_model_are_part_of_how_it_was_measured(page):
    assert "4-bit grid" in page


def test_every_run_can_be_repeated_by_a_command(page):
    command = "python -m faqbench model=smollm2-135m quant=faq evaluation=quick bits=3 group_size=64"
    assert command in page
    assert "quant=fp evaluation=quick dtype=bfloat16" in page


def test_folders_of_the_machine_stay_out_of_the_report(quickstart, quickstart_runs):
    for path in quickstart.folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"/home/somebody" not in data
            assert str(quickstart_runs).encode() not in data


def test_the_same_runs_give_the_same_bytes_on_any_number_of_cores(
    quickstart, quickstart_runs, tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    again = write_report(request(quickstart_runs, tmp_path, "quickstart"))
    for path in sorted(quickstart.folder.rglob("*")):
        if path.is_file():
            other = again.folder / path.relative_to(quickstart.folder)
            assert other.read_bytes() == path.read_bytes(), path.name


def test_tables_come_as_csv_and_booktabs(quickstart):
    names = {path.name for path in quickstart.tables}
    assert {"results.csv", "results.tex", "differences.csv", "metrics.csv", "runs.csv"} <= names
    tex = next(p for p in quickstart.tables if p.name == "results.tex").read_text()
    assert r"\toprule" in tex
    assert r"arc\_easy\_validation" in tex
    csv = next(p for p in quickstart.tables if p.name == "results.csv").read_text().splitlines()
    assert len({line.count(",") for line in csv[1:]}) == 1


def test_parquet_holds_the_numbers_of_the_csv_with_their_types(quickstart):
    parquet = [p for p in quickstart.tables if p.suffix == ".parquet"]
    assert {p.stem for p in parquet} == {p.stem for p in quickstart.tables if p.suffix == ".csv"}
    results = pd.read_parquet(next(p for p in parquet if p.stem == "results"))
    text = pd.read_csv(next(p for p in quickstart.tables if p.name == "results.csv"))
    assert list(results) == list(text)
    for column in ("bits", "heldout-wiki-512 perplexity", "heldout-wiki-512 perplexity stderr"):
        np.testing.assert_array_equal(results[column].astype(float), text[column].astype(float))
    assert results["method"].tolist() == text["method"].tolist()


def test_every_number_of_the_results_links_to_its_run(page):
    table = page[page.index('id="results-smollm2-135m"') :].partition("</table>")[0]
    awq = next(row for row in table.split("<tr") if ">AWQ</a>" in row)
    numbers = re.findall(r"<t[dh][^>]*class=num[^>]*>(.*?)</t[dh]>", awq)
    assert len(numbers) == 9
    assert all("#run-smollm2-135m-awq-w3" in n for n in numbers if n != "3")


def test_what_all_runs_share_is_said_once(page):
    run = page[page.index('<div id="run-smollm2-135m-faq') :]
    own = run[run.index("Configuration that not all") :].partition("</dl>")[0].replace("<wbr>", "")
    assert "quant.name" in own and "calibration.n_samples" not in own
    assert "calibration.n_samples" in page[page.index('id="shared"') :].replace("<wbr>", "")


def test_fidelity_has_a_table_and_paired_differences_of_its_own(page):
    section = page[page.index('id="fidelity-smollm2-135m"') :].partition("</section>")[0]
    assert "KL, nats ↓" in section and "agreement, % ↑" in section
    assert "heldout-wiki-512 top-1" in section and "Paired differences in fidelity" in section


def test_figures_come_as_svg_and_png(quickstart):
    assert {p.suffix for p in quickstart.figures} == {".svg", ".png", ".csv"}
    pictures = [p for p in quickstart.figures if p.suffix != ".csv"]
    assert all(p.stat().st_size > 1000 for p in pictures)


def test_hostile_text_is_escaped_in_html(difficult):
    text = difficult.html.read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert sum(tag == "script" for tag, _ in _Outline(text).tags) == 1


def test_hostile_text_is_escaped_in_markdown(difficult):
    lines = difficult.markdown.read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith(" " * 6))  # code shows as it is
    assert "<script" not in text
    assert "[l](javascript" not in text


def test_hostile_text_is_escaped_in_latex(difficult):
    text = next(p for p in difficult.tables if p.name == "results.tex").read_text()
    assert r"\textless{}script\textgreater{}" in text
    assert r"\&" in text
    assert r"\textbackslash{}end" in text


def test_failed_gates_and_warnings_stand_before_the_numbers(difficult):
    text = difficult.html.read_text()
    assert text.index("Gate failed") < text.index('id="results-')
    assert "1 failed" in text


def test_failed_missing_and_damaged_cells_are_listed(difficult):
    text = difficult.html.read_text().replace("<wbr>", "")
    for name in ("failed-1", "gone-1", "damaged-1", "torn-1"):
        assert f"<code>{name}</code>" in text


def test_no_runs_at_all_give_a_page_that_says_how_to_make_some(tmp_path):
    paths = write_report(request(tmp_path / "runs", tmp_path / "reports"))
    assert "python -m faqbench experiment=quickstart" in paths.html.read_text()
    assert paths.n_runs == 0


@pytest.mark.parametrize("name", ["..", "a/b", "", "-x"])
def test_a_name_that_is_no_folder_name_is_refused(quickstart_runs, tmp_path, name):
    with pytest.raises(UserError, match="cannot name a folder"):
        write_report(request(quickstart_runs, tmp_path, name))


def test_a_folder_that_is_no_report_is_left_alone(quickstart_runs, tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "thesis.txt").write_text("ten years of work")
    with pytest.raises(UserError, match="left alone"):
        write_report(request(quickstart_runs, tmp_path))
    assert (tmp_path / "study" / "thesis.txt").exists()


def test_importing_the_report_brings_neither_torch_nor_the_heavy_libraries():
    code = "import sys, json, faqbench.report; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    heavy = {"torch", "transformers", "hydra", "omegaconf", "pandas", "matplotlib", "scipy"}
    assert not loaded & heavy


def test_what_others_put_into_the_folder_of_a_report_stays(make_run, tmp_path):
    make_run(tmp_path / "runs", "rtn")
    wanted = request(tmp_path / "runs", tmp_path / "reports")
    folder = write_report(wanted).folder
    (folder / "ANSWER.md").write_text("none")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.csv").write_text("1")
    (folder / "tables" / "mine.csv").write_text("1")
    assert write_report(wanted).folder == folder
    assert (folder / "ANSWER.md").read_text() == "none"
    assert (folder / "notes" / "a.csv").read_text() == "1"
    assert (folder / "tables" / "mine.csv").read_text() == "1"
