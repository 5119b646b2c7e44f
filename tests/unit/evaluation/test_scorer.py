"""The `LM` that lm-eval asks, against lm-eval's own HFLM: tokens, truncation, and what it records."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from faqbench.config import UserError
from faqbench.evaluation.scorer import TaskModel, make_scorer
from faqbench.stages import PlainProgress

# Trailing spaces move to the continuation, an empty context is the prefix token, a BOS in the text is kept.
PAIRS = [
    ("Question: what? Answer:", " this"),
    ("Question: what? Answer:", " that one"),
    ("ends with spaces  ", "next"),
    ("", "nothing before"),
    ("", "<s>starts with it"),
    ("<s>has a BOS", " already"),
    ("long " * 200, " answer"),
    ("long " * 200, " other answer"),
    ("x", "y"),
]


def instances(pairs: list[tuple[str, str]], task: str = "toy") -> list[Any]:
    return [SimpleNamespace(args=pair, task_name=task) for pair in pairs]


@pytest.fixture
def scorer(
    tiny_llama: Any, byte_tokenizer: Any, experiment: Any, progress: PlainProgress
) -> Callable[..., Any]:
    def make(model: Any = tiny_llama, **changed: Any) -> Any:
        return make_scorer(TaskModel(model, byte_tokenizer), experiment(**changed), progress, "toy")

    return make


@pytest.mark.parametrize("add_bos", [False, True])
def test_texts_score_as_in_hflm_at_batch_one(
    add_bos: bool, scorer: Any, tiny_llama: Any, byte_tokenizer: Any
) -> None:
    from lm_eval.models.huggingface import HFLM

    own = HFLM(
        pretrained=tiny_llama,
        tokenizer=copy.deepcopy(byte_tokenizer),
        batch_size=1,
        add_bos_token=add_bos,
    )
    expected = own.loglikelihood(instances(PAIRS), disable_tqdm=True)
    ours = scorer(add_bos=add_bos)
    found = ours.loglikelihood(instances(PAIRS))
    np.testing.assert_allclose([f[0] for f in found], [e[0] for e in expected], atol=1e-4, rtol=0)
    assert [f[1] for f in found] == [e[1] for e in expected]
    assert ours.facts.n_truncated == 2
    assert ours.facts.to_json()["scorer"] == "packed"


def test_a_score_does_not_depend_on_which_other_tasks_run(scorer: Any, tiny_llama: Any) -> None:
    half = copy.deepcopy(tiny_llama).to(torch.bfloat16)
    alone = scorer(half).loglikelihood(instances(PAIRS, "one"))
    others = instances([(c + "!", w) for c, w in PAIRS], "other")
    mixed = [i for pair in zip(others, instances(PAIRS, "one"), strict=True) for i in pair]
    assert scorer(half).loglikelihood(mixed)[1::2] == alone


def test_a_model_that_cannot_be_packed_goes_through_hflm_and_says_why(
    scorer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = scorer().loglikelihood(instances(PAIRS))
    monkeypatch.setattr(TaskModel, "refusal", lambda *_: "it is odd")
    ours = scorer()
    found = ours.loglikelihood(instances(PAIRS))
    np.testing.assert_allclose([f[0] for f in found], [p[0] for p in packed], atol=1e-4, rtol=0)
    facts = ours.facts.to_json()
    assert facts["scorer"] == "hflm (it is odd)"
    assert facts["n_tokens"] == facts["n_unshared_tokens"] > 0


def test_rolling_log_likelihoods_are_hflms_and_recorded(scorer: Any) -> None:
    ours = scorer()
    requests = [SimpleNamespace(args=("some text " * n,), task_name="toy") for n in (3, 70)]
    found = ours.loglikelihood_rolling(requests)
    assert found[1] < found[0] < 0
    assert ours.facts.to_json()["scorer"] == "hflm (rolling log-likelihoods)"


def test_generation_is_hflms_and_recorded(scorer: Any) -> None:
    ours = scorer()
    arguments = ("begin", {"until": ["z"], "max_gen_toks": 3})
    found = ours.generate_until([SimpleNamespace(args=arguments, task_name="toy")])
    assert len(found) == 1 and isinstance(found[0], str)
    assert ours.facts.to_json()["scorer"] == "hflm (generation)"


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        (("context", ""), r"Task 'toy' has a request whose continuation has no tokens"),
        (("  ", "after spaces"), r"Task 'toy' has a request whose context has no tokens"),
        (("x", "y" * 600), r"continuation of 600 tokens.*context of 512"),
    ],
)
def test_a_request_that_cannot_be_scored_is_one_sentence(
    pair: tuple[str, str], sentence: str, scorer: Any
) -> None:
    with pytest.raises(UserError, match=sentence):
        scorer().loglikelihood(instances([pair]))
