"""Packed scores of the packaged model against lm-eval's HFLM at batch 1, over all documents of ARC.

Minutes each, so run by hand:  pytest -m benchmark tests/integration/test_exact_scores.py -s
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from faqbench.cli.composing import compose_cells, parse_flags
from faqbench.evaluation import TaskModel, run_task, scorer
from faqbench.models import load_model
from faqbench.stages import PlainProgress

pytestmark = [pytest.mark.packaged, pytest.mark.benchmark]


@torch.inference_mode()
def float64_score(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    """Return a continuation's log-likelihood; lm-eval counts the context's last spaces to it."""
    kept = context.rstrip()
    ids = tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
    start = len(tokenizer(kept, add_special_tokens=False)["input_ids"])
    logits = model(torch.tensor([ids])).logits.log_softmax(dim=-1)
    return sum(float(logits[0, i - 1, ids[i]]) for i in range(start, len(ids)))


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
