"""Linears that change their input before they multiply, by an online rotation or an activation grid.

`prepare` puts a `PreparedLinear` in a linear's place, with the same parameters under the same names, so
that whoever reads or replaces weights sees no difference. Statistics of what a linear multiplies are
statistics of `prepared_input`.
"""

from __future__ import annotations

from torch import Tensor, nn

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
