"""Sanity gates: what must hold in any finished cell, whatever its numbers; and the leak guard before it.

    finite                       no NaN or infinity in metrics, tokens, items, reports or weights
    tied_weights                 embeddings and output head are one tensor where the config says so
    rotation_is_exact            the rotated model gave the logits of the model as loaded
    all_linears_quantized        as many linears as the architecture has, less those skipped on purpose
    above_chance                 the mean accuracy over tasks is more than guessing gives
    requests_fit                 of no task are more than 1 % of the requests cut at the model's context
    same_tokens                  a protocol's tokens are those that other runs of this model scored
    unseen_text                  fails where weights were calibrated or learned on the text that is scored
    not_worse_than_rtn           see `neighbours.py`
    not_worse_than_fewer_bits    see `neighbours.py`

A gate that fails marks the run loudly, in its record and everywhere the record is shown; it does not
fail the run, since the numbers may be what the user wants to see.

The leak guard does: no number on text that the quantizer was calibrated on, unless the user says so by
name. Each protocol and task of a cell is compared with the texts that its calibration windows were drawn
from (`evaluation.overlap`). What overlaps is counted, recorded, and refused before the long stages begin;
`scenario.allow_overlap` names the protocols and tasks, or patterns of them, that may overlap.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from faqbench.calibration import CalibrationSet
from faqbench.config import UserError
from faqbench.config.identity import method_in
from faqbench.evaluation import (
    Overlap,
    calibration_grams,
    count_overlap,
    protocol_passages,
    resolve_protocol,
    task_passages,
)
from faqbench.foreign import read_as
from faqbench.models import Model, is_finite
from faqbench.pipeline.cell import CellRun
from faqbench.pipeline.evaluating import Evaluated
from faqbench.pipeline.neighbours import Neighbours
from faqbench.quantization import QuantizedModel, RotationReport
from faqbench.records import Gate, RunRecord, truncated_requests

# One-sided 95 %: how many standard errors above chance a mean accuracy must be.
_ABOVE = 1.645
# With a standard error above this, a model that knows much more than chance could fail too.
_COARSEST_STDERR = 0.05
_MOST_TRUNCATED = 0.01


@dataclass(frozen=True, kw_only=True)
class WeightsCheck:
    """What the gates need to know of a model's weights.

    Attributes:
        linears: full names of all linears that a quantizer is responsible for.
        not_finite: names of parameters that hold NaN or infinity.
        is_tied: whether output head and embedding are one tensor.
        wants_tied: whether the config says so.
    """

    linears: tuple[str, ...]
    not_finite: tuple[str, ...]
    is_tied: bool
    wants_tied: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Finished:
    """All that the gates of a finished cell look at.

    Attributes:
        record: of the cell, its gates not yet known.
        evaluated: its token and item tables.
        weights: what its weights look like.
        quantized: the reports of its linears; None for the baseline.
        neighbours: finished runs that it can be compared with.
    """

    record: RunRecord
    evaluated: Evaluated
    weights: WeightsCheck
    quantized: QuantizedModel | None
    neighbours: Neighbours


def check_gates(cell: Finished) -> tuple[Gate, ...]:
    """Return the outcome of every gate that says something about the cell."""
    gates = [_finite(cell), _tied(cell.weights)]
    if cell.quantized is not None:
        gates.append(_all_quantized(cell.record, cell.weights, cell.quantized))
        if cell.quantized.rotation is not None:
            gates.append(_exactly_rotated(cell.quantized.rotation))
    if cell.record.config["evaluation"]["tasks"]:
        gates.append(_above_chance(cell.record))
        gates.append(_requests_fit(cell.record))
    if cell.record.config["evaluation"]["protocols"]:
        gates.append(cell.neighbours.same_tokens(cell.record))
    if (leak := _leak(cell.record)) is not None:
        gates.append(Gate(name="unseen_text", passed=False, detail=leak))
    if cell.quantized is not None:
        gates.append(cell.neighbours.not_worse_than_rtn(cell.record, cell.evaluated))
        gates.append(cell.neighbours.not_worse_than_fewer_bits(cell.record, cell.evaluated))
    return tuple(gates)


def _finite(cell: Finished) -> Gate:
    """Check that every number of the run, and every weight, is one."""
    bad = [
        f"{m.task} {m.name}" for m in cell.record.metrics if m.value is None or not math.isfinite(m.value)
    ]
    bad += [
        f"tokens of {name} ({n} of {values.size})"
        for name, values in cell.evaluated.tokens.items()
        if (n := int((~np.isfinite(values)).sum()))
    ]
    items = cell.evaluated.items
    finite = np.isfinite(items["value"].astype("float64"))
    bad += [f"items of {task}" for task in items.loc[~finite, "task"].unique()]
    bad += [f"weights of {name}" for name in cell.weights.not_finite]
    if cell.quantized is not None:
        bad += [f"report of block {r.block} {r.linear}" for r in _broken(cell.quantized)]
    shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    return Gate(
        name="finite",
        passed=not bad,
        detail=f"not finite: {shown}" if bad else "metrics, tokens, items and weights are finite",
    )


def _broken(quantized: QuantizedModel) -> Sequence[Any]:
    def numbers(report: Any) -> list[float]:
        return [v for v in vars(report).values() if isinstance(v, float)]

    return [r for r in quantized.linears if not all(map(math.isfinite, numbers(r)))]


def _tied(weights: WeightsCheck) -> Gate:
    return Gate(
        name="tied_weights",
        passed=weights.is_tied == weights.wants_tied,
        detail=f"embeddings are {'' if weights.is_tied else 'not '}tied, "
        f"the config says {weights.wants_tied}",
    )


def _leak(record: RunRecord) -> str | None:
    """Return what was done on the evaluation's own text, on purpose; None where nothing was."""
    config, method = record.config, method_in(record.config)
    seen = []
    if method.is_calibrated and config["scenario"].get("leak"):
        seen.append("calibrated on it")
    if method.owns("refinement") and config["quant"]["refinement"].get("adapt_on"):
        seen.append("the last block learned on it")
    return f"the text that is scored was seen: {' and '.join(seen)}" if seen else None


