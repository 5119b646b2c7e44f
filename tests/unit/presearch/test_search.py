"""A whole search on a tiny model."""

import csv
import io
import json
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
from faqbench.presearch.search import evidence_json, preset_yaml, trials_csv
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
