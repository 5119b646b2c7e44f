"""The `LM` that lm-eval asks, against lm-eval's own HFLM: tokens, truncation, and what it records."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from faqbench.config import UserError
from faqbench.evaluation.packed_scoring import TaskModel
from faqbench.evaluation.scorer import Scorer
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
    def make(model: Any = tiny_llama, tokenizer: Any = byte_tokenizer, **changed: Any) -> Any:
        return Scorer(TaskModel(model, tokenizer), experiment(**changed), progress, "toy")

    return make


def with_template(tokenizer: Any, template: str | None) -> Any:
    """Return a tokenizer whose own special tokens are those of a template, or none."""
    made = copy.deepcopy(tokenizer)
    if template is not None:
        specials = [(token, made.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
        made.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=specials)
    return made


@pytest.mark.parametrize("template", [None, "<s> $A", "<s> $A </s>", "$A </s>"])
@pytest.mark.parametrize("add_bos", [False, True])
def test_texts_score_as_in_hflm_at_batch_one_whatever_the_tokenizers_own_special_tokens(
    add_bos: bool, template: str | None, scorer: Any, tiny_llama: Any, byte_tokenizer: Any
) -> None:
    from lm_eval.models.huggingface import HFLM

    own = HFLM(
        pretrained=tiny_llama,
        tokenizer=with_template(byte_tokenizer, "<s> $A"),  # HFLM's BOS is what a template puts there
        batch_size=1,
        add_bos_token=add_bos,
    )
    expected = own.loglikelihood(instances(PAIRS), disable_tqdm=True)
    ours = scorer(tokenizer=with_template(byte_tokenizer, template), add_bos=add_bos)
    found = ours.loglikelihood(instances(PAIRS))
    np.testing.assert_allclose([f[0] for f in found], [e[0] for e in expected], atol=1e-4, rtol=0)
    assert [f[1] for f in found] == [e[1] for e in expected]
    assert ours.facts.n_truncated == 2
    assert ours.facts.to_json()["scorer"] == "packed"


@pytest.mark.parametrize("template", [None, "<s> $A", "<s> $A </s>"])
def test_bos_begins_every_request_once_and_eos_ends_none(
    template: str | None, scorer: Any, byte_tokenizer: Any
) -> None:
    bos, tokenizer = byte_tokenizer.bos_token_id, with_template(byte_tokenizer, template)
    ours = scorer(tokenizer=tokenizer, add_bos=True)
    text = byte_tokenizer.encode("a text", add_special_tokens=False)
    assert ours.tok_encode("a text") == ours.tok_encode("<s>a text") == [bos, *text]
    assert ours.tok_batch_encode(["a text"])[0].tolist() == [[bos, *text]]
    assert scorer(tokenizer=tokenizer).tok_encode("a text") == text


def test_batches_are_padded_and_cut_on_the_left(scorer: Any, byte_tokenizer: Any) -> None:
    ours = scorer(add_bos=True)
    ids, mask = ours.tok_batch_encode(["abc", "a" * 9], left_truncate_len=6)
    assert ids.shape == mask.shape == (2, 6)
    assert mask.tolist() == [[0, 0, 1, 1, 1, 1], [1] * 6]
    assert ids[0, 2] == byte_tokenizer.bos_token_id != ids[1, 0]


@pytest.mark.parametrize(
    ("kind", "arguments", "sentence"),
    [
        ("loglikelihood", ("", "no context"), "scores texts that have no context"),
        ("loglikelihood_rolling", ("some text",), "scores texts that have no context"),
        ("generate_until", ("begin", {"until": ["z"], "max_gen_toks": 3}), "generates text"),
    ],
)
def test_without_bos_and_eos_only_what_needs_them_is_refused(
    kind: str, arguments: tuple[Any, ...], sentence: str, scorer: Any, byte_tokenizer: Any
) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer.backend_tokenizer)
    ours = scorer(tokenizer=bare)
    expected = scorer().loglikelihood(instances(PAIRS[:3]))
    assert ours.loglikelihood(instances(PAIRS[:3])) == expected
    with pytest.raises(UserError, match=f"Task 'toy' {sentence}: the tokenizer needs"):
        getattr(ours, kind)([SimpleNamespace(args=arguments, task_name="toy")])


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


@pytest.mark.parametrize("add_bos", [False, True])  # the prefix token is there in any case
def test_rolling_log_likelihoods_are_hflms_and_recorded(scorer: Any, add_bos: bool) -> None:
    ours = scorer(add_bos=add_bos)
    requests = [SimpleNamespace(args=("some text " * n,), task_name="toy") for n in (3, 70)]
    found = ours.loglikelihood_rolling(requests)
    assert found[1] < found[0] < 0
    assert found == scorer().loglikelihood_rolling(requests)
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
