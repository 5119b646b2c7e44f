"""The LaTeX tables compile to a PDF, hostile names and all, where a TeX engine is installed."""

import shutil
import subprocess

import pytest

from faqbench.records import find_runs
from faqbench.report.analysis import analyse
from faqbench.report.difference_tables import differences_table
from faqbench.report.evidence import EvidenceStore
from faqbench.report.panels import build_panels
from faqbench.report.published import published_table
from faqbench.report.result_tables import fidelity_table, further_table, results_table
from faqbench.tables import escape_tex, to_latex

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
