"""Large reports: several pages that link to each other, and what every page keeps to."""

import re

import pytest

from faqbench.report import ReportRequest, figures, layout, write_report


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
