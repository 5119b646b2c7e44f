"""A reproduction from the command line to its verdicts: a tiny model under a published one's name."""

from faqbench.cli import main

from .conftest import toy_text

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
