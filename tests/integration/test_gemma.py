"""Gemma 3 270M: fetched only here, by whoever accepts its terms of use with `pytest -m terms`."""

import pytest
import torch

from faqbench.assets import fetch
from faqbench.cli.composing import compose_cells, parse_flags
from faqbench.evaluation import protocol_tokens, resolve_protocol, score_tokens
from faqbench.models import load_model
from faqbench.pipeline.calibrating import calibration_set
from faqbench.stages import PlainProgress, StageCache

pytestmark = pytest.mark.terms


@pytest.fixture(scope="module")
def gemma():
    fetch(PlainProgress(), ["gemma3-270m"], accept_terms=True)
    (experiment,) = compose_cells(parse_flags(["model=gemma3-270m", "quant=awq"])).experiments
    loaded = load_model(experiment.model, torch.float32, torch.device("cpu"), PlainProgress())
    return experiment, loaded


def perplexity(experiment, loaded, *, add_bos):
    evaluation = experiment.evaluation.model_copy(update={"add_bos": add_bos, "n_windows": 4})
    changed = experiment.model_copy(update={"evaluation": evaluation})
    protocol = resolve_protocol("heldout-wiki-512", changed)
    tokens = protocol_tokens(protocol, loaded.tokenizer, changed, PlainProgress())
    assert tokens.verified
    nll = score_tokens(loaded.model, tokens.tokens, 512, PlainProgress()).nll
    return float(torch.tensor(nll).double().mean().exp())


def test_it_is_the_model_of_its_card(gemma):
    _, loaded = gemma
    assert sum(p.numel() for p in loaded.model.parameters()) == 268_098_176
    assert loaded.architecture.family == "gemma3" and loaded.architecture.n_blocks == 18
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    assert loaded.tokenizer.bos_token_id == 2 and len(loaded.tokenizer) == 262_144


def test_its_perplexity_is_sane_with_bos_and_garbage_without(gemma):
    experiment, loaded = gemma
    with_bos = perplexity(experiment, loaded, add_bos=True)
    assert 10 < with_bos < 30
    assert perplexity(experiment, loaded, add_bos=False) > 1.5 * with_bos


def test_every_calibration_window_begins_with_bos(gemma, tmp_path):
    experiment, loaded = gemma
    cache, progress = StageCache(tmp_path), PlainProgress()
    drawn, _ = calibration_set(experiment, loaded.tokenizer, cache, progress)
    assert drawn.tokens.shape == (32, 512) and set(drawn.tokens[:, 0].tolist()) == {2}
    assert not (drawn.tokens[:, 1:] == 2).any()