def _exactly_rotated(rotation: RotationReport) -> Gate:
    return Gate(
        name="rotation_is_exact",
        passed=rotation.logit_error <= rotation.tolerance,
        detail=f"logits differ by {rotation.logit_error:.2g} before anything is quantized, "
        f"{rotation.tolerance:.2g} is allowed",
    )


def _all_quantized(record: RunRecord, weights: WeightsCheck, quantized: QuantizedModel) -> Gate:
    skips, n_quantized = record.config["quant"]["skip"], len(quantized.linears)
    skipped = [name for name in weights.linears if any(fnmatchcase(name, s) for s in skips)]
    return Gate(
        name="all_linears_quantized",
        passed=n_quantized == len(weights.linears) - len(skipped),
        detail=f"{n_quantized} of {len(weights.linears)} linears"
        + (f", {len(skipped)} skipped by {', '.join(skips)}" if skips else ""),
    )


def _above_chance(record: RunRecord) -> Gate:
    """Compare the mean accuracy over multiple-choice tasks with that of guessing."""
    chance: Mapping[str, float] = {
        task: value
        for facts in record.extra["evaluation"].values()
        for task, value in facts.get("chance", {}).items()
    }
    scored = [
        (m, chance[m.task])
        for m in record.metrics
        if m.name == "acc" and m.task in chance and m.value is not None and m.stderr is not None
    ]
    if not scored:
        return Gate(name="above_chance", passed=True, detail="no multiple-choice task: nothing to compare")
    mean = float(np.mean([m.value for m, _ in scored]))
    guess = float(np.mean([c for _, c in scored]))
    stderr = math.sqrt(sum(float(m.stderr or 0.0) ** 2 for m, _ in scored)) / len(scored)
    margin = _ABOVE * stderr
    detail = f"mean accuracy {mean:.3f} ± {stderr:.3f}, chance {guess:.3f}"
    if not stderr <= _COARSEST_STDERR:
        return Gate(name="above_chance", passed=True, detail=f"{detail}: too few items to tell")
    low = [m.task for m, c in scored if float(m.value or 0.0) <= c + _ABOVE * float(m.stderr or 0.0)]
    if low:
        detail += f"; not above it: {', '.join(low)}"
    return Gate(name="above_chance", passed=mean > guess + margin, detail=detail)


