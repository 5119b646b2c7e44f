"""Quantizing one block: what has been observed of it, or is now, and its linears role by role, or together.

Methods that need only the full precision pass (RTN, AWQ, FAQ) read each block's statistics from an
`ActivationStore`, and the model runs on a few traced windows at most. GPTQ reads the quantized stream
once per block; QEP, LoaQ, GPTAQ and Qronos gather anew before each role, since quantizing one changes the
next one's input; `loss=module` runs the full precision block once per candidate, and `loss=attention` its
attention on a sample of the windows; `refine` learns all linears of a block together, in many runs of it.
The model's own weights stay as they are: each block has a twin, whose weights are replaced by their
dequantized stand-ins, in the model's dtype, and that goes when the walk (`walk.py`) moves on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from faqbench.config import UserError
from faqbench.config.experiment import QuantSection
from faqbench.config.method import method_of
from faqbench.models import Architecture, Model, Role, is_finite
from faqbench.quantization.activations import ActivationStore, Observer, RoleStatistics
from faqbench.quantization.folding import fold_block
from faqbench.quantization.grid import Grid, QuantizedLinear
from faqbench.quantization.method import (
    RoleInput,
    RoleResult,
    call_of,
    quantize_role,
    scale_importance,
    searches_scale,
    static_range,
)
from faqbench.quantization.preview import Later, Lookahead
from faqbench.quantization.refine import Recipe, SharedInput, refine, start_scale
from faqbench.quantization.reports import BlockReport, LinearReport, report_role
from faqbench.quantization.reproducible import HessianError
from faqbench.quantization.streams import (
    Gathered,
    Streams,
    corrects,
    gathers_by_role,
    reads_inputs,
    reads_quantized,
    refines,
)

CODE_VERSION = 9  # raise it when the same method would give other weights


@dataclass(frozen=True, kw_only=True, eq=False)
class FinishedBlock:
    """What became of a block.

    Attributes:
        linears: by name relative to the block.
        reports: of these.
        traced: how far its output is from full precision; None when nothing was traced.
    """

    linears: Mapping[str, QuantizedLinear]
    reports: tuple[LinearReport, ...]
    traced: BlockReport | None


@dataclass(frozen=True, kw_only=True)
class Walk:
    """What stays the same from block to block.

    Attributes:
        model: in full precision.
        quant: the method.
        grids: of the linears to quantize, by full name.
        store: statistics of the full precision pass, or its means; None for methods that read none.
        streams: those that the method reads; None where it runs nothing.
        ahead: what FAQ's preview reads; None for other methods.
        keep: given every quantized linear with its full name.
        observer: whose statistics are taken, where another passenger gathers them.
        made: the quantized linears of the block under way, by name relative to it.
    """

    model: Model
    quant: QuantSection
    grids: Mapping[str, Grid]
    store: ActivationStore | None
    streams: Streams | None
    ahead: Lookahead | None
    keep: Callable[[str, QuantizedLinear], None] | None
    observer: Observer | None
    made: dict[str, QuantizedLinear] = field(default_factory=dict)

    @property
    def architecture(self) -> Architecture:
        """Where its blocks and linears are."""
        return self.model.architecture


def quantize_block(walk: Walk, index: int, block: nn.Module) -> list[LinearReport]:
    """Quantize the linears of a block's twin, and return their reports."""
    found: dict[str, QuantizedLinear] = {}
    quantize_roles = _refine_roles if refines(walk.quant) else _quantize_roles
    reports = quantize_roles(walk, index, block, found)
    if walk.quant.scale_dtype is not None:
        linears = dict(block.named_modules())
        fold_block(found, walk.architecture, lambda name, q: _put(walk, index, name, linears[name], q))
    return reports


