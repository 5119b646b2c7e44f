"""Two streams through a model: full precision, and quantized so far.

Both move block by block. Methods that read what earlier quantization did to a linear's input (GPTQ, QEP,
LoaQ) get all calibration windows on it, and those that read full precision activations (QEP, LoaQ, GPTAQ,
Qronos, the module objective) on the other; a stream that is not read is not there. A `Sample` of the
windows goes along both for tracing and for searches that need no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from faqbench.config import UserError
from faqbench.config.experiment import QuantSection
from faqbench.config.method import Reads, method_of
from faqbench.models import BlockStream, LoadedModel, PreparedLinear, Role, open_stream, prepare
from faqbench.quantization.activation_grid import ActivationGrid
from faqbench.quantization.activations import (
    Accumulator,
    RoleStatistics,
    Tokens,
    check_finite,
    observe_block,
    select_tokens,
)
from faqbench.quantization.correct import Correction, CorrectionAccumulator, CrossAccumulator, is_held_out
from faqbench.quantization.method import call_of, fixed_alpha, searches_scale
from faqbench.quantization.module_loss import ModuleObjective, SampledObjective
from faqbench.quantization.preview import Drift, n_blocks_ahead
from faqbench.quantization.refine import Block, Examples, StandIn
from faqbench.quantization.reports import BlockReport
from faqbench.quantization.sample import Sample, Searched

_RESIDUAL_ROLES = {"o", "down"}  # those whose output is added to the residual stream
_BothStreams = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the streams are made of.

    Attributes:
        tokens: [n_samples, seq_len] token ids.
        batch_size: windows per forward pass.
        select: which tokens count in statistics.
        adapt_on: [n_windows, length] token ids of the evaluation, on which the last block is learned; None
            for all methods but `refine` with `adapt_on=evaluation`.
    """

    tokens: Tensor
    batch_size: int
    select: Tokens
    adapt_on: Tensor | None = None

    def windows_of(self, quant: QuantSection) -> Tensor:
        """Return the windows that a method reads in full."""
        return self.tokens[: quant.refinement.windows] if refines(quant) else self.tokens

    def of_evaluation(self, quant: QuantSection) -> tuple[Calibration, QuantSection]:
        """Return what the last block is adapted on, and the method as it is for that.

        All windows are learned from, and no scales, as LRQuant's test-time adaptation has it.
        """
        assert self.adapt_on is not None
        learned = {"windows": len(self.adapt_on), "start": "none"}
        refinement = quant.refinement.model_copy(update=learned)
        adapting = quant.model_copy(update={"refinement": refinement, "trace_windows": 0})
        return replace(self, tokens=self.adapt_on, adapt_on=None), adapting


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What both streams told of one role's input.

    Attributes:
        statistics: of it on the quantized stream; None where nothing is read.
        corrections: of the role's weights by linear; none for a role that is not corrected.
        cross: `RoundInput.cross` of the unscaled input; None where no rounding reads it.
    """

    statistics: RoleStatistics | None
    corrections: Mapping[str, Correction] = field(default_factory=dict)
    cross: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a block is learned from.

    Attributes:
        examples: what enters and leaves it.
        block: runs it with other weights.
        statistics: of its roles' inputs in full precision.
    """

    examples: Examples
    block: Block
    statistics: Mapping[str, RoleStatistics]


def reads_quantized(quant: QuantSection) -> bool:
    """Say whether a method reads what earlier quantization did to a linear's input."""
    return Reads.HESSIAN in method_of(quant).reads or corrects(quant) or refines(quant)


def reads_full(quant: QuantSection) -> bool:
    """Say whether a method reads all windows' activations in full precision, which no statistic holds."""
    return gathers_by_role(quant) or _runs_modules(quant) or refines(quant)


def refines(quant: QuantSection) -> bool:
    """Say whether blocks are learned as a whole, from what enters and leaves them on both streams."""
    return Reads.BLOCKS in method_of(quant).reads


def gathers_by_role(quant: QuantSection) -> bool:
    """Say whether statistics are gathered role by role, each with the roles before it quantized."""
    return corrects(quant) or _aligns(quant)


def n_tokens(quant: QuantSection, calibration: Calibration, *, observes: bool = False) -> int:
    """Return of how many tokens a method has hidden states at once, its sample's aside.

    Args:
        quant: the method.
        calibration: what its streams are made of.
        observes: as for `Streams`.
    """
    n_streams = (reads_full(quant) or observes) + reads_quantized(quant)
    copies = 2 if refines(quant) else 1  # of what enters a learned block, and what leaves it
    return copies * n_streams * calibration.windows_of(quant).numel()


