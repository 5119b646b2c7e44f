"""Two runs against each other: what differs, and nothing else; runs paired for a sequential decision."""

import math

import numpy as np
import pytest
from toy_parts import PROTOCOL, TASKS

from faqbench.config import UserError
from faqbench.records import read_run
from faqbench.report import PairedStore, pair_runs, pair_tables, write_pair

HOSTILE = "<script>alert(1)</script> & [b]x[/b]"


@pytest.fixture(scope="module")
def pair(make_run, tmp_path_factory):
    runs = tmp_path_factory.mktemp("pair")
    a, b = make_run(runs, "faq"), make_run(runs, "awq")
    return runs, pair_runs(runs, a, b)


def table(pair, title):
    return next(t for t in pair_tables(pair) if t.caption.startswith(title))


def test_the_keys_that_differ_are_listed_and_no_other(pair):
    keys = {key: values for key, *values in pair[1].keys}
    assert keys["quant.name"] == ["faq", "awq"] and keys["quant.scale"] == ["faq", "awq"]
    assert keys["quant.preview.gamma"] == ["0.85", "—"]
    assert not {k for k in keys if not k.startswith("quant.")}


def test_equal_settings_of_other_draws_differ_in_the_seed_alone(make_run, tmp_path):
    a, b = make_run(tmp_path, "awq", seed=0), make_run(tmp_path, "awq", seed=1)
    found = pair_runs(tmp_path, a, b)
    assert found.keys == (("calibration.seed", "0", "1"),)
    assert (found.name_a, found.name_b) == ("AWQ, 3 bits, seed=0", "AWQ, 3 bits, seed=1")
    assert all(not delta.comparison.refused for delta in found.metrics)


def test_a_run_against_itself_differs_in_nothing(make_run, tmp_path):
    a = make_run(tmp_path, "awq")
    found = pair_runs(tmp_path, a, a)
    assert not found.keys and not found.environment
    assert all(d.comparison.effect == 0 for d in found.metrics)
    assert all(not f.only_a and not f.only_b for f in found.flips)
    assert "no key that decides a result differs" in found.verdict


def test_metric_differences_are_those_of_the_paired_arrays(pair):
    runs, found = pair
    losses = [read_run(runs / r.runs[0].run_id).tokens["heldout-wiki-512"] for r in (found.a, found.b)]
    mean = np.mean([x.mean(axis=1, dtype=np.float64) for x in losses], axis=1)
    delta = next(d for d in found.metrics if d.column.kind == "perplexity")
    assert delta.comparison.effect == pytest.approx(mean[0] - mean[1])
    assert delta.comparison.low < delta.comparison.effect < delta.comparison.high


def test_flipped_items_are_named_by_their_index(pair):
    runs, found = pair
    flips = next(f for f in found.flips if f.task == "arc_easy_validation")
    items = [read_run(runs / r.runs[0].run_id).items for r in (found.a, found.b)]
    right = [set(i[(i.task == flips.task) & (i.metric == "acc") & (i.value == 1)].item) for i in items]
    assert set(flips.only_a) == right[0] - right[1] and set(flips.only_b) == right[1] - right[0]
    assert flips.only_a or flips.only_b


def test_windows_and_linears_come_with_the_largest_difference_first(pair):
    _, found = pair
    sizes = [abs(w.a - w.b) for w in found.windows]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == 40
    growth = [m.growth for m in found.linears]
    assert growth == sorted(growth, reverse=True) and len(growth) == 7 * 30
    assert len(found.blocks) == 30


def test_the_verdict_is_one_sentence_with_numbers_and_the_guilty_linear(pair):
    verdict = pair[1].verdict
    assert verdict.startswith("FAQ, 3 bits, against AWQ, 3 bits: ahead on this one calib")
    assert "not decidable in mean accuracy over 4 tasks" in verdict
    assert "errors differ most in block" in verdict and verdict.count(". ") == 0


