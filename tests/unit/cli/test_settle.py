"""The rules of settle, on toy runs of methods whose means, draws and windows are known; what it refuses."""

import dataclasses
import json
import re
import zlib

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from toy_runs import _metric

from faqbench.cli import main, question, settle
from faqbench.cli.composing import Cell, Command
from faqbench.cli.question import read_inquiry
from faqbench.config import run_id
from faqbench.records import (
    SCHEMA_VERSION,
    RunData,
    RunRecord,
    find_decisions,
    read_decision,
    write_decision,
    write_run,
)
from faqbench.records.decisions import ArmOfDecision, ContestOfDecision, Decision, LookOfDecision
from faqbench.report import write_decision_page
from faqbench.report.decisions import draw

PROTOCOL = "heldout-wiki-512"
HYDRA = OmegaConf.create({"launcher": {}})
SETTING = ("model=tiny-llama", "dtype=float32", "evaluation.n_documents=4", "tracking=none")


def write_toy(experiment, effect, draw_sd, window_sd, n_there):
    """Write a run whose windows' losses are effect + draw + window + a little noise."""
    n = min(experiment.n_windows() or n_there, n_there)
    key = zlib.crc32(experiment.quant.name.encode())
    shared = np.random.default_rng(key).normal(0, 1, n_there)[:n, None]
    own = np.random.default_rng([key, experiment.seed]).normal(0, 1, (n + 1, 1))
    nll = 3 + effect + draw_sd * own[:1] + window_sd * shared + 0.001 * own[1:]
    record = RunRecord(
        schema_version=SCHEMA_VERSION,
        run_id=run_id(experiment),
        status="finished",
        error=None,
        config=experiment.model_dump(mode="json"),
        environment={},
        fingerprints={f"protocol/{PROTOCOL}": f"{n}"},
        stages={},
        metrics=(_metric(PROTOCOL, "perplexity", float(np.exp(nll.mean())), 1.0, n, "perplexity", False),),
        bits_per_weight=3.0,
        checkpoint_bytes=1,
        peak_memory_bytes=1,
    )
    tables = {"items": pd.DataFrame(), "layers": pd.DataFrame()}
    data = RunData(record=record, tokens={PROTOCOL: np.repeat(nll, 2, axis=1)}, **tables)
    write_run(experiment.paths.runs, data, "")


@pytest.fixture
def toy(tmp_path, monkeypatch, capsys, compose):
    """Settle among toy runs, and return the decision; composing takes its cells from what is known."""
    monkeypatch.chdir(tmp_path)
    losses = {}

    def composed(flags, overrides, seeds):
        first = compose(*SETTING, *flags.overrides, *overrides)
        cells = []
        for seed in seeds:
            drawn = first.calibration.model_copy(update={"seed": seed})
            own = {"seed": seed, "calibration": drawn}
            cells.append(Cell(experiment=first.model_copy(update=own), overrides=()))
        return Command(cells=tuple(cells), kind="sweep", hydra=HYDRA)

    def launch(sweep):
        for cell in sweep.cells:
            run.made.append(run_id(cell.experiment))
            write_toy(cell.experiment, *losses[cell.experiment.quant.name])
        return (), []

    monkeypatch.setattr(question, "_compose", composed)
    monkeypatch.setattr(settle, "check_launcher", lambda _: None)
    monkeypatch.setattr(settle, "launch", launch)

    def run(asked, *words, **methods):
        losses.update({name.replace("_", "-"): values for name, values in methods.items()})
        run.made = []
        assert main(["settle", asked, *words]) == 0
        run.out = capsys.readouterr().out
        line = next(line for line in run.out.splitlines() if line.startswith("Decision: "))
        return read_decision(tmp_path / line.removeprefix("Decision: "))

    return run


def test_looks_at_which_nothing_differs_are_drawn_between_limits_that_differ():
    look = LookOfDecision(n_draws=2, n_items=9, mean=0, low=0, high=0, draws_margin=0, items_margin=0)
    contest = ContestOfDecision(a="faq", b="awq", verdict="undecided", looks=(look,), draws_needed=None)
    arms = tuple(ArmOfDecision(name=name, is_calibrated=True, run_ids=()) for name in ("faq", "awq"))
    decision = Decision(
        schema_version=SCHEMA_VERSION, name="same", question="faq < awq", model="tiny-llama", task=PROTOCOL,
        metric="perplexity", unit="ratio", higher_is_better=False, margin=None, alpha=0.05, max_draws=4,
        arms=arms, contests=(contest,), best=None, is_over=False, answer="Not decided.", notes=(),
        settings=(), updated="2025-01-01T00:00:00+00:00",
    )  # fmt: skip
    low, high = draw(decision).figure.axes[0].get_ylim()  # without a warning, which is an error
    assert low < 0 < high