def _requests_fit(record: RunRecord) -> Gate:
    cut = truncated_requests(record)
    told = [f"{n} of {total} requests of {task} ({n / total:.1%})" for task, (n, total) in cut.items()]
    return Gate(
        name="requests_fit",
        passed=all(n <= _MOST_TRUNCATED * total for n, total in cut.values()),
        detail=f"cut at the model's context: {', '.join(told)}" if told else "no request was cut",
    )


def build_check(cell: CellRun, folder: Path) -> None:
    """Look over the weights that the cell evaluates."""
    write_check(look_over(cell.model.evaluated()), folder)


def write_check(check: WeightsCheck, folder: Path) -> None:
    """Write what was found."""
    (folder / "check.json").write_text(json.dumps(asdict(check)))


def load_check(_: CellRun, folder: Path) -> WeightsCheck:
    """Read what was found."""
    return read_as(folder / "check.json", WeightsCheck)


def look_over(model: Model) -> WeightsCheck:
    """Look over the weights of a model, some rows of a streamed one at a time."""
    return WeightsLook(model).check()


class WeightsLook:
    """A passenger who looks over the weights of a model's blocks; what it has not seen is read at the end.

    Attributes:
        model: that is looked at.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._is_finite: dict[str, bool] = {}

    def work(self, index: int, block: nn.Module) -> None:
        """Look over a block."""
        for name, parameter in block.named_parameters(f"{self.model.architecture.blocks}.{index}"):
            self._is_finite[name] = is_finite(parameter)

    def check(self) -> WeightsCheck:
        """Return what there is to tell of all weights."""
        model, names = self.model, [name for name, _ in self.model.module.named_parameters()]
        for name in names:
            if name not in self._is_finite:
                self._is_finite[name] = all(map(is_finite, model.pieces(name)))
        head, embedding = model.module.get_output_embeddings(), model.module.get_input_embeddings()
        return WeightsCheck(
            linears=tuple(model.architecture.linear_names()),
            not_finite=tuple(name for name in names if not self._is_finite[name]),
            is_tied=head is not None and head.weight is embedding.weight,
            wants_tied=bool(model.module.config.get_text_config().tie_word_embeddings),
        )


def build_overlap(name: str, cell: CellRun, folder: Path) -> None:
    """Count the passages of a protocol or task that share text with the calibration set.

    Raises:
        UserError: for an evaluation whose text cannot be had.
    """
    calibration: CalibrationSet = cell.get("calibration")
    overlap = count_overlap(_passages(name, cell), calibration_grams(calibration.texts))
    (folder / "overlap.json").write_text(json.dumps(asdict(overlap)))


def load_overlap(name: str, cell: CellRun, folder: Path) -> int:
    """Return how many passages of a protocol or task overlap with the calibration texts.

    Raises:
        UserError: when some do and that is not allowed.
    """
    overlap = read_as(folder / "overlap.json", Overlap)
    allowed = cell.experiment.scenario.allow_overlap
    if overlap.n_overlapping and not any(fnmatchcase(name, pattern) for pattern in allowed):
        calibration: CalibrationSet = cell.get("calibration")
        raise UserError(
            f"'{name}' shares {overlap.n_overlapping} of its {overlap.n_passages} passages with the "
            f"texts of the calibration set ({calibration.domain}), so its number would flatter the "
            "method; calibrate on other text, or allow it with "
            f"scenario.allow_overlap=[{name}]."
        )
    return overlap.n_overlapping


def _passages(name: str, cell: CellRun) -> Sequence[str]:
    if name in cell.experiment.evaluation.tasks:
        return task_passages(name, cell.experiment, cell.progress)
    protocol = resolve_protocol(name, cell.experiment.data)
    return protocol_passages(protocol, cell.experiment, cell.progress)