def test_runs_on_different_texts_are_not_paired_and_say_so(make_run, tmp_path):
    a, b = make_run(tmp_path, "awq"), make_run(tmp_path, "faq", protocol_print="q" * 64)
    found = pair_runs(tmp_path, a, b)
    perplexities = [d for d in found.metrics if d.column.kind == "perplexity"]
    assert all(math.isnan(d.comparison.effect) for d in perplexities)
    assert not found.windows
    assert "different texts" in table(found, "Metrics").rows[0][-1].text


def test_full_precision_has_no_linears_to_blame(make_run, tmp_path):
    a, b = make_run(tmp_path, "rtn"), make_run(tmp_path, "fp")
    found = pair_runs(tmp_path, a, b)
    assert found.linears == () == found.blocks
    assert found.verdict.startswith("RTN, 3 bits, against full precision: worse in perplexity")


def test_damaged_tables_are_listed_and_the_rest_is_shown(make_run, tmp_path):
    a, b = make_run(tmp_path, "awq"), make_run(tmp_path, "faq")
    (tmp_path / b.run_id / "tokens.npz").write_bytes(b"torn")
    found = pair_runs(tmp_path, a, b)
    assert [run_id for run_id, _ in found.damaged] == [b.run_id]
    assert found.keys and found.costs


def test_the_page_is_self_contained_and_the_same_bytes_twice(pair, tmp_path):
    runs, found = pair
    write_pair(found, runs, tmp_path / "deep" / "a.html")
    write_pair(found, runs, tmp_path / "b.html")
    text = (tmp_path / "deep" / "a.html").read_text()
    assert text == (tmp_path / "b.html").read_text()
    assert found.verdict in text and "https:" not in text
    assert text.count("<figure") == 2


def test_hostile_names_are_escaped_on_the_page(make_run, tmp_path):
    a = make_run(tmp_path, HOSTILE, run_id="a")
    b = make_run(tmp_path, "awq", run_id="b", model__notes=HOSTILE, calibration__domain=HOSTILE)
    write_pair(pair_runs(tmp_path, a, b), tmp_path, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text


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
    paired = PairedStore(runs).differences(faq, awq, kind=kind, task=task)
    expected = [
        a.metric(task, metric).value - b.metric(task, metric).value for a, b in zip(faq, awq, strict=False)
    ]
    assert paired.n == n_items and len(paired.differences) == 2
    assert (paired.weights is None) == (kind != "acc")
    assert paired.differences.mean(axis=1) == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_perplexities_are_compared_by_their_logarithms(draws):
    runs, faq, awq = draws
    paired = PairedStore(runs).differences(faq, awq, kind="perplexity", task=PROTOCOL)
    pairs = [
        (a.metric(PROTOCOL, "perplexity"), b.metric(PROTOCOL, "perplexity"))
        for a, b in zip(faq, awq, strict=False)
    ]
    expected = [math.log(a.value / b.value) for a, b in pairs]
    assert paired.differences.mean(axis=1) == pytest.approx(expected, abs=1e-6)


def test_the_mean_over_tasks_weighs_tasks_alike(draws):
    runs, faq, awq = draws
    paired = PairedStore(runs).differences(faq, awq, kind="mean_acc", task="")
    means = [sum(r.metric(t, "acc").value for t in TASKS) / len(TASKS) for r in (faq[0], awq[0])]
    assert paired.n == 100 * len(TASKS)
    assert paired.differences[0].mean() == pytest.approx(means[0] - means[1])


def test_runs_without_the_metric_or_on_other_texts_are_refused(draws, make_run, tmp_path):
    runs, faq, awq = draws
    with pytest.raises(UserError, match="have no perplexity c4-new-2048"):
        PairedStore(runs).differences(faq, awq, kind="perplexity", task="c4-new-2048")
    a = make_run(tmp_path, "faq")
    b = make_run(tmp_path, "awq", protocol_print="other")
    with pytest.raises(UserError, match="cannot be paired: different texts under one name"):
        PairedStore(tmp_path).differences([a], [b], kind="perplexity", task=PROTOCOL)