def take_up(walk: Walk, index: int, block: nn.Module, known: FinishedBlock) -> list[LinearReport]:
    """Give a block's twin the weights that it was given before, and return their reports."""
    if walk.streams is not None:
        walk.streams.pass_by()
    linears = dict(block.named_modules())
    for name, quantized in known.linears.items():
        linear = linears[name]
        assert isinstance(linear, nn.Linear)
        _put(walk, index, name, linear, quantized)
    return list(known.reports)


def _quantize_roles(
    walk: Walk, index: int, block: nn.Module, found: dict[str, QuantizedLinear]
) -> list[LinearReport]:
    """Quantize a block's twin role by role, and put its quantized linears into `found`."""
    quant, streams = walk.quant, walk.streams
    full: Mapping[str, RoleStatistics] = {}
    if walk.store is not None and walk.store.has_grams:
        full = walk.store.block(index)
    elif walk.store is not None and walk.observer is not None:
        full = walk.observer.statistics
    elif walk.store is not None:
        assert streams is not None
        full = streams.observe_full(walk.architecture.roles)
    quantized: Mapping[str, RoleStatistics] = {}
    if reads_quantized(quant) and not gathers_by_role(quant):
        assert streams is not None
        quantized = streams.observe(walk.architecture.roles)
    reports: list[LinearReport] = []
    for role in walk.architecture.roles:
        linears = linears_of(walk, index, block, role)
        if linears:
            try:
                reports += _quantize_linears(
                    walk, index, role, linears, full.get(role.name), quantized.get(role.name), found
                )
            except HessianError as error:
                names = ", ".join(linears)
                raise UserError(f"{names} in block {index} cannot be quantized: {error}.") from error
            walk.model.give_back()
    return reports


def _refine_roles(
    walk: Walk, index: int, block: nn.Module, found: dict[str, QuantizedLinear]
) -> list[LinearReport]:
    """Learn the linears of a block's twin together, as `_quantize_roles` quantizes them."""
    quant, architecture, began = walk.quant, walk.architecture, time.perf_counter()
    assert walk.streams is not None
    linears = {role.name: linears_of(walk, index, block, role) for role in architecture.roles}
    originals = {
        role: {name: _weight(linear, name, index) for name, linear in members.items()}
        for role, members in linears.items()
    }
    learned = [role for role in architecture.roles if linears[role.name]]
    if not learned:
        return []
    recipe: Recipe = call_of(method_of(quant)["refine"])()
    lesson = walk.streams.lesson(architecture.roles, homologous=recipe.homologous)
    roles = [
        SharedInput(
            name=role.name,
            weights=originals[role.name],
            grids=_grids(walk, index, originals[role.name]),
            start=start_scale(
                role, list(originals[role.name].values()), lesson.statistics[role.name], quant
            ),
        )
        for role in learned
    ]
    refined = refine(lesson.block, roles, lesson.examples, recipe, quant.refinement)
    n_linears, reports = len(refined.linears), list[LinearReport]()
    for role in learned:
        members, weights = linears[role.name], originals[role.name]
        made = {name: refined.linears[name] for name in members}
        span = static_range(
            role, next(iter(made.values())).input_scale, lesson.statistics[role.name], quant
        )
        made = {name: replace(linear, input_range=span) for name, linear in made.items()}
        found |= made
        stand_ins = {n: _put(walk, index, n, members[n], made[n]) for n in members}
        result = RoleResult(
            linears=made,
            alpha=None,
            limits=dict.fromkeys(members),
            clipped_frac=refined.clipped_frac,
            rounds_to_nearest=False,
        )
        seconds = (time.perf_counter() - began) / n_linears
        gram = lesson.statistics[role.name].gram
        reports += report_role(index, role, result, weights, {}, stand_ins, gram, seconds)
    return [
        replace(
            report,
            refine_start=refined.start_error,
            refine_error=refined.error,
            refine_steps=refined.n_steps,
            refine_restarts=refined.n_restarts,
        )
        for report in reports
    ]


