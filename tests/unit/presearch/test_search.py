"""A whole search on a tiny model, and its parts: candidates, halving, the choice."""

import csv
import io
import json
import math
from datetime import date

import numpy as np
import pytest
import torch
import yaml

from faqbench.cli import main
from faqbench.cli.composing import compose_cells, parse_flags
from faqbench.config import UserError
from faqbench.corpora import part_of
from faqbench.evaluation import score_tokens
from faqbench.hardware import resolve_device
from faqbench.models import load_model
from faqbench.pipeline.calibrating import activation_store, calibration_set, selection_set
from faqbench.presearch import search, write_search
from faqbench.presearch.search import evidence_json, preset_yaml, successive_halving, trials_csv
from faqbench.presearch.trials import AWQ, candidates, verdict, weigh
from faqbench.quantization import Calibration, QuantizedTensors, assign_grids, quantize_model
from faqbench.stages import PlainProgress, StageCache

DAY = date(2026, 11, 26)


def test_a_search_tries_every_candidate_and_chooses_one_of_them(found):
    result = found()
    assert len(result.history[0]) == 5 and len(result.history[1]) == 3
    assert {d for _, d in result.trials} == {0, 1}
    assert result.chosen.name in result.history[1] and result.chosen.name != "awq"
    assert result.evidence[-1].name == "awq"


def test_a_search_that_is_taken_up_again_computes_nothing_and_finds_the_same(found, tmp_path):
    first, again = found(cache=tmp_path), found(cache=tmp_path)
    assert not any(trial.cached for trial in first.trials.values())
    assert all(trial.cached for trial in again.trials.values())
    assert first.evidence == again.evidence
    assert trials_csv(first) == trials_csv(again)


def test_a_trial_does_not_depend_on_those_before_it(found, tmp_path):
    whole = found()
    shuffled = found("presearch.rounds=[2]", "presearch.n_windows=4", cache=tmp_path)
    key = ("window=2 gamma=0.9 roles=all", 0)
    assert np.array_equal(whole.trials[key].windows, shuffled.trials[key].windows)


def test_awq_in_the_search_is_awq(compose, overrides, found, tmp_path):
    trial = found().trials["awq", 0]
    experiment = compose("quant=awq", *overrides)
    cache, progress = StageCache(tmp_path / "other"), PlainProgress()
    loaded = load_model(experiment.model, torch.float32, resolve_device("cpu"), progress)
    drawn, _ = calibration_set(experiment, loaded.tokenizer, cache, progress)
    selection = selection_set(experiment, loaded.tokenizer, cache, progress)
    assert all(part_of(text) == "selection" for text in selection.texts)
    store, _ = activation_store(experiment, loaded, drawn, cache, progress)
    grids = assign_grids(loaded.architecture, experiment.quant)
    calibration = Calibration(tokens=drawn.tokens, batch_size=4, select="all")
    linears = {}
    quantize_model(loaded, experiment.quant, grids, store, calibration, progress, keep=linears.__setitem__)
    quantized = loaded.view.view(tensors=QuantizedTensors(loaded.view.tensors, linears))
    budget = experiment.evaluation.batch_tokens
    nll = score_tokens(quantized.fill().module, selection.tokens, budget, progress).nll
    assert np.array_equal(trial.windows, nll.mean(axis=1, dtype=np.float64))


def test_a_method_without_a_preview_is_one_sentence(compose, overrides, tmp_path, notes):
    experiment = compose("quant=awq", *overrides)
    with pytest.raises(UserError, match=r"quant=awq has none .*; use quant=faq"):
        search(experiment, cache=StageCache(tmp_path), progress=notes)


def test_a_rotated_model_is_refused_in_one_sentence(compose, overrides, tmp_path, notes):
    experiment = compose("quant=faq", "quant.rotate=hadamard", *overrides)
    with pytest.raises(UserError, match=r"quant\.rotate=hadamard .* use quant\.rotate=none"):
        search(experiment, cache=StageCache(tmp_path), progress=notes)


