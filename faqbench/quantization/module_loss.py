"""The reference's objective for AWQ's scales: run the module, on every calibration token or on a sample.

Legend: M the module that the reference inspects for a role (self_attn for qkv, mlp for gate_up, the linear
itself for o and down); z what M is called with, all calibration tokens; W the weights of the role's
linears in M; s [in] scales; Q rounding to the grid.

    for each alpha:   s as in `scale.py`;   loss = mean squared (M(z; Q(W s)/s) - M(z; W))
    the smallest loss wins, ties go to the smaller alpha

Where M is the linear itself this is the Gram loss divided by out_features, computed in the slow way. For
qkv and gate_up it also sees what attention and the gate make of the error, which the Gram loss does not.

That matters for qkv and not for gate_up: at 3 bits on SmolLM2-135M the whole gain of `loss=module` over
`loss=gram`, 2.1 % in perplexity, is that of qkv, and 4 x 128 tokens of it are as good as 16 x 512
(reports/LOG.md, 2026-11-27). Hence `loss=attention`: self_attn on the `sample` for qkv, the Gram loss for
all else. There the first window tells which few candidates the others are run for.

Reference: AWQ, arXiv 2306.00978, and llm-awq's `auto_scale.py`, whose objective this is. Differs from the
reference: the loop over batches is outside the one over alphas, so no activations are held but one
batch's; the output errors are summed in float64; with a correction, z and W are those of the quantized
stream, as for every other search. The loss counts all tokens, whatever `calibration.tokens` says: a module
such as attention cannot leave some out.

Cost: a forward pass of M per alpha and batch, and the weights rounded anew for each, against one matrix
product per alpha for the Gram loss: see `tests/benchmarks/bench_quantization.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from faqbench.models import BlockStream, Call, Role
from faqbench.quantization.grid import Grid, fake_quantize
from faqbench.quantization.reproducible import total
from faqbench.quantization.scale import ScaleChoice, first_smallest, scale_from_importance

# How the sampled search narrows down its candidates.
_N_STARTS = 3
_N_LEFT = 5


@dataclass(frozen=True, kw_only=True)
class ModuleObjective:
    """Measures candidates for one role's weights on the module that the reference inspects.

    Attributes:
        stream: the windows to measure on, at the input of the block.
        block: the block.
        role: the role.
    """

    stream: BlockStream
    block: nn.Module
    role: Role

    def losses(
        self, weights: Mapping[str, Tensor], grids: Mapping[str, Grid], scales: Sequence[Tensor]
    ) -> list[float]:
        """Return the mean squared output error of the module for each candidate.

        Args:
            weights: float32 [out_features, in_features] by linear name; what errors are relative to.
            grids: the grid of each linear.
            scales: [in_features] of each candidate.
        """
        module = self.block.get_submodule(self.role.inspect)
        stacks = _stacked(weights, grids)
        totals, n_values = [0.0] * len(scales), 0
        for _, call in self.stream.calls_of(self.block, self.role.inspect):
            original = self._output(module, call, weights).float()
            for index, scale in enumerate(scales):
                rounded = {n: w for stack in stacks for n, w in stack.rounded(scale).items()}
                error = self._output(module, call, rounded).float() - original
                totals[index] += float(total(error.square()))
            n_values += original.numel()
        return [total / n_values for total in totals]

    def _output(self, module: nn.Module, call: Call, weights: Mapping[str, Tensor]) -> Tensor:
        """Run the module with other weights in the place of its own."""
        start = len(self.role.inspect) + 1
        dtype = next(module.parameters()).dtype
        parameters = {f"{name}.weight"[start:]: w.to(dtype) for name, w in weights.items()}
        output = functional_call(module, parameters, call.args, call.kwargs)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result


@dataclass(frozen=True, kw_only=True)
class SampledObjective(ModuleObjective):
    """The same on a few windows of equal length, and not for every candidate on all of them.

    The first window is run for every second candidate and for the neighbours of the best three, the other
    windows for the best five of those. On SmolLM2-135M that finds the winner of all candidates on all
    windows in 58 of 60 searches, with two fifths of the tokens (reports/LOG.md, 2026-11-27).
    """

    def losses(
        self, weights: Mapping[str, Tensor], grids: Mapping[str, Grid], scales: Sequence[Tensor]
    ) -> list[float]:
        """Return the losses, infinite for given up candidates; scales come in order of their exponents."""

        def measure(windows: slice, candidates: Sequence[int]) -> dict[int, float]:
            stream = self.stream.fork(windows)
            objective = ModuleObjective(stream=stream, block=self.block, role=self.role)
            losses = objective.losses(weights, grids, [scales[i] for i in candidates])
            return dict(zip(candidates, losses, strict=True))

        n_windows, everything = len(self.stream.hidden), range(len(scales))
        by_index = measure(slice(0, 1), everything[::2])
        near = {i + step for i in _best(by_index, _N_STARTS) for step in (-1, 1)} & set(everything)
        by_index |= measure(slice(0, 1), sorted(near - set(by_index)))
        left = sorted(_best(by_index, _N_LEFT))
        if n_windows > 1:
            others = measure(slice(1, None), left)
            by_index = {i: (by_index[i] + (n_windows - 1) * others[i]) / n_windows for i in left}
        return [by_index.get(i, math.inf) for i in everything]


def search_module_scale(
    objective: ModuleObjective,
    weights: Mapping[str, Tensor],
    grids: Mapping[str, Grid],
    importance: Tensor,
    alphas: Sequence[float],
) -> ScaleChoice:
    """Choose the exponent with the smallest error of the inspected module's output.

    Args:
        objective: the module and its inputs.
        weights: of each linear, [out_features, in_features].
        grids: the grid that each weight will be rounded to.
        importance: [in_features], non-negative.
        alphas: candidate exponents, in increasing order; empty means no scaling, one means fixed.
    """
    if not alphas:
        return ScaleChoice(alpha=None, input_scale=None)
    scales = [scale_from_importance(importance, alpha) for alpha in alphas]
    best = 0
    if len(alphas) > 1:
        best = first_smallest(objective.losses(weights, grids, scales))
    return ScaleChoice(alpha=alphas[best], input_scale=scales[best])


def _best(losses: Mapping[int, float], n: int) -> list[int]:
    """Return the candidates with the smallest losses; NaN counts as largest."""
    return sorted(losses, key=lambda i: (math.isnan(losses[i]), losses[i]))[:n]


@dataclass(frozen=True, kw_only=True)
class _Stack:
    """Weights of one grid above each other, which are rounded faster together."""

    names: tuple[str, ...]
    sizes: list[int]
    weight: Tensor
    grid: Grid

    def rounded(self, scale: Tensor) -> dict[str, Tensor]:
        rows = torch.split(fake_quantize(self.weight, self.grid, scale), self.sizes)
        return dict(zip(self.names, rows, strict=True))


def _stacked(weights: Mapping[str, Tensor], grids: Mapping[str, Grid]) -> list[_Stack]:
    stacks = []
    for grid in dict.fromkeys(grids[name] for name in weights):
        alike = {name: weight for name, weight in weights.items() if grids[name] == grid}
        sizes = [len(weight) for weight in alike.values()]
        weight = torch.cat(list(alike.values()))
        stacks.append(_Stack(names=tuple(alike), sizes=sizes, weight=weight, grid=grid))
    return stacks
