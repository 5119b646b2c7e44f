"""Quantizing as a passenger of the walk over a model's blocks, alone or beside others.

    model.block(i)  ->  Observer (once for all)  ->  method, method, ...  ->  the next block

`engine.py` quantizes a block. Here is what goes from block to block: the streams and reports of a method,
the blocks that an earlier walk has finished, and the companions: other methods, of other cells of a sweep,
that are quantized in the same walk, so that each block is read and observed once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import nn

from faqbench.config import UserError
from faqbench.config.experiment import QuantSection
from faqbench.config.method import Reads, method_of
from faqbench.models import Architecture, LoadedModel, Passenger, twin, walk_blocks
from faqbench.quantization.activations import ActivationStore, Observer
from faqbench.quantization.engine import FinishedBlock, Walk, linears_of, quantize_block, take_up
from faqbench.quantization.grid import Grid, QuantizedLinear
from faqbench.quantization.method import skipped_scale
from faqbench.quantization.preview import Lookahead, n_window_cuts
from faqbench.quantization.reports import BlockReport, LinearReport, QuantizedModel
from faqbench.quantization.streams import (
    Calibration,
    Streams,
    check_correction,
    n_tokens,
    reads_full,
    reads_quantized,
    reads_sample,
)
from faqbench.stages import Progress


class FinishedBlocks(Protocol):
    """Keeps blocks as they are finished, so that a walk that was stopped goes on where it was."""

    def has(self, index: int) -> bool:
        """Say whether a block is finished."""

    def load(self, index: int) -> FinishedBlock | None:
        """Return a block that an earlier walk has finished, or None."""

    def save(self, index: int, block: FinishedBlock) -> None:
        """Keep a block."""


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
        observer = Observer(loaded, calibration.tokens, calibration.batch_size, calibration.select)
        passengers.append(observer)
    quantizing = Quantizing(loaded, quant, grids, store, calibration, keep, finished, observer)
    passengers += [quantizing, *(_Companion(loaded, one, observer) for one in beside)]
    others = f" and {len(beside)} more" if beside else ""
    with progress.activity(f"quantize {quant.name}{others}", loaded.architecture.n_blocks) as advance:
        walk_blocks(passengers, advance)
    return quantizing.result()


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
        streams, n_adapted = None, 0
        if calibration is not None and calibration.adapt_on is not None:
            of_evaluation, adapts = calibration.of_evaluation(quant)
            n_adapted = n_tokens(adapts, of_evaluation)
        observes = store is not None and not store.has_grams and observer is None
        reads = reads_quantized(quant) or reads_full(quant) or reads_sample(quant)
        if reads or observes or (calibration is not None and quant.trace_windows > 0):
            assert calibration is not None, "this method runs the model on calibration windows"
            streams = Streams(loaded, quant, calibration, observes=observes, n_tokens_beside=n_adapted)
        ahead = None
        if _previews(quant):
            assert store is not None
            ahead = Lookahead(store, loaded.view, grids, quant.preview)
        self._walk = Walk(
            model=loaded.view,
            quant=quant,
            grids=grids,
            store=store,
            streams=streams,
            ahead=ahead,
            keep=keep,
            observer=observer,
        )
        self._adapting: Walk | None = None
        if calibration is not None and n_adapted:
            second = Streams(loaded, adapts, of_evaluation, n_tokens_beside=n_tokens(quant, calibration))
            self._adapting = replace(self._walk, quant=adapts, streams=second, made={})

    def work(self, index: int, block: nn.Module) -> None:
        """Quantize a block's twin, or take it up as an earlier walk has left it."""
        walk, streams, second = self._walk, self._walk.streams, twin(block)
        if streams is not None:
            streams.arrive(block, second)
            for role in walk.architecture.roles:
                streams.quantize_inputs(role, linears_of(walk, index, second, role))
        adapting = self._adapting.streams if self._adapting is not None else None
        if self._adapting is not None and adapting is not None:
            adapting.arrive(block, second)
            walk = self._adapting if index == walk.architecture.n_blocks - 1 else walk
        known = None if self._finished is None else self._finished.load(index)
        reports = (
            quantize_block(walk, index, second) if known is None else take_up(walk, index, second, known)
        )
        report = streams.release() if streams is not None else None
        if adapting is not None:
            adapting.release()
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