def test_the_table_has_a_row_per_trial_with_options_and_errors_by_role(found):
    result = found()
    rows = list(csv.DictReader(io.StringIO(trials_csv(result))))
    assert len(rows) == len(result.trials) == 5 + 3
    assert {"window", "gamma", "perplexity", "output_error_qkv", "output_error_down"} <= set(rows[0])
    assert all(float(row["perplexity"]) > 1 and 0 < float(row["output_error"]) < 1 for row in rows)


def test_the_preset_is_a_choice_of_quant_with_its_evidence(found):
    result = found()
    path = write_search(result, DAY)
    assert path.name == "faq-tiny-llama-2026-11-26.yaml"
    assert path.parent.parent.name == "tiny-llama-w3-g32-quick"
    text = path.read_text()
    assert "against AWQ" in text and "4 windows of 32 tokens" in text
    raw = yaml.safe_load(text)
    assert raw["preview"]["window"] == result.chosen.preview.window
    (composed,) = compose_dir(path.parent.parent, path.stem)
    assert composed.quant.preview == result.chosen.preview
    assert composed.quant.scale == "faq" and composed.quant.clip == "search"


def compose_dir(folder, preset):
    flags = parse_flags(["--config-dir", str(folder), f"quant={preset}", "model=tiny-llama"])
    return compose_cells(flags).experiments


def test_the_evidence_is_json_with_rounds_and_finalists(found):
    result = found()
    content = json.loads(evidence_json(result, DAY))
    assert content["chosen"] == result.chosen.name and content["date"] == "2026-11-26"
    assert len(content["rounds"]) == 2 and len(content["finalists"]) == 3
    assert f"# {content['verdict']}." in preset_yaml(result, DAY)