def test_a_clear_difference_is_decided_at_the_first_look(toy, tmp_path):
    decision = toy("faq < awq", "margin=0.5%", faq=(-0.1, 0.01, 0.01, 50), awq=(0, 0.01, 0.01, 50))
    (contest,) = decision.contests
    assert decision.is_over and decision.best == "faq" and contest.verdict == "lower"
    assert [look.n_draws for look in contest.looks] == [5]
    assert decision.answer.startswith(f"Yes: faq is better than awq; its {PROTOCOL} perplexity")
    assert decision.answer in toy.out and len(toy.made) == 10
    page = (tmp_path / "reports" / decision.name / "index.html").read_text()
    assert decision.answer in page and "faq &lt; awq" in page


def test_a_reverse_difference_answers_no(toy):
    decision = toy("faq < awq", faq=(0.1, 0.01, 0.01, 50), awq=(0, 0.01, 0.01, 50))
    assert decision.answer.startswith("No: faq is worse than awq") and decision.best == "awq"


def test_arms_within_the_margin_are_equivalent(toy):
    decision = toy("faq < awq", "margin=2%", faq=(0, 0.001, 0.001, 50), awq=(0, 0.001, 0.001, 50))
    assert decision.contests[0].verdict == "equivalent" and decision.best is None
    assert decision.is_over and "equal within ±2.00\N{NO-BREAK SPACE}%" in decision.answer


def test_a_difference_below_the_margin_is_one_that_is_small(toy):
    decision = toy("faq < awq", "margin=9%", faq=(-0.05, 1e-3, 1e-3, 50), awq=(0, 1e-3, 1e-3, 50))
    assert "better than awq, though by less than the margin of ±9.00\N{NO-BREAK SPACE}%" in decision.answer


def test_a_decision_tells_the_dtype_that_its_machine_chose(toy):
    """A decision of an AVX2 machine was once asked again in bfloat16 on another, whose draws are others."""
    arms = {"faq": (-0.1, 0.01, 0.01, 50), "awq": (0, 0.01, 0.01, 50)}
    assert toy("faq < awq", "tracking=none", **arms).settings[-1] in ("dtype=float32", "dtype=bfloat16")
    (asked,) = [s for s in toy("faq < awq", "dtype=float16", **arms).settings if "dtype" in s]
    assert asked == "dtype=float16"


def test_the_budget_ends_an_open_question_and_a_larger_one_goes_on(toy):
    arms = {"faq": (-0.005, 0.1, 1e-3, 50), "awq": (0, 0.1, 1e-3, 50)}
    decision = toy("faq < awq", "max_draws=7", **arms)
    assert not decision.is_over and decision.answer.startswith("Not decided")
    assert decision.contests[0].draws_needed > 7 and "more draws would" in decision.answer
    assert [look.n_draws for look in decision.contests[0].looks] == [5, 6, 7]
    further = toy("faq < awq", "max_draws=9", "at_once=2", **arms)
    assert further.name == decision.name
    assert [look.n_draws for look in further.contests[0].looks] == [5, 7, 9]


def test_windows_are_added_where_they_dominate(toy):
    arms = {"faq": (-0.01, 1e-4, 0.05, 100), "awq": (0, 1e-4, 0.05, 100)}
    decision = toy("faq < awq", "evaluation.n_windows=10", "max_draws=6", **arms)
    looks = decision.contests[0].looks
    assert [look.n_items for look in looks[:4]] == [10, 20, 40, 80]
    assert {look.n_draws for look in looks[:4]} == {5}
    assert len(decision.arms[0].run_ids) == len(set(decision.arms[0].run_ids))


def test_windows_that_cannot_be_more_end_a_question_that_draws_cannot_decide(toy):
    arms = {"faq": (-0.001, 1e-4, 0.05, 15), "awq": (0, 1e-4, 0.05, 15)}
    decision = toy("faq < awq", "evaluation.n_windows=10", **arms)
    assert [(x.n_draws, x.n_items) for x in decision.contests[0].looks] == [(5, 10), (5, 15)]
    assert not decision.is_over and "no number of draws would" in decision.answer
    look = decision.contests[0].looks[-1]
    (asked,) = re.findall(r"; more than ([0-9]+) could\.", decision.answer)
    assert look.items_margin * (15 / int(asked)) ** 0.5 <= abs(look.mean) < look.items_margin
    assert decision.notes == ("The 15 windows dominate the interval, and there are no more.",)
    capped = toy("faq < awq", "evaluation.n_windows=10", "limit=10", **arms)
    assert {look.n_items for look in capped.contests[0].looks} == {10}


def test_the_best_of_several_is_found_and_what_is_worse_is_dropped(toy):
    decision = toy(
        "faq, qep-awq < awq",
        "max_draws=30",
        faq=(-0.1, 0.04, 1e-3, 50),
        qep_awq=(-0.16, 0.04, 1e-3, 50),
        awq=(0.3, 0.04, 1e-3, 50),
    )
    assert decision.best == "qep-awq" and decision.is_over
    verdicts = {(c.a, c.b): c.verdict for c in decision.contests}
    assert verdicts["faq", "awq"] == verdicts["qep-awq", "awq"] == "lower"
    assert "The best is qep-awq; faq is worse than qep-awq" in decision.answer
    draws = {arm.name: len(arm.run_ids) for arm in decision.arms}
    assert draws["awq"] < draws["faq"]


