"""The same methods on a CUDA device: same choices, same codes but for a counted handful."""

import pytest
import torch

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

METHODS = ["rtn", "awq", "faq", "gptq", "gptq-act-order", "qep", "qep-awq", "loaq", "loaq-gptq"]


@pytest.fixture
def on_cuda(load):
    loaded = load()
    loaded.model.cuda()
    return loaded


@pytest.mark.parametrize("preset", METHODS)
def test_cuda_chooses_as_the_cpu_does_or_as_well(quantized, on_cuda, preset):
    """Two exponents may lie so close that a device's rounding decides between them.

    A correction fits weights to what was quantized before them in the block, where one code that falls
    to the other side of a tie moves all weights that come after: they must be as good, not the same.
    """
    cpu, cuda = quantized(preset), quantized(preset, loaded=on_cuda)
    is_corrected = preset.startswith(("qep", "loaq"))
    n_alike = n_far = n_linears = n_linears_alike = 0
    for a, b in zip(cpu.result.linears, cuda.result.linears, strict=True):
        if a.block > 0:
            continue
        is_comparable = a.role == "qkv" or not is_corrected
        if a.relative_error is not None:
            tolerance = (0.02 if a.alpha == b.alpha else 0.05) if is_comparable else 0.1
            assert b.relative_error == pytest.approx(a.relative_error, rel=tolerance), a.linear
        n_linears += is_comparable
        if is_comparable and a.alpha == b.alpha:
            n_linears_alike += 1
            name = next(n for n in cpu.after if n.endswith(f".layers.0.{a.linear}"))
            here, there = cpu.after[name], cuda.after[name].cpu()
            n_far += int(((here - there).abs() > 1e-4 * cpu.before[name].abs().max()).sum())
            n_alike += here.numel()
    assert n_linears_alike >= n_linears // 2
    assert n_far <= (0 if preset == "rtn" else n_alike // 200)


def test_faq_with_gamma_one_is_awq_to_the_bit_on_cuda(quantized, load):
    def fresh():
        loaded = load()
        loaded.model.cuda()
        return loaded

    awq = quantized("awq", loaded=fresh())
    assert quantized("faq", "gamma=1", loaded=fresh()).same_as(awq)
    assert quantized("faq", "window=0", loaded=fresh()).same_as(awq)
