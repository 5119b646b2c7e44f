from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto import AutoModelForCausalLM

from faqbench.config import UserError
from faqbench.evaluation import perplexity, perplexity_metrics, resolve_protocol, score_tokens
from faqbench.stages import PlainProgress

SMALL = {
    "vocab_size": 258,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": LlamaConfig(**SMALL),
    "llama tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "mistral": MistralConfig(**SMALL, sliding_window=8),
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=16),
    "gemma2, soft cap": Gemma2Config(**SMALL, head_dim=16, final_logit_softcapping=0.5),
    "gemma3": Gemma3TextConfig(**SMALL, head_dim=16),
    "granite, scaled logits": GraniteConfig(**SMALL, logits_scaling=0.1),
}


def windows(n: int = 5, seq_len: int = 24) -> torch.Tensor:
    return torch.randint(3, 258, (n, seq_len), generator=torch.Generator().manual_seed(1))


def naive(model: Any, tokens: torch.Tensor) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return np.stack(
            [
                functional.cross_entropy(
                    model(window[None]).logits[0, :-1].float(), window[1:], reduction="none"
                ).numpy()
                for window in tokens
            ]
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_a_naive_cross_entropy_loop(
    family: str, progress: PlainProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    monkeypatch.setattr(perplexity, "_LOGITS_BYTES", 7 * 4 * 258)
    tokens = windows()
    scores = score_tokens(model, tokens, 2, progress)
    assert scores.shape == (5, 23)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, naive(model, tokens), atol=2e-5)


def test_a_batch_size_changes_nothing_but_rounding(
    tiny_llama: Any, progress: PlainProgress
) -> None:
    one = score_tokens(tiny_llama, windows(), 1, progress)
    for batch_size in (2, 5, 64):
        np.testing.assert_allclose(
            score_tokens(tiny_llama, windows(), batch_size, progress), one, atol=2e-5
        )


def test_logits_never_exceed_their_budget(
    tiny_llama: Any, progress: PlainProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = 20 * 4 * 258
    monkeypatch.setattr(perplexity, "_LOGITS_BYTES", budget)
    rows: list[int] = []
    hook = tiny_llama.lm_head.register_forward_hook(
        lambda _module, _inputs, logits: rows.append(logits.numel())
    )
    score_tokens(tiny_llama, windows(8, 64), 8, progress)
    hook.remove()
    assert max(rows) * 4 <= budget
    assert sum(rows) >= 8 * 63 * 258


def test_bfloat16_scores_are_float32_log_softmaxes(
    tiny_llama: Any, progress: PlainProgress
) -> None:
    half = AutoModelForCausalLM.from_config(tiny_llama.config, dtype=torch.bfloat16).eval()
    half.load_state_dict(tiny_llama.state_dict())
    scores = score_tokens(half, windows(), 1, progress)
    np.testing.assert_allclose(scores, naive(half, windows()), atol=2e-5)


def test_scoring_leaves_the_model_as_it_was(tiny_llama: Any, progress: PlainProgress) -> None:
    before = {name: weight.clone() for name, weight in tiny_llama.state_dict().items()}
    score_tokens(tiny_llama, windows(), 2, progress)
    assert not tiny_llama.training
    assert all(torch.equal(before[name], w) for name, w in tiny_llama.state_dict().items())


def test_a_window_longer_than_the_context_is_refused_with_both_numbers(
    tiny_llama: Any, progress: PlainProgress
) -> None:
    with pytest.raises(UserError, match=r"600 tokens.*context of 512"):
        score_tokens(tiny_llama, windows(1, 600), 1, progress)


def test_perplexity_is_the_exponential_of_the_mean(experiment: Any) -> None:
    nll = np.log(np.array([[2.0, 8.0], [4.0, 4.0]], dtype=np.float32))
    (metric,) = perplexity_metrics(resolve_protocol("wikitext2-8", experiment()), nll)
    assert metric.value == pytest.approx(4.0)
    assert metric.stderr == pytest.approx(0.0, abs=1e-6)
    assert (metric.task, metric.name, metric.n) == ("wikitext2-8", "perplexity", 4)
    assert not metric.higher_is_better


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_scores_on_cuda_are_those_of_the_cpu(tiny_llama: Any, progress: PlainProgress) -> None:
    import copy

    on_cuda = score_tokens(copy.deepcopy(tiny_llama).cuda(), windows(), 2, progress)
    np.testing.assert_allclose(on_cuda, naive(tiny_llama, windows()), atol=1e-3)
