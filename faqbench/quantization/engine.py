"""Quantizing on a walk over a model's blocks: a block arrives, is observed, quantized, and released.

Methods that need only the full precision pass (RTN, AWQ, FAQ) read each block's statistics from an
`ActivationStore`, and the model runs on a few traced windows at most. GPTQ reads the quantized stream
once per block; QEP, LoaQ, GPTAQ and Qronos gather anew before each role, since quantizing one changes the
next one's input; `loss=module` runs the full precision block once per candidate, and `loss=attention` its
attention on a sample of the windows; `refine` learns all linears of a block together, in many runs of it.
The model's own weights stay as they are: each block has a twin, whose weights are replaced by their
dequantized stand-ins, in the model's dtype, and that goes when the walk moves on. What is left is what
`keep` was given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from faqbench.config import UserError
from faqbench.config.experiment import QuantSection
from faqbench.config.method import Reads, method_of
from faqbench.models import (
    Architecture,
    LoadedModel,
    Model,
    Passenger,
    Role,
    open_stream,
    twin,
    walk_blocks,
)
from faqbench.quantization.activations import ActivationStore, RoleStatistics, observe_block
from faqbench.quantization.damping import HessianError
from faqbench.quantization.folding import fold_block
from faqbench.quantization.grid import Grid, QuantizedLinear
from faqbench.quantization.lookahead import Lookahead, n_window_cuts
from faqbench.quantization.method import (
    RoleInput,
    RoleResult,
    call_of,
    quantize_role,
    scale_statistic,
    searches_scale,
    skipped_scale,
    static_range,
)
from faqbench.quantization.preview import Later
from faqbench.quantization.refine import Recipe, SharedInput, refine, start_scale
from faqbench.quantization.reports import BlockReport, LinearReport, QuantizedModel, report_role
from faqbench.quantization.streams import (
    Calibration,
    Gathered,
    Streams,
    check_correction,
    corrects,
    gathers_by_role,
    reads_full,
    reads_inputs,
    reads_quantized,
    reads_sample,
    refines,
)
from faqbench.stages import Progress

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


class FinishedBlocks(Protocol):
    """Keeps blocks as they are finished, so that a walk that was stopped goes on where it was."""

    def has(self, index: int) -> bool:
        """Say whether a block is finished."""

    def load(self, index: int) -> FinishedBlock | None:
        """Return a block that an earlier walk has finished, or None."""

    def save(self, index: int, block: FinishedBlock) -> None:
        """Keep a block."""


@dataclass(frozen=True, kw_only=True)
class _Walk:
    """What stays the same from block to block."""

    model: Model
    quant: QuantSection
    grids: Mapping[str, Grid]
    store: ActivationStore | None
    streams: Streams | None
    ahead: Lookahead | None
    keep: Callable[[str, QuantizedLinear], None] | None
    observer: Observer | None
    made: dict[str, QuantizedLinear] = field(default_factory=dict)  # of the block under way

    @property
    def architecture(self) -> Architecture:
        return self.model.architecture


def quantize_model(
    loaded: LoadedModel,
    quant: QuantSection,
    grids: Mapping[str, Grid],
    store: ActivationStore | None,
    calibration: Calibration | None,
    progress: Progress,
    keep: Callable[[str, QuantizedLinear], None] | None = None,
    finished: FinishedBlocks | None = None,
    beside: Sequence[Companion] = (),
) -> QuantizedModel:
    """Quantize every linear of every decoder block, in one walk over them.

    Blocks that are all finished, as those of a companion of an earlier walk are, need none.

    Args:
        loaded: as for `Quantizing`.
        quant: likewise.
        grids: likewise.
        store: likewise.
        calibration: likewise.
        progress: one step per block.
        keep: as for `Quantizing`.
        finished: likewise.
        beside: other methods that are quantized in the same walk, block by block into what keeps theirs.
    """
    known = None if finished is None else _taken_over(loaded.architecture, quant, finished, keep)
    if known is not None:
        return known
    passengers: list[Passenger] = []
    observer = None
    if beside and store is not None and not store.has_grams and not reads_full(quant):
        assert calibration is not None, "what gathers statistics has tokens"
        observer = Observer(loaded, calibration)
        passengers.append(observer)
    own = Quantizing(loaded, quant, grids, store, calibration, keep, finished, observer)
    passengers += [own, *(_Companion(loaded, one, observer) for one in beside)]
    others = f" and {len(beside)} more" if beside else ""
    with progress.stage(f"quantize {quant.name}{others}", loaded.architecture.n_blocks) as advance:
        walk_blocks(passengers, advance)
    return own.result()


def _taken_over(
    architecture: Architecture,
    quant: QuantSection,
    finished: FinishedBlocks,
    keep: Callable[[str, QuantizedLinear], None] | None,
) -> QuantizedModel | None:
    """Return what an earlier walk has finished, or None when a block is missing."""
    linears: list[LinearReport] = []
    traced: list[BlockReport] = []
    for index in range(architecture.n_blocks):
        block = finished.load(index) if finished.has(architecture.n_blocks - 1) else None
        if block is None:
            return None
        for name, linear in block.linears.items():
            if keep is not None:
                keep(f"{architecture.blocks}.{index}.{name}", linear)
        linears += block.reports
        traced += [block.traced] if block.traced is not None else []
    return _outcome(architecture, quant, linears, traced)


@dataclass(frozen=True, kw_only=True)
class Companion:
    """A method that is quantized in the walk of another one, of the same model and tokens.

    Attributes:
        quant: the method; it reads the quantized stream of no more than the sample.
        grids: as for `Quantizing`.
        store: as for `Quantizing`.
        calibration: as for `Quantizing`.
        finished: where its blocks go.
    """

    quant: QuantSection
    grids: Mapping[str, Grid]
    store: ActivationStore | None
    calibration: Calibration | None
    finished: FinishedBlocks


def may_be_companion(quant: QuantSection) -> bool:
    """Say whether a method has no stream of all windows to itself, so that many fit one walk."""
    return not (reads_quantized(quant) or reads_full(quant))


class Observer:
    """A passenger before several that quantize: it observes each block once for all of them.

    Attributes:
        model: in full precision.
        statistics: of the block under way, by role.
    """

    @torch.no_grad()
    def __init__(self, loaded: LoadedModel, calibration: Calibration) -> None:
        """Open the full precision stream."""
        self.model = loaded.view
        self.statistics: Mapping[str, RoleStatistics] = {}
        self._select = calibration.select
        self._stream = open_stream(
            loaded.model, loaded.architecture, calibration.tokens, calibration.batch_size
        )

    def work(self, index: int, block: nn.Module) -> None:
        """Observe a block."""
        self.statistics = {}  # the last block's go first
        roles = self.model.architecture.roles
        self.statistics = observe_block(self._stream, block, roles, self._select, advance=True)


class _Companion:
    """A companion as a passenger; what stops it stops no other, and its own cell will meet it again."""

    def __init__(self, loaded: LoadedModel, one: Companion, observer: Observer | None) -> None:
        self.model = loaded.view
        self._passenger: Quantizing | None = None
        with suppress(UserError):
            self._passenger = Quantizing(
                loaded,
                one.quant,
                one.grids,
                one.store,
                one.calibration,
                finished=one.finished,
                observer=observer,
            )

    def work(self, index: int, block: nn.Module) -> None:
        try:
            if self._passenger is not None:
                self._passenger.work(index, block)
        except UserError:
            self._passenger = None


class Quantizing:
    """A method on its way through a model: a passenger of the walk over its blocks.

    Attributes:
        model: in full precision; it is left as it is.
    """

    @torch.no_grad()
    def __init__(
        self,
        loaded: LoadedModel,
        quant: QuantSection,
        grids: Mapping[str, Grid],
        store: ActivationStore | None,
        calibration: Calibration | None,
        keep: Callable[[str, QuantizedLinear], None] | None = None,
        finished: FinishedBlocks | None = None,
        observer: Observer | None = None,
    ) -> None:
        """Open the streams that the method reads.

        Args:
            loaded: the full precision model.
            quant: the method.
            grids: of the linears to quantize, by full name, from `assign_grids`.
            store: statistics of the full precision pass, or its means alone: Gram matrices are then
                gathered a block at a time, on the way; None for methods that read none.
            calibration: the tokens, for methods that read the quantized stream and for tracing.
            keep: given every quantized linear with its full name.
            finished: blocks of an earlier walk, taken as they are; those of this one are added.
            observer: a passenger before this one, whose statistics are taken where a walk gathers them.

        Raises:
            UserError: when a correction does not fit the architecture, or an activation is not finite.
        """
        self.model = loaded.view
        self._finished = finished
        self._linears: list[LinearReport] = []
        self._traced: list[BlockReport] = []
        check_correction(quant, loaded.architecture.roles)
        streams = None
        observes = store is not None and not store.has_grams and observer is None
        reads = reads_quantized(quant) or reads_full(quant) or reads_sample(quant)
        if reads or observes or (calibration is not None and quant.trace_windows > 0):
            assert calibration is not None, "this method runs the model on calibration windows"
            streams = Streams(loaded, quant, calibration, observes=observes)
        ahead = None
        if _previews(quant):
            assert store is not None
            ahead = Lookahead(store, loaded.view, grids, quant.preview)
        self._walk = _Walk(
            model=loaded.view,
            quant=quant,
            grids=grids,
            store=store,
            streams=streams,
            ahead=ahead,
            keep=keep,
            observer=observer,
        )

    def work(self, index: int, block: nn.Module) -> None:
        """Quantize a block's twin, or take it up as an earlier walk has left it."""
        walk, streams, second = self._walk, self._walk.streams, twin(block)
        if streams is not None:
            streams.arrive(block, second)
            for role in walk.architecture.roles:
                streams.quantize_inputs(role, _linears(walk, index, second, role))
        known = None if self._finished is None else self._finished.load(index)
        reports = (
            _quantize_block(walk, index, second)
            if known is None
            else _take_up(walk, index, second, known)
        )
        report = streams.release() if streams is not None else None
        if self._finished is not None and known is None:
            made = FinishedBlock(linears=dict(walk.made), reports=tuple(reports), traced=report)
            self._finished.save(index, made)
        walk.made.clear()
        self._linears += reports
        self._traced += [report] if report is not None else []

    def result(self) -> QuantizedModel:
        """Return what became of the model, once all blocks have passed."""
        return _outcome(self._walk.architecture, self._walk.quant, self._linears, self._traced)


