"""The committed study: a clone rebuilds its report from runs/study/ without a model."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "reports" / "study"


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    """Rebuild it in a process that does not even import torch."""
    reports = tmp_path_factory.mktemp("reports")
    code = "import sys; from faqbench.__main__ import main; code = main(); "
    code += "sys.exit(code or 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, "report", "name=study", f"reports={reports}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return reports / "study"


def test_the_committed_report_is_what_its_runs_give(rebuilt):
    # Pictures depend on the versions of matplotlib and zlib as well; numbers and words do not.
    names = [p.relative_to(STUDY) for p in STUDY.rglob("*") if p.suffix in (".csv", ".tex", ".md")]
    names = [n for n in names if n.parts[0] in ("tables", "figures", "report.md")]
    assert len(names) > 20
    for name in names:
        assert (rebuilt / name).read_bytes() == (STUDY / name).read_bytes(), name
    assert {p.name for p in (rebuilt / "figures").iterdir()} == {
        p.name for p in (STUDY / "figures").iterdir()
    }


def test_the_numbers_of_the_answer_are_in_the_report():
    answer = (STUDY / "ANSWER.md").read_text()
    report = (STUDY / "report.md").read_text().replace("\u2212", "-")
    table = answer.split("## FAQ against AWQ")[1].split("95 % intervals")[0]
    found = re.findall(r"([-+]?\d+\.\d) (?:%|points) \(([-+]\d+\.\d) to ([-+]\d+\.\d)\)", table)
    assert len(found) == 12
    for value, low, high in found:
        assert "| FAQ | AWQ | " in report and f"| {value} | {low} to {high} |" in report