def test_arms_without_calibration_are_looked_at_once_while_others_are_drawn(toy):
    decision = toy(
        "rtn, fp < awq",
        "max_draws=8",
        "limit=40",
        rtn=(0, 0, 0.5, 50),
        fp=(0, 0, 0.5, 50),
        awq=(0, 0.5, 1e-3, 50),
    )
    looks = {(c.a, c.b): len(c.looks) for c in decision.contests}
    assert looks == {("rtn", "fp"): 1, ("rtn", "awq"): 3, ("fp", "awq"): 3}
    assert toy.out.count("rtn - fp") == 1


def test_a_decision_that_was_tampered_with_is_refused(toy, tmp_path):
    decision = toy("faq < awq", faq=(-0.1, 0.01, 0.01, 50), awq=(0, 0.01, 0.01, 50))
    path = tmp_path / "runs" / "_settled" / f"{decision.name}.json"
    raw = json.loads(path.read_text())
    for change in (
        {"alpha": 2.0},
        {"name": "../../elsewhere"},
        {"arms": raw["arms"][:1]},
        {"contests": []},
        {"contests": [{**raw["contests"][0], "looks": []}]},
        {"best": "gptq"},
        {"schema_version": 2},
    ):
        path.write_text(json.dumps(raw | change))
        with pytest.raises(ValueError, match="decision"):
            read_decision(path)
    assert find_decisions(tmp_path / "runs")[0] == []


def test_what_a_decision_says_is_escaped_on_its_page(toy, tmp_path):
    decision = toy("faq < awq", faq=(-0.1, 0.01, 0.01, 50), awq=(0, 0.01, 0.01, 50))
    evil = dataclasses.replace(decision, answer="<script>alert(1)</script>", notes=("<b>[x](y)",))
    write_decision(tmp_path / "runs", evil)
    folder = write_decision_page(evil, tmp_path / "reports")
    for name in ("index.html", "report.md"):
        text = (folder / name).read_text()
        assert "<script>alert" not in text and "<b>[x]" not in text


QUESTION_SETTING = ["model=tiny-llama", "dtype=float32", "evaluation=quick"]
ASKED = ["faq < awq", *QUESTION_SETTING]


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
        (QUESTION_SETTING, 'settle takes one question, as in "faq < awq"'),
        (["faq < awq", "faq < rtn"], "there are 2."),
        (["faq < awq < rtn"], "it has one < or >"),
        (["faq < awq, rtn"], "challenges 2 arms; right of < stands one."),
        (["faq( < awq"], "'faq(' is no arm"),
        (["faq(gamma) < awq"], "'gamma' of faq is no key=value override."),
        (["fqa < awq", *QUESTION_SETTING], "Did you mean 'faq'?"),
        (["awq < awq", *QUESTION_SETTING], "awq and awq are the same configuration; there is no question."),
        (["awq(bits=3) < awq", *QUESTION_SETTING], "awq(bits=3) and awq are the same configuration"),
        (
            ["faq(limit=1) < awq", *QUESTION_SETTING],
            "faq(limit=1) and awq cannot be paired: evaluation.n_",
        ),
        (
            ["faq(calibration.n_samples=3) < awq", *QUESTION_SETTING],
            "cannot be paired: calibration.n_samples is 3 in one and",
        ),
        (["faq(paths.runs=x) < awq", *QUESTION_SETTING], "cannot be paired: paths.runs is x in one and"),
        (["faq(quant=awq) < awq"], "settle takes no quant=: the question names the arms."),
        ([*ASKED, "seed=0,1"], "settle takes no seed=: its draws are seeds 0, 1, 2, and so on."),
        ([*ASKED, "rerun=true"], "settle takes no rerun="),
        ([*ASKED, "bits=3,4"], "settle asks about one setting"),
        ([*ASKED, "experiment=study"], "settle asks about one setting"),
        ([*ASKED, "metric=heldout-wiki-51"], "Did you mean 'heldout-wiki-512'?"),
        ([*ASKED, "metric=boolq", "evaluation=none"], "evaluation=none measures nothing"),
        (["fp < awq", *QUESTION_SETTING, "metric=heldout-wiki-512.kl"], "and fp is full precision."),
        ([*ASKED, "metric=mean_acc", "evaluation.keep_items=false"], "keep_items=false keeps none"),
        ([*ASKED, "margin=0.5"], "margin '0.5' is not allowed; write 1%, 1pt, 0.01nats"),
        ([*ASKED, "margin=1pt"], "perplexities are compared in percent, as in margin=1%."),
        ([*ASKED, "margin=1%", "metric=mean_acc"], "are compared in points, as in margin=1pt."),
        ([*ASKED, "alpha=0.9"], "alpha=0.9 is not allowed"),
        ([*ASKED, "max_draws=many"], "max_draws=many is not allowed: a whole number"),
        ([*ASKED, "max_draws=1"], "at alpha=0.05 no interval ends before draw 5."),
        (
            ["faq, qep < awq", *QUESTION_SETTING, "max_draws=5"],
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
            *QUESTION_SETTING,
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
