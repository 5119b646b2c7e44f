"""The packaged models: anchors of an independent prototype, exact scores, tokens in front."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from faqbench.assets import fetch
from faqbench.cli import main
from faqbench.cli.composing import compose_cells, parse_flags
from faqbench.evaluation import TaskModel, protocol_tokens, resolve_protocol, run_task, score_tokens, scorer
from faqbench.models import load_model
from faqbench.pipeline.calibrating import calibration_set
from faqbench.records import find_runs
from faqbench.stages import PlainProgress, StageCache

WIKITEXT2 = Path(__file__).parents[2].resolve().parent / "shared/data/wikitext2-raw-test.txt"

# No calibration takes part in these, so nothing but rounding may differ.
ANCHORS = {"fp": 29.19, "rtn": 94.4}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    if not WIKITEXT2.is_file():
        pytest.skip(f"{WIKITEXT2} is not there")
    folder = tmp_path_factory.mktemp("packaged")
    overrides = [
        "-m",
        "quant=fp,rtn",
        "evaluation=wikitext2-512",
        "limit=40",
        "dtype=float32",  # as fast as any on every CPU; the anchors hold up to rounding
        "tracking=none",
        f"data.wikitext2_path={WIKITEXT2}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "faqbench", *overrides],
        cwd=folder,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {r.config["quant"]["name"]: r for r in find_runs(folder / "runs")[0]}


@pytest.mark.packaged
@pytest.mark.parametrize("quant", list(ANCHORS))
def test_perplexity_is_that_of_the_independent_prototype(records, quant):
    found = records[quant].metric("wikitext2-512", "perplexity")
    assert found.value == pytest.approx(ANCHORS[quant], rel=0.005)
    assert found.n == 40 * 511


@pytest.mark.packaged
def test_the_tokens_of_the_protocol_are_verified_and_the_gates_pass(records):
    for record in records.values():
        assert not any("unverified" in warning for warning in record.warnings)
        assert [g for g in record.gates if not g.passed] == []


@pytest.mark.packaged
def test_all_linears_of_all_thirty_blocks_are_quantized(records):
    gate = next(g for g in records["rtn"].gates if g.name == "all_linears_quantized")
    assert gate.detail.startswith("210 of 210")
    assert records["rtn"].bits_per_weight == pytest.approx(3 + (16 + 3) / 64)


TASK = "arc_easy_validation"


@pytest.mark.packaged
def test_a_tokenizer_whose_template_adds_no_bos_gives_one_in_front_of_every_request(tmp_path):
    def scored(add_bos):
        runs = tmp_path / add_bos
        cell = ["model=tiny-llama", "quant=fp", "evaluation.protocols=[]", "limit=4"]
        cell += [f"evaluation.tasks=[{TASK}]", "tracking=none", "dtype=float32"]
        assert main(["-q", *cell, f"evaluation.add_bos={add_bos}", f"paths.runs={runs}"]) == 0
        ((record,), _) = find_runs(runs)
        return record.extra["evaluation"][TASK]["config"]

    with_bos, without = scored("true"), scored("false")
    assert with_bos["add_bos"] and not without["add_bos"]
    more = with_bos["n_unshared_tokens"] - without["n_unshared_tokens"]
    assert more == with_bos["n_requests"] > 8


@pytest.fixture(scope="module")
def gemma():
    fetch(PlainProgress(), ["gemma3-270m"], accept_terms=True)
    (experiment,) = compose_cells(parse_flags(["model=gemma3-270m", "quant=awq"])).experiments
    loaded = load_model(experiment.model, torch.float32, torch.device("cpu"), PlainProgress())
    return experiment, loaded


def perplexity(experiment, loaded, *, add_bos):
    evaluation = experiment.evaluation.model_copy(update={"add_bos": add_bos, "n_windows": 4})
    changed = experiment.model_copy(update={"evaluation": evaluation})
    protocol = resolve_protocol("heldout-wiki-512", changed.data)
    tokens = protocol_tokens(protocol, loaded.tokenizer, changed, PlainProgress())
    assert tokens.verified
    nll = score_tokens(loaded.model, tokens.tokens, 512, PlainProgress()).nll
    return float(torch.tensor(nll).double().mean().exp())


@pytest.mark.terms
def test_it_is_the_model_of_its_card(gemma):
    _, loaded = gemma
    assert sum(p.numel() for p in loaded.model.parameters()) == 268_098_176
    assert loaded.architecture.family == "gemma3" and loaded.architecture.n_blocks == 18
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    assert loaded.tokenizer.bos_token_id == 2 and len(loaded.tokenizer) == 262_144


@pytest.mark.terms
def test_its_perplexity_is_sane_with_bos_and_garbage_without(gemma):
    experiment, loaded = gemma
    with_bos = perplexity(experiment, loaded, add_bos=True)
    assert 10 < with_bos < 30
    assert perplexity(experiment, loaded, add_bos=False) > 1.5 * with_bos


@pytest.mark.terms
def test_every_calibration_window_begins_with_bos(gemma, tmp_path):
    experiment, loaded = gemma
    cache, progress = StageCache(tmp_path), PlainProgress()
    drawn, _ = calibration_set(experiment, loaded.tokenizer, cache, progress)
    assert drawn.tokens.shape == (32, 512) and set(drawn.tokens[:, 0].tolist()) == {2}
    assert not (drawn.tokens[:, 1:] == 2).any()


@torch.inference_mode()
def float64_score(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    """Return a continuation's log-likelihood; lm-eval counts the context's last spaces to it."""
    kept = context.rstrip()
    ids = tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
    start = len(tokenizer(kept, add_special_tokens=False)["input_ids"])
    logits = model(torch.tensor([ids])).logits.log_softmax(dim=-1)
    return sum(float(logits[0, i - 1, ids[i]]) for i in range(start, len(ids)))


# Against lm-eval's HFLM over all documents of ARC, minutes each; by hand: pytest -m benchmark FILE -s
@pytest.mark.packaged
@pytest.mark.benchmark
@pytest.mark.parametrize("task", ["arc_easy_validation", "arc_challenge_validation"])
def test_every_document_scores_as_in_hflm_at_batch_one(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = parse_flags(("quant=fp", "evaluation=none", "dtype=float32"))
    experiment = compose_cells(flags).experiments[0]
    progress = PlainProgress()
    loaded = load_model(experiment.model, torch.float32, torch.device("cpu"), progress)
    answers: list[list[tuple[float, bool]]] = []
    asked: list[Any] = []
    ask = scorer.Scorer.loglikelihood

    def recording(self: Any, requests: list[Any]) -> list[tuple[float, bool]]:
        asked[:] = requests
        answers.append(ask(self, requests))
        return answers[-1]

    def score(**settings: Any) -> pd.DataFrame:
        changed = experiment.evaluation.model_copy(update=settings)
        cell = experiment.model_copy(update={"evaluation": changed})
        start = time.perf_counter()
        items = run_task(task, TaskModel(loaded.model, loaded.tokenizer), cell, progress).items
        print(f"{task} {settings}: {len(answers[-1])} requests, {time.perf_counter() - start:.0f} s")
        return items

    monkeypatch.setattr(scorer.Scorer, "loglikelihood", recording)
    packed = score(batch_tokens=2048)
    monkeypatch.setattr(TaskModel, "refusal", lambda *_: "compared with it")
    plain = score(batch_size=1)

    found, expected = (np.array([value for value, _ in column]) for column in answers)
    print(f"{task}: largest difference {np.abs(found - expected).max():.1e} nats")
    pd.testing.assert_frame_equal(packed, plain)
    # Where the two are farther apart it is by HFLM's own rounding: float64 is nearer to the packed score.
    apart = np.flatnonzero(np.abs(found - expected) > 1e-4)
    assert len(apart) <= len(found) // 1000
    exact = loaded.model.double() if len(apart) else None
    for index in apart:
        truth = float64_score(exact, loaded.tokenizer, *asked[index].args)
        print(f"request {index}: {found[index]} packed, {expected[index]} HFLM, {truth} in float64")
        assert abs(found[index] - truth) < min(1e-4, abs(expected[index] - truth))
    assert [greedy for _, greedy in answers[0]] == [greedy for _, greedy in answers[1]]
