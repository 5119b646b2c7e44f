"""Questions that `settle` cannot answer are refused in a sentence before anything runs."""

import pytest

from faqbench.cli import main, settle
from faqbench.cli.question import read_inquiry

SETTING = ["model=tiny-llama", "dtype=float32", "evaluation=quick"]
ASKED = ["faq < awq", *SETTING]


@pytest.fixture
def refusal(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def ran(*_, **__):
        raise AssertionError("a cell was run")

    monkeypatch.setattr(settle, "launch", ran)

    def run(*arguments):
        assert main(["settle", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert not (tmp_path / "runs").exists()
        return line.removeprefix("faqbench: ")

    return run


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (SETTING, 'settle takes one question, as in "faq < awq"'),
        (["faq < awq", "faq < rtn"], "there are 2."),
        (["faq < awq < rtn"], "it has one < or >"),
        (["faq < awq, rtn"], "challenges 2 arms; right of < stands one."),
        (["faq( < awq"], "'faq(' is no arm"),
        (["faq(gamma) < awq"], "'gamma' of faq is no key=value override."),
        (["fqa < awq", *SETTING], "Did you mean 'faq'?"),
        (["awq < awq", *SETTING], "awq and awq are the same configuration; there is no question."),
        (["awq(bits=3) < awq", *SETTING], "awq(bits=3) and awq are the same configuration"),
        (["faq(quant=awq) < awq"], "settle takes no quant=: the question names the arms."),
        ([*ASKED, "seed=0,1"], "settle takes no seed=: its draws are seeds 0, 1, 2, and so on."),
        ([*ASKED, "rerun=true"], "settle takes no rerun="),
        ([*ASKED, "bits=3,4"], "settle asks about one setting"),
        ([*ASKED, "experiment=study"], "settle asks about one setting"),
        ([*ASKED, "metric=heldout-wiki-51"], "Did you mean 'heldout-wiki-512'?"),
        ([*ASKED, "metric=boolq", "evaluation=none"], "evaluation=none measures nothing"),
        (["fp < awq", *SETTING, "metric=heldout-wiki-512.kl"], "and fp is full precision."),
        ([*ASKED, "metric=mean_acc", "evaluation.keep_items=false"], "keep_items=false keeps none"),
        ([*ASKED, "margin=0.5"], "margin '0.5' is not allowed; write 1%, 1pt, 0.01nats"),
        ([*ASKED, "margin=1pt"], "perplexities are compared in percent, as in margin=1%."),
        ([*ASKED, "margin=1%", "metric=mean_acc"], "are compared in points, as in margin=1pt."),
        ([*ASKED, "alpha=0.9"], "alpha=0.9 is not allowed"),
        ([*ASKED, "max_draws=many"], "max_draws=many is not allowed: a whole number"),
        ([*ASKED, "max_draws=1"], "at alpha=0.05 no interval ends before draw 5."),
        (
            ["faq, qep < awq", *SETTING, "max_draws=5"],
            "over 3 contests no interval ends before draw 6.",
        ),
    ],
)  # fmt: skip
def test_a_question_that_cannot_be_answered_is_refused(arguments, sentence, refusal):
    assert sentence in refusal(*arguments)


def test_arms_have_overrides_of_their_own_and_terms_have_units(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    inquiry = read_inquiry(
        [
            "faq(gamma=0.7, quant.skip=[a,b]), rtn > awq",
            *SETTING,
            "metric=mean_acc",
            "margin=0.5pt",
            "max_draws=7",
        ]
    )
    assert [arm.name for arm in inquiry.arms] == ["faq(gamma=0.7, quant.skip=[a,b])", "rtn", "awq"]
    assert inquiry.experiments[0].quant.skip == ("a", "b") and inquiry.experiments[2].gamma == 0.85
    assert inquiry.margin == pytest.approx(0.005) and inquiry.claim == ">"
    assert inquiry.contest_alpha == pytest.approx(0.05 / 3)
    cells = inquiry.draws(0, range(1, 3), 7).cells
    assert [c.experiment.seed for c in cells] == [1, 2]
    assert {c.experiment.n_documents() for c in cells} == {7}
