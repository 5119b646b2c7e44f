"""What is changed before it is multiplied: the inputs of linears, and the operands of attention.

An online rotation or an activation grid changes a linear's input. `prepare` puts a `PreparedLinear` in a
linear's place, with the same parameters and names, so that whoever reads or replaces weights sees
no difference. Statistics of what a linear multiplies are statistics of `prepared_input`.

Keys enter a cache after their position embedding, between a block's linears, where no module of
transformers stands. So a view's attention gets a child of its own, which is given queries, keys and values
[batch, heads, tokens, head_dim] and returns them changed, and transformers' registry of attention functions
one that asks it. Only `sdpa` is wrapped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor, nn

from faqbench.config import UserError
from faqbench.models.architecture import Architecture
from faqbench.models.hadamard import Rotation


class PreparedLinear(nn.Linear):
    """A linear y = f(x) W' + b, f one or several steps that keep the shape of x."""

    def __init__(self, linear: nn.Linear, *steps: nn.Module) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.steps = nn.Sequential(*steps)

    def forward(self, x: Tensor) -> Tensor:
        """Prepare the input and multiply."""
        return nn.functional.linear(self.steps(x), self.weight, self.bias)


class OnlineRotation(nn.Module):
    """The step x -> x R."""

    def __init__(self, rotation: Rotation) -> None:
        super().__init__()
        self._rotation = self._cast = rotation
        self._seen: tuple[object, object] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Rotate the last dimension."""
        if self._seen != (x.dtype, x.device):  # once, not with every batch
            self._cast, self._seen = self._rotation.like(x), (x.dtype, x.device)
        return self._cast.times(x)


def prepared_input(linear: nn.Module, x: Tensor) -> Tensor:
    """Return what a linear multiplies when it is given x."""
    if isinstance(linear, PreparedLinear):
        prepared: Tensor = linear.steps(x)
        return prepared
    return x


def prepare(parent: nn.Module, name: str, step: nn.Module) -> None:
    """Let a linear of a module take one more step before it multiplies, after those it takes already."""
    linear = parent.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    before = list(linear.steps) if isinstance(linear, PreparedLinear) else []
    parent.set_submodule(name, PreparedLinear(linear, *before, step))


OPERANDS_ATTENTION = "faqbench_operands"
_CHILD = "operands"


def change_operands(module: Any, architecture: Architecture, change: nn.Module) -> None:
    """Let every block of a view's own modules change queries, keys and values before they meet.

    Args:
        module: the model.
        architecture: where its blocks are.
        change: called with the three, and gives the three.

    Raises:
        UserError: for a model whose attention is not `sdpa`.
    """
    config = module.config.get_text_config()
    if config._attn_implementation != "sdpa":
        raise UserError(
            f"The model's attention is '{config._attn_implementation}', whose keys and values are not to "
            "be reached: quant.activations.kv_bits and bmm need 'sdpa'."
        )
    register_attention(OPERANDS_ATTENTION, _attend)
    config._attn_implementation = OPERANDS_ATTENTION
    for block in architecture.block_modules(module):
        block.get_submodule(architecture.role("qkv").inspect).add_module(_CHILD, change)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    query, key, value = module.get_submodule(_CHILD)(query, key, value)
    result: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, **kwargs
    )
    return result


@cache
def register_attention(name: str, attend: Callable[..., Any]) -> None:
    """Make an attention known to transformers, with the masks of `sdpa`; not before it is needed."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, sdpa_mask)
