import numpy as np
import pytest

from faqbench.presearch.trials import verdict, weigh

RNG = np.random.default_rng(0)
BASE = 3.0 + RNG.normal(0, 0.5, size=(4, 30))


def shifted(by, noise=0.001, seed=1):
    return BASE + by + np.random.default_rng(seed).normal(0, noise, size=BASE.shape)


def test_the_best_by_perplexity_is_chosen_when_it_stands_alone():
    windows = {"awq": BASE, "a": shifted(-0.1), "b": shifted(-0.05)}
    evidence = weigh(windows, {"awq": [1.0] * 4, "a": [2.0] * 4, "b": [0.1] * 4})
    assert [e.name for e in evidence] == ["a", "b", "awq"]
    assert (evidence[0].tied, evidence[1].tied) == (True, False)


def test_among_those_that_cannot_be_told_apart_the_least_output_error_is_chosen():
    windows = {"awq": BASE, "a": shifted(-0.1, 0.05), "b": shifted(-0.1, 0.05, seed=2)}
    best, other = sorted(("a", "b"), key=lambda n: windows[n].mean())
    errors = {"awq": [1.0], best: [0.3, 0.3], other: [0.1, 0.3]}
    evidence = weigh(windows, errors)
    assert evidence[0].name == other and evidence[0].output_error == pytest.approx(0.2)


def test_the_ratio_to_awq_is_paired():
    (chosen, awq) = weigh({"awq": BASE, "a": shifted(-0.1)}, {"awq": [1.0], "a": [1.0]})
    assert chosen.log_ratio == pytest.approx(-0.1, abs=0.001)
    assert chosen.high - chosen.low < 0.01
    assert (awq.log_ratio, awq.low, awq.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("by", "noise", "words"),
    [(-0.1, 0.001, "better than AWQ"), (0.1, 0.001, "worse than AWQ"), (0.0, 0.5, "cannot be told")],
)
def test_the_verdict_says_no_more_than_the_interval(by, noise, words):
    (chosen, _) = weigh({"awq": BASE, "a": shifted(by, noise)}, {"awq": [1.0], "a": [1.0]})
    assert verdict(chosen).startswith(words)
