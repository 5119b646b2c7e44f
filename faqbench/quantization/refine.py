"""Learning how a decoder block is quantized: gradient descent on the error of the block's output.

Legend, for the linears of one block: W [out, in]; lo, hi [out, n_groups] what the ends of a group's range
are multiplied by; s [in] the input scale of the linears that share an input; V [out, in] offsets of
rounding; u [out], v [in] factors after rounding; Δ, z scale and zero point of a range. X̂ is what enters
the block on the quantized stream, Y what leaves it on the full precision stream, Y' what the full
precision block makes of X̂.

    Ŵ = (clamp(round(W s / Δ + V) + z) - z) Δ u v / s      Δ, z of the range from lo min(W s) to hi max(W s)
    Ŷ = block(X̂; Ŵ)                 round passes gradients on unchanged, the clamp where it changes nothing

    value          learns             loss                                                  steps
    omniquant      lo, hi, (s)        M(Ŷ, Y)                                               Adam
    lrquant        lo, hi, s          M(Ŷ, Y) + N(Ŷ, Y)                                     Adam
    lrquant_plus   lo, hi, s, u, v    (M(Ŷ, Y) + M(Ŷ, Y')) / m + (N(Ŷ, Y) + N(Ŷ, Y')) / n   Adam
    signround      lo, hi, V          M(Ŷ, Y)                                               signs

    M(a, b) = mean (a - b)²      N(a, b) = -log max(mean over tokens of cos(a, b), 1e-6)
    m, n running means of the sums they divide, of momentum 0.95 from 1
    lo, hi sigmoids that start at 0.98; signround's stay in [0, 1] from 1, its V in [-1/2, 1/2] from 0
    z passes no gradient to lo, as in OmniQuant's and LRQuant's code; signround's does, as auto-round's
    s starts as `scale.py` says, usually at LAE's a / log2(2 + a), where a = max|x|; u, v start at 1
    inputs of linears are rounded by their own grid, which divides them by s, where roundings see that

What comes out are ordinary codes, scales and input scales: u goes into the scales of rows, v into s. The
best iterate is kept, as all windows together judge it, every tenth step and at the start; so no step makes
a block worse than it began. A descent that meets NaN or infinity begins again at a tenth of its rates.

Reference: OmniQuant, arXiv 2308.13137; LRQuant, ACL 2024; LRQuant+, TPAMI 2025; SignRound,
arXiv 2309.05516 and auto-round's code.
Differs from LRQuant: no shift is learned, since it would give biases to linears that have none, and no
scale between q and k, or v and o, which say nothing about weights rounded by rows or do not exist under
grouped-query attention; NLC takes max(cos, 1e-6), not |cos|, by which -Y would be as good as Y.
Where LRQuant+'s code and paper differ: its "rotation vectors" multiply rounded weights elementwise by u v',
of rank 1, as the code has it (the paper's name suggests an orthogonal matrix); v is one for the linears
that share a norm's output, so that it folds into the norm; the loss has N of both branches, as the code for
vision models (the one for language models has N of Y' alone, and fails before it gets there).
LRQuant's test-time adaptation, which learns the last block without scales on the text that is scored, is
`adapt_on=evaluation`: with the recipe's own loss, for the steps of any block (the paper's code has M + N
and five passes over the text). It says what looking at the test text is worth, and never stands unmarked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from faqbench.config.experiment import QuantSection, RefinementSection
from faqbench.config.method import SCALE
from faqbench.models import Role
from faqbench.quantization.activations import RoleStatistics
from faqbench.quantization.grid import (
    Grid,
    GroupParameters,
    QuantizedLinear,
    learned_zero_point,
    pack_codes,
    range_parameters,
    round_straight_through,
    scaled_groups,
    stored_scale,
)
from faqbench.quantization.method import call_of
from faqbench.quantization.reproducible import total

State = dict[str, Tensor]  # what is learned, by kind and name: "low self_attn.q_proj", "scale qkv"

_START_CLIP = 4.0  # sigmoid(4) = 0.98
_LEAST_FACTOR = 1e-2  # of s, u and v: a smaller one would blow up what is divided by it
_LEAST_COSINE = 1e-6
_MOMENTUM = 0.95
_CHECK_EVERY = 10  # steps
_MOST_RESTARTS, _SLOWER = 3, 0.1


class StandIn(NamedTuple):
    """What a linear is given while it is learned.

    Attributes:
        weight: Ŵ [out_features, in_features].
        input_scale: s / v [in_features] of the input's own grid, where it has one; None without.
    """

    weight: Tensor
    input_scale: Tensor | None


Block = Callable[[Tensor, Mapping[str, StandIn]], Tensor]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a value of `refine` learns, by which loss, and how; see the table above.

    Attributes:
        scales: whether s is learned where a role has a start of it.
        vectors: whether u, and v beside s, are.
        by_sign: whether V is, by the signs of gradients.
        cosine: whether N is part of the loss.
        homologous: whether Y' is a target too.
        is_dynamic: whether M and N are divided by their running means.
    """

    scales: bool = True
    vectors: bool = False
    by_sign: bool = False
    cosine: bool = False
    homologous: bool = False
    is_dynamic: bool = False