def _outcome(
    architecture: Architecture,
    quant: QuantSection,
    linears: Sequence[LinearReport],
    traced: Sequence[BlockReport],
) -> QuantizedModel:
    skipped = [skipped_scale(role, architecture, quant) for role in architecture.roles]
    return QuantizedModel(
        linears=tuple(linears),
        blocks=tuple(traced),
        skipped_scales=tuple(reason for reason in skipped if reason is not None),
        n_window_cuts=n_window_cuts(architecture, quant.preview) if _previews(quant) else 0,
    )


def _previews(quant: QuantSection) -> bool:
    return Reads.LATER_MEANS in method_of(quant).reads


def _quantize_block(walk: _Walk, index: int, block: nn.Module) -> list[LinearReport]:
    found: dict[str, QuantizedLinear] = {}
    quantize_roles = _refine_roles if refines(walk.quant) else _quantize_roles
    reports = quantize_roles(walk, index, block, found)
    if walk.quant.scale_dtype is not None:
        linears = dict(block.named_modules())
        fold_block(
            found, walk.architecture, lambda name, q: _put(walk, index, name, linears[name], q)
        )
    return reports


def _take_up(walk: _Walk, index: int, block: nn.Module, known: FinishedBlock) -> list[LinearReport]:
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
    walk: _Walk, index: int, block: nn.Module, found: dict[str, QuantizedLinear]
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
        linears = _linears(walk, index, block, role)
        if linears:
            try:
                reports += _quantize_linears(
                    walk, index, role, linears, full.get(role.name), quantized.get(role.name), found
                )
            except HessianError as error:
                names = ", ".join(linears)
                raise UserError(
                    f"{names} in block {index} cannot be quantized: {error}."
                ) from error
    return reports