def reads_sample(quant: QuantSection) -> bool:
    """Say whether a scale search or a preview reads the sample of the windows."""
    return _searches_on_sample(quant) or _looks_ahead(quant)


def reads_store(quant: QuantSection) -> bool:
    """Say whether a method reads the statistics of the full precision pass."""
    reads = method_of(quant).reads
    if Reads.LATER_MEANS in reads:
        return True
    # A corrected weight is fitted to the quantized stream: all else is then measured there.
    return bool(reads & {Reads.MEANS, Reads.EXTREMES, Reads.GRAM}) and not corrects(quant)


def may_observe_on_the_way(quant: QuantSection) -> bool:
    """Say whether a walk can gather these statistics itself, of the means of the model as loaded alone."""
    return reads_store(quant) and method_of(quant)["rotate"].is_idle and not refines(quant)


def reads_inputs(quant: QuantSection) -> bool:
    """Say whether any stage after the correction reads statistics of a linear's input."""
    return bool(method_of(quant).reads & {Reads.MEANS, Reads.EXTREMES, Reads.GRAM, Reads.HESSIAN})


def corrects(quant: QuantSection) -> bool:
    """Say whether any weight is moved; at strength 0 the method is the uncorrected one."""
    settings = quant.correction
    if method_of(quant)["correct"].is_idle:
        return False
    moves_by_residual = _reads_residuals(quant) and settings.residual_strength > 0
    moved_by_residual = _RESIDUAL_ROLES if moves_by_residual else ()
    return any(settings.strength_of(r) != 0 or r in moved_by_residual for r in settings.roles)


def _aligns(quant: QuantSection) -> bool:
    return Reads.BOTH_STREAMS in method_of(quant)["round"].reads


def _searches_on_sample(quant: QuantSection) -> bool:
    return _searches_alpha(quant) and quant.search.loss == "attention"


def _looks_ahead(quant: QuantSection) -> bool:
    preview = quant.preview
    is_read = Reads.LATER_MEANS in method_of(quant).reads and preview.gamma < 1
    return is_read and preview.window > 0 and preview.stream == "quantized"


def _runs_modules(quant: QuantSection) -> bool:
    return _searches_alpha(quant) and quant.search.loss == "module"


def _searches_alpha(quant: QuantSection) -> bool:
    return searches_scale(quant) and quant.search.n_grid > 0 and fixed_alpha(quant) is None


def _reads_residuals(quant: QuantSection) -> bool:
    return Reads.RESIDUALS in method_of(quant).reads and quant.correction.variant != "linear"