def omniquant() -> Recipe:
    """Return OmniQuant's recipe: the value `refine=omniquant`."""
    return Recipe()


def lrquant() -> Recipe:
    """Return LRQuant's: the value `refine=lrquant`."""
    return Recipe(cosine=True)


def lrquant_plus() -> Recipe:
    """Return LRQuant+'s: the value `refine=lrquant_plus`."""
    return Recipe(vectors=True, cosine=True, homologous=True, is_dynamic=True)


def signround() -> Recipe:
    """Return SignRound's: the value `refine=signround`."""
    return Recipe(scales=False, by_sign=True)


@dataclass(frozen=True, kw_only=True)
class SharedInput:
    """The linears of one role.

    Attributes:
        name: of the role.
        weights: float32 [out_features, in_features] by name.
        grids: of each.
        start: s [in_features] to begin with; None for a role that is not scaled.
    """

    name: str
    weights: Mapping[str, Tensor]
    grids: Mapping[str, Grid]
    start: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What a block learns from, each [n_windows, seq_len, hidden_size].

    Attributes:
        inputs: X̂.
        wanted: Y.
        homologous: Y'; None for a recipe that does not read it.
    """

    inputs: Tensor
    wanted: Tensor
    homologous: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Refined:
    """A learned block.

    Attributes:
        linears: by name.
        clipped_frac: by name, the share of weights outside their group's range.
        start_error: M(Ŷ, Y) on all examples before the first step.
        error: the same of the kept iterate.
        n_steps: how many steps that had taken; 0 is the start.
        n_restarts: how often a descent met NaN or infinity and began again, slower.
    """

    linears: Mapping[str, QuantizedLinear]
    clipped_frac: Mapping[str, float]
    start_error: float
    error: float
    n_steps: int
    n_restarts: int


def start_scale(
    role: Role, weights: Sequence[Tensor], statistics: RoleStatistics, quant: QuantSection
) -> Tensor | None:
    """Return the s [in_features] that a role begins with; None for one that is not scaled."""
    start = SCALE.values[quant.refinement.start]
    if start.is_idle or not role.residual:
        return None
    scale: Tensor = call_of(start)(statistics.largest, weights, quant)
    return scale


def refine(
    block: Block,
    roles: Sequence[SharedInput],
    examples: Examples,
    recipe: Recipe,
    settings: RefinementSection,
) -> Refined:
    """Learn the quantized linears of one block.

    Args:
        block: gives the output of hidden states [n, seq_len, hidden_size] with stand-ins for some linears.
        roles: those linears.
        examples: what is learned from.
        recipe: what is learned.
        settings: for how long, and at which rates.
    """
    loss = _Loss(block=block, roles=roles, examples=examples, recipe=recipe)
    best = first = loss.measure(start_of(roles, recipe), 0, settings.batch)
    n_restarts = 0
    for n_restarts in range(_MOST_RESTARTS + 1 if settings.steps > 0 else 0):
        best, is_finite = _descend(loss, first, best, settings, _SLOWER**n_restarts)
        if is_finite:
            break
    linears, clipped_frac = quantized(best.state, roles, recipe)
    return Refined(
        linears=linears,
        clipped_frac=clipped_frac,
        start_error=first.error,
        error=best.error,
        n_steps=best.n_steps,
        n_restarts=n_restarts,
    )


def start_of(roles: Sequence[SharedInput], recipe: Recipe) -> State:
    """Return what is learned as it is before the first step."""
    state: State = {}
    for role in roles:
        if recipe.scales and role.start is not None:
            state[f"scale {role.name}"] = role.start.clone()
            if recipe.vectors:
                state[f"column {role.name}"] = torch.ones_like(role.start)
        for name, weight in role.weights.items():
            n_groups = weight.shape[1] // role.grids[name].group_width(weight.shape[1])
            ends = weight.new_full((len(weight), n_groups), 1.0 if recipe.by_sign else _START_CLIP)
            state |= {f"low {name}": ends, f"high {name}": ends.clone()}
            if recipe.vectors:
                state[f"row {name}"] = weight.new_ones(len(weight))
            if recipe.by_sign:
                state[f"offset {name}"] = torch.zeros_like(weight)
    return state


def stand_ins(state: State, roles: Sequence[SharedInput], recipe: Recipe) -> dict[str, StandIn]:
    """Return what every linear is given, through which gradients reach the state."""
    result = {}
    for role in roles:
        for name, weight in role.weights.items():
            rounded = _rounded(state, role, name, recipe)
            scaled = (rounded.codes * rounded.parameters.scale.unsqueeze(-1)).view_as(weight)
            s = rounded.input_scale
            result[name] = StandIn(scaled if s is None else scaled / s, s)
    return result


@torch.no_grad()
def quantized(
    state: State, roles: Sequence[SharedInput], recipe: Recipe
) -> tuple[dict[str, QuantizedLinear], dict[str, float]]:
    """Return the same as codes, which give `stand_ins` to the bit, and the shares that are clipped."""
    linears, clipped_frac = {}, {}
    for role in roles:
        for name, grid in role.grids.items():
            it = _rounded(state, role, name, recipe)
            linears[name] = pack_codes(it.codes, it.parameters, grid, it.input_scale)
            low, high = (end.unsqueeze(-1) for end in it.ends)
            is_clipped = (it.grouped < low) | (it.grouped > high)
            clipped_frac[name] = int(is_clipped.sum()) / is_clipped.numel()
    return linears, clipped_frac


@dataclass(frozen=True, kw_only=True)
class _Rounded:
    """A weight on its grid.

    Attributes:
        grouped: W s [out, n_groups, width].
        ends: of the ranges, [out, n_groups] each.
        codes: of the same shape as `grouped`, less their zero point.
        parameters: whose scales give Ŵ times the input scale.
        input_scale: [in_features] or None, with v in it.
    """

    grouped: Tensor
    ends: tuple[Tensor, Tensor]
    codes: Tensor
    parameters: GroupParameters
    input_scale: Tensor | None


def _rounded(state: State, role: SharedInput, name: str, recipe: Recipe) -> _Rounded:
    grid, input_scale = role.grids[name], _factor(state, f"scale {role.name}")
    grouped = scaled_groups(role.weights[name], grid, input_scale)
    ends = state[f"low {name}"], state[f"high {name}"]
    lo, hi = ends if recipe.by_sign else (ends[0].sigmoid(), ends[1].sigmoid())
    low, high = grouped.amin(dim=-1) * lo, grouped.amax(dim=-1) * hi
    parameters = range_parameters(low, high, grid)
    if recipe.by_sign:
        parameters = learned_zero_point(low, parameters)
    codes = round_straight_through(grouped, parameters, grid, state.get(f"offset {name}"))
    row, column = _factor(state, f"row {name}"), _factor(state, f"column {role.name}")
    if row is not None:
        scale = stored_scale(parameters.scale * row.unsqueeze(-1), grid)
        parameters = replace(parameters, scale=scale)
    if column is not None:
        assert input_scale is not None
        input_scale = input_scale / column
    return _Rounded(
        grouped=grouped, ends=(low, high), codes=codes, parameters=parameters, input_scale=input_scale
    )


def _factor(state: State, key: str) -> Tensor | None:
    """Return s, u or v, kept from vanishing; its gradient stays."""
    value = state.get(key)
    return None if value is None else value + (_LEAST_FACTOR - value).clamp(min=0).detach()


@dataclass(frozen=True, kw_only=True)
class _Iterate:
    """What is learned after some steps, and what all windows make of it.

    Attributes:
        state: of its own, which later steps leave alone.
        n_steps: how many were taken.
        parts: the sum of M over targets, and that of N where the recipe has it.
        error: M(Ŷ, Y).
    """

    state: State
    n_steps: int
    parts: tuple[float, ...]
    error: float

    def size(self, first: _Iterate, recipe: Recipe) -> float:
        """Return what iterates are compared by: the parts, of a dynamic recipe relative to the first."""
        if not recipe.is_dynamic:
            return sum(self.parts)
        return sum(a / b if b > 0 else a for a, b in zip(self.parts, first.parts, strict=True))


@dataclass(frozen=True, kw_only=True)
class _Loss:
    """The parts of a recipe's loss, as functions of what is learned."""

    block: Block
    roles: Sequence[SharedInput]
    examples: Examples
    recipe: Recipe

    def parts(self, state: State, rows: Tensor) -> list[Tensor]:
        """Return the parts on some windows."""
        given = stand_ins(state, self.roles, self.recipe)
        return self._compare(self.block(self.examples.inputs[rows], given), rows)

    @torch.no_grad()
    def measure(self, state: State, n_steps: int, batch: int) -> _Iterate:
        """Return an iterate with the means of its parts over all windows."""
        given = stand_ins(state, self.roles, self.recipe)
        n_windows, sums = len(self.examples.inputs), list[list[float]]()
        for rows in torch.split(torch.arange(n_windows), batch):
            got = self.block(self.examples.inputs[rows], given)
            target = self.examples.wanted[rows].to(got.device)
            measured = [*self._compare(got, rows), squared_error(got, target)]
            sums.append([float(part) * len(rows) for part in measured])
        *parts, error = (sum(column) / n_windows for column in zip(*sums, strict=True))
        kept = {key: value.detach().clone() for key, value in state.items()}
        return _Iterate(state=kept, n_steps=n_steps, parts=tuple(parts), error=error)

    def _compare(self, got: Tensor, rows: Tensor) -> list[Tensor]:
        targets = [self.examples.wanted[rows].to(got.device)]
        if self.recipe.homologous:
            assert self.examples.homologous is not None
            targets.append(self.examples.homologous[rows].to(got.device))
        parts = [torch.stack([squared_error(got, target) for target in targets]).sum()]
        if self.recipe.cosine:
            parts.append(torch.stack([cosine_loss(got, target) for target in targets]).sum())
        return parts