def test_the_verb_searches_writes_and_says_how_to_use_the_preset(overrides, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FAQBENCH_CACHE", str(tmp_path / "cache"))
    assert main(["presearch", *overrides]) == 0
    out, err = capsys.readouterr()
    assert "dtype=float32 on " in err
    assert "chosen" in out and "--config-dir" in out and "against AWQ" in out
    assert list((tmp_path / "presearch").glob("*/quant/faq-tiny-llama-*.yaml"))
    assert list((tmp_path / "presearch").glob("*/trials.csv"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-m", "bits=3,4"], "give it one model and one setting"),
        (["quant=rtn"], "use quant=faq"),
        (["presearch=qick"], "Did you mean 'quick'?"),
    ],
)
def test_a_mistake_is_one_sentence(overrides, tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.setenv("FAQBENCH_CACHE", str(tmp_path / "cache"))
    flags = [word for word in arguments if word.startswith("-")]
    rest = [word for word in arguments if not word.startswith("-")]
    assert main(["presearch", *flags, *overrides, *rest]) == 2
    assert sentence in capsys.readouterr().err.strip().splitlines()[-1]


GRID = (
    "presearch.grids=[{{window: {}, gamma: {}, roles: {}, source: [same_role], stream: [full], "
    "weights: {}, norm: [none], fuse: [convex]}}]"
)


@pytest.fixture
def names(compose):
    def make(window="[1]", gamma="[0.5]", roles="[all]", weights="[uniform]", *more):
        grid = GRID.format(window, gamma, roles, weights)
        experiment = compose("model=tiny-llama", "quant=faq", grid, *more)
        return [candidate.name for candidate in candidates(experiment)]

    return make


def test_every_combination_is_a_candidate_and_awq_comes_first(names):
    found = names("[1, 2]", "[0.5, 0.9]", "[all, residual]")
    assert found[0] == AWQ and len(found) == 1 + 8
    assert "window=2 gamma=0.9 roles=residual" in found


def test_choices_that_preview_nothing_are_awq_itself(names):
    assert names("[0, 2]", "[1.0]") == [AWQ]


def test_weights_do_not_tell_windows_of_one_apart(names):
    assert len(names("[1]", weights="[uniform, linear]")) == 2
    assert len(names("[2]", weights="[uniform, linear]")) == 3


def test_a_candidate_changes_the_preview_alone(compose):
    experiment = compose("model=tiny-llama", "quant=qep-faq", "quant.preview.norm=mean")
    chosen = candidates(experiment)[1]
    method = chosen.quant(experiment.quant)
    same = {"preview": experiment.quant.preview, "trace_windows": experiment.quant.trace_windows}
    assert method.model_copy(update=same) == experiment.quant
    assert method.preview.norm == "none" and method.preview.window == 1


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["presearch.rounds=[2,1]"], r"presearch.rounds=\[2, 1\] must be rising"),
        (["presearch.rounds=[]"], r"presearch.rounds=\[\] must be rising"),
        (["presearch.grids=[]"], "has no candidate"),
        ([GRID.format("[]", "[0.5]", "[all]", "[uniform]")], "has no value for window"),
        ([GRID.format("[1]", "[0.5]", "[al]", "[uniform]")], "Did you mean 'all'?"),
        (["presearch.keep=1.5"], "presearch.keep=1.5 is not allowed"),
        (["presearch.domains=[]"], "names no text"),
    ],
)
def test_a_search_that_means_nothing_is_one_sentence(compose, overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        compose("model=tiny-llama", *overrides)


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


LOSSES = {"awq": 5.0, "a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}


def run(rounds, keep, losses=LOSSES):
    asked = []

    def loss(name, draw):
        asked.append((name, draw))
        return losses[name] + 0.01 * draw

    return successive_halving(list(losses), rounds, keep, loss, "awq"), asked


def test_the_best_share_goes_on_and_the_baseline_always():
    history, _ = run([1, 2, 3], 0.5)
    assert history[0] == ["a", "b", "c", "d", "awq"]
    assert history[1] == ["a", "b", "awq"]
    assert history[2] == ["a", "awq"]


def test_every_pair_is_asked_for_once():
    _, asked = run([1, 2, 3], 0.5)
    assert len(asked) == len(set(asked)) == 5 + 3 + 2
    assert [d for n, d in asked if n == "awq"] == [0, 1, 2]


def test_one_rival_is_always_left():
    history, _ = run([1, 2], 0.01)
    assert history[-1] == ["a", "awq"]


def test_a_later_draw_can_turn_the_order():
    losses = {("awq", 0): 9, ("awq", 1): 9, ("a", 0): 1, ("a", 1): 9, ("b", 0): 2, ("b", 1): 3}
    history = successive_halving(
        ["awq", "a", "b"], [1, 2], 0.99, lambda name, draw: losses[name, draw], "awq"
    )
    assert history == [["a", "b", "awq"], ["b", "a", "awq"]]


def test_a_loss_that_is_not_a_number_is_the_worst():
    history, _ = run([1], 0.5, LOSSES | {"a": math.nan})
    assert history[0][-1] == "a"


FOUR_CANDIDATES = (
    "presearch.grids=[{window: [1, 2], gamma: [0.5, 0.9], roles: [all], source: [same_role], "
    "stream: [full], weights: [uniform], norm: [none], fuse: [convex]}]"
)


class Notes(PlainProgress):
    """A progress that remembers what it was told."""

    def __init__(self):
        super().__init__()
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(autouse=True)
def small_tensors(one_thread):
    """All tensors here are small."""


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "toy.txt"
    texts = [f"Text {i}. " + "the weight of a group, " * (3 + i % 5) for i in range(120)]
    path.write_text("\n\n".join(texts))
    return path


@pytest.fixture
def overrides(tmp_path, text_file):
    return (
        "model=tiny-llama",
        "dtype=float32",
        "calibration.n_samples=4",
        "calibration.seq_len=32",
        f"calibration.domain={text_file}",
        f"paths.presearch={tmp_path / 'presearch'}",
        "presearch.rounds=[1,2]",
        "presearch.keep=0.5",
        "presearch.n_windows=4",
        FOUR_CANDIDATES,
    )


@pytest.fixture
def notes():
    return Notes()


@pytest.fixture(scope="session")
def searched(tmp_path_factory):
    return tmp_path_factory.mktemp("searched")


@pytest.fixture
def found(compose, overrides, searched, notes):
    """Search: in a cache that all tests share, or in one of its own."""

    def make(*more, cache=searched):
        experiment = compose("quant=faq", *overrides, *more)
        return search(experiment, cache=StageCache(cache), progress=notes)

    return make
