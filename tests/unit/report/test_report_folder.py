"""A report's folder: what it wrote is replaced and nothing else touched; its pages, its LaTeX tables."""

import re
import shutil
import subprocess

import pytest

from faqbench.cli import main
from faqbench.config import UserError
from faqbench.records import find_runs
from faqbench.report import ReportRequest, figures, layout, write_report
from faqbench.report.analysis import analyse
from faqbench.report.difference_tables import differences_table
from faqbench.report.evidence import EvidenceStore
from faqbench.report.panels import build_panels
from faqbench.report.published import published_table
from faqbench.report.result_tables import fidelity_table, further_table, results_table
from faqbench.tables import escape_tex, to_latex


@pytest.fixture
def write(tmp_path):
    """Write a report of no runs, which is the quickest."""
    return lambda name="r": write_report(
        ReportRequest(runs=tmp_path / "runs", reports=tmp_path / "reports", name=name)
    )


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_strangers_page_is_no_report_and_none_of_its_files_is_touched(write, tmp_path):
    folder = tmp_path / "reports" / "r"
    (folder / "tables").mkdir(parents=True)
    for name in ("index.html", "report.md", "tables/mine.csv", "about.html"):
        (folder / name).write_text("<html>mine</html>")
    before = contents(folder)
    with pytest.raises(UserError, match="is no report, so it is left alone"):
        write()
    assert contents(folder) == before


def test_a_users_files_beside_a_report_stay_whatever_they_are_called(write):
    folder = write().folder
    (folder / "tables").mkdir()
    mine = ("conclusions.html", "tables/mine.csv", "runs-9.html", ".hidden", "deep/er.txt")
    for name in mine:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    write()
    assert {name: (folder / name).read_text() for name in mine} == dict.fromkeys(mine, "mine")


def test_a_report_that_was_edited_is_refused_before_the_work_and_stays(write):
    paths = write()
    text = paths.markdown.read_text()
    for edited in ("my conclusions, of another length", text.swapcase()):
        paths.markdown.write_text(edited)
        with pytest.raises(UserError, match=r"report\.md was edited since"):
            write()
        assert paths.markdown.read_text() == edited


def test_a_report_of_before_manifests_is_replaced_and_the_users_page_kept(write):
    folder = write().folder
    (folder / "manifest.json").unlink()
    (folder / "mine.html").write_text("mine")
    assert write().folder == folder and (folder / "mine.html").read_text() == "mine"


def test_a_report_folder_on_another_disk_is_written_there(write, tmp_path):
    (tmp_path / "big").mkdir()
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "r").symlink_to(tmp_path / "big")
    write()
    write()
    assert (tmp_path / "reports" / "r").is_symlink() and (tmp_path / "big" / "index.html").is_file()


def test_a_manifest_that_names_files_outside_takes_nothing_there(write, tmp_path):
    folder = write().folder
    outside = tmp_path / "reports" / "outside.txt"
    outside.write_text("mine")
    text = (folder / "manifest.json").read_text().replace('"report.md"', '"../outside.txt"')
    (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError):
        write()
    assert outside.read_text() == "mine"


@pytest.mark.parametrize("verb", [["report"], ["compact", "into=small"]])
def test_a_name_is_never_a_path(tmp_path, monkeypatch, capsys, verb):
    monkeypatch.chdir(tmp_path)
    assert main([*verb, "name=../../x"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def large(make_run, tmp_path_factory):
    """A report whose pages are made small, so that a dozen runs fill several."""
    root = tmp_path_factory.mktemp("large")
    make_run(root / "runs", "fp")
    for bits in (3, 4):
        for method in ("rtn", "awq", "faq"):
            for seed in (0, 1) if method != "rtn" else (0,):
                make_run(root / "runs", method, bits, seed, n_items=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "MOST_RUNS", 5)
        patch.setattr(layout, "_RUNS_PER_PAGE", 4)
        patch.setattr(layout, "_ROWS_PER_PAGE", 5)
        patch.setattr(figures, "FIGURES", ())  # no matter here
        request = ReportRequest(runs=root / "runs", reports=root / "reports", name="large")
        return write_report(request)


def test_many_runs_go_to_pages_of_their_own(large):
    names = {p.name for p in large.folder.glob("*.html")}
    assert {"index.html", "runs-1.html", "runs-2.html", "runs-3.html"} <= names
    index = large.html.read_text()
    assert "11 runs are too many for one page" in index
    assert 'id="run-' not in index


def test_every_link_between_the_pages_leads_somewhere(large):
    files = {p.name: p.read_text() for p in large.folder.glob("*.html")}
    ids = {name: set(re.findall(r'\bid="([^"]+)"', text)) for name, text in files.items()}
    for name, text in files.items():
        for link in re.findall(r'href="([^"]+)"', text):
            file, _, fragment = link.partition("#")
            if not link.startswith("data:"):
                assert (file or name) in files, link
                assert not fragment or fragment in ids[file or name], link


def test_long_tables_go_on_without_losing_or_repeating_a_row(large):
    parts = [large.html, *sorted(large.folder.glob("differences-[0-9]*.html"))]
    rows = []
    for part in parts:
        text = part.read_text()
        table = text[text.index("paired differences from AWQ</caption>") :].partition("</table>")[0]
        rows += re.findall(r'<th scope="row".*?</tr>', table, flags=re.DOTALL)
    csv = next(p for p in large.tables if p.name == "differences.csv").read_text()
    assert len(parts) > 2
    assert len(rows) == len(csv.splitlines()) - 1


def test_every_table_that_grows_with_the_runs_goes_on_beside_the_first_page(large):
    for name in ("results", "fidelity", "fidelity-differences"):
        assert (large.folder / f"{name}-2.html").is_file(), name


def test_every_page_is_self_contained(large):
    for page in large.folder.glob("*.html"):
        text = page.read_text()
        assert "<style>" in text and "<script>" in text
        assert not re.search(r'(src|href)="https?:', text)


HOSTILE = "\\input{/etc/passwd} % & # _ ^ ~ { } $x$ <b> |`'\" -- ± — é Ł 漢字 \x00 \\end{tabular}"
DOCUMENT = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{booktabs}
\begin{document}
%s
\end{document}
"""


def test_no_character_of_a_hostile_name_is_active():
    text = escape_tex(HOSTILE)
    assert r"\input" not in text and r"\end" not in text
    assert text.count("{") == text.count("}")
    assert "漢" not in text and "é" in text and "\x00" not in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs a TeX engine: pdflatex")
def test_every_table_compiles_to_a_pdf(make_run, tmp_path):
    runs = tmp_path / "runs"
    make_run(runs, "fp")
    for seed in (0, 1):
        make_run(runs, "awq", seed=seed)
        make_run(runs, "faq", seed=seed)
    make_run(runs, HOSTILE, run_id="hostile", calibration__domain=HOSTILE)
    (panel,) = build_panels(find_runs(runs)[0])
    store = EvidenceStore(runs)
    found = analyse(panel, store, "awq")
    tables = (
        results_table(found, "results"),
        differences_table(found, found.main, "differences"),
        fidelity_table(found, store, "fidelity"),
        further_table(found, "further"),
        published_table([panel]),
    )
    (tmp_path / "all.tex").write_text(DOCUMENT % "\n\n".join(to_latex(t) for t in tables))
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "all.tex"],
        cwd=tmp_path,
        capture_output=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout.decode("latin-1")[-2000:]
    assert (tmp_path / "all.pdf").read_bytes().startswith(b"%PDF")
