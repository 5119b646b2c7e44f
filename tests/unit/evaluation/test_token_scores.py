"""Losses per token, divergence from full precision, and attention with less work than sdpa."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
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
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.auto import AutoModelForCausalLM

from faqbench.config import Experiment, UserError
from faqbench.evaluation import (
    HiddenStates,
    HiddenWriter,
    TokenScores,
    head,
    perplexity_metrics,
    resolve_protocol,
    score_tokens,
)
from faqbench.evaluation.head import hidden_states, stacked_attention
from faqbench.models import load_model
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
    monkeypatch.setattr(head, "_HEAD_BYTES", {"cpu": 7 * 4 * 258})
    monkeypatch.setattr(head, "_SOFTMAX_BYTES", {"cpu": 3 * 4 * 258})
    tokens = windows()
    scores = score_tokens(model, tokens, 48, progress).nll
    assert scores.shape == (5, 23)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, naive(model, tokens), atol=2e-5)


def test_the_budget_changes_nothing_but_rounding(tiny_llama: Any, progress: PlainProgress) -> None:
    one = score_tokens(tiny_llama, windows(), 1, progress).nll
    for batch_tokens in (48, 100, 2000):
        np.testing.assert_allclose(
            score_tokens(tiny_llama, windows(), batch_tokens, progress).nll, one, atol=2e-5
        )


def test_logits_never_exceed_their_budget(
    tiny_llama: Any, progress: PlainProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = 20 * 4 * 258
    monkeypatch.setattr(head, "_HEAD_BYTES", {"cpu": budget})
    sizes: list[int] = []

    def product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        logits = rows @ weight.T
        sizes.append(logits.numel())
        return logits

    monkeypatch.setattr(head, "_product", product)
    score_tokens(tiny_llama, windows(8, 64), 512, progress)
    checked, *scored = sizes  # the split of the model is checked on a few tokens first
    assert checked == 8 * 258
    assert max(scored) * 4 <= budget
    assert sum(scored) == 8 * 63 * 258


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_heads_product_is_as_exact_as_its_dtype(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(n, 192, generator=draw).to(dtype) for n in (37, 500))
    wanted = rows.double() @ weight.double().T
    with torch.no_grad():
        found = head._product(rows, weight)
    assert found.dtype == dtype
    assert (found - wanted).abs().max() <= 4 * torch.finfo(dtype).eps * wanted.abs().max()
    assert torch.allclose(head._product(rows, weight.requires_grad_()), found, rtol=1e-2, atol=1e-3)
    assert head._product(rows, weight).requires_grad


def test_bfloat16_scores_are_float32_log_softmaxes(tiny_llama: Any, progress: PlainProgress) -> None:
    half = AutoModelForCausalLM.from_config(tiny_llama.config, dtype=torch.bfloat16).eval()
    half.load_state_dict(tiny_llama.state_dict())
    scores = score_tokens(half, windows(), 1, progress).nll
    np.testing.assert_allclose(scores, naive(half, windows()), atol=2e-5)


def test_scoring_leaves_the_model_as_it_was(tiny_llama: Any, progress: PlainProgress) -> None:
    before = {name: weight.clone() for name, weight in tiny_llama.state_dict().items()}
    score_tokens(tiny_llama, windows(), 48, progress)
    assert not tiny_llama.training
    assert all(torch.equal(before[name], w) for name, w in tiny_llama.state_dict().items())


def test_a_window_longer_than_the_context_is_refused_with_both_numbers(
    tiny_llama: Any, progress: PlainProgress
) -> None:
    with pytest.raises(UserError, match=r"600 tokens.*context of 512"):
        score_tokens(tiny_llama, windows(1, 600), 1, progress)


def test_perplexity_is_the_exponential_of_the_mean(experiment: Any) -> None:
    nll = np.log(np.array([[2.0, 8.0], [4.0, 4.0]], dtype=np.float32))
    scores = TokenScores(nll=nll)
    (metric,) = perplexity_metrics(resolve_protocol("wikitext2-8", experiment().data), scores)
    assert metric.value == pytest.approx(4.0)
    assert metric.stderr == pytest.approx(0.0, abs=1e-6)
    assert (metric.task, metric.name, metric.n) == ("wikitext2-8", "perplexity", 4)
    assert not metric.higher_is_better


@pytest.fixture
def other_llama(tiny_llama: Any) -> Any:
    """The same model with its blocks' weights moved, as a quantizer moves them; the head is kept."""
    moved = copy.deepcopy(tiny_llama)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in moved.model.layers.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return moved


