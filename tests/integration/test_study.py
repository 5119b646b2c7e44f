"""The committed study, rebuilt from runs/study/ without a model; a reproduction up to its verdicts."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from faqbench.cli import main
from faqbench.records import find_runs

from .conftest import toy_text

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "reports" / "study"
TASKS = ("heldout-wiki-512", "heldout-code-512", "accuracy")
PAIRS = (("faq", "awq"), ("qep-faq", "qep-awq"))


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
    names = [p.relative_to(STUDY) for p in STUDY.rglob("*") if p.suffix in (".csv", ".md")]
    names = [n for n in names if n.parts[0] in ("tables", "figures", "report.md")]
    assert len(names) > 20
    for name in names:
        assert (rebuilt / name).read_bytes() == (STUDY / name).read_bytes(), name
    # Pages, vector graphics, TeX and Parquet are not committed.
    committed = {".csv", ".png"}
    for folder in ("figures", "tables"):
        made = {p.name for p in (rebuilt / folder).iterdir() if p.suffix in committed}
        assert made == {p.name for p in (STUDY / folder).iterdir() if p.suffix in committed}


def test_the_numbers_of_the_answer_are_in_the_report():
    report = (STUDY / "report.md").read_text().replace("\u2212", "-")
    found = _cells(_section("## FAQ against AWQ, one by one"))
    assert len(found) == 24
    for value, low, high in found:
        assert "| FAQ | AWQ | " in report and f"| {value} | {low} to {high} |" in report


def test_the_pooled_numbers_of_the_answer_are_those_of_its_runs():
    records, damaged = find_runs(ROOT / "runs" / "study")
    assert not damaged
    assert _cells(_section("## FAQ against AWQ, pooled")) == [
        _pooled(records, bits, *pair, task) for bits in (4, 3) for pair in PAIRS for task in TASKS
    ]


def _section(title):
    return (STUDY / "ANSWER.md").read_text().split(title + "\n")[1].split("\n## ")[0]


def _cells(text):
    return re.findall(r"([-+]?\d+\.\d) (?:%|points) \(([-+]?\d+\.\d) to ([-+]?\d+\.\d)\)", text)


def _pooled(records, bits, method, against, task):
    """Return the mean difference over all scenarios and draws, and its 95 % interval by Student's t."""
    values = {}
    for record in records:
        config = record.config
        key = (config["quant"]["name"], config["scenario"]["name"], config["calibration"]["seed"])
        if config["quant"]["bits"] == bits:
            values[key] = _value(record, task)
    others = {k[1:] for k in values if k[0] == against}
    assert len(others) == 20
    differences = np.array([values[method, *o] - values[against, *o] for o in sorted(others)])
    mean, error = differences.mean(), scipy.stats.sem(differences)
    ends = scipy.stats.t.interval(0.95, len(differences) - 1, mean, error)
    percent = (lambda x: 100 * x) if task == "accuracy" else (lambda x: 100 * np.expm1(x))
    return tuple(re.sub(r"[-+]0\.0", "0.0", f"{percent(x):+.1f}") for x in (mean, *ends))


def _value(record, task):
    """Return log-perplexity of a protocol, or the mean accuracy over the tasks."""
    if task == "accuracy":
        return np.mean([m.value for m in record.metrics if m.name == "acc"])
    (found,) = (m for m in record.metrics if (m.task, m.name) == (task, "perplexity"))
    return np.log(found.value)


NAME = "reproduce-awq-llama2-7b"


def test_a_reproduction_prints_ours_beside_theirs_with_a_verdict(workplace, capsys):
    """Full precision of the tiny model fails; what was not run has no verdict."""
    (workplace.root / "long.txt").write_text(toy_text(30, seed=2))
    command = ["-m", f"experiment={NAME}", "hydra.sweeper.params=null", "model=tiny-llama"]
    command += ["model.name=llama-2-7b", "data.wikitext2_path=long.txt", "tracking=none"]
    command += ["dtype=float32", "quant=fp"]
    command += ["++model.random.max_position_embeddings=2048"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("Llama-2-7B")]
    assert rows and all("5.47" in row and "fail (+" in row and "within 0.5" in row for row in rows)
    page = (workplace.reports / NAME / "index.html").read_text()
    assert "fail (+" in page and "6.24" in page


def test_a_plan_says_what_a_reproduction_needs(workplace, capsys):
    assert main(["plan", f"experiment={NAME}"]) == 0
    out = capsys.readouterr().out
    assert "It needs the hub (meta-llama/Llama-2-7b-hf, which is gated" in out
    assert "a GPU of 24 GB." in out
