"""The same methods on a CUDA device: same choices, same codes but for a counted handful."""

import pytest
import torch

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

METHODS = ["rtn", "awq", "faq", "gptq", "gptq-act-order", "qep", "qep-awq", "loaq", "loaq-gptq"]


@pytest.fixture
def on_cuda(load):
    loaded = load()
    loaded.model.cuda()
    return loaded


@pytest.mark.parametrize("preset", METHODS)
def test_weights_on_cuda_are_those_of_the_cpu_but_for_a_handful(quantized, on_cuda, preset):
    cpu, cuda = quantized(preset), quantized(preset, loaded=on_cuda)
    first = [name for name in cpu.after if ".layers.0." in name]
    far = sum(
        int(((cpu.after[n] - cuda.after[n].cpu()).abs() > 1e-4 * cpu.before[n].abs().max()).sum())
        for n in first
    )
    total = sum(cpu.after[n].numel() for n in first)
    assert far <= {"rtn": 0}.get(preset, total // 200)


@pytest.mark.parametrize("preset", METHODS)
def test_errors_on_cuda_are_those_of_the_cpu(quantized, on_cuda, preset):
    cpu, cuda = quantized(preset).result, quantized(preset, loaded=on_cuda).result
    for a, b in zip(cpu.linears, cuda.linears, strict=True):
        if a.block == 0 and a.relative_error is not None:
            assert b.relative_error == pytest.approx(a.relative_error, rel=0.02)


def test_faq_with_gamma_one_is_awq_to_the_bit_on_cuda(quantized, load):
    def fresh():
        loaded = load()
        loaded.model.cuda()
        return loaded

    awq = quantized("awq", loaded=fresh())
    assert quantized("faq", "gamma=1", loaded=fresh()).same_as(awq)
    assert quantized("faq", "window=0", loaded=fresh()).same_as(awq)