def _quantize_linears(
    walk: Walk,
    index: int,
    role: Role,
    linears: Mapping[str, nn.Linear],
    full: RoleStatistics | None,
    quantized: RoleStatistics | None,
    found: dict[str, QuantizedLinear],
) -> list[LinearReport]:
    """Quantize one role of a block's twin.

    Args:
        walk: what stays the same from block to block.
        index: of the block.
        role: the role.
        linears: those of its linears that are to be quantized.
        full: statistics of its input in full precision; None for methods that read none.
        quantized: the same on the quantized stream, where the method gathers them a block at a time.
        found: where its quantized linears go, beside those of the block's other roles.
    """
    quant, start = walk.quant, time.perf_counter()
    grids = _grids(walk, index, linears)
    originals = {name: _weight(linear, name, index) for name, linear in linears.items()}
    gathered = Gathered(statistics=quantized)
    if gathers_by_role(quant):
        assert walk.streams is not None
        gathered = walk.streams.gather(role, originals)
    weights = originals | {name: c.weight for name, c in gathered.corrections.items()}
    known = _known(walk, index, role, full, gathered)
    result = quantize_role(role, weights, grids, known, quant)
    found |= result.linears
    stand_ins = {n: _put(walk, index, n, linears[n], q) for n, q in result.linears.items()}
    seconds = (time.perf_counter() - start) / len(linears)
    measured = full or gathered.statistics
    gram = measured.gram if measured is not None else None
    return report_role(index, role, result, originals, gathered.corrections, stand_ins, gram, seconds)


def _grids(walk: Walk, index: int, names: Iterable[str]) -> dict[str, Grid]:
    return {name: walk.grids[f"{walk.architecture.blocks}.{index}.{name}"] for name in names}


def _put(walk: Walk, index: int, name: str, linear: nn.Linear, quantized: QuantizedLinear) -> Tensor:
    """Give a linear of a block's twin its quantized weight, hand that on, and return it dequantized."""
    stand_in = quantized.dequantize()
    linear.weight = nn.Parameter(stand_in.to(linear.weight.dtype), requires_grad=False)
    if walk.streams is not None:
        walk.streams.settle(name, quantized.input_scale)
    walk.made[name] = quantized
    if walk.keep is not None:
        walk.keep(f"{walk.architecture.blocks}.{index}.{name}", quantized)
    return stand_in


def _known(
    walk: Walk, index: int, role: Role, full: RoleStatistics | None, gathered: Gathered
) -> RoleInput:
    """Gather what the stages after the correction need to know of a role's input."""
    quant, quantized = walk.quant, gathered.statistics
    # A corrected weight is fitted to the quantized stream: all that follows is measured there.
    search = quantized if corrects(quant) else full
    if not reads_inputs(quant):
        return RoleInput()
    importance = objective = None
    if searches_scale(quant):
        assert search is not None
        later = Later()
        if walk.ahead is not None:
            drift = () if walk.streams is None else walk.streams.drift
            later = walk.ahead.later(role, index, drift)
        importance = scale_importance(role, search.mean_abs, later, walk.architecture, quant)
        if walk.streams is not None:
            objective = walk.streams.objective(role)
    return RoleInput(
        search=search,
        hessian=None if quantized is None else quantized.gram,
        cross=gathered.cross,
        importance=importance,
        objective=objective,
    )


def _weight(linear: nn.Linear, name: str, index: int) -> Tensor:
    """Return a linear's weight in float32, a copy.

    Raises:
        UserError: when it holds NaN or infinity.
    """
    weight = linear.weight.float().clone()
    if not is_finite(weight):
        raise UserError(f"The weight of {name} in block {index} holds NaN or infinity.")
    return weight


def linears_of(walk: Walk, index: int, block: nn.Module, role: Role) -> dict[str, nn.Linear]:
    """Return the role's linears that are to be quantized."""
    linears = {}
    for name in role.linears:
        if f"{walk.architecture.blocks}.{index}.{name}" in walk.grids:
            linear = block.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            linears[name] = linear
    return linears
