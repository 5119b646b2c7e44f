import pytest
import torch

from faqbench.quantization.means import observe_means, read_means
from faqbench.stages import PlainProgress


@pytest.mark.parametrize("select", ["all", "drop_first", "norm_cap"])
def test_the_means_are_those_of_the_full_statistics_to_the_bit(load, observed, tokens, tmp_path, select):
    loaded = load()
    store = observed(loaded, select=select)
    observe_means(loaded, tokens, batch_size=2, select=select, folder=tmp_path, progress=PlainProgress())
    means = read_means(tmp_path, 4)
    assert set(means) == {"qkv", "o", "gate_up", "down"}
    for role, blocks in means.items():
        for block, mean in enumerate(blocks):
            assert torch.equal(mean, store.mean_abs(block, role))