def keep(model: Any, folder: Path, progress: PlainProgress) -> TokenScores:
    with HiddenWriter(folder, 24) as writer:
        return score_tokens(model, windows(), 48, progress, keep=writer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_divergence_is_that_of_two_whole_softmaxes(
    dtype: torch.dtype, tiny_llama: Any, other_llama: Any, tmp_path: Path, progress: PlainProgress
) -> None:
    one, other = copy.deepcopy(tiny_llama).to(dtype), other_llama.to(dtype)
    keep(one, tmp_path, progress)
    found = score_tokens(other, windows(), 48, progress, reference=HiddenStates.open(tmp_path))
    with torch.no_grad():
        log_r, log_p = (torch.log_softmax(m(windows()).logits[:, :-1].float(), -1) for m in (one, other))
    expected = (log_r.exp() * (log_r - log_p)).sum(-1)
    np.testing.assert_allclose(found.kl, expected, rtol=1e-3, atol=2e-6)
    assert np.array_equal(found.agrees, (log_r.argmax(-1) == log_p.argmax(-1)).numpy())
    assert found.kl.dtype == np.float32 and found.agrees.dtype == np.uint8
    assert found.kl.mean() > 1e-4 and 0 < found.agrees.mean() < 1


def test_a_model_does_not_diverge_from_itself(
    tiny_llama: Any, tmp_path: Path, progress: PlainProgress
) -> None:
    kept = keep(tiny_llama, tmp_path, progress)
    found = score_tokens(tiny_llama, windows(), 48, progress, reference=HiddenStates.open(tmp_path))
    assert np.array_equal(found.nll, kept.nll)
    assert not found.kl.any() and found.agrees.all()


def test_divergence_and_agreement_are_metrics_with_their_errors(experiment: Any) -> None:
    kl, agrees = np.float32([[0.1, 0.3], [0.2, 0.6]]), np.uint8([[1, 0], [1, 1]])
    scores = TokenScores(nll=np.ones((2, 2), np.float32), kl=kl, agrees=agrees)
    _, divergence, agreement = perplexity_metrics(
        resolve_protocol("wikitext2-8", experiment().data), scores
    )
    assert (divergence.name, divergence.unit, divergence.higher_is_better) == (
        "kl_divergence",
        "nats",
        False,
    )
    assert (divergence.value, divergence.stderr) == (pytest.approx(0.3), pytest.approx(0.1))
    assert (agreement.name, agreement.unit, agreement.value) == ("top1_agreement", "ratio", 0.75)
    assert agreement.higher_is_better


def test_divergence_of_a_model_that_scales_its_logits_is_refused(
    tmp_path: Path, progress: PlainProgress
) -> None:
    model = AutoModelForCausalLM.from_config(FAMILIES["granite, scaled logits"]).eval()
    with pytest.raises(UserError, match=r"does more: set evaluation\.kl=false"):
        keep(model, tmp_path, progress)


def test_a_writer_that_fails_leaves_nothing_that_can_be_opened(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broke"), HiddenWriter(tmp_path, 24) as writer:
        writer.append(torch.zeros(23, 4))
        raise RuntimeError("it broke")
    assert not (tmp_path / "hidden.json").exists()


@pytest.mark.parametrize("vocabulary", [64, 255, 128 * 300, 128 * 300 + 7])
def test_the_top_token_is_the_first_of_the_largest(vocabulary: int) -> None:
    rows = torch.randn(40, vocabulary, generator=torch.Generator().manual_seed(0)).bfloat16()
    rows[::2] = rows[::2].round()  # many equal ones
    rows[3, -1] = rows[5, 0] = 100.0
    assert torch.equal(head.top_token(rows.float()), rows.float().argmax(-1))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_scores_on_cuda_are_those_of_the_cpu(tiny_llama: Any, progress: PlainProgress) -> None:
    on_cuda = score_tokens(copy.deepcopy(tiny_llama).cuda(), windows(), 48, progress).nll
    np.testing.assert_allclose(on_cuda, naive(tiny_llama, windows()), atol=1e-3)


@pytest.mark.parametrize("change", ["none", "bias", "soft cap"])
def test_log_probabilities_are_those_of_the_models_own_head(
    tiny_llama: Any, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    model = copy.deepcopy(tiny_llama)
    if change == "bias":
        model.lm_head.bias = torch.nn.Parameter(torch.randn(model.config.vocab_size))
    if change == "soft cap":
        model.config.final_logit_softcapping = 0.5
    monkeypatch.setitem(head._HEAD_BYTES, "cpu", 4 * model.config.vocab_size * 7)
    monkeypatch.setitem(head._SOFTMAX_BYTES, "cpu", 4 * model.config.vocab_size * 3)
    hidden = torch.randn(40, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        parts = [(part, log_p.clone()) for part, log_p in head.log_probabilities(model, hidden)]
        wanted = torch.log_softmax(head.logits_of(model, hidden), -1)
    assert [part.start for part, _ in parts] == [
        start + inside for start in range(0, 40, 7) for inside in range(0, min(7, 40 - start), 3)
    ]
    assert torch.allclose(torch.cat([log_p for _, log_p in parts]), wanted, atol=1e-5)


TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02}


def heads(n_groups, length, dtype, seed=0):
    """Return queries, keys and values of two rows and two key-value heads, strided as a model's are."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n_heads):
        x = torch.randn(2, length, n_heads, 16, generator=generator).to(dtype)
        return x.transpose(1, 2)

    return draw(2 * n_groups), draw(2), draw(2)


def both(n_groups, states, mask, scaling=0.2, **kwargs):
    module = SimpleNamespace(num_key_value_groups=n_groups, is_causal=True)
    found, _ = head._attend(module, *states, mask, scaling=scaling, **kwargs)
    wanted, _ = sdpa_attention_forward(module, *states, mask, scaling=scaling, **kwargs)
    return found, wanted


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("n_groups", [1, 3])
@pytest.mark.parametrize("length", [1, 7, 64, 128, 129, 192, 200])
def test_a_causal_row_attends_as_sdpa_does(length, n_groups, dtype):
    found, wanted = both(n_groups, heads(n_groups, length, dtype), None)
    assert found.is_contiguous() and found.shape == wanted.shape
    assert (found - wanted).abs().max() <= TOLERANCE[dtype]


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
@pytest.mark.parametrize("n_groups", [1, 3])
def test_a_mask_of_its_own_has_the_bits_of_sdpa(n_groups, kind):
    visible = torch.rand(2, 1, 40, 40, generator=torch.Generator().manual_seed(1)) < 0.5
    visible |= torch.eye(40, dtype=torch.bool)
    mask = visible if kind == torch.bool else torch.zeros(2, 1, 40, 40).masked_fill(~visible, -1e30)
    found, wanted = both(n_groups, heads(n_groups, 40, torch.float32), mask)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("length", [129, 192, 200])
def test_a_packs_mask_is_cut_into_blocks_and_attends_as_sdpa_does(length, monkeypatch):
    visible = torch.rand(2, 1, length, length, generator=torch.Generator().manual_seed(1)) < 0.5
    visible = (visible | torch.eye(length, dtype=torch.bool)).tril()
    mask = torch.zeros(visible.shape).masked_fill(~visible, -1e30)
    keys, stacked = [], head._stacked
    monkeypatch.setattr(
        head, "_stacked", lambda s, k, *rest: keys.append(k.shape[2]) or stacked(s, k, *rest)
    )
    found, wanted = both(3, heads(3, length, torch.float32), mask)
    assert keys == list(range(length, 0, -64))
    assert (found - wanted).abs().max() <= TOLERANCE[torch.float32]


def test_what_is_laid_out_otherwise_goes_to_sdpa(monkeypatch):
    asked = []
    monkeypatch.setattr(
        head, "_sdpa", lambda *args, **kwargs: asked.append(args) or sdpa_attention_forward(*args, **kwargs)
    )
    query, key, value = heads(3, 8, torch.float32)
    one_query = both(3, (query[:, :, -1:], key, value), None)
    not_causal = both(3, (query, key, value), None, is_causal=False)
    own_mask = both(3, (query, key, value), torch.zeros(2, 6, 8, 8))
    bias = both(3, (query, key, value), None, position_bias=torch.ones(1, 6, 8, 8).tril())
    wide = both(3, (query, key, torch.cat([value, value], -1)), None)
    assert len(asked) == 5
    assert all(torch.equal(*pair) for pair in (one_query, not_causal, own_mask, bias, wide))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "phi3"])
def test_hidden_states_are_those_of_the_model(compose, family):
    experiment: Experiment = compose(f"model=tiny-{family}")
    loaded = load_model(experiment.model, torch.float32, torch.device("cpu"), PlainProgress())
    tokens = torch.randint(0, 257, (2, 150), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        wanted = loaded.model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
        found = hidden_states(loaded.model, tokens)
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_the_model_is_left_as_it_was_whatever_happens(compose):
    section = compose("model=tiny-llama").model
    loaded = load_model(section, torch.float32, torch.device("cpu"), PlainProgress())
    config = loaded.model.config
    with pytest.raises(RuntimeError, match="over"), stacked_attention(loaded.model):
        assert config._attn_implementation == "faqbench_stacked"
        raise RuntimeError("over")
    assert config._attn_implementation == "sdpa"
    config._attn_implementation = "eager"
    with stacked_attention(loaded.model):
        assert config._attn_implementation == "eager"