def _refine_roles(
    walk: _Walk, index: int, block: nn.Module, found: dict[str, QuantizedLinear]
) -> list[LinearReport]:
    """Learn the linears of a block's twin together, as `_quantize_roles` quantizes them."""
    quant, architecture, began = walk.quant, walk.architecture, time.perf_counter()
    assert walk.streams is not None
    linears = {role.name: _linears(walk, index, block, role) for role in architecture.roles}
    originals = {
        role: {name: _weight(linear, name, index) for name, linear in own.items()}
        for role, own in linears.items()
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
        own, weights = linears[role.name], originals[role.name]
        made = {name: refined.linears[name] for name in own}
        span = static_range(
            role, next(iter(made.values())).input_scale, lesson.statistics[role.name], quant
        )
        made = {name: replace(linear, input_range=span) for name, linear in made.items()}
        found |= made
        stand_ins = {n: _put(walk, index, n, own[n], made[n]) for n in own}
        result = RoleResult(
            linears=made,
            alpha=None,
            limits=dict.fromkeys(own),
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
    walk: _Walk,
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
    return report_role(
        index, role, result, originals, gathered.corrections, stand_ins, gram, seconds
    )


def _grids(walk: _Walk, index: int, names: Iterable[str]) -> dict[str, Grid]:
    return {name: walk.grids[f"{walk.architecture.blocks}.{index}.{name}"] for name in names}


def _put(
    walk: _Walk, index: int, name: str, linear: nn.Linear, quantized: QuantizedLinear
) -> Tensor:
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
    walk: _Walk,
    index: int,
    role: Role,
    full: RoleStatistics | None,
    gathered: Gathered,
) -> RoleInput:
    """Gather what the stages after the correction need to know of a role's input."""
    quant, quantized = walk.quant, gathered.statistics
    # A corrected weight is fitted to the quantized stream: all that follows is measured there.
    search = quantized if corrects(quant) else full
    if not reads_inputs(quant):
        return RoleInput()
    statistic = objective = None
    if searches_scale(quant):
        assert search is not None
        later = Later()
        if walk.ahead is not None:
            drift = () if walk.streams is None else walk.streams.drift
            later = walk.ahead.later(role, index, drift)
        statistic = scale_statistic(role, search.mean_abs, later, walk.architecture, quant)
        if walk.streams is not None:
            objective = walk.streams.objective(role)
    return RoleInput(
        search=search,
        hessian=None if quantized is None else quantized.gram,
        cross=gathered.cross,
        statistic=statistic,
        objective=objective,
    )


def _weight(linear: nn.Linear, name: str, index: int) -> Tensor:
    """Return a linear's weight in float32, a copy.

    Raises:
        UserError: when it holds NaN or infinity.
    """
    weight = linear.weight.float().clone()
    if not weight.isfinite().all():
        raise UserError(f"The weight of {name} in block {index} holds NaN or infinity.")
    return weight


def _linears(walk: _Walk, index: int, block: nn.Module, role: Role) -> dict[str, nn.Linear]:
    """Return the role's linears that are to be quantized."""
    linears = {}
    for name in role.linears:
        if f"{walk.architecture.blocks}.{index}.{name}" in walk.grids:
            linear = block.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            linears[name] = linear
    return linears
