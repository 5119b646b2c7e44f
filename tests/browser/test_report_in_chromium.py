"""The report in a real headless Chromium: offline, sorted, filtered, accessible, without a complaint.

Needs Debian's `chromium` (or FAQBENCH_CHROMIUM) and the extra `browser`. `FAQBENCH_SCREENSHOTS=FOLDER`
keeps what it sees, at phone and desktop width, light and dark.
"""

from __future__ import annotations

import os
import shutil
from itertools import product
from pathlib import Path

import pytest
from toy_parts import SCENARIOS
from toy_runs import write_toy_run

from faqbench.records import write_sweep
from faqbench.report import ReportRequest, layout, pair_runs, write_pair, write_report

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
CHROMIUM = os.environ.get("FAQBENCH_CHROMIUM") or shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDTHS = {"phone": (390, 844), "desktop": (1280, 800)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report with everything on it, one of several pages, a comparison and an empty report."""
    root = tmp_path_factory.mktemp("browser")
    runs = root / "runs"
    write_toy_run(runs, "fp")
    records = {}
    for bits in (3, 4):
        write_toy_run(runs, "rtn", bits, n_items=40)
    for method, scenario, seed in product(("awq", "faq", "gptq"), list(SCENARIOS)[:2], (0, 1)):
        found = write_toy_run(runs, method, 3, seed, scenario=scenario, n_items=40)
        records[method] = found
    write_toy_run(runs, "faq", run_id="broken", status="failed", error="a <b>line</b>\nmore")
    ids = sorted(p.name for p in runs.iterdir())
    write_sweep(runs, "study", [*ids, "never-run"])
    write_report(ReportRequest(runs=runs, reports=root, name="study"))
    write_report(ReportRequest(runs=root / "none", reports=root, name="empty"))
    write_pair(pair_runs(runs, records["faq"], records["awq"]), runs, root / "pair.html")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "MOST_RUNS", 5)
        patch.setattr(layout, "_RUNS_PER_PAGE", 6)
        write_report(ReportRequest(runs=runs, reports=root, name="large"))
    return root


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def open_page(browser, folder):
    """Return a function that opens a page from disk, cut off from every network."""
    contexts, complaints, requests = [], [], []

    def open_(name, width="desktop", scheme="light", *, folded=False):
        size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
        context = browser.new_context(viewport=size, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: requests.append(r.url))
        page.goto((folder / name).as_uri())
        if not folded:
            page.locator("details.fold").evaluate_all("all => all.forEach(d => { d.open = true; })")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def rows(page, table=0):
    return page.locator("table.tool").nth(table).locator("tbody tr")


def test_the_page_opens_from_disk_with_its_answer_and_its_plots(open_page):
    page = open_page("study/index.html")
    assert "Which of RTN, AWQ, FAQ and GPTQ should quantize" in page.inner_text("main")
    assert page.locator("figure svg").count() == page.locator("figure").count() > 8
    box = page.locator("figure svg").first.bounding_box()
    assert box["width"] > 200 and box["height"] > 80


@pytest.mark.parametrize("width", list(WIDTHS))
def test_the_sentence_and_the_first_figure_are_seen_without_scrolling(open_page, width):
    page = open_page("study/index.html", width, folded=True)
    box = page.locator("figure .drawing").first.bounding_box()
    assert page.locator(".headline").first.is_visible()
    assert box["y"] + box["height"] <= WIDTHS[width][1] and box["width"] > 300


def test_a_link_to_a_folded_section_opens_it(open_page):
    page = open_page("study/index.html", folded=True)
    assert not page.locator("table.tool").first.is_visible()
    page.get_by_role("navigation").get_by_role("link", name="Results").click()
    assert page.locator("table.tool").first.is_visible()


def test_a_click_on_a_head_sorts_and_another_turns_the_order(open_page):
    page = open_page("study/index.html")
    head = page.locator("table.tool").first.locator("thead button", has_text="heldout-wiki-512")
    column = head.locator("xpath=..").evaluate("th => th.cellIndex")

    def values():
        texts = rows(page).evaluate_all(
            f"rows => rows.map(r => r.cells[{column}].dataset.sort).filter(Boolean).map(Number)"
        )
        return [float(t) for t in texts]

    head.click()
    assert values() == sorted(values()) and len(set(values())) > 5
    head.click()
    assert values() == sorted(values(), reverse=True)
    assert head.locator("xpath=..").get_attribute("aria-sort") == "descending"


def test_sorting_works_from_the_keyboard(open_page):
    page = open_page("study/index.html")
    button = page.locator("table.tool thead button").nth(1)
    button.focus()
    page.keyboard.press("Enter")
    assert button.locator("xpath=..").get_attribute("aria-sort") == "ascending"


def test_words_filter_rows_and_their_number_is_told(open_page):
    page = open_page("study/index.html")
    before = rows(page).count()
    page.get_by_label("Filter rows").first.fill("faq math-only")
    texts = rows(page).all_inner_texts()
    assert 0 < len(texts) < before
    assert all("FAQ" in t and "math-only" in t for t in texts)
    assert f"{len(texts)} of {before}" in page.locator(".filter").first.inner_text()
    page.get_by_label("Filter rows").first.fill("")
    assert rows(page).count() == before


def test_a_number_links_to_its_run_which_opens(open_page):
    page = open_page("study/index.html")
    link = rows(page).filter(has_text="FAQ").first.locator("td.num a").first
    target = link.get_attribute("href").removeprefix("#")
    link.click()
    section = page.locator(f"[id='{target}']")
    assert section.is_visible() and "python -m faqbench" in section.inner_text()


def test_an_address_with_a_run_opens_it(open_page, folder):
    name = "smollm2-135m-faq-w3-g64-s0-0a1b2c"
    page = open_page("study/index.html", folded=True)
    page.goto((folder / "study" / "index.html").as_uri() + f"#run-{name}")
    page.reload()
    assert page.locator(f"[id='run-{name}']").is_visible()


def test_links_lead_from_a_large_report_to_the_pages_of_its_runs(open_page):
    page = open_page("large/index.html")
    rows(page).filter(has_text="FAQ").first.locator("td.num a").first.click()
    page.wait_for_url("**/runs-*.html#run-*")
    target = page.url.partition("#")[2]
    assert page.locator(f"[id='{target}']").is_visible()
    page.get_by_role("link", name="The report").click()
    assert page.url.endswith("index.html")


@pytest.mark.parametrize("width", list(WIDTHS))
@pytest.mark.parametrize("name", ["study/index.html", "pair.html", "empty/index.html"])
def test_nothing_is_wider_than_the_screen(open_page, name, width):
    page = open_page(name, width)
    inner, outer = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert inner <= outer


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["study/index.html", "pair.html", "empty/index.html", "large/runs-1.html"])
def test_axe_finds_nothing_serious(open_page, name, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe")
    page = open_page(name, "desktop", scheme)
    # What is shut is not looked at; the first of each kind stands for all.
    page.evaluate(
        "() => { const first = document.querySelector('details.run');"
        " for (const d of document.querySelectorAll('details'))"
        " d.open = !d.closest('details.run') || d.closest('details.run') === first; }"
    )
    found = axe.Axe().run(page).response["violations"]
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert [(v["id"], v["nodes"][0]["html"][:120]) for v in serious] == []


def test_printing_shows_all_rows_and_no_controls(open_page):
    page = open_page("study/index.html")
    page.emulate_media(media="print")
    assert not page.locator(".filter").first.is_visible()
    assert page.locator("table.tool").first.is_visible()
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF") and len(pdf) > 50_000


@pytest.mark.skipif("FAQBENCH_SCREENSHOTS" not in os.environ, reason="FAQBENCH_SCREENSHOTS=FOLDER")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", list(WIDTHS))
def test_screenshots_to_look_at(open_page, width, scheme):
    target = Path(os.environ["FAQBENCH_SCREENSHOTS"])
    target.mkdir(parents=True, exist_ok=True)
    for name in ("study/index.html", "pair.html", "empty/index.html"):
        page = open_page(name, width, scheme)
        stem = name.replace("/index", "").removesuffix(".html")
        page.screenshot(path=target / f"{stem}-{width}-{scheme}.png", full_page=True)
