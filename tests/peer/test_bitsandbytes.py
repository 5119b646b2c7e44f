"""bitsandbytes' own tables and scales, on the CPU. Checked with 0.50.2."""

import pytest
import torch

from faqbench.layouts import decode, grid_of, lacking

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]
functional = pytest.importorskip("bitsandbytes.functional", reason="an optional extra")
WEIGHT = torch.randn(48, 128, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_are_read_as_bitsandbytes_reads_them(kind, nested):
    codes, state = functional.quantize_4bit(
        WEIGHT, quant_type=kind, compress_statistics=nested, blocksize=64
    )
    stored = {f"weight.{k}": v for k, v in state.as_dict(packed=True).items()}
    parts = {"weight": codes} | stored
    assert lacking("bnb-4bit", parts) == [] and grid_of("bnb-4bit", parts, (48, 128)) == (4, 64)
    assert torch.equal(decode("bnb-4bit", parts, {}), functional.dequantize_4bit(codes, state))


def test_eight_bits_are_read_as_bitsandbytes_reads_them():
    codes, scale, _ = functional.int8_vectorwise_quant(WEIGHT.half())
    found = decode("bnb-8bit", {"weight": codes, "SCB": scale}, {})
    assert torch.allclose(found, functional.int8_vectorwise_dequant(codes, scale), rtol=1e-6)
