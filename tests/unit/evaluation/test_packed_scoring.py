"""Packs of requests, and their scores against lm-eval's own HFLM at batch 1, for every family."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GraniteConfig
from transformers.models.auto import AutoModelForCausalLM

from faqbench.evaluation import packed_scoring
from faqbench.evaluation.packed_scoring import TaskModel, score_packs
from faqbench.evaluation.packing import ROW_TOKENS, Pack, Request, n_unshared_tokens, pack
from faqbench.models import Model, architecture_of
from faqbench.models.model import skeleton_of
from faqbench.models.sources import random_model
from faqbench.models.tensors import Held

SMALL = {
    "seed": 3,
    "vocab_size": 258,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # far from uniform, so that a wrong mask shows
}
SLIDING = ("full_attention", "sliding_attention") * 2
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama, tied": {"model_type": "llama", "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2"},
    "qwen2, sliding": {
        "model_type": "qwen2",
        "layer_types": SLIDING,
        "sliding_window": 9,
        "use_sliding_window": True,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "mistral": {"model_type": "mistral", "head_dim": 16, "sliding_window": None},
    "mistral, sliding": {"model_type": "mistral", "head_dim": 16, "sliding_window": 9},
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 9,
        "layer_types": SLIDING,
        "final_logit_softcapping": 3.0,
    },
    "phi3": {"model_type": "phi3", "original_max_position_embeddings": 512},
    "phi3, sliding": {"model_type": "phi3", "original_max_position_embeddings": 512, "sliding_window": 9},
}


def family(name: str, dtype: torch.dtype = torch.float32, **changed: Any) -> Any:
    return random_model({**SMALL, **FAMILIES[name], **changed}).to(dtype).eval()


def multiple_choice(seed: int = 0, n_documents: int = 12) -> list[Request]:
    """Make four choices after each context; some contexts of 100 tokens, some choices of one token."""
    rng = random.Random(seed)
    requests = []
    for document in range(n_documents):
        before = [rng.randrange(256) for _ in range(100 if document % 4 == 0 else 15)]
        for _ in range(4):
            after = [rng.randrange(256) for _ in range(1 if document % 3 == 0 else rng.randint(2, 20))]
            requests.append(Request(tokens=tuple(before + after), n_scored=len(after)))
    return requests


def packed(model: Any, requests: list[Request], budget: int = 512) -> Any:
    return score_packs(model, pack(requests, budget), len(requests), lambda _n=1: None)


def refusal(model: Any, longest: int) -> str | None:
    return TaskModel(model, None).refusal(longest)


@pytest.mark.parametrize("name", ["llama, tied", "qwen2, sliding", "gemma3"])
def test_a_streamed_model_scores_packs_with_the_same_bits(name: str) -> None:
    model, requests = family(name), multiple_choice()
    architecture = architecture_of(model.config.to_dict())
    state, cpu = Held(model.state_dict()), torch.device("cpu")
    view = Model(skeleton_of(model), architecture, state, (torch.float32,), cpu, is_resident=False)
    assert TaskModel(view.module, None, view).refusal(100) is None
    packs = pack(requests, 512)
    found = score_packs(view, packs, len(requests), lambda _n=1: None)
    for one, other in zip(found, packed(model, requests), strict=True):
        assert np.array_equal(one, other)
    assert all(p.is_meta for p in view.module.parameters())


def hflm(model: Any, tokenizer: Any, requests: list[Request]) -> Any:
    from lm_eval.models.huggingface import HFLM

    own = copy.deepcopy(tokenizer)  # HFLM gives it a padding token
    lm = HFLM(pretrained=model, tokenizer=own, batch_size=1, softmax_dtype="float32")
    encoded = [(("", ""), list(r.tokens[: -r.n_scored]), list(r.tokens[-r.n_scored :])) for r in requests]
    return [np.array(column) for column in zip(*lm._loglikelihood_tokens(encoded, True), strict=True)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_packed_score_is_that_of_lm_evals_hflm_at_batch_one(name: str, byte_tokenizer: Any) -> None:
    model, requests = family(name), multiple_choice()
    expected, expected_greedy = hflm(model, byte_tokenizer, requests)
    found, greedy = packed(model, requests)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    assert np.array_equal(greedy, expected_greedy)
    assert refusal(model, 120) is None


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_eager_attention_scores_alike(name: str) -> None:
    model, requests = family(name), multiple_choice()
    expected, _ = packed(model, requests)
    model.set_attn_implementation("eager")
    assert refusal(model, 120) is None
    np.testing.assert_allclose(packed(model, requests)[0], expected, atol=1e-4, rtol=0)


def test_a_request_that_greedy_decoding_gives_is_marked(byte_tokenizer: Any) -> None:
    model = family("llama")
    start = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        for _ in range(3):
            start = torch.cat([start, model(start).logits[:, -1:].argmax(-1)], dim=1)
    tokens = start[0].tolist()
    other = [*tokens[:-1], (tokens[-1] + 1) % 256]
    requests = [Request(tokens=tuple(t), n_scored=3) for t in (tokens, other)]
    assert packed(model, requests)[1].tolist() == [True, False]
    assert hflm(model, byte_tokenizer, requests)[1].tolist() == [True, False]


def test_in_bfloat16_the_order_of_requests_changes_no_bit() -> None:
    model, requests = family("llama", torch.bfloat16), multiple_choice()
    order = random.Random(1).sample(range(len(requests)), len(requests))
    straight, _ = packed(model, requests)
    shuffled, _ = packed(model, [requests[i] for i in order])
    assert np.array_equal(straight[order], shuffled)


def test_the_budget_changes_nothing_but_rounding() -> None:
    model, requests = family("qwen3"), multiple_choice()
    whole, _ = packed(model, requests, 100_000)
    for budget in (1, 150, 700):
        np.testing.assert_allclose(packed(model, requests, budget)[0], whole, atol=1e-4, rtol=0)


def test_logits_are_taken_at_scored_nodes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows, real = family("llama"), [], packed_scoring.log_probabilities

    def counted(model: Any, hidden: torch.Tensor) -> Any:
        for part, log_p in real(model, hidden):
            rows.append(len(log_p))
            yield part, log_p

    monkeypatch.setattr(packed_scoring, "log_probabilities", counted)
    requests = [Request(tokens=(*range(30), 40 + i, 50), n_scored=2) for i in range(4)]
    packed(model, requests)
    assert sum(rows) == 1 + 4  # after the context once, and after each choice's first token


def test_attention_without_masks_is_refused_by_name() -> None:
    model = family("llama")
    model.config._attn_implementation = "flash_attention_2"
    assert "attention 'flash_attention_2'" in str(refusal(model, 10))


def test_layers_with_masks_of_their_own_are_refused_by_name() -> None:
    model = family("llama")
    model.config.layer_types = ["full_attention", "chunked_attention"]
    assert "chunked_attention" in str(refusal(model, 10))


def test_position_embeddings_that_depend_on_length_are_refused_for_long_requests_only() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    config = family("llama").config
    config.rope_parameters, config.max_position_embeddings = rope, 64
    model = AutoModelForCausalLM.from_config(config).eval()
    assert refusal(model, 64) is None
    assert "'dynamic' position embeddings" in str(refusal(model, 65))


def test_a_model_that_scales_its_logits_is_refused() -> None:
    small = {k: v for k, v in SMALL.items() if k != "seed"}
    model = AutoModelForCausalLM.from_config(GraniteConfig(**small, logits_scaling=0.1)).eval()
    assert "more than its head" in str(refusal(model, 10))


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoder_that_ignores_masks_or_positions_is_found_out(ignored: str, dtype: torch.dtype) -> None:
    model = family("llama", dtype)
    assert refusal(model, 10) is None
    forward = model.model.forward
    model.model.forward = lambda **kwargs: forward(**{**kwargs, ignored: None})
    assert "does not score as its requests do" in str(refusal(model, 10))


def test_a_model_is_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("faqbench.evaluation.packed_scoring.refused_by_probe", calls.append)
    model = TaskModel(family("llama"), None)
    assert [model.refusal(n) for n in (10, 20)] == [None, None]
    assert calls == [model.model]


def test_what_rounding_the_embeddings_would_do_is_no_reason_to_refuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = family("llama", torch.bfloat16)
    monkeypatch.setattr(packed_scoring, "_PROBE_RATIO", 0.0)
    assert refusal(model, 10) is None
    monkeypatch.setattr(packed_scoring, "_embeddings_off_by_rounding", lambda _: nullcontext())
    assert "does not score as its requests do" in str(refusal(model, 10))


def test_a_mask_without_its_sliding_window_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    model, requests = family("mistral, sliding"), multiple_choice()
    right, _ = packed(model, requests)
    places = torch.arange(12)[None], torch.full((1, 12), 12)
    full, sliding = (packed_scoring._masks(m, *places)[0, 0] == 0 for m in (family("llama"), model))
    assert torch.equal(full, torch.ones(12, 12, dtype=torch.bool).tril())
    assert sliding.sum(-1).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9]
    assert np.isfinite(right).all()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", FAMILIES)
def test_packed_scores_on_cuda_are_those_of_the_cpu(name: str) -> None:
    model, requests = family(name), multiple_choice()
    expected, _ = packed(model, requests)
    np.testing.assert_allclose(packed(model.cuda(), requests)[0], expected, atol=1e-3, rtol=0)


def choices(
    rng: random.Random, n_documents: int, context: tuple[int, int], choice: tuple[int, int]
) -> list[Request]:
    """Make documents of four choices after one context, all of random lengths."""
    requests = []
    for _ in range(n_documents):
        before = [rng.randrange(9) for _ in range(rng.randint(*context))]
        for _ in range(4):
            after = [rng.randrange(9) for _ in range(rng.randint(*choice))]
            requests.append(Request(tokens=tuple(before + after), n_scored=len(after)))
    return requests


def some_requests(seed: int) -> list[Request]:
    rng = random.Random(seed)
    mixed = [*choices(rng, 20, (3, 60), (1, 12)), *choices(rng, 3, (150, 300), (1, 3))]
    return [*mixed, *mixed[:5], Request(tokens=(1, 2), n_scored=1)]


def seen_by(one: Pack, node: int) -> np.ndarray[Any, Any]:
    """Return the places of a row that a node may attend to, as the mask has it."""
    row, column = divmod(node, one.tokens.shape[1])
    places = np.arange(one.tokens.shape[1])
    return row * one.tokens.shape[1] + places[(places <= column) & (column < one.ends[row])]


def answers(packs: Sequence[Pack]) -> list[tuple[Pack, Any]]:
    return [(one, scored) for one in packs for scored in one.scored]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [1, 100, 1000])
def test_a_node_sees_exactly_its_request_up_to_itself(seed: int, budget: int) -> None:
    requests = some_requests(seed)
    for one, scored in answers(pack(requests, budget)):
        request = requests[scored.request]
        for node, target in zip(scored.nodes, scored.targets, strict=True):
            seen = seen_by(one, node)
            n_read = len(seen)
            assert tuple(one.tokens.ravel()[seen]) == request.tokens[:n_read]
            assert list(one.positions.ravel()[seen]) == list(range(n_read))
            assert request.tokens[n_read] == target
        assert n_read == len(request.tokens) - 1


@pytest.mark.parametrize("seed", range(5))
def test_every_request_is_answered_once(seed: int) -> None:
    requests = some_requests(seed)
    found = [scored.request for _, scored in answers(pack(requests, 500))]
    assert sorted(found) == list(range(len(requests)))
    for _, scored in answers(pack(requests, 500)):
        assert len(scored.nodes) == requests[scored.request].n_scored


@pytest.mark.parametrize("seed", range(5))
def test_packs_do_not_depend_on_the_order_of_requests(seed: int) -> None:
    requests = some_requests(seed)
    shuffled = random.Random(seed).sample(requests, len(requests))
    for one, other in zip(pack(requests, 400), pack(shuffled, 400), strict=True):
        for name in ("tokens", "positions", "ends"):
            assert np.array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("budget", [40, 400, 4000])
def test_a_forward_stays_within_the_budget_unless_one_input_exceeds_it(budget: int) -> None:
    requests = some_requests(0)
    longest = max(len(r.inputs) for r in requests)
    for one in pack(requests, budget):
        assert one.tokens.size <= max(budget, longest)
        assert one.tokens.size <= budget or len(one.tokens) == 1


def test_the_context_of_several_choices_is_encoded_once() -> None:
    requests = [Request(tokens=(*range(50), 60 + i, 70 + i), n_scored=2) for i in range(4)]
    (one,) = pack(requests, 1000)
    assert one.n_nodes == one.tokens.size == 50 + 4
    assert n_unshared_tokens(requests) == 4 * 51


def test_continuations_of_one_token_share_one_path() -> None:
    requests = [Request(tokens=(1, 2, 3, 10 + i), n_scored=1) for i in range(3)]
    (one,) = pack(requests, 1000)
    assert one.n_nodes == 3 and one.is_chain
    assert [scored.nodes.tolist() for scored in one.scored] == [[2], [2], [2]]
    assert [scored.targets.tolist() for scored in one.scored] == [[10], [11], [12]]


def test_a_request_that_begins_another_needs_no_nodes_of_its_own() -> None:
    requests = [Request(tokens=tuple(range(n)), n_scored=2) for n in (5, 9)]
    (one,) = pack(requests, 1000)
    assert one.n_nodes == 8 and one.is_chain


def test_equal_requests_are_computed_once_and_answered_each() -> None:
    (one,) = pack([Request(tokens=(1, 2, 3), n_scored=1)] * 3, 1000)
    assert one.n_nodes == 2 and len(one.scored) == 3


def test_examples_before_many_questions_are_encoded_once_per_row() -> None:
    shots = tuple(range(600))
    questions = [(*shots, *(1000 + 20 * i + j for j in range(20))) for i in range(100)]
    packs = pack([Request(tokens=q, n_scored=1) for q in questions], 2048)
    n_nodes = sum(one.n_nodes for one in packs)
    assert all(one.tokens.size <= 2048 for one in packs)
    assert n_nodes < 100 * 619 / 10
    assert n_nodes == 600 * len(packs) + 19 * 100


def test_unrelated_requests_share_rows_but_see_nothing_of_each_other() -> None:
    requests = [Request(tokens=(10 * i, *range(10 * i, 10 * i + 9)), n_scored=1) for i in range(8)]
    (one,) = pack(requests, 1000)
    assert one.tokens.shape[0] == 1 and one.tokens.shape[1] == 8 * 9 <= ROW_TOKENS
    assert all(len(seen_by(one, scored.nodes[0])) == 9 for scored in one.scored)
    assert not one.is_chain


def test_padding_sees_only_itself() -> None:
    requests = [
        Request(tokens=tuple(range(begin, begin + n)), n_scored=1) for begin, n in ((0, 200), (300, 190))
    ]
    (one,) = pack(requests, 1000)
    assert one.tokens.shape == (2, 199) and one.n_nodes == 199 + 189
    assert seen_by(one, 2 * 199 - 1).tolist() == [2 * 199 - 1]


def test_nothing_to_do_is_no_pack() -> None:
    assert pack([], 100) == []
