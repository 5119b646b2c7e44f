"""Stacked attention is transformers' sdpa, up to rounding, and is used where it says."""

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from faqbench.config import Experiment
from faqbench.evaluation import head
from faqbench.evaluation.head import hidden_states, stacked_attention
from faqbench.models import load_model
from faqbench.stages import PlainProgress

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
