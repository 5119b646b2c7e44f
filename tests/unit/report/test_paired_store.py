"""Runs paired for a sequential decision, on every kind of metric."""

import math

import pytest
from toy_parts import PROTOCOL, TASKS

from faqbench.config import UserError
from faqbench.report import PairedStore


@pytest.fixture(scope="module")
def draws(tmp_path_factory, make_run):
    runs = tmp_path_factory.mktemp("paired")
    made = {m: [make_run(runs, m, seed=s) for s in (0, 1)] for m in ("awq", "faq")}
    return runs, made["faq"], made["awq"]


@pytest.mark.parametrize(
    ("kind", "task", "metric", "n_items"),
    [
        ("kl", PROTOCOL, "kl_divergence", 40),
        ("agreement", PROTOCOL, "top1_agreement", 40),
        ("acc", TASKS[0], "acc", 100),
    ],
)
def test_the_mean_of_paired_differences_is_the_difference_of_the_metrics(
    draws, kind, task, metric, n_items
):
    runs, faq, awq = draws
    found, n = PairedStore(runs).differences(faq, awq, kind=kind, task=task)
    expected = [
        a.metric(task, metric).value - b.metric(task, metric).value for a, b in zip(faq, awq, strict=False)
    ]
    assert n == n_items and found.shape[0] == 2
    assert found.mean(axis=1) == pytest.approx(expected, rel=0.05, abs=2e-3)


def test_perplexities_are_compared_by_their_logarithms(draws):
    runs, faq, awq = draws
    found, _ = PairedStore(runs).differences(faq, awq, kind="perplexity", task=PROTOCOL)
    pairs = [
        (a.metric(PROTOCOL, "perplexity"), b.metric(PROTOCOL, "perplexity"))
        for a, b in zip(faq, awq, strict=False)
    ]
    expected = [math.log(a.value / b.value) for a, b in pairs]
    assert found.mean(axis=1) == pytest.approx(expected, abs=5e-3)


def test_the_mean_over_tasks_weighs_tasks_alike(draws):
    runs, faq, awq = draws
    found, n = PairedStore(runs).differences(faq, awq, kind="mean_acc", task="")
    means = [sum(r.metric(t, "acc").value for t in TASKS) / len(TASKS) for r in (faq[0], awq[0])]
    assert n == 100 * len(TASKS)
    assert found[0].mean() == pytest.approx(means[0] - means[1])


def test_runs_without_the_metric_or_on_other_texts_are_refused(draws, make_run, tmp_path):
    runs, faq, awq = draws
    with pytest.raises(UserError, match="have no perplexity c4-new-2048"):
        PairedStore(runs).differences(faq, awq, kind="perplexity", task="c4-new-2048")
    a = make_run(tmp_path, "faq")
    b = make_run(tmp_path, "awq", protocol_print="other")
    with pytest.raises(UserError, match="cannot be paired: different texts under one name"):
        PairedStore(tmp_path).differences([a], [b], kind="perplexity", task=PROTOCOL)