class Streams:
    """Both streams at the input of one block, and that block in full precision and as it is quantized.

    Attributes:
        drift: of the block that has arrived, for previews that read it; else empty.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        quant: QuantSection,
        calibration: Calibration,
        *,
        observes: bool = False,
        n_tokens_beside: int = 0,
    ) -> None:
        """Open the streams that a method reads.

        Args:
            loaded: the full precision model.
            quant: the method.
            calibration: what they are made of.
            observes: whether the statistics of the full precision pass are gathered here.
            n_tokens_beside: from `n_tokens`, of other streams that go side by side with these.
        """
        self._quant = quant
        self._select: Tokens = calibration.select
        self._quantized: BlockStream | None = None
        self._full: BlockStream | None = None
        self._sample: Sample | None = None
        tokens, n_traced = calibration.tokens, quant.trace_windows
        if n_carried := n_tokens(quant, calibration, observes=observes):
            read = calibration.windows_of(quant)
            n_beside = -(-(n_carried + n_tokens_beside) // read.numel())
            opened = open_stream(loaded.view, read, calibration.batch_size, n_beside)
            self._full = opened if reads_full(quant) or observes else None
            if reads_quantized(quant):
                self._quantized = opened if self._full is None else opened.fork()
        if n_traced > 0 or reads_sample(quant):
            searched: Searched | None = None
            if _searches_on_sample(quant):
                searched = "quantized" if corrects(quant) else "full"
            self._sample = Sample(
                loaded, tokens, n_traced=n_traced, searched=searched, looks_ahead=_looks_ahead(quant)
            )
        self._model = loaded.view
        self.drift: Drift = ()
        settings = quant.activations
        self._grid = settings if settings.bits is not None and settings.seen_by_rounding else None
        self._original: nn.Module = nn.Identity()
        self._block: nn.Module = nn.Identity()

    def arrive(self, original: nn.Module, block: nn.Module) -> None:
        """Take the next block in full precision, and its twin whose weights are about to be replaced."""
        self._original, self._block = original, block
        if self._sample is not None:
            self._sample.arrive(original)
            if _looks_ahead(self._quant):
                n_ahead = n_blocks_ahead(self._model.architecture, self._quant.preview)
                roles = self._model.architecture.roles
                self.drift = self._sample.drift(self._model, n_ahead, roles, self._select)

    def quantize_inputs(self, role: Role, linears: Iterable[str]) -> None:
        """Let some linears of a role of the twin round their inputs, where roundings are to see that."""
        if self._grid is not None and role.name in self._grid.targets:
            for linear in linears:
                prepare(self._block, linear, ActivationGrid(self._grid, None, None))

    def settle(self, linear: str, input_scale: Tensor | None) -> None:
        """Let a linear whose scale is known divide its input by it, where it rounds it.

        Before, the scale is not known, and the input is on a grid without one.
        """
        module = self._block.get_submodule(linear)
        if input_scale is None or not isinstance(module, PreparedLinear):
            return
        if self._grid is not None and isinstance(module.steps[-1], ActivationGrid):
            module.steps[-1] = ActivationGrid(self._grid, input_scale, None)

    def observe_full(self, roles: tuple[Role, ...]) -> Mapping[str, RoleStatistics]:
        """Return the statistics of the roles' inputs in full precision, in one pass."""
        assert self._full is not None
        stays = reads_full(self._quant)
        return observe_block(self._full, self._original, roles, self._select, advance=not stays)

    def pass_by(self) -> None:
        """Leave a block unobserved, whose statistics nobody needs any more."""
        if self._full is not None and not reads_full(self._quant):
            self._full.advance(self._original)

    def observe(self, roles: tuple[Role, ...]) -> Mapping[str, RoleStatistics]:
        """Return the statistics of the roles' inputs on the quantized stream, in one pass."""
        assert self._quantized is not None
        return observe_block(self._quantized, self._block, roles, self._select, advance=False)

    def gather(self, role: Role, weights: Mapping[str, Tensor]) -> Gathered:
        """Return what is read of one role's input with the roles before it quantized, in one pass.

        Args:
            role: the role.
            weights: of its linears, float32 [out_features, in_features].
        """
        quant, first = self._quant, next(iter(weights.values()))
        is_corrected = corrects(quant) and role.name in quant.correction.roles
        uses_residual = is_corrected and _reads_residuals(quant) and role.name in _RESIDUAL_ROLES
        correction = self._correction(role, weights, uses_residual) if is_corrected else None
        cross = CrossAccumulator(first.shape[1], first.device) if _aligns(quant) else None
        gathering = [a for a in (correction, cross) if a is not None]
        if not gathering:
            return Gathered(statistics=self._observe_role(role) if reads_inputs(quant) else None)
        for is_held, tokens in self._tokens(role, uses_residual):
            if correction is not None:
                correction.add(*tokens, is_held=is_held)
            if cross is not None:
                cross.add(*tokens)
        statistics = gathering[0].statistics()
        self._check_finite(statistics, role)
        corrections = {} if correction is None else correction.corrected()
        # What a correction has made up for, a rounding is not to make up for again.
        left = 1.0 - max((c.strength for c in corrections.values()), default=0.0)
        return Gathered(
            statistics=statistics,
            corrections=corrections,
            cross=None if cross is None else left * cross.cross(),
        )

    def lesson(self, roles: tuple[Role, ...], *, homologous: bool) -> Lesson:
        """Return what the block is learned from.

        Args:
            roles: whose inputs are to be known in full precision.
            homologous: whether the full precision block's output on the quantized stream is wanted too.
        """
        assert self._full is not None and self._quantized is not None
        full, same_input = self._full.fork(), None
        statistics = observe_block(full, self._original, roles, self._select, advance=True)
        if homologous:
            same_input = self._quantized.fork()
            same_input.advance(self._original)
        block, kwargs = self._block, self._quantized.kwargs[self._quantized.index]

        def run(hidden: Tensor, given: Mapping[str, StandIn]) -> Tensor:
            for name, stand_in in given.items():
                self.settle(name, stand_in.input_scale)
            weights = {f"{name}.weight": g.weight.to(hidden.dtype) for name, g in given.items()}
            output = functional_call(block, weights, (hidden.to(self._model.device),), kwargs)
            result: Tensor = output[0] if isinstance(output, tuple) else output
            return result

        examples = Examples(
            inputs=self._quantized.hidden,
            wanted=full.hidden,
            homologous=None if same_input is None else same_input.hidden,
        )
        return Lesson(examples=examples, block=run, statistics=statistics)

    def objective(self, role: Role) -> ModuleObjective | None:
        """Return what the scale search of a role runs, on the stream that its searches measure on.

        None when the Gram matrix is all it needs.
        """
        if _searches_on_sample(self._quant):
            if role.name != "qkv":
                return None
            assert self._sample is not None
            return SampledObjective(stream=self._sample.searched(), block=self._block, role=role)
        if not _runs_modules(self._quant):
            return None
        if corrects(self._quant):
            assert self._quantized is not None
            return ModuleObjective(stream=self._quantized, block=self._block, role=role)
        assert self._full is not None
        return ModuleObjective(stream=self._full, block=self._original, role=role)

    def release(self) -> BlockReport | None:
        """Move all streams past the block, report its error, and let it go; None when nothing is traced."""
        if self._full is not None and reads_full(self._quant):  # else observing moved it
            self._full.advance(self._original)
        if self._quantized is not None:
            self._quantized.advance(self._block)
        report = self._sample.release(self._block) if self._sample is not None else None
        self._original = self._block = nn.Identity()
        return report

    def _observe_role(self, role: Role) -> RoleStatistics:
        """Return the statistics of one role's input, with the roles before it quantized."""
        assert self._quantized is not None
        linear = self._block.get_submodule(role.linears[0])
        assert isinstance(linear, nn.Linear)
        accumulator = Accumulator(linear.in_features, linear.weight.device)
        for _, x, _ in self._quantized.inputs_of(self._block, role.linears[0]):
            accumulator.add(select_tokens(x, self._select))
        statistics = accumulator.result()
        self._check_finite(statistics, role)
        return statistics

    def _correction(
        self, role: Role, weights: Mapping[str, Tensor], uses_residual: bool
    ) -> CorrectionAccumulator:
        settings = self._quant.correction
        settings = settings.model_copy(update={"strength": settings.strength_of(role.name)})
        make = call_of(method_of(self._quant)["correct"])
        accumulator: CorrectionAccumulator = make(dict(weights), settings, uses_residual=uses_residual)
        return accumulator

    def _tokens(self, role: Role, uses_residual: bool) -> Iterator[tuple[bool, _BothStreams]]:
        """Yield the tokens that count of a role's input on both streams, and of the residuals, or None.

        Before them stands whether a search of the correction's strength holds them out.
        """
        assert self._full is not None and self._quantized is not None
        searches = self._quant.correction.strength_of(role.name) == "search"
        n_windows = len(self._full.hidden)
        beside = role.adds_to if uses_residual else None
        full = self._full.inputs_of(self._original, role.linears[0], beside)
        quantized = self._quantized.inputs_of(self._block, role.linears[0], beside)
        for (rows, x, r), (_, x_hat, r_hat) in zip(full, quantized, strict=True):
            held = [searches and is_held_out(w, n_windows) for w in range(n_windows)[rows]]
            for is_held in dict.fromkeys(held):
                cut = torch.tensor([is_one == is_held for is_one in held], device=x.device)
                x_part, x_hat_part, r_part, r_hat_part = (
                    None if h is None else select_tokens(h[cut] if searches else h, self._select)
                    for h in (x, x_hat, r, r_hat)
                )
                assert x_part is not None and x_hat_part is not None
                yield is_held, (x_part, x_hat_part, r_part, r_hat_part)

    def _check_finite(self, statistics: RoleStatistics, role: Role) -> None:
        assert self._quantized is not None
        check_finite(statistics, self._quantized.index, role)


def check_correction(quant: QuantSection, roles: tuple[Role, ...]) -> None:
    """Refuse a residual correction of a family whose blocks do not write straight to the residual.

    Raises:
        UserError: naming the variant that works.
    """
    if not _reads_residuals(quant) or not corrects(quant):
        return
    writers = [r for r in roles if r.name in _RESIDUAL_ROLES & set(quant.correction.roles)]
    if any(role.adds_to is None for role in writers):
        raise UserError(
            f"quant.correction.variant={quant.correction.variant} needs o and down to add straight to "
            "the residual stream, and this family puts a norm between; use "
            "quant.correction.variant=linear."
        )