def squared_error(got: Tensor, target: Tensor) -> Tensor:
    """Return M: the mean squared difference, as a float64 scalar."""
    return total((got.float() - target.float()).square()) / target.numel()


def cosine_loss(got: Tensor, target: Tensor) -> Tensor:
    """Return N: minus the logarithm of the mean cosine between vectors of the last dimension."""
    cosines = functional.cosine_similarity(got.float(), target.float(), dim=-1)
    return -(total(cosines) / cosines.numel()).clamp(min=_LEAST_COSINE).log()


class RunningMeans:
    """Divides each part of a loss by its running mean, so that all weigh alike."""

    def __init__(self) -> None:
        self._means: list[float] = []

    def weighed(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the loss, whose parts are near 1 once they stop moving."""
        before = self._means or [1.0] * len(parts)
        now = [float(part.detach()) for part in parts]
        self._means = [
            _MOMENTUM * old + (1 - _MOMENTUM) * new for old, new in zip(before, now, strict=True)
        ]
        weighed = [part / (mean + 1e-6) for part, mean in zip(parts, self._means, strict=True)]
        return torch.stack(weighed).sum()


def _descend(
    loss: _Loss, first: _Iterate, best: _Iterate, settings: RefinementSection, rate: float
) -> tuple[_Iterate, bool]:
    """Take all steps, or as many as are finite; return the best iterate, and whether all were."""
    recipe, batches = loss.recipe, _batches(len(loss.examples.inputs), settings)
    state = {key: value.clone().requires_grad_() for key, value in first.state.items()}
    take_step = (_signs if recipe.by_sign else _adam)(state, settings, rate)
    means, since = RunningMeans(), 0
    for step in range(1, settings.steps + 1):
        with torch.enable_grad():
            parts = loss.parts(state, next(batches))
            value = means.weighed(parts) if recipe.is_dynamic else torch.stack(parts).sum()
            if not math.isfinite(float(value.detach())):
                return best, False
            value.backward()  # type: ignore[no-untyped-call]
        take_step(step)
        since += 1
        if step % _CHECK_EVERY and step < settings.steps:
            continue
        iterate = loss.measure(state, step, settings.batch)
        size = iterate.size(first, recipe)
        if not math.isfinite(size):
            return best, False
        if size < best.size(first, recipe):
            best, since = iterate, 0
        elif settings.patience is not None and since >= settings.patience:
            break
    return best, True


def _batches(n_windows: int, settings: RefinementSection) -> Iterator[Tensor]:
    """Yield the rows of batches without end: every window once, in an order drawn anew, and again."""
    generator = torch.Generator().manual_seed(settings.seed)
    while True:
        yield from torch.split(torch.randperm(n_windows, generator=generator), settings.batch)


def _signs(state: State, settings: RefinementSection, rate: float) -> Callable[[int], None]:
    """Return steps of one length for all, which shrinks to nothing: SignRound's."""
    length = rate * (settings.offset_rate or 1.0 / settings.steps)

    @torch.no_grad()
    def take_step(step: int) -> None:
        now = length * (1 - (step - 1) / settings.steps)
        for key, value in state.items():
            assert value.grad is not None
            value -= now * value.grad.sign()
            value.clamp_(*((-0.5, 0.5) if key.startswith("offset ") else (0.0, 1.0)))
            value.grad = None

    return take_step


def _adam(state: State, settings: RefinementSection, rate: float) -> Callable[[int], None]:
    """Return Adam's steps, which are AdamW's without decay.

    They are written out since torch.optim takes seconds to import what compiles its steps.
    """
    means = {key: torch.zeros_like(value) for key, value in state.items()}
    squares = {key: torch.zeros_like(value) for key, value in state.items()}

    @torch.no_grad()
    def take_step(step: int) -> None:
        for key, value in state.items():
            assert value.grad is not None
            means[key].lerp_(value.grad, 1 - 0.9)
            squares[key].lerp_(value.grad.square(), 1 - 0.999)
            length = settings.scale_rate if key.startswith("scale ") else settings.clip_rate
            spread = (squares[key] / (1 - 0.999**step)).sqrt_().add_(1e-8)
            value -= rate * length / (1 - 0.9**step) * means[key] / spread
            value.grad = None

    return take_step
