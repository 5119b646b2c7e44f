"""`faqbench compare`: the same comparison in the terminal and as a page."""

import subprocess
import sys

import pytest
from toy_runs import write_toy_run

from faqbench.cli import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare") / "runs"
    for method in ("awq", "faq"):
        write_toy_run(folder, method, run_id=f"toy-{method}")
    write_toy_run(folder, "rtn", run_id="toy-rtn", status="failed", error="broke")
    return folder


def test_two_runs_are_compared_in_the_terminal_and_on_a_page(runs, tmp_path, capsys):
    assert main(["compare", "toy-faq", "toy-awq", f"runs={runs}", f"reports={tmp_path}"]) == 0
    out = capsys.readouterr().out
    for words in ("ahead on this one calibration set in perplexity", "Keys that differ",
                  "Metrics, A - B", "Items that flipped", "Linears: where A errs more",
                  "Windows whose loss"):  # fmt: skip
        assert words in out
    assert "quant.scale" in out and "calibration.n_samples" not in out
    assert (tmp_path / "compare" / "toy-faq--toy-awq.html").is_file()


def test_a_page_is_written_where_it_is_wanted_or_not_at_all(runs, tmp_path):
    command = ["compare", "toy-faq", "toy-awq", f"runs={runs}", f"reports={tmp_path}"]
    assert main([*command, "html=none"]) == 0
    assert not list(tmp_path.iterdir())
    assert main([*command, f"html={tmp_path / 'x.html'}"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["x.html"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["toy-faq"], "needs the names of two runs"),
        (["toy-faq", "toy-awk"], "Did you mean 'toy-awq'"),
        (["toy-faq", "toy-rtn"], "did not finish"),
        (["toy-faq", "toy-awq", "third"], "not a key=value"),
        (["toy-faq", "toy-awq", "htlm=x"], "Did you mean 'html'"),
    ],
)
def test_a_mistake_is_one_sentence(runs, capsys, words, message):
    assert main(["compare", *words, f"runs={runs}"]) == 2
    assert message in capsys.readouterr().err


def test_comparing_needs_no_torch(runs):
    code = (
        f"import sys; from faqbench.cli import main; main(['compare', 'toy-faq', 'toy-awq', "
        f"'runs={runs}', 'html=none'])\n"
        "print([m for m in ('torch', 'transformers', 'hydra', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
